"""What people ask about the audit log: who changed what, when and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, Json, help_epilog
from carolctl.cli.output import print_json, print_lines

_BRIEF = 160
#: Members that follow from others and say little: left out of the table, not of the JSON.
_FOLLOW = {
    "schedule_rev",
    "anchor_at",
    "last_scheduled_for",
    "next_fire_at",
    "deferred_at",
    "max_turns_set_at",
}
_INSTANTS = {"until", "from", "to", "paused_until"}


@application.command(
    "changes",
    epilog=help_epilog(
        "carolctl changes nightly --since 7d --json", x2="a time that cannot be read", x66="no job store yet"
    ),
)
def changes(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Only of this job, setting or source of pressure")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DUR|ISO", help="Since then: 24h, or an instant")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most")] = 50,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Show who changed what, when and why, newest first.

    This is the audit log: what people and agents did, and what the program did by itself (as carolctl), such as a
    pause after failures, a deferral or a time without ticks. What was removed is there too.
    """
    from carolctl.cli.periods import instant_or_ago

    session = open_session(db)
    begin = None if since is None else instant_or_ago(since, session.now, field="since")
    with session.store.read() as tx:
        entries = tx.audit_entries(limit=limit, subject=job_id, since=begin)
    if as_json:
        print_json({"changes": [_document(entry) for entry in entries]})
    elif entries:
        _print_table(entries)
    else:
        print_lines(["no change is recorded"])


def _document(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {
        "at": clock.iso(entry["at"]),
        "before": _value(entry["before"]),
        "after": _value(entry["after"]),
    }


def _value(text: str | None) -> Any:
    """A stored document; one that was damaged as the text that it is."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _print_table(entries: list[dict[str, Any]]) -> None:
    from carolctl.cli import render

    columns = (
        render.Column(name="time", least=17, overflow="fold"),
        render.Column(name="by", least=6, overflow="fold"),
        render.Column(name="command", least=9, overflow="fold"),
        render.Column(name="of", least=7, overflow="fold"),
        render.Column(name="what", least=14, overflow="fold"),
        render.Column(name="reason", least=10, overflow="fold"),
    )
    rows = [
        (
            render.moment(entry["at"]),
            entry["actor"],
            entry["command"],
            entry["subject"],
            _brief(_value(entry["before"]), _value(entry["after"])),
            entry["reason"],
        )
        for entry in entries
    ]
    render.table(None, columns, rows)


def _brief(before: Any, after: Any) -> str | None:
    """What differs, in a few words: ``max_turns 5 to 9``."""
    if not isinstance(before, dict) and not isinstance(after, dict):
        words = [] if before is after is None else [f"{_word('', before)} to {_word('', after)}"]
    else:
        old, new = before if isinstance(before, dict) else {}, after if isinstance(after, dict) else {}
        names = [name for name in {**old, **new} if name not in _FOLLOW and old.get(name) != new.get(name)]
        words = [_difference(name, old, new, is_change=before is not None) for name in names]
    said = ", ".join(words)
    return (said if len(said) <= _BRIEF else f"{said[: _BRIEF - 3]}...") or None


def _difference(name: str, old: dict[str, Any], new: dict[str, Any], *, is_change: bool) -> str:
    if not is_change:
        return f"{name} {_word(name, new[name])}"
    return f"{name} {_word(name, old.get(name))} to {_word(name, new.get(name))}"


def _word(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, int) and not isinstance(value, bool) and (name in _INSTANTS or name.endswith("_at")):
        return str(clock.iso(value))
    return value if isinstance(value, str) else json.dumps(value)
