#!/usr/bin/env python3
"""Hold the planner database's write lock for minutes, without a gap, and see that no scheduled run minds.

    scripts/soak.py                     ten minutes, a tick every 30 s
    scripts/soak.py --seconds 60 --tick-every 5 --json

Another program holds the write lock of the planner database all the time. Meanwhile jobs fall due and ticks fire
them. What must hold: every tick ends within its 25 s with exit 0; every slot has its run, and none starts later
than the cadence of the ticks explains; the holder is named within 3 s, by ``locks`` and by the tick's own warning;
and once the lock is released, the whole backlog is in the ledger within 60 s, each run in exactly one row.

Exit status: 0 all of it held; 1 something did not.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_planner_db

LONGEST_TICK_SEC = 25
MIRRORED_WITHIN_SEC = 60
NAMED_WITHIN_SEC = 3
#: What a busy machine may add to the start of a run, beyond the cadence of the ticks.
_SLACK_SEC = 5
_JOBS = 6

_HOG = r"""
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("PRAGMA journal_mode = %s" % sys.argv[2])
connection.execute("BEGIN IMMEDIATE")
print("holding", flush=True)
sys.stdin.read()
connection.execute("COMMIT")
"""


@dataclass(slots=True, kw_only=True)
class Report:
    """What was seen; times in seconds."""

    seconds: float
    journal_mode: str
    ticks: int = 0
    longest_tick_sec: float = 0.0
    runs: int = 0
    missing_slots: int = 0
    latest_start_sec: float = 0.0
    longest_backlog: int = 0
    mirrored_after_sec: float = 0.0
    holder_named_after_sec: float | None = None
    named_by_the_tick: bool = False
    problems: list[str] = field(default_factory=list)


class Soak:
    """One data home, one planner database, and the program under test."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.home = folder / "home"
        self.planner = folder / "plangenerator.db"
        self.options = options
        self.report = Report(seconds=options.seconds, journal_mode=options.journal_mode)
        with closing(sqlite3.connect(self.planner)) as connection:
            connection.executescript(make_planner_db.SCHEMA)
        foreign = ("CAROL_", "SCHEDULE_", "ORPHAN_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._environment = {
            **kept,
            "CAROL_DATA_DIR": str(self.home),
            "CAROL_PLANNER_DB": str(self.planner),
            "CAROL_LAUNCHER": "process",
            "SCHEDULE_MAX_CONCURRENT": str(_JOBS),
        }

    def carolctl(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run a command to its end; what it said, and how many seconds it took."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-I", "-m", "carolctl", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, time.monotonic() - began

    # -- the course of it

    def run(self) -> Report:
        """All of it."""
        for number in range(_JOBS):
            self._add_job(f"soak-{number}")
        self.tick()
        with self._hog() as hog:
            self._under_the_lock(hog)
        self._after_release()
        self._check_slots()
        self._check_ledger()
        return self.report

    def _add_job(self, job_id: str) -> None:
        every = f"{max(self.options.tick_every, 10)}s"
        done, _ = self.carolctl("add-job", job_id, "--every", every, "--overlap", "queue", "--", "true")
        if done.returncode:
            raise SystemExit(f"add-job: exit {done.returncode}: {done.stderr}")

    def _under_the_lock(self, hog: int) -> None:
        end = time.monotonic() + self.options.seconds
        while time.monotonic() < end:
            began = time.monotonic()
            said = self.tick()
            self.report.named_by_the_tick |= str(hog) in said
            if self.report.holder_named_after_sec is None:
                self._name_the_holder(hog)
            time.sleep(max(0.0, min(began + self.options.tick_every, end) - time.monotonic()))
        if not self.report.named_by_the_tick:
            self.report.problems.append("no tick named the holder of the planner database's lock")

    def tick(self) -> str:
        """One tick; its standard error."""
        done, took = self.carolctl("tick", "--json")
        self.report.ticks += 1
        self.report.longest_tick_sec = round(max(self.report.longest_tick_sec, took), 2)
        if done.returncode or took > LONGEST_TICK_SEC:
            self.report.problems.append(f"a tick: exit {done.returncode} after {took:.1f} s: {done.stderr}")
        else:
            pending = json.loads(done.stdout)["ledger"]["pending"]
            self.report.longest_backlog = max(self.report.longest_backlog, pending)
        return done.stderr

    def _name_the_holder(self, hog: int) -> None:
        done, took = self.carolctl("locks", str(self.planner), "--json")
        named = done.returncode == 1 and (json.loads(done.stdout)["holder"] or {}).get("pid") == hog
        self.report.holder_named_after_sec = round(took, 2)
        if not named or took > NAMED_WITHIN_SEC:
            self.report.problems.append(f"locks after {took:.1f} s: {done.stdout or done.stderr}")

    def _after_release(self) -> None:
        released = time.monotonic()
        while self._pending() and time.monotonic() < released + MIRRORED_WITHIN_SEC:
            self.tick()
        self.report.mirrored_after_sec = round(time.monotonic() - released, 2)
        self._come_to_rest()
        if pending := self._pending():
            self.report.problems.append(f"{pending} runs are not in the ledger")

    def _come_to_rest(self) -> None:
        """Nothing new falls due; what runs ends and is mirrored."""
        for number in range(_JOBS):
            self.carolctl("pause", f"soak-{number}")
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            self.tick()
            if not self._pending() and not self._rows(
                "SELECT 1 FROM runs WHERE status IN ('claimed', 'running')"
            ):
                return
            time.sleep(0.2)

    # -- what must hold

    def _pending(self) -> int:
        [(count,)] = self._rows("SELECT count(*) FROM ledger_outbox")
        return int(count)

    def _check_slots(self) -> None:
        """Each job's rows follow one another without a gap, and every run started in time."""
        for number in range(_JOBS):
            rows = self._rows(
                "SELECT scheduled_for, slots_from, coalesced, status, started_at FROM runs"
                f" WHERE job_id = 'soak-{number}' AND source = 'scheduled'"
                " AND coalesce(skip_reason, '') <> 'paused' ORDER BY scheduled_for"
            )
            self._check_job(f"soak-{number}", rows)

    def _check_job(self, job_id: str, rows: list[tuple[Any, ...]]) -> None:
        every_ms = max(self.options.tick_every, 10) * 1000
        before: int | None = None
        for scheduled_for, slots_from, coalesced, status, started_at in rows:
            self.report.missing_slots += 0 if before is None else (slots_from - before) // every_ms - 1
            before = scheduled_for
            if status == "completed":
                self.report.runs += 1
                self.report.latest_start_sec = max(
                    self.report.latest_start_sec, (started_at - scheduled_for) / 1000
                )
            if status != "completed" or coalesced != 1:
                self.report.problems.append(f"{job_id}: slot {scheduled_for} is {status}, for {coalesced}")
        if len(rows) < int(self.options.seconds * 1000 / every_ms) - 1:
            self.report.problems.append(f"{job_id}: only {len(rows)} slots")

    def _check_ledger(self) -> None:
        if self.report.missing_slots:
            self.report.problems.append(f"{self.report.missing_slots} slots have no row")
        if self.report.latest_start_sec > self.options.tick_every + _SLACK_SEC:
            self.report.problems.append(f"a run started {self.report.latest_start_sec:.1f} s late")
        if self.report.mirrored_after_sec > MIRRORED_WITHIN_SEC:
            self.report.problems.append(f"mirrored only after {self.report.mirrored_after_sec:.0f} s")
        [(uuid,)] = self._rows("SELECT value FROM meta WHERE key = 'store_uuid'")
        ended = self._rows("SELECT run_id, status FROM runs WHERE status IN ('completed', 'failed')")
        with closing(sqlite3.connect(self.planner)) as connection:
            mirrored = connection.execute("SELECT event_id, status FROM droid_runs").fetchall()
        if sorted(mirrored) != sorted((f"{uuid}:{run_id}", status) for run_id, status in ended):
            self.report.problems.append(
                f"{len(ended)} runs ended, and the ledger has {len(mirrored)} other rows"
            )

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "scheduler.db")) as connection:
            return connection.execute(statement).fetchall()

    # -- the other program

    @contextmanager
    def _hog(self) -> Iterator[int]:
        """A process that holds the write lock of the planner database until the block ends; its pid."""
        hog = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HOG, str(self.planner), self.options.journal_mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert hog.stdin is not None
        assert hog.stdout is not None
        try:
            if hog.stdout.readline() != "holding\n":
                raise SystemExit("the lock was not to be had")
            yield hog.pid
        finally:
            hog.stdin.close()
            hog.wait(timeout=30)
            hog.stdout.close()


def main() -> int:
    """Do what the arguments say; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="carolctl-soak-") as folder:
        report = Soak(Path(folder), options).run()
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        for name, value in asdict(report).items():
            print(f"{name.replace('_', ' ')}: {value}")
        print(f"verdict: {'FAIL' if report.problems else 'PASS'}")
    return 1 if report.problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="how long the lock is held (default: 600)")
    parser.add_argument("--tick-every", type=int, default=30, help="seconds between two ticks (default: 30)")
    parser.add_argument(
        "--journal-mode", choices=["wal", "delete"], default="wal", help="of the planner database"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
