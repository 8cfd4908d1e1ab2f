"""What webhooks and agents call to run a job for an event."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, Reason, Requester, checked_reason, help_epilog
from carolctl.cli.output import tell
from carolctl.errors import Exit


@application.command(
    "trigger",
    epilog=help_epilog(
        "carolctl trigger deploy --event-id 3f2a9c --kind push",
        x2="an id, kind, name or reason that cannot be one",
        x66="no such job",
        x75="database busy",
        x77="the requester, or the run that this is called in, may not",
    ),
)
def trigger(
    job_id: JobId,
    event_id: Annotated[
        str, typer.Option("--event-id", metavar="E", help="What the event is known by: a commit, a delivery")
    ],
    kind: Annotated[str, typer.Option("--kind", metavar="K", help="A word of yours: push, file, ...")],
    requester: Requester = None,
    reason: Reason = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Run a job for an event, once: the same event and kind again change nothing, however late.

    The run waits for a slot like any other; pressure does not put it off, and the schedule is left alone. The events
    of a paused job are run too, as run-job is: it says so, and why the job is paused.
    """
    from carolctl import claims, permission
    from carolctl import trigger as triggering

    triggering.check(event_id, kind)
    permission.check_requester(requester)
    why = checked_reason(reason)
    permission.refuse_recursion(db)
    session = open_session(db)
    triggered = triggering.trigger(
        session, job_id, event_id=event_id, kind=kind, requester=requester, reason=why
    )
    run_id = triggered.run_id
    claims.launch_all(session.store, triggered.claimed)
    became = "is queued" if triggered.is_new else "is of that event"
    if any(one.run.run_id == run_id for one in triggered.claimed):
        became = "is launched"
    document: dict[str, Any] = {"run_id": run_id, "new": triggered.is_new}
    line = f"run {run_id} of {job_id} {became}"
    if triggered.paused is not None:
        document["job_paused"] = triggered.paused
        line += f", although the job is paused: {triggered.paused}"
    tell(line, document, as_json=as_json)
    return Exit.OK
