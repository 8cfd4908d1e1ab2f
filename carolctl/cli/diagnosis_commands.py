"""locks: what keeps others out of a database."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock, places
from carolctl.cli.app import application
from carolctl.cli.options import Json, help_epilog
from carolctl.cli.output import print_json, print_lines

if TYPE_CHECKING:
    from carolctl.cli.render import Column, Row
    from carolctl.lock_report import Diagnosis

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    """``0.5``, ``10s``, ``2m``: from 0.05 s to an hour."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0.05 <= seconds <= 3600:
        raise typer.BadParameter(f"not a time from 0.05 s to 1h: {text}")
    return seconds


Database = Annotated[str | None, typer.Argument(metavar="[DB]", help="Any SQLite database [the job store]")]
For = Annotated[
    float | None,
    typer.Option(
        "--for", "--watch-sec", metavar="DUR", help="How long to look: 0.5, 10s [1 to 1.8 s]", parser=_seconds
    ),
]


@application.command(
    "locks",
    epilog=help_epilog(
        "carolctl locks plangenerator.db --for 10s",
        x1="somebody keeps others out, or keeps the WAL from being reused",
        x65="not a database",
        x66="no such file",
        x77="the file may not be read",
    ),
)
def locks(db: Database = None, look_for: For = None, as_json: Json = False) -> int:
    """Show who holds a database's write lock, since when, and doing what. Takes no lock and drops none.

    Verdicts: free, contention (0); starvation, long_holder, wedge, long_reader, unseen_holder (1). As root, or as
    the holder's user, it also shows whom the holder waits for.
    """
    from carolctl.locks import LookFor, diagnose

    home = places.data_home()
    found = diagnose(
        db or places.scheduler_db(),
        now=clock.now(),
        state_file=os.path.join(home, "locks.state.json") if os.path.isdir(home) else None,
        look_for=LookFor(at_least=look_for, at_most=look_for) if look_for else LookFor(),
    )
    print_json(found.document()) if as_json else _show(found)
    return found.exit_code


def _show(found: Diagnosis) -> None:
    verdict = found.verdict.replace("_", " ")
    print_lines([f"{verdict}: {found.headline()}"])
    if found.holders or found.readers:
        from carolctl.cli import render

        print_lines([""])
        render.table(None, _columns(), _rows(found))
        print_lines([""])
    elsewhere = [f"limit: {text}" for text in found.limits]
    print_lines([f"{found.database} ({found.journal_mode})", *elsewhere, f"advice: {found.advice}"])


def _columns() -> list[Column]:
    from carolctl.cli.render import Column

    return [
        Column(name="pid", least=7, justify="right"),
        Column(name="role", least=8),
        Column(name="held", least=5, justify="right"),
        Column(name="behind", least=6, justify="right", dispensable=2),
        Column(name="user", least=6, dispensable=3),
        Column(name="unit", least=12, dispensable=4),
        Column(name="since", least=20, dispensable=1),
        Column(name="command", least=16),
    ]


def _rows(found: Diagnosis) -> list[Row]:
    unit = {found.holder.pid: found.holder.unit} if found.holder else {}
    since = {found.holder.pid: found.holder.since} if found.holder else {}
    rows: list[Row] = [
        [one.pid, "writer", f"{one.held_share:.0%}", None, one.user, unit.get(one.pid or 0),
         since.get(one.pid or 0), one.command]
        for one in found.holders
    ]  # fmt: skip
    rows += [
        [one.pid, "reader", "100%", one.frames_behind, one.user, None, None, one.command]
        for one in found.readers
    ]
    return rows
