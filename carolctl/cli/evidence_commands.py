"""What people ask about the past and the present of slots: why, audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, help_epilog
from carolctl.cli.output import print_json
from carolctl.errors import Exit

if TYPE_CHECKING:
    from carolctl.cli.render import Tone
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
