"""The verbs on jobs: add, edit, pause, resume, remove. Read a snapshot, plan, write by compare-and-swap.

What a change does to a job is planned in `job_plans`, without a lock; here it is written, audited, and planned
again when somebody else was faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from carolctl import global_pause, job_plans, job_values
from carolctl.errors import BadData, NotFound, Refused, StoreBusy
from carolctl.job_plans import Change
from carolctl.job_values import JOB_ID
from carolctl.model import Firing, Job, Millis, Run, action_document, action_kind
from carolctl.said import Said
from carolctl.session import Session
from carolctl.store.jobs import JobReads
from carolctl.store.records import AuditEntry
from carolctl.store.tx import ReadTx, WriteTx

MAX_JOBS = 10_000
PAUSED_UNTIL, FOREVER = global_pause.KEY, global_pause.FOREVER
_ATTEMPTS = 10
_UNREADABLE = (ValueError, KeyError, TypeError)


# -- finding ---------------------------------------------------------------------------------------------------


def find(tx: JobReads, job_id: str) -> Job:
    """The job of that id. Raises `NotFound` with a hint of similar ones, `BadData` for a damaged row."""
    job = _readable(tx, job_id) if JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise NotFound(f"no such job: {job_id[:80]}", hint=_similar(tx, job_id))
    return job


def _readable(tx: JobReads, job_id: str) -> Job | None:
    try:
        return tx.job(job_id)
    except _UNREADABLE as problem:
        raise BadData(
            f"the row of job {job_id} is damaged: {type(problem).__name__}: {problem}",
            hint=f"carolctl remove-job {job_id}, then add it again",
        ) from None


def _similar(tx: JobReads, job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        return "carolctl list-jobs"
    found = tx.job_ids_like(job_id) or tx.job_ids_like(job_id[:3])
    return f"did you mean {', '.join(found)}?" if found else "carolctl list-jobs"


def _exists(tx: JobReads, job_id: str) -> bool:
    try:
        return bool(JOB_ID.fullmatch(job_id)) and tx.job(job_id) is not None
    except _UNREADABLE:
        return True


# -- add -------------------------------------------------------------------------------------------------------


def add(session: Session, job: Job) -> None:
    """Write a new job. Raises `Refused` when its id is taken, `NotFound` when its handler does not exist."""
    with session.store.read() as tx:
        if len(tx.job_ids_like("", limit=MAX_JOBS)) == MAX_JOBS:
            raise Refused(f"there are {MAX_JOBS} jobs already", hint="carolctl remove-job")
    with session.store.write() as tx:
        if _exists(tx, job.job_id):
            raise Refused(f"there is a job {job.job_id} already", hint=f"carolctl edit-job {job.job_id}")
        _require_handler(tx, job)
        tx.insert_jobs([job])
        after = {name: value for name, value in _audited(job).items() if value is not None}
        tx.audit(_entry(session, "add-job", job.job_id, after=after))


def _require_handler(tx: WriteTx, job: Job) -> None:
    if job.on_failure is not None and not _exists(tx, job.on_failure):
        raise NotFound(f"on_failure: no such job: {job.on_failure}", hint=_similar(tx, job.on_failure))


# -- edit ------------------------------------------------------------------------------------------------------


def edit(session: Session, job_id: str, said: Said, reason: str | None = None) -> Change | None:
    """Change what was spoken of; None when everything is so already."""
    return _changed(session, "edit-job", job_id, partial(job_plans.plan_edit, said=said, reason=reason))


# -- pause and resume ------------------------------------------------------------------------------------------


def pause(session: Session, job_id: str, reason: str | None) -> Change | None:
    """Let a job rest; None when it rests already."""
    why = reason or f"paused by {session.actor}"
    return _changed(session, "pause", job_id, partial(job_plans.plan_pause, reason=why))


def resume(session: Session, job_id: str) -> Change | None:
    """Let a job fire again, from its first slot after now; None when it is active."""
    return _changed(session, "resume", job_id, job_plans.plan_resume)


def pause_all(session: Session, *, until: Millis | None, reason: str | None) -> bool:
    """Nothing is fired from now on, until `until` or a resume; False when that is so already."""
    value = FOREVER if until is None else str(until)
    return _set_global_pause(session, "pause", value, reason)


def resume_all(session: Session) -> bool:
    """Fire again; False when nothing was paused."""
    return _set_global_pause(session, "resume", None, None)


def _set_global_pause(session: Session, command: str, value: str | None, reason: str | None) -> bool:
    with session.store.write() as tx:
        before = tx.meta(PAUSED_UNTIL)
        if before == value:
            return False
        tx.set_meta(PAUSED_UNTIL, value)
        tx.audit(_entry(session, command, None, {PAUSED_UNTIL: before}, {PAUSED_UNTIL: value}, reason))
    # A pause that has run out by itself leaves its word behind: clearing that is no news.
    return value is not None or global_pause.in_force(before, session.now)


# -- remove ----------------------------------------------------------------------------------------------------


def remove(session: Session, job_id: str, *, cancel: bool, reason: str | None = None) -> list[int]:
    """Remove a job; its runs stay. With `cancel` its live runs are ended first: their ids.

    Raises `Refused` while one lives, or while another job names this one as its handler.
    """
    cancelled: set[int] = set()
    for _ in range(_ATTEMPTS):
        with session.store.read() as tx:
            live = check_removable(tx, job_id, cancel=cancel)
        if live:
            from carolctl.cancel import cancel_runs

            cancel_runs(session.store, live, now=session.now)
            cancelled.update(run.run_id for run in live)
        with session.store.write() as tx:
            if check_removable(tx, job_id, cancel=cancel):
                continue
            before = _removed(tx, job_id)
            tx.delete_job(job_id)
            after = {"cancelled": sorted(cancelled)}
            tx.audit(_entry(session, "remove-job", job_id, before, after, reason))
        return sorted(cancelled)
    raise _contended(job_id)


def _removed(tx: WriteTx, job_id: str) -> dict[str, Any] | None:
    """What there was, for the audit log; None where the row cannot be read."""
    job = tx.jobs_named([job_id]).get(job_id)
    return None if job is None else {k: v for k, v in _audited(job).items() if v is not None}


def check_removable(tx: ReadTx | WriteTx, job_id: str, *, cancel: bool) -> list[Run]:
    """The live runs of the job that are still to be stopped. Raises what stands in the way of removing it."""
    if not _exists(tx, job_id):
        find(tx, job_id)
    handled = [other for other in tx.jobs_with_handler(job_id) if other != job_id]
    if handled:
        raise Refused(
            f"{job_id} handles the failures of {', '.join(handled[:5])}",
            hint=f"carolctl edit-job {handled[0]} --on-failure none",
        )
    live = tx.live_runs_of(job_id)
    if live and not cancel:
        runs = ", ".join(f"{run.run_id} {run.status}" for run in live[:5])
        raise Refused(f"{job_id} has live runs: {runs}", hint="--cancel ends them first")
    return [run for run in live if run.stop_reason is None]


# -- writing ---------------------------------------------------------------------------------------------------


def _changed(
    session: Session, command: str, job_id: str, plan: Callable[..., Change | None]
) -> Change | None:
    """Plan on a snapshot and write by compare-and-swap; whoever was faster makes us plan again."""
    for _ in range(_ATTEMPTS):
        with session.store.read() as tx:
            job = find(tx, job_id)
            taken = tx.slots_beyond([(job_id, job.last_scheduled_for)], until=session.now)
        change = plan(job, now=session.now, taken=taken.get(job_id, frozenset()))
        if change is None:
            return None
        with session.store.write() as tx:
            if _write(tx, session, command, change):
                return change
    raise _contended(job_id)


def _write(tx: WriteTx, session: Session, command: str, change: Change) -> bool:
    before, after = change.before, change.after
    if after.on_failure != before.on_failure:
        _require_handler(tx, after)
    if not tx.replace_job(before, after):
        return False
    tx.insert_slot_rows([_as_firing(change)] if change.skipped else [], now=session.now, max_turns={})
    old, new = _audited(before), _audited(after)
    names = change.columns()
    tx.audit(
        _entry(
            session,
            command,
            after.job_id,
            {name: old[name] for name in names},
            {name: new[name] for name in names},
            change.reason,
        )
    )
    return True


def _as_firing(change: Change) -> Firing:
    return Firing(
        job_id=change.before.job_id,
        schedule_rev=change.before.schedule_rev,
        watermark_before=change.before.last_scheduled_for,
        watermark=change.after.last_scheduled_for,
        next_fire_at=change.after.next_fire_at,
        rows=tuple(change.skipped),
    )


def _contended(job_id: str) -> StoreBusy:
    return StoreBusy(f"others keep changing {job_id}; gave up after {_ATTEMPTS} attempts", hint="try again")


def _audited(job: Job) -> dict[str, Any]:
    """The columns of a job as the audit log has them: without secrets."""
    values = {
        field.name: getattr(job, field.name) for field in fields(Job) if field.name not in job_plans.DERIVED
    }
    shown = job_values.showable(job.action)
    return values | {"action": {"kind": action_kind(shown), **action_document(shown)}}


def _entry(
    session: Session,
    command: str,
    subject: str | None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str | None = None,
) -> AuditEntry:
    return AuditEntry(
        at=session.now,
        actor=session.actor,
        command=command,
        subject=subject,
        before=before,
        after=after,
        reason=reason,
    )
