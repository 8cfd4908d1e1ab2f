"""The spool alone: outcomes that could not be written when they happened, and events, batch after batch.

Each batch is one transaction; then what follows from it is done, and only then are its files unlinked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from carolctl import claims, end_facts, events, finish, spool, sweep
from carolctl.config import Settings
from carolctl.failpoints import failpoint
from carolctl.model import OCCUPYING, Claimed, Run
from carolctl.session import Session
from carolctl.settle import Settled, settle

LONGEST_SEC = 25.0
"""How long one call goes on at most, whatever keeps coming in."""


@dataclass(slots=True, kw_only=True)
class DrainReport:
    """The ids of the runs that ended and of those launched into their slots; events stored; files set aside."""

    drained: list[int] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)
    events: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """One batch of the spool."""

    files: tuple[spool.SpoolFile, ...]
    unusable: tuple[spool.Unusable, ...]
    batch: events.Batch
    #: What held a slot shortly before the look.
    occupying: tuple[Run, ...]

    def paths(self) -> frozenset[str]:
        """Every file of it."""
        return frozenset([file.path for file in self.files] + [file.path for file in self.unusable]).union(
            self.batch.paths
        )


def drain(session: Session, *, longest_sec: float = LONGEST_SEC) -> DrainReport:
    """Bring the spool in until it is empty, nothing more of it can be taken, or the time is up."""
    report = DrainReport()
    give_up = time.monotonic() + longest_sec
    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    before: frozenset[str] = frozenset()
    while True:
        waiting = _look(session)
        # What was taken in and is still there cannot be unlinked: it would be taken in for ever.
        if waiting.paths() <= before:
            return report
        before = waiting.paths()
        _take(session, waiting, report, settings)
        if time.monotonic() >= give_up:
            return report


def _look(session: Session) -> _Waiting:
    with session.store.read() as snapshot:
        occupying = tuple(run for run in snapshot.live_runs() if run.status in OCCUPYING)
    files, unusable = spool.found((run.run_id, run.claim_no) for run in occupying)
    return _Waiting(files=tuple(files), unusable=tuple(unusable), batch=events.pending(), occupying=occupying)


def _take(session: Session, waiting: _Waiting, report: DrainReport, settings: Settings) -> None:
    """One transaction, its effects, and the end of its files."""
    claimant = finish.claimant_now(session.now, settings)
    outcomes = [file.outcome for file in waiting.files]
    claimed: list[Claimed] = []
    settled, taken = Settled(), events.Taken()
    facts = end_facts.gather(session.store, outcomes, reported=events.turns_reported(waiting.batch))
    if outcomes or waiting.batch.files:
        with session.store.write() as tx:
            settled = settle(tx, outcomes, now=session.now, settings=settings, facts=facts)
            taken = events.take_in(tx, waiting.batch.files, now=session.now, settings=settings, facts=facts)
            if outcomes:
                claimed = finish.refill(tx, claimant, settings)
    failpoint("drain-committed")
    events.announce(taken)
    sweep.stop_owners(sweep.Sweep(occupying=waiting.occupying), taken.stops)
    report.launched += claims.launch_all(session.store, claimed)
    spool.unlink(waiting.files)
    left = spool.set_all_aside(waiting.unusable)
    report.bad += len(waiting.unusable) - len(left) + events.clear(waiting.batch, taken)
    report.drained += sorted(settled.ended + settled.requeued)
    report.events += taken.new
