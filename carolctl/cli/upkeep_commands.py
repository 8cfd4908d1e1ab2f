"""doctor and backup: their options, help and exit codes, and what people are shown."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock, config, places
from carolctl.cli.app import application
from carolctl.cli.options import Db, Json, PlannerDb, help_epilog, number
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import UsageError
from carolctl.notices import warn
from carolctl.session import actor

if TYPE_CHECKING:
    from carolctl.backup import Backup
    from carolctl.cli.render import Tone
    from carolctl.doctor import Report
    from carolctl.doctor_checks import Status
    from carolctl.restore import Restored

Target = Annotated[
    str | None,
    typer.Argument(metavar="[DIR|FILE]", help="Where to [DATA HOME/backups]", show_default=False),
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", metavar="N", parser=number(1), help="How many stay in a folder [7]"),
]
From = Annotated[
    str | None,
    typer.Option("--restore", metavar="FILE", help="Put this backup in the place of the job store"),
]
Yes = Annotated[bool, typer.Option("--yes", help="Restore even if the job store is in use")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 1 for a warning too")]


# -- doctor ----------------------------------------------------------------------------------------------------


@application.command(
    "doctor",
    epilog=help_epilog(
        "carolctl doctor --json", x1="something is wrong", x66="no job store; the other checks are made"
    ),
)
def doctor(
    *, db: Db = None, planner_db: PlannerDb = None, strict: Strict = False, as_json: Json = False
) -> int:
    """Look for everything that is wrong, and change nothing.

    Each check says ok, warn, fail or skipped, and what to do. Only a fail makes the exit code 1. Of a database
    whose -shm file is gone while its -wal is there, and of a planner database in WAL mode that nobody has open,
    SQLite itself makes the missing files to read it; nothing else is made or touched.
    """
    from carolctl.doctor import Place, examine

    if db:
        os.environ["CAROL_SCHEDULER_DB"] = os.path.abspath(db)
    place = Place(
        now=clock.now(),
        db=places.scheduler_db(),
        planner_db=places.planner_db()
        if planner_db is None
        else os.path.abspath(planner_db)
        if planner_db
        else None,
        environ=os.environ,
        # What is ignored is one of the findings.
        deadline_ms=config.busy_timeout_ms(os.environ, lambda _: None),
    )
    report = examine(place)
    print_json(report.document()) if as_json else _show(report)
    return report.exit_code(strict=strict)


_TONES: dict[Status, Tone] = {"ok": "good", "warn": "warn", "fail": "bad", "skipped": "dim"}


def _show(report: Report) -> None:
    from carolctl.cli import render

    columns = (
        render.Column(name="status", least=7),
        render.Column(name="check", least=10),
        render.Column(name="what was found", least=20),
    )
    rows = [
        (render.Toned(one.finding.status, _TONES[one.finding.status]), one.name, one.finding.detail)
        for one in report.checks
    ]
    render.table(None, columns, rows)
    wrong = report.of("warn", "fail")
    for one in wrong:
        print_lines(["", f"{one.finding.status} {one.name}: {one.finding.detail}"])
        if one.finding.hint:
            print_lines([f"  {one.finding.hint}"])
    print_lines(["", _verdict(report)])


def _verdict(report: Report) -> str:
    failed, warned = len(report.of("fail")), len(report.of("warn"))
    if not failed and not warned:
        return "ok: all is well"
    counts = [f"{count} {word}" for count, word in ((failed, "wrong"), (warned, "to look at")) if count]
    return f"{report.verdict}: {', '.join(counts)}"


# -- backup ----------------------------------------------------------------------------------------------------


@application.command(
    "backup",
    epilog=help_epilog(
        "carolctl backup /srv/backups --keep 14",
        x1="refused: the target is something else, or the store is in use",
        x65="the store or the backup is damaged",
        x66="no such file or folder",
        x75="database busy, or disk full",
        x77="file modes",
    ),
)
def backup(
    target: Target = None,
    *,
    keep: Keep = None,
    restore: From = None,
    yes: Yes = False,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Copy the job store while it is in use, or put a copy back.

    A copy is whole, checked and under a store uuid of its own. A restore sets the present store aside, paused; slots
    that were missed since the backup are caught up by the next tick, as after an outage.
    """
    from carolctl import backup as backing_up
    from carolctl import restore as restoring
    from carolctl.store_copy import Caller

    store = os.path.abspath(db) if db else places.scheduler_db()
    caller = Caller(now=clock.now(), actor=actor(), deadline_ms=config.busy_timeout_ms(os.environ, warn))
    if restore is not None:
        if target is not None or keep is not None:
            raise UsageError("--restore takes neither a target nor --keep")
        done: Backup | Restored = restoring.restore(restore, store, caller, even_if_used=yes)
    elif yes:
        raise UsageError("--yes goes with --restore")
    else:
        done = backing_up.backup(store, target, caller, keep=keep)
    print_json(asdict(done)) if as_json else print_lines(_lines(done))


def _lines(done: Backup | Restored) -> list[str]:
    from carolctl.backup import Backup

    if isinstance(done, Backup):
        return [
            f"{done.backup}: {done.bytes / 1024:,.0f} KiB, sound, in {done.elapsed_ms:.0f} ms",
            *(f"removed {path}" for path in done.removed),
        ]
    return [
        f"{done.restored} is now the store of {done.from_backup}",
        f"the store before it: {done.set_aside[0] if done.set_aside else 'there was none'}",
        f"store uuid {done.store_uuid}: idempotency keys and ledger events start afresh",
        f"{done.live_runs} runs were under way in it: the next tick settles those whose owners are gone",
        "slots missed since the backup are caught up by the next tick; carolctl pause holds that off",
    ]
