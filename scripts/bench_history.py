"""What a long history costs those who ask: a job with 1,000,000 ended runs beside one with 1,000.

The real program makes a store, its first job and its first run; plain SQL multiplies the run and its metrics.
list-runs, stats and why are asked about that one job, in turn in either store; then prune empties the large store,
and the longest of its writes is reported.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bench_stats import (
    Goal,
    Home,
    Meter,
    arguments,
    brief,
    machine_line,
    paired_ratio,
    percentile,
    print_table,
    spread,
    temporary_home,
    verdict,
)

FEW, MANY = 1_000, 1_000_000
QUESTIONS = {
    "list-runs": ("list-runs", "--job", "pattern", "--json"),
    "list-runs, failed": ("list-runs", "--job", "pattern", "--status", "failed", "--json"),
    "stats": ("stats", "pattern", "--json"),
    "why": ("why", "pattern", "--json"),
}
DAY_MS, MINUTE_MS = 86_400_000, 60_000


def multiply(home: Home, count: int) -> None:
    """Make `count` scheduled runs, one for each past minute, of the one that is there; every tenth has failed."""
    slot = int(time.time()) // 60 * MINUTE_MS // 1000 * 1000
    with closing(sqlite3.connect(home.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        for table in ("runs", "schedule_firing_metrics"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            columns = ", ".join(_CHANGED.get(name, name) for name in names)
            connection.execute(
                "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)"
                f" INSERT INTO {table} SELECT {columns} FROM number, {table}",
                {"count": count, "slot": slot},
            )
        connection.execute(
            "UPDATE scheduled_jobs SET last_scheduled_for = ?1, anchor_at = ?1 - 60000 * (?2 + 1)",
            (slot, count),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


_AT = ":slot - (:count - n) * 60000"
_CHANGED = {
    **dict.fromkeys(
        (
            "scheduled_for",
            "slots_from",
            "queued_at",
            "slot_claimed_at",
            "started_at",
            "completed_at",
            "fired_at",
        ),
        _AT,
    ),
    "run_id": "run_id + n",
    "source": "'scheduled'",
    "status": "iif(n % 10 = 0, 'failed', 'completed')",
    "failure_reason": "iif(n % 10 = 0, 'exit_nonzero', NULL)",
}


@contextmanager
def store_of(count: int) -> Iterator[Home]:
    """A data home whose one job has `count` ended runs."""
    with temporary_home() as home:
        home.carolctl("add-job", "pattern", "--cron", "* * * * *", "--", "true")
        home.carolctl("run-job", "pattern", "--wait")
        multiply(home, count)
        yield home


def prune_all(home: Home) -> tuple[int, list[float], float]:
    """Prune the whole history: rows gone, each write in ms, seconds in all."""
    os.environ["CAROL_DATA_DIR"] = str(home.folder)
    from carolctl import prune
    from carolctl.model import Millis
    from carolctl.session import Session, open_session

    session = open_session()
    later = Session(store=session.store, now=Millis(session.now + 400 * DAY_MS), actor="bench")
    writes: list[float] = []
    grow = prune.next_batch

    def watched(size: int, took_ms: float) -> int:
        writes.append(took_ms)
        return grow(size, took_ms)

    prune.next_batch = watched
    began = time.monotonic()
    gone = prune.prune(later)
    return sum(gone.values()), writes, time.monotonic() - began


def questions(runs: int, few: Home, many: Home, *, markdown: bool) -> list[Goal]:
    """Each question in turn in either store."""
    rows, goals = [], []
    with Meter() as meter:
        for name, words in QUESTIONS.items():
            small, large = (
                home.command(f"{name} of {size:,}", *words) for home, size in ((few, FEW), (many, MANY))
            )
            samples = meter.in_turns([small, large], runs)
            one, other = ([sample.wall_ms for sample in samples[command.name]] for command in (small, large))
            ratio = paired_ratio(other, one)
            rows.append([name, spread(one), spread(other), f"{ratio:.3f}"])
            goals.append(Goal(name=f"{name}, {MANY:,} runs beside {FEW:,}", value=ratio, most=1.5))
    header = ["one job", f"{FEW:,} runs, ms", f"{MANY:,} runs, ms", "paired ratio"]
    print_table(header, rows, markdown=markdown)
    return goals


def main() -> int:
    options = arguments(__doc__, runs=15)
    print(machine_line(), end="\n\n")
    with store_of(FEW) as few, store_of(MANY) as many:
        goals = questions(options.runs, few, many, markdown=options.markdown)
        gone, writes, seconds = prune_all(many)
    rows = [
        [f"{gone:,}", str(len(writes)), brief(percentile(writes, 0.5)), brief(max(writes)), brief(seconds)]
    ]
    print_table(["rows pruned", "writes", "ms p50", "most", "seconds"], rows, markdown=options.markdown)
    goals.append(Goal(name="pruning, the longest write", value=max(writes), most=50, unit="ms"))
    return verdict(goals, report=options.report)


if __name__ == "__main__":
    sys.exit(main())
