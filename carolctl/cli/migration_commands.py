"""migrate-jobs and export-legacy: from the legacy planner database, and back.

Every command of the program imports this module, so the verbs are imported by those who call them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock, config, places
from carolctl.cli.app import application
from carolctl.cli.options import Db, DryRun, Json, PlannerDb, help_epilog
from carolctl.cli.output import note, print_json, print_lines
from carolctl.errors import BadConfig, UsageError
from carolctl.notices import warn
from carolctl.session import Session, actor, open_session
from carolctl.store.db import open_store

if TYPE_CHECKING:
    from carolctl.export_legacy import Export

Table = Annotated[str, typer.Option("--table", metavar="NAME", help="The legacy job table")]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="TARGET=SOURCE", help="Source column of a known one (may be repeated)"),
]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", metavar="OLD=NEW", help="New id for a row (may be repeated)"),
]
SourceWins = Annotated[bool, typer.Option("--overwrite", help="On conflict the source has the last word")]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="FILE", help="New SQLite database, or an SQL script if it ends in .sql"),
]
IntoDb = Annotated[
    str | None,
    typer.Option("--planner-db", metavar="PATH", help="Write the table into this database instead"),
]
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file, or the table's rows of the same ids")
]


@application.command(
    "migrate-jobs",
    epilog=help_epilog(
        "carolctl migrate-jobs --planner-db /srv/planner/plangenerator.db --dry-run",
        x1="done, but with conflicts or jobs imported paused",
        x65="bad data or ids, or the proof failed: nothing written",
        x66="no such file or table",
        x75="database busy",
        x78="no planner database given",
    ),
)
def migrate_jobs(
    *,
    planner_db: PlannerDb = None,
    db: Db = None,
    table: Table = "scheduled_jobs",
    mapping: Map = None,
    rename: Rename = None,
    overwrite: SourceWins = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Bring the legacy planner database's jobs over: all or none, proved equal, the source untouched.

    A job that was changed here or there since an earlier migration is reported and left as it is.
    """
    from carolctl.migrate_jobs import Request, migrate, source_of
    from carolctl.store.legacy import read_table

    request = Request(
        mapping=_pairs(mapping, "--map"),
        rename=_pairs(rename, "--rename"),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    shape, rows = read_table(_planner_db(planner_db), table, deadline_ms=_deadline_ms())
    source = source_of(shape, rows, request)
    with _session(db, dry_run=dry_run) as session:
        report = migrate(session, source, request)
    print_json(report.document()) if as_json else print_lines(report.lines())
    return report.exit_code


@application.command(
    "export-legacy",
    epilog=help_epilog(
        "carolctl export-legacy --output way-back.db",
        x1="a job was left out, or something would be written over",
        x66="no such file",
        x75="database busy",
    ),
)
def export_legacy(
    *,
    output: Output = None,
    planner_db: IntoDb = None,
    db: Db = None,
    table: Table = "scheduled_jobs",
    overwrite: Replace = False,
    as_json: Json = False,
) -> int:
    """Write the jobs in the shape of the legacy job table: the way back. Without a destination, as a script."""
    from carolctl.export_legacy import Destination, export

    destination = Destination(output=output, planner_db=planner_db, overwrite=overwrite)
    store = open_session(db).store
    done = export(store, table, destination, deadline_ms=_deadline_ms())
    print_json(done.document()) if as_json else _print_export(done)
    return done.exit_code


def _print_export(done: Export) -> None:
    """The report; behind a script on standard output it goes to standard error."""
    if done.script is None:
        print_lines(done.lines())
        return
    print_lines(done.script)
    for line in done.lines():
        note(line)


def _pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        left, separator, right = text.rpartition("=") if option == "--rename" else text.partition("=")
        if not (left and separator and right):
            raise UsageError(f"{text!r} is not of the form LEFT=RIGHT", field=option)
        if left in pairs:
            raise UsageError(f"{left!r} is given twice", field=option)
        pairs[left] = right
    return pairs


def _planner_db(given: str | None) -> str:
    path = os.path.abspath(given) if given else places.planner_db()
    if path is None:
        raise BadConfig(
            "no legacy planner database is given", hint="give --planner-db PATH, or set CAROL_PLANNER_DB"
        )
    return path


def _deadline_ms() -> int:
    return config.busy_timeout_ms(os.environ, warn)


@contextmanager
def _session(db: str | None, *, dry_run: bool) -> Iterator[Session]:
    """The job store, made if need be; a rehearsal without one takes place in a store of its own."""
    import tempfile

    path = os.path.abspath(db) if db else places.scheduler_db()
    if not dry_run or (os.path.exists(path) and os.path.getsize(path) > 0):
        yield open_session(db, create=not dry_run)
        return
    with tempfile.TemporaryDirectory(prefix="carolctl-") as folder:
        store = open_store(os.path.join(folder, "scheduler.db"), deadline_ms=_deadline_ms(), create=True)
        try:
            yield Session(store=store, now=clock.now(), actor=actor())
        finally:
            store.close()
