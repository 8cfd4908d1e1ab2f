"""The command emit, as typer sees it: its help, its mistakes, and everything that `emit.answer` leaves to it."""

from __future__ import annotations

from typing import Annotated

import typer

from carolctl import clock
from carolctl import emit as emitting
from carolctl.cli.app import application
from carolctl.cli.options import Json, help_epilog
from carolctl.cli.output import tell
from carolctl.errors import Exit


@application.command(
    "emit",
    epilog=help_epilog(
        "carolctl emit $CAROL_RUN_ID --kind turns --turns 12",
        x65="the spool cannot be written: the file system reports an error",
        x75="disk full",
        x77="not permitted, or a read-only file system",
    ),
)
def emit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, from CAROL_RUN_ID")],
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="heartbeat, turns, progress, or a word of yours")
    ],
    turns: Annotated[
        str | None, typer.Option("--turns", metavar="N", help="Turns used so far; past --max-turns it ends")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="JSON", help="Any JSON document")] = None,
    event_id: Annotated[
        str | None, typer.Option("--event-id", metavar="ID", help="To emit the same event again [random]")
    ] = None,
    as_json: Json = False,
) -> int:
    """Leave an event about a run. Its id is printed once the event is on disk; a tick or drain takes it in.

    No database is asked: whether there is such a run shows later, in show-run. The same id is the same event.
    """
    chosen = emitting.new_id() if event_id is None else event_id
    emitting.emit(run=run, kind=kind, event_id=chosen, now=clock.now(), turns=turns, data=data)
    tell(chosen, {"event_id": chosen}, as_json=as_json)
    return Exit.OK
