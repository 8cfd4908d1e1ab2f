"""The options that several commands share, as annotated types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Db = Annotated[
    str | None,
    typer.Option("--db", metavar="PATH", help="Job store [CAROL_SCHEDULER_DB; DATA HOME/scheduler.db]"),
]
PlannerDb = Annotated[
    str | None,
    typer.Option(
        "--planner-db",
        metavar="PATH",
        help="Legacy planner database, '' for none [CAROL_PLANNER_DB; as installed]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log")]
Requester = Annotated[str | None, typer.Option("--requester", metavar="NAME", help="On whose behalf")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id")]


def number(least: int) -> Callable[[str], int]:
    """A parser of plain whole numbers: not ``1_0``, and nothing that a database could not hold."""

    def parse(text: str | int) -> int:
        from carolctl.config import whole_number

        try:
            return whole_number(str(text), least=least)
        except ValueError as problem:
            raise typer.BadParameter(f"{problem}: {text}") from None

    return parse


RunId = Annotated[int, typer.Argument(metavar="RUN", help="Run id", parser=number(1))]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Compute it all in a rolled-back transaction")]


def checked_reason(text: str | None) -> str | None:
    """The reason of a change, in one line, where one is given. Raises `UsageError`."""
    if text is None:
        return None
    from carolctl import job_values

    return job_values.reason(text)


def help_epilog(example: str, **exits: str) -> str:
    """The end of a command's help: an example and its exit codes (``x75="try again"``)."""
    codes = "; ".join(f"{name[1:]} {meaning}" for name, meaning in exits.items())
    return f"Example: {example}\n\nEXIT STATUS: 0 done; {codes}; see README for the whole table"
