"""What is said once a job has been changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carolctl import clock
from carolctl.cli.output import tell

if TYPE_CHECKING:
    from carolctl.job_plans import Change
    from carolctl.model import Job


def tell_unchanged(job_id: str, line: str, *, as_json: bool) -> None:
    """Say that nothing of a job was changed."""
    tell(line, {"job_id": job_id, "changed": False}, as_json=as_json)


def tell_change(change: Change, line: str, *, as_json: bool, **more: Any) -> None:
    """Say what changed of a job, and how many slots were skipped for it; `more` goes into the document."""
    document = {"job_id": change.after.job_id, "changed": True, "columns": change.columns(), **more}
    skipped = sum(row.coalesced for row in change.skipped)
    told = f"{line}; slots skipped: {skipped}" if skipped else line
    tell(told, document | {"skipped": skipped, "job": document_of(change.after)}, as_json=as_json)


def document_of(job: Job) -> dict[str, Any]:
    """A job as it stands in lists."""
    from carolctl.cli import job_views

    return job_views.document(job)


def outlook(job: Job) -> str:
    """``nightly; next 2026-03-29T00:30:00Z``."""
    if job.status == "paused":
        return f"{job.job_id}; it is paused"
    when = clock.iso(job.next_fire_at)
    return f"{job.job_id}; next {when}" if when else f"{job.job_id}; it does not fire by itself"
