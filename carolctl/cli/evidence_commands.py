"""What people ask about the past and the present of slots: why, audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, help_epilog
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import Exit, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from carolctl.cli.render import Tone
    from carolctl.slot_audit import Account, Audit
    from carolctl.why import Answer

_TONES: dict[str, Tone] = {
    "ran": "good", "running": "good", "will_run": "good", "due": "good",
    "skipped": "warn", "queued": "warn", "deferred": "warn", "paused": "warn", "cancelled": "warn",
    "tick_down": "bad", "no_row": "bad",
}  # fmt: skip


@application.command(
    "why",
    epilog=help_epilog(
        "carolctl why nightly --at 2026-03-29T01:30:00Z",
        x1="the slot was due and has no row, which must not be",
        x2="a time that cannot be read",
        x66="no such job, no job store",
    ),
)
def why(
    job_id: JobId,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="ISO 8601, UTC unless it says [the last slot that was due]"
        ),
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Say what became of a slot, or will, and show the rows that prove it.

    It ran, was skipped, deferred, is queued and behind whom, was never due, or no tick came. A time in whole
    minutes means the slot within that minute.
    """
    from carolctl.why import why as ask

    asked = None if at is None else clock.parse_iso(at, field="at")
    answer = ask(open_session(db), job_id, asked)
    print_json(answer.document()) if as_json else _print_answer(answer)
    return Exit.FAILED if answer.story.verdict == "no_row" else Exit.OK


def _print_answer(answer: Answer) -> None:
    from carolctl.cli import render

    facts, story, epoch = answer.facts, answer.story, answer.facts.epoch
    rows: list[tuple[str, object]] = [
        ("slot", clock.iso(facts.slot) if facts.slot is not None else f"none at {clock.iso(facts.asked)}"),
        ("verdict", render.Toned(story.verdict.replace("_", " "), _TONES.get(story.verdict, ""))),
        ("why", story.said),
    ]
    if epoch:
        rows.append(("schedule", f"{epoch.kind} {epoch.expr}".strip() + f" ({epoch.timezone})"))
    before, after = (clock.iso(instant) or "none" for instant in facts.nearest)
    rows.append(("slots near it", f"before: {before}; after: {after}"))
    if facts.row:
        rows.append(("row", f"carolctl show-run {facts.row.run_id}"))
    rows += [("slot held by", f"run {run.run_id} of {run.job_id}") for run in answer.holders()]
    rows += [("audit log", _in_words(entry)) for entry in answer.evidence()]
    render.pairs(facts.job_id, rows)


def _in_words(entry: dict[str, object]) -> str:
    said = f": {entry['reason']}" if entry["reason"] else ""
    return f"{entry['audit_id']} at {clock.iso(int(str(entry['at'])))} {entry['command']} by {entry['actor']}{said}"


@application.command(
    "audit",
    epilog=help_epilog(
        "carolctl audit --since 7d --json",
        x1="a slot lacks its row, or a schedule cannot be read: it says which",
        x2="a time that cannot be read",
        x66="no such job, no job store",
    ),
)
def audit(
    job_id: Annotated[str | None, typer.Argument(metavar="JOB", help="Only this job")] = None,
    since: Annotated[str, typer.Option("--since", metavar="DUR|ISO", help="From when on")] = "30d",
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DUR|ISO", help="To when: an instant, or how long ago [now]"),
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Prove that no slot of a period lacks its row, or say which do.

    What was due is computed anew from the schedules and from what the audit log says of edits, and held against the
    rows of runs and skips. Slots that wait for a tick, or lie in a pause that lasts, are counted apart.
    """
    from carolctl import slot_audit
    from carolctl.cli.periods import instant_or_ago

    session = open_session(db)
    begin = instant_or_ago(since, session.now, field="since")
    end = session.now if until is None else instant_or_ago(until, session.now, field="until")
    if not begin < min(end, session.now):
        raise UsageError("the period is empty", field="since")
    found = slot_audit.audit(session, job_id, begin, min(end, session.now))
    if job_id is not None and not found.accounts:
        raise NotFound(f"no such job: {job_id[:80]}", hint="carolctl list-jobs")
    print_json(found.document()) if as_json else _print_audit(found)
    return Exit.OK if found.holds else Exit.FAILED


def _print_audit(found: Audit) -> None:
    from carolctl.cli import render

    document = found.document()
    clipped = " (older rows may have been pruned)" if found.is_clipped else ""
    print_lines(
        [
            f"{document['jobs']} jobs, {document['slots']:,} slots and {document['rows']:,} rows"
            f" from {document['since']} to {document['until']}{clipped}"
        ]
    )
    rows = [_account_row(one, "lacks its row", one.lacking, "bad") for one in found.accounts if one.lacking]
    rows += [_account_row(one, _WAITS[one.waits], one.waiting, "") for one in found.accounts if one.waiting]
    if rows:
        columns = [
            render.Column(name="job", least=12, overflow="fold"),
            render.Column(name="slots", least=5, justify="right"),
            render.Column(name="what", least=13),
            render.Column(name="first", least=17),
            render.Column(name="last", least=17, dispensable=1),
            render.Column(name="schedule", least=12, dispensable=2),
        ]
        render.table(None, columns, rows)
    for name in document["unreadable"]:
        render.line(f"FAIL: {name}: its schedule or row cannot be read, so nothing is proved", "bad")
    lacking = sum(len(one.lacking) for one in found.accounts)
    if lacking:
        render.line(f"FAIL: {lacking:,} slots lack their row (carolctl why JOB --at SLOT)", "bad")
    elif found.holds:
        render.line("pass: no slot lacks its row", "good")


_WAITS = {"paused": "paused", "due": "waits for tick", "removed": "job removed"}


def _account_row(one: Account, what: str, slots: Sequence[int], tone: Tone) -> list[object]:
    from carolctl.cli import render

    first, last = render.moment(slots[0]), render.moment(slots[-1])
    return [one.job_id, len(slots), render.Toned(what, tone), first, last, one.schedule]
