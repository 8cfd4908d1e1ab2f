"""Manual runs: they honour the cap, and a bypass needs a reason and leaves one audit row.

Decision: a full fleet refuses with an ETA and leaves no row behind; ``--force`` passes the cap, is counted as
occupancy and stands outside the invariant. Consequence: nobody starves the chat by hand without its being seen.
A manual run never moves the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

from carolctl import finish
from carolctl.config import Settings
from carolctl.errors import CapacityFull, JobRunning, TryAgainLater
from carolctl.jobs import find
from carolctl.model import Claimed, Job, Millis, Run
from carolctl.permission import refuse_requester
from carolctl.session import Session
from carolctl.store.records import AuditEntry
from carolctl.store.tx import ReadTx, WriteTx


def run_now(
    session: Session, job_id: str, *, force: bool, reason: str | None, requester: str | None
) -> Claimed:
    """Claim a slot for a manual run of `job_id`, in one write; the caller launches it.

    Raises `NotFound`, `NotPermitted`, `JobRunning`, `CapacityFull` (with ``slot_eta_sec``) or `TryAgainLater` while
    paused.
    """
    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    refuse_requester(session, settings, requester)
    try:
        return _claim(session, job_id, settings, force=force, reason=reason, requester=requester)
    except _NoSlot:
        # Played forward without the lock: schedules take part in it.
        from carolctl.outlook import slot_eta_sec

        with session.store.read() as snapshot:
            raise _full(settings, slot_eta_sec(snapshot, session.now, settings)) from None


class _NoSlot(Exception):
    """Leaving the write by an exception rolls the row back."""


def _claim(
    session: Session,
    job_id: str,
    settings: Settings,
    *,
    force: bool,
    reason: str | None,
    requester: str | None,
) -> Claimed:
    claimant = finish.claimant_now(session.now, settings)
    with session.store.write() as tx:
        job = find(tx, job_id)
        _refuse_when_paused(tx, session.now)
        _refuse_when_running(tx, job)
        run_id = tx.insert_run(
            job.job_id,
            source="manual",
            now=session.now,
            max_turns=job.max_turns or settings.max_turns,
            forced=force,
            requester=requester,
        )
        cap = sum(tx.count_live()) + 1 if force else settings.max_concurrent
        claimed = tx.claim(claimant, cap=cap, only=run_id)
        if not claimed:
            raise _NoSlot
        if force:
            _audit_bypass(tx, session, claimed[0].run, settings, reason)
        else:
            tx.audit(_entry(session, "run-job", claimed[0].run, {}, reason))
    return claimed[0]


def _refuse_when_paused(tx: ReadTx, now: Millis) -> None:
    if finish.globally_paused(tx, now):
        raise TryAgainLater("everything is paused", hint="carolctl resume")


def _refuse_when_running(tx: ReadTx, job: Job) -> None:
    live = tx.live_runs_of(job.job_id)
    if live:
        raise JobRunning(
            f"{job.job_id} has a live run already: {live[0].run_id}, {live[0].status}",
            hint=f"carolctl show-run {live[0].run_id}",
            run_id=live[0].run_id,
        )


def _full(settings: Settings, eta: int | None) -> CapacityFull:
    if settings.max_concurrent == 0:
        return CapacityFull(
            "the cap is 0: nothing is run",
            hint="carolctl config set schedule.max_concurrent N, or --force --reason TEXT",
            slot_eta_sec=None,
        )
    when = "at an unknown time" if eta is None else f"in about {eta} s"
    return CapacityFull(
        f"all {settings.max_concurrent} slots are taken; the next one is free {when}",
        hint="try again then, or --force --reason TEXT",
        slot_eta_sec=eta,
    )


def _audit_bypass(tx: WriteTx, session: Session, run: Run, settings: Settings, reason: str | None) -> None:
    cap = {"occupied": tx.count_live()[1], "max_concurrent": settings.max_concurrent}
    tx.audit(_entry(session, "manual_force_bypass", run, cap, reason))


def _entry(
    session: Session, command: str, run: Run, after: Mapping[str, object], reason: str | None
) -> AuditEntry:
    """The actor is whoever it was done for; ``by`` is whoever did it."""
    return AuditEntry(
        at=session.now,
        actor=run.requester or session.actor,
        command=command,
        subject=run.job_id,
        after={"run_id": run.run_id, "by": session.actor, **after},
        reason=reason,
    )
