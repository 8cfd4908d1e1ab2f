"""The commands of timers and runs, as typer sees them: their options, help and exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from carolctl.cli import machine
from carolctl.cli.app import application
from carolctl.cli.options import Db, DryRun, Json, PlannerDb, help_epilog, number


@application.command(
    "tick",
    epilog=help_epilog(
        "carolctl tick --dry-run", x66="no job store yet", x75="database busy", x78="no launcher"
    ),
)
def tick(db: Db = None, planner_db: PlannerDb = None, as_json: Json = False, dry_run: DryRun = False) -> int:
    """Fire what is due, reap what is dead, launch what got a slot. A timer calls this every 30 s.

    With a planner database it mirrors runs into its droid_runs, and ends the orphans there.
    """
    return machine.tick(db=db, planner_db=planner_db, as_json=as_json, dry_run=dry_run)


@application.command(
    "reap",
    epilog=help_epilog(
        "carolctl reap --ledger-id 924",
        x1="that row is not running, or it is a run of ours",
        x66="no job store yet, or no such row",
        x75="database busy",
        x78="no planner database given",
    ),
)
def reap(
    ledger_id: Annotated[
        int | None,
        typer.Option(
            "--ledger-id",
            metavar="N",
            parser=number(0),
            help="Only end this row of droid_runs, whatever its age",
        ),
    ] = None,
    db: Db = None,
    planner_db: PlannerDb = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> int:
    """Record expired leases, lost processes and orphans of the legacy ledger, without firing anything."""
    return machine.reap(db=db, planner_db=planner_db, ledger_id=ledger_id, as_json=as_json, dry_run=dry_run)


@application.command(
    "drain", epilog=help_epilog("carolctl drain", x66="no job store yet", x75="database busy")
)
def drain(db: Db = None, as_json: Json = False) -> int:
    """Bring the spool in: events, and outcomes that could not be written when they happened."""
    return machine.drain(db=db, as_json=as_json)


@application.command(
    "prune", epilog=help_epilog("carolctl prune --dry-run", x66="no job store yet", x75="database busy")
)
def prune(db: Db = None, as_json: Json = False, dry_run: DryRun = False) -> int:
    """Delete old runs, metrics, events and audit entries, in small batches.

    How long each is kept: carolctl config list, the settings retention.*
    """
    return machine.prune(db=db, as_json=as_json, dry_run=dry_run)
