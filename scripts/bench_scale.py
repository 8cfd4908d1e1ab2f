"""What numbers of jobs, and slow endpoints, do to a tick.

An idle tick over a million jobs beside one over a hundred; the write transaction of a tick that finds 500 of
10,000 jobs due; the same with a long history of ended runs in the store; and how long a tick of 27 HTTP jobs
holds the lock when their endpoints answer at once, and when they take five seconds. The program makes each store
and its first job; plain SQL multiplies that job.
"""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench_stats import (
    Command,
    Goal,
    Home,
    Meter,
    arguments,
    brief,
    endpoint,
    machine_line,
    paired_ratio,
    percentile,
    print_table,
    spread,
    temporary_home,
    verdict,
)

import carolctl

FEW, MANY = 100, 1_000_000
FLEET, DUE = 10_000, 500
AGENTS = 27
HISTORY = 100_000
HOUR_MS = 3_600_000


def multiply(home: Home, count: int, *, due: int = 0) -> None:
    """Make `count` jobs of the one that is there: hourly ones whose next slot is a day off, but `due` missed one."""
    with closing(sqlite3.connect(home.database, isolation_level=None)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(scheduled_jobs)")]
        copied = ", ".join(columns)
        changed = ", ".join("printf('job-%07d', n)" if name == "job_id" else name for name in columns)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            f"""
            WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
            INSERT INTO scheduled_jobs ({copied}) SELECT {changed} FROM number, scheduled_jobs
            """,
            (count,),
        )
        connection.execute("DELETE FROM scheduled_jobs WHERE job_id = 'pattern'")
        now = time.time_ns() // 1_000_000
        slot = now - now % HOUR_MS
        connection.execute(
            "UPDATE scheduled_jobs SET next_fire_at = ? + (rowid * 7919) % ?, last_scheduled_for = ?",
            (now + 24 * HOUR_MS, 24 * HOUR_MS, slot),
        )
        connection.execute(
            "UPDATE scheduled_jobs SET next_fire_at = ?1, last_scheduled_for = ?1 - ?2, anchor_at = ?1 - ?2"
            " WHERE rowid IN (SELECT rowid FROM scheduled_jobs ORDER BY job_id LIMIT ?3)",
            (slot, HOUR_MS, due),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@contextmanager
def store_of(count: int, *, due: int = 0, action: tuple[str, ...] = ("--", "sleep", "60")) -> Iterator[Home]:
    """A data home with `count` hourly jobs of one action, `due` of them due."""
    with temporary_home() as home:
        home.carolctl("add-job", "pattern", "--cron", "0 * * * *", *action)
        multiply(home, count, due=due)
        yield home


# -- an idle tick ------------------------------------------------------------------------------------------


def idle_ticks(runs: int, *, markdown: bool) -> list[Goal]:
    """The same tick over few and over many jobs, in turns."""
    with store_of(FEW) as few, store_of(MANY) as many, Meter() as meter:
        size = Path(many.database).stat().st_size / 2**20
        commands = [_idle(few, f"{FEW:,} jobs"), _idle(many, f"{MANY:,} jobs ({size:.0f} MiB)")]
        for home in (few, many):
            home.carolctl("tick")
        samples = meter.in_turns(commands, runs, warm_up=5)
    small, large = (samples[command.name] for command in commands)
    wall = paired_ratio([one.wall_ms for one in large], [one.wall_ms for one in small])
    cpu = paired_ratio([one.cpu_ms for one in large], [one.cpu_ms for one in small])
    rows = [
        [name, spread([one.wall_ms for one in taken]), spread([one.cpu_ms for one in taken])]
        for name, taken in samples.items()
    ]
    rows.append(["paired ratio", f"{wall:.3f}", f"{cpu:.3f}"])
    print_table(["idle tick", "wall ms (least-most)", "CPU ms (least-most)"], rows, markdown=markdown)
    return [Goal(name=f"idle tick, {MANY:,} jobs beside {FEW}, wall", value=wall, most=1.05)]


def _idle(home: Home, name: str) -> Command:
    main = str(Path(carolctl.__file__).with_name("__main__.py"))
    return Command(name=name, argv=[sys.executable, "-I", main, "tick"], env=home.env)


# -- the write transaction ---------------------------------------------------------------------------------


def write_transactions(runs: int, *, markdown: bool) -> list[Goal]:
    """How long a tick holds the lock when many are due: rehearsed by the same code, and a few for real."""
    rows = []
    with store_of(FLEET, due=DUE) as home:
        rehearsed = [home.carolctl("tick", "--dry-run") for _ in range(max(10, runs // 2))]
        assert all(len(report["fired"]) == DUE for report in rehearsed), "a rehearsal must find them all due"
        rows.append(_lock_row(f"{FLEET:,} jobs, {DUE} due, --dry-run", rehearsed))
        real = [_real_tick(home) for _ in range(max(5, runs // 8))]
        assert all(len(report["fired"]) == DUE for report in real)
        rows.append(_lock_row(f"{FLEET:,} jobs, {DUE} due, cap 2", real))
    print_table(["tick", "times", "lock ms p50 (least-most)", "whole tick ms p50"], rows, markdown=markdown)
    name = f"write transaction, {FLEET:,} jobs, {DUE} due, p50"
    return [
        Goal(name=f"{name}, rehearsed", value=_p50(rehearsed), most=15, unit="ms"),
        Goal(name=f"{name}, for real", value=_p50(real), most=15, unit="ms"),
    ]


def _lock_row(name: str, reports: list[dict[str, float]]) -> list[str]:
    locked = [report["write_lock_ms"] for report in reports]
    elapsed = statistics.median(report["elapsed_ms"] for report in reports)
    return [name, str(len(reports)), spread(locked), brief(elapsed)]


def _p50(reports: list[dict[str, float]]) -> float:
    return statistics.median(report["write_lock_ms"] for report in reports)


def _real_tick(pattern: Home, **settings: str) -> dict[str, float]:
    """One tick in a copy of `pattern`; whatever it launched is ended."""
    with temporary_home(**settings) as home:
        shutil.copy(pattern.database, home.database)
        report: dict[str, float] = home.carolctl("tick")
        return report


# -- a long history ----------------------------------------------------------------------------------------


def ticks_with_history(runs: int, *, markdown: bool) -> list[Goal]:
    """The rehearsed tick of 27 due jobs in a new store, and where a quarter of a year of runs has been kept."""
    with store_of(AGENTS, due=AGENTS) as young, store_of(AGENTS, due=AGENTS) as old:
        _add_ended_runs(old)
        homes = {"no runs yet": young, f"{HISTORY:,} ended runs": old}
        reports: dict[str, list[dict[str, float]]] = {name: [] for name in homes}
        for _ in range(max(10, runs // 2)):
            for name, home in homes.items():
                reports[name].append(home.carolctl("tick", "--dry-run"))
    rows = [_lock_row(f"{AGENTS} jobs due, {name}", taken) for name, taken in reports.items()]
    print_table(["tick", "times", "lock ms p50 (least-most)", "whole tick ms p50"], rows, markdown=markdown)
    without, behind = ([one["write_lock_ms"] for one in taken] for taken in reports.values())
    return [
        Goal(
            name=f"lock beside {HISTORY:,} ended runs and beside none",
            value=paired_ratio(behind, without),
            most=1.5,
        )
    ]


def _add_ended_runs(home: Home) -> None:
    with closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute(
            """
            WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
            INSERT INTO runs (job_id, source, status, queued_at, completed_at)
            SELECT printf('job-%07d', 1 + n % ?), 'manual', 'completed', n, n FROM number
            """,
            (HISTORY, AGENTS),
        )


# -- slow endpoints ----------------------------------------------------------------------------------------


def dispatching_ticks(runs: int, *, markdown: bool) -> list[Goal]:
    """Ticks that dispatch to 27 endpoints: quick ones and slow ones in turns, each in a store of its own."""
    delays = (0.0, 5.0)
    reports: dict[float, list[dict[str, float]]] = {delay: [] for delay in delays}
    with (
        endpoint() as url,
        store_of(AGENTS, due=AGENTS, action=("--url", url(delays[0]))) as quick,
        store_of(AGENTS, due=AGENTS, action=("--url", url(delays[1]))) as slow,
    ):
        for _ in range(runs):
            for delay, pattern in zip(delays, (quick, slow), strict=True):
                report = _real_tick(pattern, SCHEDULE_MAX_CONCURRENT=str(AGENTS))
                assert len(report["launched"]) == AGENTS  # type: ignore[arg-type]
                reports[delay].append(report)
    locked = {delay: [report["write_lock_ms"] for report in taken] for delay, taken in reports.items()}
    rows = [
        [
            f"{AGENTS} HTTP jobs, endpoints answer after {delay:g} s",
            str(len(taken)),
            *(brief(percentile(taken, share)) for share in (0.5, 0.95, 0.99)),
            brief(max(taken)),
            brief(statistics.median(report["elapsed_ms"] for report in reports[delay])),
        ]
        for delay, taken in locked.items()
    ]
    header = ["tick", "times", "lock ms p50", "p95", "p99", "most", "whole tick ms p50"]
    print_table(header, rows, markdown=markdown)
    return [
        *(
            Goal(
                name=f"lock of a tick of {AGENTS}, answers after {delay:g} s, p99",
                value=percentile(taken, 0.99),
                most=10,
                unit="ms",
            )
            for delay, taken in locked.items()
        ),
        Goal(
            name="lock with slow beside quick endpoints, p50",
            value=paired_ratio(locked[delays[1]], locked[delays[0]]),
            most=1.25,
        ),
    ]


def main() -> int:
    options = arguments(__doc__, runs=40)
    print(machine_line(), end="\n\n")
    goals = [
        *idle_ticks(options.runs, markdown=options.markdown),
        *write_transactions(options.runs, markdown=options.markdown),
        *ticks_with_history(options.runs, markdown=options.markdown),
        *dispatching_ticks(options.runs, markdown=options.markdown),
    ]
    return verdict(goals, report=options.report)


if __name__ == "__main__":
    sys.exit(main())
