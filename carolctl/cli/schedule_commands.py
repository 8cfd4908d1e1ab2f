"""The times of an expression that is no job yet."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.options import Json, help_epilog
from carolctl.cli.output import print_json
from carolctl.errors import UsageError

if TYPE_CHECKING:
    from carolctl.instant import Millis
    from carolctl.model import DstRule, ScheduleKind
    from carolctl.schedule import Schedule


@application.command(
    "next",
    epilog=help_epilog(
        "carolctl next '30 2 * * *' --timezone Europe/Berlin --after 2026-03-28 --count 3",
        x2="an expression or zone that cannot be used",
    ),
)
def next_times(
    expr: Annotated[str, typer.Argument(metavar="EXPR", help="Cron line, alias, or HH:MM for each day")],
    timezone: Annotated[str, typer.Option("--timezone", metavar="ZONE", help="IANA zone")] = "UTC",
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="ISO", help="Strictly after this, UTC unless it says [now]"),
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, max=10_000, help="How many")] = 5,
    dst_rule: Annotated[
        str,
        typer.Option(
            "--dst-rule", metavar="once|literal", help="At a clock change: once, or as the wall reads"
        ),
    ] = "once",
    as_json: Json = False,
) -> None:
    """Show when an expression fires.

    Across the clock changes of its zone; no job store is needed.
    """
    from carolctl import timing

    since = clock.now() if after is None else clock.parse_iso(after, field="after")
    times = _parsed(expr, timezone, dst_rule, since)
    slots = list(islice(times.between(since, timing.FAR), count))
    if as_json:
        print_json(
            {"expr": times.expr, "timezone": times.timezone, "next": [clock.iso(slot) for slot in slots]}
        )
        return
    from carolctl.cli import render

    columns = [render.Column(name="UTC", least=21)]
    if times.timezone != "UTC":
        columns.append(render.Column(name=times.timezone, least=20))
    render.table(None, columns, [_row(slot, times.timezone)[: len(columns)] for slot in slots])


def _parsed(expr: str, timezone: str, dst_rule: str, since: Millis) -> Schedule:
    from carolctl import schedule

    kind: ScheduleKind = "daily_at" if re.fullmatch(r"\s*\d{1,2}:\d{2}\s*", expr) else "cron"
    if dst_rule not in ("once", "literal"):
        raise UsageError(f"{dst_rule[:40]!a} is not once or literal", field="dst_rule")
    rule: DstRule = "literal" if dst_rule == "literal" else "once"
    return schedule.parse(kind, expr, timezone.strip(), rule, anchor_at=since)


def _row(slot: Millis, timezone: str) -> tuple[str, str]:
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    there = datetime.fromtimestamp(slot / 1000, UTC)
    here = there.astimezone(ZoneInfo(timezone))
    return f"{there:%a %Y-%m-%d %H:%M}Z", f"{here:%a %Y-%m-%d %H:%M %Z}"
