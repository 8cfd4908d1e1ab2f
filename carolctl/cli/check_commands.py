"""The command that proves a claim about contention on the machine at hand."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carolctl import config, places
from carolctl.cli.app import application
from carolctl.cli.options import Json, help_epilog, number
from carolctl.cli.output import note, print_json, print_lines
from carolctl.errors import Exit
from carolctl.notices import warn

if TYPE_CHECKING:
    from carolctl.contention.figures import Result
    from carolctl.contention.run import Options, Report

_MOST_WRITERS = 200
_MOST_SECONDS = 600.0


def _writers(text: str) -> int:
    count = number(2)(text)
    if count > _MOST_WRITERS:
        raise typer.BadParameter(f"more than {_MOST_WRITERS}: {text}")
    return count


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise typer.BadParameter(f"not a number of seconds: {text}") from None
    if not 0.1 <= seconds <= _MOST_SECONDS:
        raise typer.BadParameter(f"not between 0.1 and {_MOST_SECONDS:g} seconds: {text}")
    return seconds


Writers = Annotated[
    int, typer.Option("--writers", metavar="N", parser=_writers, help="How many write at once, 2 to 200")
]
Seconds = Annotated[
    float, typer.Option("--seconds", metavar="S", parser=_seconds, help="How long each scenario is measured")
]
Chosen = Annotated[
    list[str] | None, typer.Option("--scenario", metavar="NAME", help="Only this one; may be repeated")
]
Broken = Annotated[
    bool, typer.Option("--broken", help="Try the incidents' own designs instead: each must come out as fail")
]
Scratch = Annotated[
    str | None, typer.Option("--scratch", metavar="DIR", help="Where to work [the folder of the data home]")
]


@application.command(
    "contention-test",
    epilog=help_epilog(
        "carolctl contention-test --writers 22",
        x1="a scenario failed, or --broken",
        x2="no such scenario",
        x66="no such scratch folder",
        x77="no scratch folder can be made there",
        x130="interrupted, nothing left behind",
    ),
)
def contention_test(
    writers: Writers = 22,
    seconds: Seconds = 3.0,
    scenario: Chosen = None,
    broken: Broken = False,
    scratch: Scratch = None,
    as_json: Json = False,
) -> int:
    """Prove on this machine that writers do not starve each other.

    Real processes in a scratch folder beside the data home: writers, a foreign program that hogs the lock, a tick that
    dispatches to slow endpoints, agents that are killed. The live files are never opened.
    """
    from carolctl.contention import run

    options = run.Options(
        writers=int(writers),
        seconds=float(seconds),
        deadline_ms=config.busy_timeout_ms(os.environ, warn),
        chosen=tuple(scenario or ()),
        broken=broken,
    )
    report = _run(options, scratch, as_json=as_json)
    if as_json:
        print_json(_document(options, report))
    else:
        _show(options, report)
    return Exit.OK if report.passed else Exit.FAILED


def _run(options: Options, scratch: str | None, *, as_json: bool) -> Report:
    from carolctl.cli import render
    from carolctl.contention import run

    names = options.scenarios()
    home = places.data_home()
    if as_json:
        return run.run(options, data_home=home, scratch=scratch, announce=lambda _name: None)
    about = f"{_scenarios(len(names))}, {options.writers} writers, about {options.about_sec()} s"
    note(f"contention-test: {about}")
    with render.progress(len(names)) as step:
        return run.run(options, data_home=home, scratch=scratch, announce=step)


# -- for programs ----------------------------------------------------------------------------------------------


def _document(options: Options, report: Report) -> dict[str, Any]:
    document = {
        "verdict": "pass" if report.passed else "fail",
        "scenarios": [_scenario(result) for result in report.results],
        "writers": options.writers,
        "seconds": options.seconds,
        "elapsed_sec": round(report.elapsed_sec, 1),
    }
    return document | {"broken": True, "toothless": list(report.toothless)} if options.broken else document


def _scenario(result: Result) -> dict[str, Any]:
    from carolctl.contention.figures import class_names

    document = asdict(result)
    return document | {"histogram": dict(zip(class_names(), result.histogram, strict=True))}


# -- for people ------------------------------------------------------------------------------------------------


def _show(options: Options, report: Report) -> None:
    from carolctl.cli import render

    _show_figures(report)
    _show_histogram(report)
    print_lines([""])
    render.pairs("what was found, and its limit", [(one.name, one.reason) for one in report.results])
    print_lines([""])
    verdict = "pass" if report.passed else "fail"
    words = f"{verdict}: {_verdict(options, report)}, in {report.elapsed_sec:.0f} s"
    render.line(words, "good" if report.passed else "bad")


def _verdict(options: Options, report: Report) -> str:
    count = len(report.results)
    failed = [result.name for result in report.results if not result.passed]
    if report.toothless:
        return f"THE TEST HAS NO TEETH: {', '.join(report.toothless)} should have failed and passed"
    if options.broken:
        return f"as it must be: {count} of {count} broken designs were found out"
    return f"{len(failed)} of {_scenarios(count)}: {', '.join(failed)}" if failed else _scenarios(count)


def _scenarios(count: int) -> str:
    return f"{count} scenario" if count == 1 else f"{count} scenarios"


def _show_figures(report: Report) -> None:
    from carolctl.cli.render import Column, Toned, table
    from carolctl.contention.figures import brief

    columns = (
        Column(name="scenario", least=22),
        Column(name="verdict", least=7),
        *(Column(name=name, least=6, justify="right") for name in ("writes", "failed")),
        *(Column(name=name, least=5, justify="right") for name in ("p50", "p95", "p99", "max")),
    )

    def row(result: Result) -> tuple[object, ...]:
        times = (result.p50_ms, result.p95_ms, result.p99_ms, result.max_ms)
        return (
            result.name,
            Toned(result.verdict, "good" if result.passed else "bad"),
            result.writes,
            result.failures,
            *(None if value is None else brief(value) for value in times),
        )

    table("times in ms", columns, map(row, report.results))


def _show_histogram(report: Report) -> None:
    from carolctl.cli.render import Column, table
    from carolctl.contention.figures import bars, class_names

    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    columns = (
        Column(name="", least=22),
        *(Column(name=name, least=4, justify="right") for name in class_names()),
    )
    rows = [(result.name, *bars(result.histogram, unicode=unicode)) for result in report.results]
    print_lines([""])
    table("how many took at most so many ms", columns, rows)
