"""What people call to make and to change jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.job_options import describes_a_job
from carolctl.cli.job_telling import document_of, outlook, tell_change, tell_unchanged
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, Reason, checked_reason, help_epilog
from carolctl.cli.output import note, tell
from carolctl.errors import UsageError
from carolctl.notices import warn
from carolctl.said import Said

if TYPE_CHECKING:
    from carolctl.job_plans import Change
    from carolctl.model import Job
    from carolctl.session import Session

NewJobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="Letters, digits, dots, dashes, underscores")]

#: A change of none of these moves or weighs a firing.
_WEIGHS = {"schedule_kind", "schedule_expr", "timezone", "dst_rule", "spread_sec", "max_turns"}
_BEARS_ON_TURNS = {"max_turns", "agent_profile", "action"}
_WARNINGS_SHOWN = 10


@application.command(
    "add-job",
    epilog=help_epilog(
        "carolctl add-job nightly --daily-at 02:30 --timezone Europe/Berlin -- /usr/bin/backup --all",
        x1="the id is taken",
        x2="a value cannot be used",
        x66="no such --on-failure job",
        x75="database busy",
        x77="called inside a run whose job may not schedule",
    ),
)
@describes_a_job
def add_job(job_id: NewJobId, *, said: Said, db: Db = None, as_json: Json = False) -> None:
    """Add a job.

    It takes exactly one schedule, and either --url or a command behind --. The word none as a value
    means: no such limit, handler or project.
    """
    from carolctl import job_plans, jobs, permission

    permission.refuse_recursion(db)
    job = job_plans.build(job_id, said, now=clock.now())
    session = open_session(db, create=True)
    jobs.add(session, job)
    _warn_of_literal_secrets(job)
    found = _warn_of_collisions(session, job)
    document = {"job_id": job.job_id, "changed": True, "job": document_of(job), "warnings": found}
    document |= {"hints": _give_hints(session, job)}
    tell(f"added {outlook(job)}", document, as_json=as_json)


@application.command(
    "edit-job",
    epilog=help_epilog(
        "carolctl edit-job nightly --daily-at 04:00 --max-turns none",
        x1="its state forbids it",
        x2="a value cannot be used",
        x65="its row is damaged",
        x66="no such job",
        x75="database busy",
        x77="called inside a run whose job may not schedule",
    ),
)
@describes_a_job
def edit_job(
    job_id: JobId, *, said: Said, reason: Reason = None, db: Db = None, as_json: Json = False
) -> None:
    """Change a job.

    What is not given stays as it is; a new schedule counts from now. The word none takes a value away
    again: --project, --description, --misfire-grace, --max-run-duration, --max-turns, --agent-profile,
    --on-failure, --spread, --header, --payload.
    """
    from carolctl import jobs, permission

    permission.refuse_recursion(db)
    if said == Said():
        raise UsageError("nothing was said to change", hint="carolctl edit-job --help")
    why = checked_reason(reason)
    session = open_session(db)
    change = jobs.edit(session, job_id, said, why)
    if change is None:
        tell_unchanged(job_id, f"{job_id} is so already; nothing was changed", as_json=as_json)
        return
    if change.after.action != change.before.action:
        _warn_of_literal_secrets(change.after)
    found = _warn_of_collisions(session, change.after) if _WEIGHS & {*change.columns()} else []
    line = f"changed {', '.join(_spoken(change))} of {outlook(change.after)}"
    hints = _give_hints(session, change.after) if _BEARS_ON_TURNS & {*change.columns()} else []
    tell_change(change, line, as_json=as_json, warnings=found, hints=hints)


def _spoken(change: Change) -> list[str]:
    """The changed columns that somebody spoke of, not those that follow."""
    follow = {
        "anchor_at",
        "next_fire_at",
        "schedule_rev",
        "last_scheduled_for",
        "deferred_at",
        "max_turns_set_at",
    }
    return [name for name in change.columns() if name not in follow]


def _warn_of_literal_secrets(job: Job) -> None:
    from carolctl import job_values

    for name in job_values.literal_secrets(job.action):
        warn(
            f"the value of {name} is stored as it is; ${{env:NAME}} or ${{file:PATH}} keeps it out of the database"
        )


def _give_hints(session: Session, job: Job) -> list[str]:
    """What there is to say about its turn budget, each in a line on standard error."""
    if job.max_turns is not None and job.agent_profile is None:
        return []
    from carolctl import turn_hints

    with session.store.read() as tx:
        found = turn_hints.hints(tx, job, session.settings(tx))
    for hint in found:
        note(f"hint: {hint}")
    return found


def _warn_of_collisions(session: Session, job: Job) -> list[dict[str, Any]]:
    """The collisions that the saved job has a part in, each said in a line on standard error."""
    from carolctl.firing_weight import could_collide, fires

    with session.store.read() as tx:
        chosen, settings = [other for other in tx.jobs() if fires(other)], session.settings(tx)
    if not fires(job) or not could_collide(chosen, settings):
        return []
    from carolctl import collisions

    expected, found = collisions.caused_by(job.job_id, chosen, settings, session.now)
    for collision in found[:_WARNINGS_SHOWN]:
        warn(collisions.phrase(expected, collision))
    if len(found) > _WARNINGS_SHOWN:
        warn(f"and {len(found) - _WARNINGS_SHOWN} collisions more; carolctl collision-check shows them")
    return collisions.warnings(expected, found)
