"""Commands about runs: list-runs, show-run, logs, monitor, run-job, cancel-run, finish-run."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Annotated, Any

import typer

from carolctl import clock, run_view
from carolctl.cli.app import application
from carolctl.cli.options import Db, JobId, Json, PlannerDb, Requester, RunId, help_epilog, number
from carolctl.cli.output import note, print_json, print_lines, safe
from carolctl.errors import Exit, NotFound, Refused, UsageError
from carolctl.model import FAILURE_CLASSES, LIVE, CommandAction, Millis, Outcome, Run
from carolctl.notices import warn
from carolctl.session import Session, open_session
from carolctl.store.runs import RunFilter

_WAIT_POLL_SEC = 0.2
_STATUSES = ("queued", "claimed", "running", "completed", "failed", "skipped", "cancelled")


# -- looking ---------------------------------------------------------------------------------------------


@application.command(
    "list-runs",
    epilog=help_epilog(
        "carolctl list-runs --job nightly --status failed --since 24h", x66="no job store yet"
    ),
)
def list_runs(
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only of this job")] = None,
    status: Annotated[
        list[str] | None, typer.Option("--status", metavar="STATUS", help=f"One of {', '.join(_STATUSES)}")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="S", help="scheduled, manual or event")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DUR|ISO", help="Queued since: 24h, or an instant")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most")] = 50,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """List runs, newest first: what ran, what was skipped and why."""
    for word in status or ():
        _one_of(word, _STATUSES, field="status")
    if source:
        _one_of(source, ("scheduled", "manual", "event"), field="source")
    session = open_session(db)
    wanted = RunFilter(
        job_id=job,
        statuses=tuple(status or ()),
        source=source,
        since=_since(since, session.now),
        limit=limit,
    )
    with session.store.read() as tx:
        runs = tx.runs(wanted)
    if as_json:
        print_json({"runs": [run_view.document(run) for run in runs]})
    else:
        from carolctl.cli import run_tables

        run_tables.print_runs(runs, session.now)
    return Exit.OK


@application.command("show-run", epilog=help_epilog("carolctl show-run 42", x66="no such run"))
def show_run(run_id: RunId, db: Db = None, as_json: Json = False) -> int:
    """Show everything about one run, with its last 20 events."""
    session = open_session(db)
    run = _existing_run(session, run_id)
    with session.store.read() as tx:
        events = run_view.event_documents(tx.events_of(run_id))
    document = run_view.document(run) | {"logs": run_view.log_paths(run), "events": events}
    _warn_of_overrun(run)
    if as_json:
        print_json(document)
        return Exit.OK
    from carolctl.cli import render

    render.pairs(
        f"run {run.run_id} of {run.job_id}",
        ((name, run_view.in_words(name, value)) for name, value in document.items() if value),
    )
    return Exit.OK


@application.command(
    "monitor", epilog=help_epilog("carolctl monitor --json | jq length", x66="no job store yet")
)
def monitor(db: Db = None, planner_db: PlannerDb = None, as_json: Json = False) -> int:
    """Show what truly runs now: runs that hold a slot and are not known to be over.

    With a planner database also what others run by its droid_runs, unless it is old enough to be an orphan.
    """
    session = open_session(db, planner_db=planner_db)
    running = run_view.truly_running(session)
    foreign = [run_view.foreign_document(row) for row in run_view.foreign_running(session)]
    if as_json:
        print_json(
            [
                run_view.document(run)
                | {"liveness": liveness, "elapsed_sec": run_view.elapsed_sec(run, session.now)}
                for run, liveness in running
            ]
            + foreign
        )
    elif running or foreign:
        from carolctl.cli import run_tables

        if running:
            run_tables.print_running(running, session.now)
        if foreign:
            run_tables.print_foreign(foreign)
    else:
        print_lines(["nothing is running"])
    return Exit.OK


@application.command(
    "logs",
    epilog=help_epilog(
        "carolctl logs 42 --follow",
        x66="no such run, or it left no output",
        x77="the journal may not be read",
    ),
)
def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Bytes as they are, escape sequences included")] = False,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Show the output of a run; what could move a terminal is spelled out.

    From the journal where it ran as a systemd unit, else from its log file.
    """
    from carolctl import run_output

    session = open_session(db)
    run = _existing_run(session, run_id)
    paths, units = run_view.log_paths(run), run_output.units(run)
    going_on = follow and run.status in LIVE
    text = "" if going_on else run_output.whole(run)
    if not (paths or text or going_on or (units and run.status in LIVE)):
        raise NotFound(f"run {run_id} left no output", hint=f"carolctl show-run {run_id}")
    look = partial(_existing_run, session, run_id)
    if as_json:
        # One document, so with --follow it comes at the end.
        text = "".join(run_output.chunks(look, follow=True)) if going_on else text or run_output.whole(run)
        run = look()
        paths, units = run_view.log_paths(run), run_output.units(run)
        print_json({"run_id": run_id, "logs": paths, "units": units, "text": text})
        return Exit.OK
    for chunk in run_output.chunks(look, follow=True) if going_on else [text]:
        sys.stdout.write(chunk if raw else "".join(_spelled_out(line) + "\n" for line in chunk.splitlines()))
        sys.stdout.flush()
    return Exit.OK


def _spelled_out(line: str) -> str:
    return "\t".join(map(safe, line.split("\t")))


# -- acting ----------------------------------------------------------------------------------------------


@application.command(
    "run-job",
    epilog=help_epilog(
        "carolctl run-job nightly --wait",
        x1="the run waited for failed",
        x2="a name or reason that cannot be one",
        x66="no such job",
        x75="all slots taken, the job is running, or everything is paused",
        x77="the requester, or the run that this is called in, may not",
    ),
)
def run_job(
    job_id: JobId,
    force: Annotated[bool, typer.Option("--force", help="Pass the cap; needs --reason")] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log")
    ] = None,
    requester: Requester = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end")] = False,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Run a job now, if a slot is free. The schedule is left alone."""
    from carolctl import claims, launch, permission
    from carolctl.run_now import run_now

    permission.check_requester(requester)
    permission.refuse_recursion(db)
    if force and not (reason and reason.strip()):
        raise UsageError("--force needs a reason", field="reason", hint="--force --reason TEXT")
    session = open_session(db)
    launcher = launch.choose_configured()
    claimed = run_now(session, job_id, force=force, reason=reason, requester=requester)
    run_id = claimed.run.run_id
    if run_id not in claims.launch_all(session.store, [claimed], launcher):
        why = _existing_run(session, run_id).result_summary
        raise Refused(
            f"run {run_id} could not be launched" + (f": {why}" if why else ""),
            hint=f"carolctl show-run {run_id}",
        )
    if wait:
        return _report_end(_wait_for(session, run_id), as_json=as_json)
    if as_json:
        print_json({"run_id": run_id})
    else:
        print_lines([f"run {run_id} of {job_id} is launched"])
    return Exit.OK


def _wait_for(session: Session, run_id: int) -> Run:
    said = 1
    while True:
        run = _existing_run(session, run_id)
        if run.status not in LIVE:
            return run
        if run.attempt > said and run.status == "queued":
            said = run.attempt
            note(
                f"run {run_id}: try {said - 1} failed; a tick starts the next from {clock.iso(run.not_before)}"
            )
        time.sleep(_WAIT_POLL_SEC)


def _report_end(run: Run, *, as_json: bool) -> int:
    if as_json:
        print_json(run_view.document(run))
    else:
        reason = f" ({run.failure_reason})" if run.failure_reason else ""
        summary = f": {run.result_summary}" if run.result_summary else ""
        print_lines([f"run {run.run_id} of {run.job_id} {run.status}{reason}{summary}"])
    _warn_of_overrun(run)
    return Exit.OK if run.status == "completed" else Exit.FAILED


@application.command(
    "cancel-run", epilog=help_epilog("carolctl cancel-run 42", x1="it has ended already", x66="no such run")
)
def cancel_run(run_id: RunId, db: Db = None, as_json: Json = False) -> int:
    """End a run: one that waits is cancelled at once, one that runs is asked to stop."""
    from carolctl.cancel import cancel_runs, refuse_ended

    session = open_session(db)
    run = _existing_run(session, run_id)
    refuse_ended(run)
    ended, asked = cancel_runs(session.store, [run], now=session.now)
    if as_json:
        print_json({"cancelled": ended, "stopping": asked})
    else:
        print_lines([f"run {run_id} {'is cancelled' if ended else 'was asked to stop'}"])
    return Exit.OK


@application.command(
    "finish-run",
    epilog=help_epilog(
        "carolctl finish-run 42 --claim 1 --status completed --turns 12",
        x1="the claim is not the run's present one, or it has ended",
        x66="no such run",
    ),
)
def finish_run(
    run_id: RunId,
    claim: Annotated[
        int, typer.Option("--claim", metavar="N", parser=number(1), help="Claim number, from CAROL_CLAIM")
    ],
    status: Annotated[str, typer.Option("--status", metavar="STATUS", help="completed or failed")],
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="CLASS", help="Failure class [by the summary]")
    ] = None,
    turns: Annotated[
        int | None, typer.Option("--turns", metavar="N", parser=number(0), help="Turns it took")
    ] = None,
    summary: Annotated[str | None, typer.Option("--summary", metavar="T", help="One line of result")] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Record how a run ended, for agents whose endpoint answered 202. An old claim changes nothing.

    What still runs here for a command that is finished so is asked to end.
    """
    from carolctl import claims, finish, launch

    session = open_session(db)
    outcome = _outcome(run_id, claim, status, reason, turns, summary, session.now)
    run, is_command = _existing_run(session, run_id), _is_command(session, run_id)
    settled, claimed, spooled = finish.settle_or_spool(session.store, [outcome], now=session.now)
    if is_command and run_id in settled.ended:
        launch.stop([run])
    claims.launch_all(session.store, claimed)
    if not spooled and run_id not in (*settled.ended, *settled.requeued):
        raise Refused(f"claim {claim} of run {run_id} is not its present one, or the run has ended")
    _tell_end(None if spooled else _existing_run(session, run_id), run_id, status, as_json=as_json)
    return Exit.OK


def _tell_end(run: Run | None, run_id: int, said: str, *, as_json: bool) -> None:
    """How the run ended, which need not be as it was `said`; None: that is not known yet."""
    status = said if run is None else run.status
    if as_json:
        print_json({"run_id": run_id, "status": status, "spooled": run is None})
    elif run is None:
        print_lines([f"run {run_id} {status}, in the spool until the store is free"])
    else:
        reason = f" ({run.failure_reason})" if run.failure_reason else ""
        print_lines([f"run {run_id} {status}{reason}"])
    _warn_of_overrun(run)


def _warn_of_overrun(run: Run | None) -> None:
    from carolctl.job_warnings import overrun_said

    warning = None if run is None else overrun_said(run)
    if warning:
        warn(warning)


def _is_command(session: Session, run_id: int) -> bool:
    with session.store.read() as tx:
        run = tx.run(run_id)
        job = tx.job(run.job_id) if run else None
    return job is not None and isinstance(job.action, CommandAction)


def _outcome(
    run_id: int,
    claim: int,
    status: str,
    reason: str | None,
    turns: int | None,
    summary: str | None,
    now: Millis,
) -> Outcome:
    from carolctl.failure_text import class_of

    _one_of(status, ("completed", "failed"), field="status")
    if reason is not None:
        _one_of(reason, FAILURE_CLASSES, field="reason")
    if status == "completed" and reason:
        raise UsageError("a completed run has no failure class", field="reason")
    failure: Any = (reason or class_of(summary) or "sdk_error") if status == "failed" else None
    return Outcome(
        run_id=run_id,
        claim_no=claim,
        status="completed" if status == "completed" else "failed",
        completed_at=now,
        failure_reason=failure,
        turns=turns,
        # An argument need not be UTF-8, and the database takes nothing else.
        summary=summary.encode(errors="replace").decode()[:2000] if summary else None,
    )


# -- words -----------------------------------------------------------------------------------------------


def _existing_run(session: Session, run_id: int) -> Run:
    with session.store.read() as tx:
        run = tx.run(run_id)
    if run is None:
        raise NotFound(f"no such run: {run_id}", hint="carolctl list-runs")
    return run


def _one_of(word: str, words: tuple[str, ...], *, field: str) -> None:
    if word not in words:
        raise UsageError(f"not one of {', '.join(words)}: {word!r}", field=field)


def _since(text: str | None, now: Millis) -> Millis | None:
    from carolctl.cli.periods import instant_or_ago

    return None if text is None else instant_or_ago(text, now, field="since")
