"""export-legacy: the way back. Jobs in the shape of the legacy table, as a database, a script, or into a database.

A migrated job gives its source row back byte for byte in every column that nobody and nothing changed since; an
edit, a pause and the traces of running show in the columns that they belong to. The job store is only read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from carolctl.errors import Exit, NotPermitted, Refused, UsageError
from carolctl.legacy import inexpressible, mark_of, to_source
from carolctl.legacy_cells import Row
from carolctl.legacy_columns import TARGETS, Layout, standard_layout
from carolctl.lockguard import require_unlocked
from carolctl.migrate_jobs import meta_key
from carolctl.migration_report import listed
from carolctl.model import HttpAction, Job
from carolctl.store.db import Store
from carolctl.store.legacy import (
    STANDARD_SQL,
    RefusedRow,
    Shape,
    other_tables,
    script_of,
    write_into,
    write_new_file,
)
from carolctl.store.tx import ReadTx

#: What a job may have that the legacy table has no column for.
_EXTRAS = (
    "project", "dst_rule", "spread_sec", "priority", "overlap", "catch_up", "misfire_grace_sec",
    "max_run_duration_sec", "max_turns", "max_attempts", "idempotent", "may_schedule", "on_failure",
)  # fmt: skip
_DEFAULTS = {field.name: field.default for field in fields(Job)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where to write: a new file, or a table of an existing database, or neither: a script to show."""

    output: str | None = None
    planner_db: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written, and what could not be."""

    table: str
    rows: int
    output: str | None
    #: Job id and reason.
    left_out: dict[str, str]
    #: Job id and the fields that the legacy table has no column for.
    lossy: dict[str, list[str]]
    removed_here: list[str]
    script: list[str] | None

    @property
    def exit_code(self) -> int:
        """1 when a job was left out."""
        return Exit.FAILED if self.left_out else Exit.OK

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self) | {
            "left_out": [{"job_id": name, "reason": reason} for name, reason in self.left_out.items()],
            "lossy": [{"job_id": name, "fields": names} for name, names in self.lossy.items()],
            "script": None if self.script is None else "\n".join(self.script) + "\n",
        }

    def lines(self) -> list[str]:
        """The report for people."""
        return [
            f"rows     {self.rows} written to table {self.table}{f' of {self.output}' if self.output else ''}",
            *listed("left out", [f"{job_id}: {reason}" for job_id, reason in self.left_out.items()]),
            *listed("lost", [f"{job_id}: {', '.join(names)}" for job_id, names in self.lossy.items()]),
            *listed("removed", [f"{job_id}: migrated once, removed here" for job_id in self.removed_here]),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    shape: Shape
    #: The source column of the job id.
    key: str
    rows: dict[str, Row]
    left_out: dict[str, str]
    lossy: dict[str, list[str]]
    removed_here: list[str]


def export(store: Store, table: str, destination: Destination, *, deadline_ms: int) -> Export:
    """Write the jobs in the shape of `table` to `destination`.

    Raises `Refused` rather than write over something, and what opening the database raises.
    """
    if destination.output and destination.planner_db:
        raise UsageError("--output and --planner-db exclude each other")
    with store.read() as tx:
        gathered = _gather(tx, table)
    script, refused = _deliver(gathered, destination, deadline_ms=deadline_ms)
    named = {id(row): job_id for job_id, row in gathered.rows.items()}
    turned_away = {named[id(refusal.row)]: refusal.problem for refusal in refused}
    return Export(
        table=gathered.shape.table,
        rows=len(gathered.rows) - len(refused),
        output=destination.output or destination.planner_db,
        left_out=gathered.left_out | turned_away,
        lossy={name: lost for name, lost in gathered.lossy.items() if name not in turned_away},
        removed_here=gathered.removed_here,
        script=script,
    )


def _gather(tx: ReadTx, table: str) -> _Gathered:
    known = json.loads(tx.meta(meta_key(table)) or "{}")
    shape, layout = _shape_and_layout(table, known)
    key = layout.source_of("job_id") or "job_id"
    rows, left_out, lossy = {}, {}, {}
    jobs = tx.jobs()
    for job in jobs:
        reason = _foreign(job, shape.table, key) or inexpressible(job)
        if reason:
            left_out[job.job_id] = reason
            continue
        rows[job.job_id] = to_source(job, layout)
        if lost := _lost(job):
            lossy[job.job_id] = lost
    left_out |= {damaged.job_id: f"damaged: {damaged.problem}" for damaged in tx.damaged_jobs()}
    return _Gathered(
        shape=shape,
        key=key,
        rows=rows,
        left_out=left_out,
        lossy=lossy,
        removed_here=sorted(set(known.get("jobs", ())) - {job.job_id for job in jobs} - set(left_out)),
    )


def _shape_and_layout(table: str, known: Mapping[str, Any]) -> tuple[Shape, Layout]:
    """What the migration remembered of the table, else the usual legacy table."""
    if not known:
        sql = STANDARD_SQL if table == "scheduled_jobs" else None
        return Shape(table=table, sql=sql, columns=TARGETS), standard_layout(table)
    noted = known["shape"]
    shape = Shape(
        table=noted["table"],
        sql=noted["sql"],
        columns=tuple(noted["columns"]),
        computed=tuple(noted["computed"]),
    )
    return shape, Layout(table=shape.table, columns=known["columns"])


def _foreign(job: Job, table: str, key: str) -> str | None:
    mark = mark_of(job)
    if mark is None or (mark["table"] == table and key in mark["columns"]):
        return None
    return f"it was migrated from another table, {mark['table']}"


def _lost(job: Job) -> list[str]:
    lost = [name for name in _EXTRAS if getattr(job, name) != _DEFAULTS[name]]
    return [*lost, "headers"] if isinstance(job.action, HttpAction) and job.action.headers else lost


def _deliver(
    gathered: _Gathered, destination: Destination, *, deadline_ms: int
) -> tuple[list[str] | None, list[RefusedRow]]:
    shape, rows, key, output = gathered.shape, list(gathered.rows.values()), gathered.key, destination.output
    if destination.planner_db:
        refused = write_into(
            destination.planner_db, shape, rows, key, overwrite=destination.overwrite, deadline_ms=deadline_ms
        )
        return None, refused
    if output is None:
        script, refused = script_of(shape, rows, key)
        return _headed(script), refused
    _refuse_overwriting(output, shape.table, overwrite=destination.overwrite, deadline_ms=deadline_ms)
    if output.endswith(".sql"):
        script, refused = script_of(shape, rows, key)
        _write_text(output, "\n".join(_headed(script)) + "\n")
        return None, refused
    return None, write_new_file(output, shape, rows, key, deadline_ms=deadline_ms)


def _headed(script: Sequence[str]) -> list[str]:
    return [
        "-- Jobs in the shape of the legacy job table. Apply to a copy first: sqlite3 -bail DATABASE < THIS",
        "-- Rows of the same ids are replaced, others stay.",
        *script,
    ]


def _refuse_overwriting(output: str, table: str, *, overwrite: bool, deadline_ms: int) -> None:
    """Raise `Refused` when `output` is there, or holds more than an earlier export."""
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise Refused(f"{output} exists", hint="give another name, or --overwrite")
    others = other_tables(output, table, deadline_ms=deadline_ms)
    if others or os.path.exists(f"{output}-wal"):
        what = f"tables {', '.join(others[:5])}" if others else "a write-ahead log: somebody uses it"
        raise Refused(
            f"{output} has {what}; it is not replaced", hint="--planner-db PATH writes into a database"
        )


def _write_text(path: str, text: str) -> None:
    require_unlocked("writing a file")
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as problem:
        raise NotPermitted(f"{path} cannot be written: {problem.strerror}") from problem
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
