"""What people call to list, pause and remove jobs."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carolctl import clock, global_pause
from carolctl.cli.app import application
from carolctl.cli.job_telling import outlook, tell_change, tell_unchanged
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, Reason, checked_reason, help_epilog
from carolctl.cli.output import print_json, print_lines, tell
from carolctl.errors import Refused, UsageError
from carolctl.instant import Millis
from carolctl.notices import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carolctl.config import Settings
    from carolctl.model import Job
    from carolctl.session import Session
    from carolctl.store.jobs import DamagedJob

MaybeJob = Annotated[str | None, typer.Argument(metavar="[JOB]", help="Job id; without it, everything")]
Cancel = Annotated[bool, typer.Option("--cancel", help="End its live runs first")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]
OfProject = Annotated[str | None, typer.Option("--project", metavar="P", help="Only of this project")]
OfStatus = Annotated[
    str | None, typer.Option("--status", metavar="active|paused", help="Only those that are active or paused")
]
For = Annotated[str | None, typer.Option("--for", metavar="DUR", help="Everything, for so long: 30m, 2h")]

_UPCOMING = 5
_RUNS_SHOWN = 5


@application.command(
    "remove-job",
    epilog=help_epilog(
        "carolctl remove-job nightly --cancel --yes",
        x1="a run of it lives, or it is another job's handler",
        x2="a reason that cannot be one",
        x66="no such job",
        x75="database busy",
    ),
)
def remove_job(
    job_id: JobId,
    cancel: Cancel = False,
    yes: Yes = False,
    reason: Reason = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Remove a job.

    The records of its runs stay. From a terminal it asks first.
    """
    from carolctl import jobs

    why = checked_reason(reason)
    session = open_session(db)
    if not yes and sys.stdin.isatty():
        with session.store.read() as tx:
            jobs.check_removable(tx, job_id, cancel=cancel)
        if not typer.confirm(f"Remove {job_id}?", err=True):
            raise Refused("nothing was removed")
    cancelled = jobs.remove(session, job_id, cancel=cancel, reason=why)
    ended = f"; runs cancelled: {', '.join(map(str, cancelled))}" if cancelled else ""
    tell(
        f"removed {job_id}{ended}",
        {"job_id": job_id, "changed": True, "cancelled": cancelled},
        as_json=as_json,
    )


@application.command(
    "list-jobs", epilog=help_epilog("carolctl list-jobs --status paused --json", x66="no job store yet")
)
def list_jobs(
    project: OfProject = None, status: OfStatus = None, db: Db = None, as_json: Json = False
) -> None:
    """List the jobs, by id.

    Schedule, next firing, status, how the last run ended; more where the terminal is wide.
    """
    from carolctl.job_warnings import warnings_of

    if status not in (None, "active", "paused"):
        raise UsageError(f"{status[:40]!a} is not active or paused", field="status")
    session = open_session(db)
    with session.store.read() as tx:
        jobs, damaged, settings = tx.jobs(), tx.damaged_jobs(), session.settings(tx)
        paused = _global_pause(session, tx.meta(global_pause.KEY))
    chosen = [job for job in jobs if project in (None, job.project) and status in (None, job.status)]
    if as_json:
        _print_listing(chosen, damaged, paused, settings)
        return
    if chosen or damaged:
        from carolctl.cli import job_views

        job_views.print_jobs(chosen, damaged)
    else:
        print_lines(
            ["no job matches" if jobs else "no jobs yet; carolctl add-job --help shows how to add one"]
        )
    print_lines([f"{job.job_id}: {said}" for job in chosen for said in warnings_of(job, settings)])
    if paused:
        print_lines([_said_of_pause(paused)])


def _print_listing(
    jobs: Sequence[Job], damaged: Sequence[DamagedJob], paused: dict[str, Any] | None, settings: Settings
) -> None:
    from carolctl.cli import job_views
    from carolctl.job_warnings import warnings_of

    print_json(
        {
            "count": len(jobs),
            "jobs": [job_views.document(job) | {"warnings": warnings_of(job, settings)} for job in jobs],
            "damaged": [{"job_id": broken.job_id, "problem": broken.problem} for broken in damaged],
            "paused": paused,
        }
    )


@application.command(
    "show-job",
    epilog=help_epilog("carolctl show-job nightly", x65="its row is damaged", x66="no such job or job store"),
)
def show_job(job_id: JobId, db: Db = None, as_json: Json = False) -> None:
    """Show everything about a job.

    Its settings, its next five slots with their wake-ups, its last five runs.
    """
    from carolctl import job_plans, jobs, run_view
    from carolctl.cli import job_views
    from carolctl.job_warnings import warnings_of
    from carolctl.store.runs import RunFilter

    session = open_session(db)
    with session.store.read() as tx:
        job = jobs.find(tx, job_id)
        runs = tx.runs(RunFilter(job_id=job_id, limit=_RUNS_SHOWN))
        warnings = warnings_of(job, session.settings(tx))
    upcoming = _upcoming(job, session.now)
    if not as_json:
        job_views.print_job(job, upcoming, runs)
        for said in warnings:
            warn(f"{job_id}: {said}")
        if job_plans.times_of(job) is None:
            warn(f"the schedule of {job_id} cannot be read; carolctl edit-job {job_id} gives it another")
        return
    more = {
        "next": [clock.iso(slot) for slot, _ in upcoming],
        "next_wake_ups": [clock.iso(wake_up) for _, wake_up in upcoming],
        "runs": [run_view.document(run) for run in runs],
        "warnings": warnings,
    }
    print_json(job_views.full_document(job) | more)


def _upcoming(job: Job, now: Millis) -> list[tuple[Millis, Millis]]:
    """The next slots, each with its wake-up; of a paused job those it would have."""
    from carolctl import job_plans, timing

    times = job_plans.times_of(job)
    if times is None:
        return []
    offset = timing.spread_ms(job)
    slots = islice(times.between(now, timing.FAR), _UPCOMING)
    return [(slot, Millis(slot + offset)) for slot in slots]


@application.command(
    "pause",
    epilog=help_epilog(
        "carolctl pause nightly --reason 'endpoint moves'",
        x2="--for with a job",
        x66="no such job",
        x75="database busy",
    ),
)
def pause(
    job_id: MaybeJob = None, for_: For = None, reason: Reason = None, db: Db = None, as_json: Json = False
) -> None:
    """Pause a job, or without JOB everything.

    Nothing is fired; what runs goes on. A job's pause rests its schedule alone: it is still run by run-job, by trigger
    (which says that it is paused) and as the on-failure handler of another job. A pause of everything holds these too.
    """
    from carolctl import jobs

    why = checked_reason(reason)
    if job_id is None:
        _pause_all(open_session(db), for_, why, as_json=as_json)
        return
    if for_ is not None:
        raise UsageError("is for pausing everything, not one job", field="for")
    change = jobs.pause(open_session(db), job_id, why)
    if change is None:
        tell_unchanged(job_id, f"{job_id} is paused already", as_json=as_json)
    else:
        tell_change(change, f"paused {job_id}: {change.after.paused_reason}", as_json=as_json)


def _pause_all(session: Session, for_: str | None, reason: str | None, *, as_json: bool) -> None:
    from carolctl import jobs
    from carolctl.schedule import parse_duration

    until = None if for_ is None else Millis(session.now + 1000 * parse_duration(for_, field="for"))
    changed = jobs.pause_all(session, until=until, reason=reason)
    document = {"paused": True, "until": clock.iso(until), "changed": changed}
    tell(_said_of_pause(document), document, as_json=as_json)


@application.command(
    "resume",
    epilog=help_epilog(
        "carolctl resume nightly",
        x2="its schedule cannot be used",
        x66="no such job",
        x75="database busy",
        x77="called inside a run whose job may not schedule",
    ),
)
def resume(job_id: MaybeJob = None, db: Db = None, as_json: Json = False) -> None:
    """Resume a job, or without JOB everything.

    A job fires again from its next slot on; what it missed while it was paused stays skipped.
    """
    from carolctl import jobs, permission

    permission.refuse_recursion(db, "nothing is resumed")
    session = open_session(db)
    if job_id is None:
        changed = jobs.resume_all(session)
        tell(
            "resumed" if changed else "nothing was paused",
            {"paused": False, "changed": changed},
            as_json=as_json,
        )
        return
    change = jobs.resume(session, job_id)
    if change is None:
        tell_unchanged(job_id, f"{job_id} is active already", as_json=as_json)
    else:
        tell_change(change, f"resumed {outlook(change.after)}", as_json=as_json)


def _global_pause(session: Session, until: str | None) -> dict[str, Any] | None:
    if until is None or not global_pause.in_force(until, session.now):
        return None
    return {"until": clock.iso(global_pause.ends_at(until))}


def _said_of_pause(paused: dict[str, Any]) -> str:
    until = f" until {paused['until']}" if paused["until"] else ""
    return f"everything is paused{until}; carolctl resume ends it"
