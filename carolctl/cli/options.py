"""The options that several commands share, as annotated types."""

from __future__ import annotations

from typing import Annotated

import typer

Db = Annotated[
    str | None,
    typer.Option("--db", metavar="PATH", help="Job store [CAROL_SCHEDULER_DB; DATA HOME/scheduler.db]"),
]
PlannerDb = Annotated[
    str | None,
    typer.Option("--planner-db", metavar="PATH", help="Legacy planner database [CAROL_PLANNER_DB]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id")]
RunId = Annotated[int, typer.Argument(metavar="RUN", help="Run id", min=1)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Compute it all in a rolled-back transaction")]


def help_epilog(example: str, **exits: str) -> str:
    """The end of a command's help: an example and its exit codes (``x75="try again"``)."""
    codes = "; ".join(f"{name[1:]} {meaning}" for name, meaning in exits.items())
    return f"Example: {example}\n\nEXIT STATUS: 0 done; {codes}; see README for the whole table"
