"""What the ticks to come will do: forecast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, Json, help_epilog, number
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import UsageError
from carolctl.notices import warn

if TYPE_CHECKING:
    from carolctl.outlook import Forecast
    from carolctl.simulation import Expected

_MOST_HOURS = 24 * 31
_SHOWN = 20


@application.command(
    "forecast",
    epilog=help_epilog(
        "carolctl forecast --hours 12 --cap 3 --plot tonight.svg",
        x2="a value that cannot be used",
        x66="no job store, no such folder",
        x77="--plot: not permitted",
    ),
)
def forecast(
    hours: Annotated[
        int, typer.Option("--hours", metavar="N", parser=number(1), help="How far to look, at most 744 [24]")
    ] = 24,
    cap: Annotated[
        int | None,
        typer.Option("--cap", metavar="N", parser=number(0), help="Try another cap than the one set"),
    ] = None,
    default_duration: Annotated[
        str, typer.Option("--default-duration", metavar="DUR", help="For jobs that were never measured")
    ] = "60s",
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE.svg", help="Write the picture")] = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Show what will run in the coming hours under the cap: starts, waits and the peak.

    The ticks are played forward by the rules of the tick itself, a run taking the median of its job's latest
    durations of those that ended well. Pressure, failures and runs by hand are not foreseen. Where there is too much to
    foresee it ends early, says when, and gives figures of that time alone.
    """
    from carolctl import outlook
    from carolctl.schedule import parse_duration

    if hours > _MOST_HOURS:
        raise UsageError(f"{hours} is more than {_MOST_HOURS}", field="hours")
    default_ms = parse_duration(default_duration, field="default_duration") * 1000
    found = outlook.forecast(open_session(db), hours=hours, cap=cap, default_ms=default_ms)
    if plot is not None:
        from carolctl.cli import gantt_svg

        gantt_svg.write(plot, found)
    for job_id in found.unreadable():
        warn(f"{job_id} is left out: its row or schedule cannot be read")
    if (cut := found.cut()) and as_json:
        warn(cut)
    print_json(found.document()) if as_json else _print_forecast(found)


def _print_forecast(found: Forecast) -> None:
    from carolctl.cli import gantt, render

    if found.paused is not None:
        until = clock.iso(int(found.paused)) if found.paused.isdigit() else "carolctl resume"
        render.line(f"WARNING: everything is paused until {until}", "warn")
    if cut := found.cut():
        render.line(f"WARNING: {cut}", "warn")
    if found.outlook.cap == 0:
        render.line("WARNING: the cap is 0: nothing fires", "warn")
    if not found.outlook.expected:
        print_lines(["nothing is expected to run"])
        return
    gantt.print_gantt(found.outlook)
    print_lines([""])
    starts = [one for one in found.outlook.starts() if one.run_id is None]
    columns = [
        render.Column(name="start", least=17),
        render.Column(name="job", least=12, overflow="fold"),
        render.Column(name="waits", least=6, justify="right"),
        render.Column(name="takes", least=7, justify="right"),
        render.Column(name="due", least=17, dispensable=1),
        render.Column(name="slots", least=5, justify="right", dispensable=2),
    ]
    render.table(None, columns, [_row(one, found) for one in starts[:_SHOWN]])
    if len(starts) > _SHOWN:
        print_lines([f"and {len(starts) - _SHOWN} more (--json shows all)"])
    print_lines([""])
    render.pairs(None, _summary(found))


def _row(one: Expected, found: Forecast) -> list[object]:
    from carolctl.cli import render

    assert one.start is not None
    assert one.end is not None
    mark = "" if one.job_id in found.measured else "?"
    waits = (one.wait_ms or 0) // 1000
    return [
        render.moment(one.start),
        one.job_id,
        render.Toned(f"{waits} s", "warn") if waits else None,
        f"{(one.end - one.start) // 1000} s{mark}",
        render.moment(one.scheduled_for),
        one.coalesced,
    ]


def _summary(found: Forecast) -> list[tuple[str, object]]:
    from carolctl import simulation
    from carolctl.cli import render

    outlook = found.outlook
    running, queued = simulation.running_peak(outlook), simulation.queue_peak(outlook)
    when = "" if running.at is None else f" at {render.moment(running.at)}"
    skipped = sum(one.coalesced for one in outlook.expected if one.skip_reason)
    waiting = f"{queued.count} wait at {render.moment(queued.at)}" if queued.count else "nothing waits"
    full = f"{simulation.full_ms(outlook) // 60_000} min with all slots taken"
    lines: list[tuple[str, object]] = [
        ("runs", f"{len(outlook.starts())}; slots skipped: {skipped}"),
        ("peak", f"{running.count} of {outlook.cap} slots{when}; {full}"),
        ("waits", f"{waiting}; the longest takes {found.longest_wait_ms() // 1000} s"),
    ]
    unknown = found.unmeasured()
    if unknown:
        lines.append(("?", f"{len(unknown)} jobs were never measured: {found.default_ms // 1000} s each"))
    return lines
