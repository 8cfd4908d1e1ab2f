"""One claim in the hands of a runner: begin it, end it, and launch what takes its place.

Incident: a runner died and nobody knew whether its work was done; another, thought dead, came back and did it
twice. Decision: a runner begins with a compare-and-swap on its claim number and leaves its process id with its
start time on the row; it ends with one write that settles the run and claims the next. Consequence: a stale
runner runs nothing, the death of a live one is proved by the next tick, and the queue moves without a tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from carolctl import clock, launch, policy
from carolctl.errors import CarolError
from carolctl.failpoints import failpoint
from carolctl.finish import record_outcomes
from carolctl.launch import owner
from carolctl.launch.supervisor import boot_seconds
from carolctl.lockguard import require_unlocked
from carolctl.model import Claimed, FailureClass, Millis, Outcome, Run
from carolctl.notices import warn
from carolctl.store.db import Store

_FINISH_TRIES = 120
_FINISH_PAUSE_SEC = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A claim that is ours, and the moment (of `boot_seconds`) at which its lease ends."""

    claimed: Claimed
    deadline: float

    @property
    def run(self) -> Run:
        """The row as it was when the run started."""
        return self.claimed.run


def start(store: Store, run_id: int, claim_no: int) -> Started | None:
    """Claimed to running; None when the claim is stale: then nothing is to be run."""
    started = start_all(store, [(run_id, claim_no)])
    return started[0] if started else None


def start_all(store: Store, claims: Sequence[tuple[int, int]]) -> list[Started]:
    """The same for several claims (run id, claim number), each by its own compare-and-swap, in one write.

    The stale ones are missing from the answer.
    """
    failpoint("runner-before-start")
    began = boot_seconds()
    now, boottime_ms, boot_id = clock.now(), clock.boottime_ms(), clock.boot_id()
    # One owner: in a unit of ours the service manager vouches for us, and ends us.
    unit = os.environ.get("CAROL_UNIT")
    pid = None if unit else os.getpid()
    pid_start = None if pid is None else owner.start_time(pid)
    with store.write() as tx:
        claimed = tx.start_all(claims, now=now, pid=pid, pid_start=pid_start, unit=unit)
    if claimed:
        failpoint("runner-after-start")
    return [
        Started(claimed=one, deadline=began + _left_ms(one.run, now, boottime_ms, boot_id) / 1000)
        for one in claimed
    ]


def _left_ms(run: Run, now: Millis, boottime_ms: int | None, boot_id: str) -> int:
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    elapsed = policy.elapsed_ms(run, now=now, boottime_ms=boottime_ms, boot_id=boot_id)
    return run.lease_expires_at - run.slot_claimed_at - elapsed


def failed(run: Run, reason: FailureClass, summary: str | None = None) -> Outcome:
    """An outcome of this moment."""
    return Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="failed",
        completed_at=clock.now(),
        failure_reason=reason,
        summary=summary,
    )


def finish(store: Store, outcomes: Sequence[Outcome], *, refilling: bool = True) -> list[Claimed]:
    """Record ends; what was claimed in their place is to be launched.

    A disk without room for the store or the spool is waited for: the work is done, only this knows how it ended.
    """
    failpoint("runner-before-finish")
    claimed: list[Claimed] = []
    for _ in range(_FINISH_TRIES):
        try:
            claimed = record_outcomes(store, outcomes, now=clock.now(), refilling=refilling)
            break
        except OSError as trouble:
            warn(f"neither the store nor the spool takes an outcome: {trouble.strerror}")
            require_unlocked("waiting for the disk")
            time.sleep(_FINISH_PAUSE_SEC)
    failpoint("runner-after-finish")
    return claimed


def launch_all(
    store: Store, claimed: Sequence[Claimed], launcher: launch.Launcher | None = None
) -> list[int]:
    """Launch what was claimed, record at once what surely did not start, launch what was claimed instead.

    The ids of the runs that were launched. Where nothing at all could be started, what was claimed in its place
    waits for a sweep: a machine without room for one more process must not use up the whole queue.
    """
    launched: list[int] = []
    while claimed:
        try:
            starter = launcher or launch.choose_configured()
        except CarolError as error:
            warn(f"{len(claimed)} claimed runs wait for a sweep: {error.message}")
            break
        failures = {failure.run_id: failure.message for failure in starter.launch(claimed)}
        launched += [one.run.run_id for one in claimed if one.run.run_id not in failures]
        outcomes = [
            failed(one.run, "launch_failed", failures[one.run.run_id])
            for one in claimed
            if one.run.run_id in failures
        ]
        refill = finish(store, outcomes) if outcomes else []
        claimed = [] if len(outcomes) == len(claimed) else refill
    return launched
