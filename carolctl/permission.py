"""Who may make the fleet do more: requesters on an optional list, and runs only where their job allows it.

Incident: an agent that was told to "schedule a follow-up" added a job that added a job. Decision: a process inside a
run, known by its ``CAROL_RUN_ID``, adds, edits, resumes, runs and triggers nothing and sets no setting, unless the
job of that run may. Consequence: a fleet grows by decision only. It keeps accidents out, not attackers: whoever may
write to the store may do anything.
"""

from __future__ import annotations

import os

from carolctl.config import Settings
from carolctl.errors import NotFound, NotPermitted, UsageError
from carolctl.session import Session, open_session

_LONGEST_NAME = 64


def refuse_recursion(db: str | None, what: str = "no job is added, changed or run") -> None:
    """Raise `NotPermitted` in a process inside a run whose job may not schedule, or of which nothing is known."""
    run_id = os.environ.get("CAROL_RUN_ID")
    if not run_id:
        return
    job_id = _job_of(db, run_id)
    if job_id is not None:
        raise NotPermitted(
            f"inside run {run_id[:20]}{f' of {job_id}' if job_id else ''} {what}",
            hint=f"carolctl edit-job {job_id or 'JOB'} --may-schedule, given outside of a run, allows it",
        )


def _job_of(db: str | None, run_id: str) -> str | None:
    """The job of that run; empty where it cannot be known, None for a job that may schedule."""
    try:
        session = open_session(db)
    except NotFound:
        return ""
    with session.store.read() as tx:
        run = tx.run(int(run_id)) if run_id.isascii() and run_id.isdecimal() and len(run_id) < 19 else None
        if run is None:
            return ""
        job = tx.jobs_named([run.job_id]).get(run.job_id)
    return None if job is not None and job.may_schedule else run.job_id


def check_requester(requester: str | None) -> None:
    """Raise `UsageError` for what cannot be the name of a requester."""
    if requester is not None and not (0 < len(requester) <= _LONGEST_NAME and requester.isprintable()):
        raise UsageError(f"must be 1 to {_LONGEST_NAME} printable characters", field="requester")


def refuse_requester(session: Session, settings: Settings, requester: str | None) -> None:
    """Raise `NotPermitted` when ``requesters.allowed`` is set and does not name the requester, or else the actor."""
    allowed, name = settings.requesters_allowed, requester or session.actor
    if allowed is not None and name not in allowed.split(","):
        raise NotPermitted(
            f"{name[:80]} is not among the requesters who may run jobs",
            hint="carolctl config get requesters.allowed; --requester NAME says on whose behalf",
        )
