"""What chats and people call to put the fleet off for a while."""

from __future__ import annotations

from typing import Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, Json, Reason, checked_reason, help_epilog
from carolctl.cli.output import print_json, print_lines, tell
from carolctl.errors import NotFound, UsageError

Name = Annotated[str, typer.Argument(metavar="NAME", help="Who needs the machine: chat, build, ...")]
Ttl = Annotated[
    str | None,
    typer.Option("--ttl", metavar="DUR", help="How long, unless renewed, up to 24h: 120s, 15m [120s]"),
]
Command = Annotated[
    list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Hold it while this command runs")
]

_DEFAULT_TTL = "120s"
_EFFECT = """While a source is held, ticks put due firings off: no run, a new look after
schedule.chat_pressure_delay_sec (30 s), for pressure.max_deferral_sec (1 h) in total; then they fire all
the same. What runs or waits for a slot goes on, and run-job, trigger and on-failure runs are never put off.
A job put off past its next slots owes them all: of a "* * * * *" job one run comes for ten minutes of
pressure, the other nine slots are skipped as overlap; with --overlap allow all ten are run, under the cap."""

pressure = typer.Typer(
    help="Put due firings off while something interactive needs the machine.",
    epilog=help_epilog("carolctl pressure hold chat --ttl 120s", x2="a value cannot be used"),
    rich_markup_mode=None,
)
application.add_typer(pressure, name="pressure")


@pressure.command(
    "hold",
    help=f"""Put due firings off, for a time or while a command runs.

To hold a name twice is to hold it once, until the later end. With a command there is a hold of its own beside that,
renewed until it ends and then given back, also when this is interrupted; the name stays held while anybody holds it.
Standard output and the exit code are the command's. It is started even if the store is busy; the hold follows then.

{_EFFECT}""",
    epilog=help_epilog(
        "carolctl pressure hold chat --ttl 120s; carolctl pressure hold build -- make -j4",
        x2="a value cannot be used",
        x66="no such command",
        x75="database busy",
        x77="the command may not be run",
    ),
)
def hold(
    name: Name,
    command: Command = None,
    ttl: Ttl = None,
    reason: Reason = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Put due firings off, for a time or while a command runs."""
    from carolctl import pressure as holding
    from carolctl.schedule import parse_duration

    holding.check_name(name)
    seconds = holding.check_ttl(parse_duration(_DEFAULT_TTL if ttl is None else ttl, field="ttl"))
    why = checked_reason(reason)
    if command and as_json:
        raise UsageError("standard output is the command's", field="json")
    session = open_session(db, create=True)
    if command:
        return holding.hold_while(session, name, command, ttl_sec=seconds, reason=why)
    until = clock.iso(holding.hold(session, name, ttl_sec=seconds, reason=why))
    tell(f"{name} is held until {until}", {"name": name, "expires_at": until}, as_json=as_json)
    return 0


@pressure.command(
    "release",
    epilog=help_epilog("carolctl pressure release chat", x2="not the name of a source", x75="database busy"),
)
def release(name: Name, reason: Reason = None, db: Db = None, as_json: Json = False) -> None:
    """Let a source go, whoever holds it, commands that run included. One that is not held is no error."""
    from carolctl import pressure as holding

    holding.check_name(name)
    why = checked_reason(reason)
    try:
        released = holding.release(open_session(db), name, reason=why)
    except NotFound:
        # Without a job store nothing is held.
        released = False
    line = f"{name} is released" if released else f"{name} was not held"
    tell(line, {"name": name, "released": released}, as_json=as_json)


@pressure.command("list", epilog=help_epilog("carolctl pressure list --json", x66="no job store yet"))
def list_sources(db: Db = None, as_json: Json = False) -> None:
    """List the sources that are held now: when the last holder of each ends, and how many there are."""
    session = open_session(db)
    with session.store.read() as tx:
        held = tx.pressure_holders(session.now)
    if as_json:
        sources = [
            {"name": name, "expires_at": clock.iso(until), "holders": holders}
            for name, until, holders in held
        ]
        print_json({"sources": sources})
        return
    lines = [
        f"{name} until {clock.iso(until)}" + (f", {holders} holders" if holders > 1 else "")
        for name, until, holders in held
    ]
    print_lines(lines or ["nothing is held"])
