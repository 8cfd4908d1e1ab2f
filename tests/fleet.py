"""A fleet whose time is told and whose runs need no process: ticks and verbs of the program, in this process.

One thing stands in for the world outside: the launcher, at the border of the process, which starts the claims that
it is given; they end when the test says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from carolctl import launch, tick
from carolctl.clock import iso
from carolctl.finish import settle_and_refill
from carolctl.model import Claimed, FailureClass, Job, Millis, Outcome, Run
from carolctl.session import Session
from carolctl.store.db import Store
from tests import builders
from tests.builders import T0


@dataclass
class Fleet:
    """A store, a clock, and the runs that hold a slot."""

    store: Store
    monkeypatch: pytest.MonkeyPatch
    now: Millis = T0
    #: By run id: what was started and has not ended.
    running: dict[int, Claimed] = field(default_factory=dict)

    def session(self) -> Session:
        """A command at this instant."""
        return Session(store=self.store, now=self.now, actor="tester")

    def at(self, now: int) -> Fleet:
        """Let it be `now`."""
        self.now = Millis(now)
        self.monkeypatch.setenv("CAROL_NOW", str(iso(now)))
        return self

    def add(self, *jobs: Job) -> None:
        """Write jobs straight into the store."""
        with self.store.write() as tx:
            tx.insert_jobs(jobs)

    def tick(self) -> tick.TickReport:
        """One tick."""
        return tick.tick(self.session())

    def launch(self, claimed: Sequence[Claimed]) -> list[launch.LaunchFailure]:
        """As a launcher: everything starts at once."""
        if claimed:
            claims = [(one.run.run_id, one.run.claim_no) for one in claimed]
            with self.store.write() as tx:
                begun = tx.start_all(claims, now=self.now, pid=None, pid_start=None, unit="none")
            self.running |= {one.run.run_id: one for one in begun}
        return []

    def end(self, run_id: int, failure: FailureClass | None = None, *, turns: int | None = None) -> None:
        """A run ends, and what was claimed in its place begins."""
        self.end_together({run_id: failure}, turns=turns)

    def end_together(self, ends: Mapping[int, FailureClass | None], *, turns: int | None = None) -> None:
        """Several runs end in one write, each well or by its failure."""
        outcomes = [
            Outcome(
                run_id=run_id,
                claim_no=self.running.pop(run_id).run.claim_no,
                status="failed" if failure else "completed",
                completed_at=self.now,
                failure_reason=failure,
                turns=turns,
            )
            for run_id, failure in ends.items()
        ]
        self.launch(settle_and_refill(self.store, outcomes, now=self.now)[1])

    def end_all(self) -> None:
        """Everything that runs ends, and what takes its place."""
        while self.running:
            self.end_together(dict.fromkeys(sorted(self.running)))

    def runs(self, job_id: str | None = None) -> list[Run]:
        """The runs of a job, or of all, oldest first."""
        from carolctl.store.runs import RunFilter

        with self.store.read() as tx:
            return tx.runs(RunFilter(job_id=job_id, limit=None))[::-1]


def make_fleet(home: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """An empty fleet in `home`; the caller closes its store."""
    for name in ("SCHEDULE_MAX_CONCURRENT", "CAROL_PLANNER_DB", "CAROL_SCHEDULER_DB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    fleet = Fleet(builders.store(home), monkeypatch).at(T0)
    # Nothing is killed here, so nothing need be on the disk; thousands of writes are then a matter of seconds.
    fleet.store._connection.execute("PRAGMA synchronous = OFF")
    monkeypatch.setattr(launch, "choose_configured", lambda: fleet)
    return fleet
