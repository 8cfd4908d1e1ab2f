"""Event runs: a job is run for an event, at most once per (job, event id, kind), whoever tells of it and how often."""

from __future__ import annotations

from dataclasses import dataclass

from carolctl import finish
from carolctl.errors import UsageError
from carolctl.event_values import is_event_kind
from carolctl.jobs import find
from carolctl.model import Claimed
from carolctl.permission import refuse_requester
from carolctl.session import Session
from carolctl.store.records import AuditEntry

HANDLER_KIND = "on_failure"
_LONGEST_ID = 200


def check(event_id: str, kind: str) -> None:
    """Raise `UsageError` for what cannot be the id or the kind of an event."""
    if not 0 < len(event_id) <= _LONGEST_ID or not event_id.isprintable():
        raise UsageError(f"must be 1 to {_LONGEST_ID} printable characters", field="event-id")
    if not is_event_kind(kind):
        raise UsageError(
            f"not a small letter and up to 31 of a-z 0-9 . _ -: {kind[:80]!a}",
            field="kind",
            hint="--kind push",
        )
    if kind == HANDLER_KIND:
        raise UsageError("on_failure is what the program itself calls handlers with", field="kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    """The run of an event, and the slots that were given out with it."""

    run_id: int
    is_new: bool
    claimed: list[Claimed]
    #: Why the job is paused; None: it is not.
    paused: str | None


def trigger(
    session: Session,
    job_id: str,
    *,
    event_id: str,
    kind: str,
    requester: str | None,
    reason: str | None = None,
) -> Triggered:
    """Queue the event's run in one write and give out what slots are free; the caller launches what was claimed.

    A pause of the job does not hold it back. Raises `NotFound`, `NotPermitted`.
    """
    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    refuse_requester(session, settings, requester)
    claimant = finish.claimant_now(session.now, settings)
    with session.store.write() as tx:
        job = find(tx, job_id)
        run_id = tx.insert_run(
            job.job_id,
            source="event",
            now=session.now,
            max_turns=job.max_turns or settings.max_turns,
            requester=requester,
            event_id=event_id,
            trigger_kind=kind,
        )
        paused = (job.paused_reason or "it does not say why") if job.status == "paused" else None
        if run_id is None:
            run_id = tx.event_run(job.job_id, event_id, kind)
            return Triggered(run_id=run_id, is_new=False, claimed=[], paused=paused)
        after = {"run_id": run_id, "by": session.actor, "event_id": event_id, "trigger_kind": kind}
        tx.audit(
            AuditEntry(
                at=session.now,
                actor=requester or session.actor,
                command="trigger",
                subject=job.job_id,
                after=after,
                reason=reason,
            )
        )
        claimed = finish.refill(tx, claimant, settings)
        return Triggered(run_id=run_id, is_new=True, claimed=claimed, paused=paused)
