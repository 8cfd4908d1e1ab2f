"""What people ask about the time to come: which schedules fall together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, Json, help_epilog, number
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import Exit, UsageError
from carolctl.notices import warn
from carolctl.said import Said

if TYPE_CHECKING:
    from carolctl.collisions import Candidate, Check, Question
    from carolctl.model import Millis

_LONGEST_SEC = 31 * 86_400
_SHOWN = 20


def _option(flag: str, metavar: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar=metavar, help=text)
    return option


Cron = Annotated[str | None, _option("--cron", "EXPR", "A candidate: a schedule that is no job yet")]
DailyAt = Annotated[str | None, _option("--daily-at", "HH:MM", "A candidate, once a day")]
Every = Annotated[str | None, _option("--every", "DUR", "A candidate, by elapsed time from now")]
Zone = Annotated[str | None, _option("--timezone", "ZONE", "IANA zone of the candidate [UTC]")]
Rule = Annotated[
    str | None, _option("--dst-rule", "once|literal", "Of the candidate, at a clock change [once]")
]
Spread = Annotated[
    str | None, _option("--spread", "DUR", "Of the candidate; the offset is that of the job excluded")
]
AvgTurns = Annotated[
    int | None,
    typer.Option(
        "--avg-turns",
        metavar="N",
        parser=number(0),
        help="Turns of a firing of the candidate [collision.default_turns]",
    ),
]
Project = Annotated[str | None, _option("--project", "P", "Only jobs of this project, and the candidate")]
Exclude = Annotated[
    list[str] | None, _option("--exclude", "JOB", "Leave this job out, as if the candidate took its place")
]
Horizon = Annotated[str, _option("--horizon", "DUR", "How far to look, at most 31d")]
Threshold = Annotated[
    int | None,
    typer.Option(
        "--threshold",
        metavar="N",
        parser=number(0),
        help="Turns in five minutes to be exceeded [collision.threshold_turns]",
    ),
]
Suggest = Annotated[
    bool, typer.Option("--suggest", help="Say which move within the hour lowers the peak most")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 if there is a warning, for CI")]
Plot = Annotated[str | None, _option("--plot", "FILE.svg", "Write the day as a heat map")]


@application.command(
    "collision-check",
    epilog=help_epilog(
        "carolctl collision-check --daily-at 03:00 --timezone Europe/Berlin --avg-turns 800 --suggest",
        x1="there are warnings, with --strict",
        x2="a schedule or value that cannot be used",
        x66="no such job to exclude, no job store, no such folder",
        x77="--plot: not permitted",
    ),
)
def collision_check(
    cron: Cron = None,
    daily_at: DailyAt = None,
    every: Every = None,
    timezone: Zone = None,
    dst_rule: Rule = None,
    spread: Spread = None,
    avg_turns: AvgTurns = None,
    project: Project = None,
    exclude: Exclude = None,
    horizon: Horizon = "24h",
    threshold: Threshold = None,
    suggest: Suggest = False,
    strict: Strict = False,
    plot: Plot = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Show which schedules fall together, and how many turns that takes.

    Active jobs, and a candidate if one is given, are expanded over the horizon into buckets of five
    minutes UTC, at nominal times with their spread. A warning: at least two schedules in one bucket
    whose turns together exceed the threshold. A firing weighs its job's average, else its turn budget.
    """
    from carolctl import collisions, job_values
    from carolctl.schedule import parse_duration

    said = Said(
        cron=cron, daily_at=daily_at, every=every, timezone=timezone, dst_rule=dst_rule, spread=spread
    )
    seconds = parse_duration(horizon, field="horizon")
    if seconds > _LONGEST_SEC:
        raise UsageError(f"{horizon[:40]!a} is more than 31d", field="horizon")
    values = job_values.columns(said)
    session = open_session(db)
    question = collisions.Question(
        candidate=_candidate(said, values, avg_turns, session.now),
        project=project,
        exclude=tuple(dict.fromkeys(exclude or ())),
        horizon_sec=seconds,
        threshold=threshold,
        suggest=suggest,
    )
    found = collisions.check(session, question)
    if plot is not None:
        from carolctl.cli import heatmap_svg

        heatmap_svg.write(plot, found)
    _tell(question, found, as_json=as_json)
    return Exit.FAILED if strict and found.collisions else Exit.OK


def _candidate(said: Said, values: dict[str, object], turns: int | None, now: Millis) -> Candidate | None:
    from carolctl import job_values, schedule
    from carolctl.collisions import Candidate

    timing = job_values.spoken_schedule(said)
    if timing is None:
        given = [name for name in ("timezone", "dst_rule", "spread") if getattr(said, name) is not None]
        if given or turns is not None:
            field = given[0] if given else "avg_turns"
            raise UsageError("is for a candidate", field=field, hint="--cron, --daily-at or --every")
        return None
    times = schedule.parse(
        *timing,
        str(values.get("timezone", "UTC")),
        "literal" if values.get("dst_rule") == "literal" else "once",
        anchor_at=now,
    )
    return Candidate(schedule=times, spread_sec=int(str(values.get("spread_sec", 0))), turns=turns)


# -- for people ------------------------------------------------------------------------------------------------


def _tell(question: Question, found: Check, *, as_json: bool) -> None:
    candidate = question.candidate
    if candidate and candidate.spread_sec and len(question.exclude) != 1:
        warn("the offset within --spread follows from the job's id; without one --exclude it is taken as 0")
    for job_id in found.unreadable:
        warn(f"{job_id} is left out: its schedule or row cannot be read")
    if as_json:
        print_json(found.document())
        return
    from carolctl.cli import heatmap

    print_lines([_head(found)])
    heatmap.print_map(found.forecast, found.threshold)
    print_lines([""])
    _print_verdict(found)
    if found.suggested:
        _print_advice(found)


def _head(found: Check) -> str:
    from carolctl import collisions

    start, end = collisions.period(found.forecast)
    many = len(found.forecast.loads)
    unknown = (
        f"; {found.unmeasured} without measured turns: by budget, else {found.default_turns} a firing"
        if found.unmeasured
        else ""
    )
    return f"{many} schedule{'s' * (many != 1)} from {start} to {end}{unknown}"


def _print_verdict(found: Check) -> None:
    many = len(found.collisions)
    if not many:
        print_lines([f"no two schedules together exceed {found.threshold:,} turns in five minutes"])
        return
    from carolctl import collisions
    from carolctl.cli import render

    columns = (
        render.Column(name="turns", least=6, justify="right"),
        render.Column(name="at", least=18, overflow="fold"),
        render.Column(name="schedules", least=24, overflow="fold"),
    )
    rows = [
        (
            render.Toned(f"{collisions.turns(one.weight):,}", "bad"),
            collisions.clock_times(collisions.minutes(found.forecast, one), 6),
            collisions.some(one.names, 12),
        )
        for one in found.collisions[:_SHOWN]
    ]
    title = f"WARNING: {many} collision{'s' * (many != 1)}, over {found.threshold:,} turns in five minutes"
    render.table(title, columns, rows)
    if many > _SHOWN:
        print_lines([f"and {many - _SHOWN} more (--json shows all)"])


def _print_advice(found: Check) -> None:
    from carolctl import collisions
    from carolctl.cli import render

    best = found.suggestion
    if best is None:
        print_lines(["", "no move of one schedule within its hour would lower it"])
        return
    figures = (
        ("the highest bucket", best.before.peak, best.after.peak),
        ("the highest shared by schedules", best.before.shared_peak, best.after.shared_peak),
        ("the highest in which it fires", best.before.own_peak, best.after.own_peak),
    )
    falls = [
        f"{what} from {collisions.turns(before):,} to {collisions.turns(after):,} turns"
        for what, before, after in figures
        if after < before
    ]
    if best.after.collisions < best.before.collisions:
        falls.append(f"colliding buckets from {best.before.collisions} to {best.after.collisions}")
    print_lines([""])
    render.pairs(None, [("suggestion", collisions.command(best)), ("lowers", "; ".join(falls))])
