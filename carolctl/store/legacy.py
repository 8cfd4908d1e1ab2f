"""All SQL on the legacy planner database: its job table read, and written for the way back.

The source is opened read-only, so that no mistake of ours can touch it; a WAL source is read beside a foreign
writer. Text is taken as bytes and decoded here: SQLite does not check it, and nothing may be lost or raise.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from carolctl.errors import BadData, NotFound, NotPermitted, Refused
from carolctl.legacy_cells import Cell, RawText, Row, text_cell
from carolctl.lockguard import require_unlocked
from carolctl.store import APPLICATION_ID
from carolctl.store.connect import begin, connect, explained, rollback

STANDARD_SQL = """CREATE TABLE scheduled_jobs (job_id TEXT PRIMARY KEY, droid_name TEXT NOT NULL, description TEXT,
  schedule_type TEXT NOT NULL, daily_at TEXT, interval_sec INTEGER, cron_expr TEXT, run_at TEXT, timezone TEXT,
  endpoint_url TEXT, http_method TEXT, payload_json TEXT, command TEXT, enabled INTEGER NOT NULL DEFAULT 1,
  last_run_at TEXT, last_status TEXT, next_run_at TEXT, run_count INTEGER DEFAULT 0, created_at TEXT,
  updated_at TEXT)"""
_CREATE = "CREATE TABLE "


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A legacy table without its rows: how it was made, and which of its columns SQLite computes by itself."""

    table: str
    #: The statement that made it; None for a view or a virtual table.
    sql: str | None
    columns: tuple[str, ...]
    computed: tuple[str, ...] = ()

    def create_sql(self) -> str:
        """A statement that makes such a table, unless there is one."""
        if self.sql and self.sql.upper().startswith(_CREATE):
            return "CREATE TABLE IF NOT EXISTS " + self.sql[len(_CREATE) :]
        return f"CREATE TABLE IF NOT EXISTS {quoted(self.table)} ({', '.join(map(quoted, self.columns))})"


def quoted(name: str) -> str:
    """A name as SQL wants it."""
    return '"' + name.replace('"', '""') + '"'


# -- reading ----


def read_table(path: str, table: str, *, deadline_ms: int) -> tuple[Shape, list[Row]]:
    """The shape and all rows of `table`, from one snapshot.

    Raises `NotFound` (no such file or table), `BadData`, `NotPermitted`, or `StoreBusy` when somebody holds the
    file exclusively past the deadline.
    """
    with _opened(path, deadline_ms) as connection:
        begin(connection, "BEGIN DEFERRED TRANSACTION", deadline_ms)
        try:
            _refuse_job_store(connection, path)
            shape = _shape(connection, path, table)
            columns = ", ".join(map(quoted, shape.columns))
            found = connection.execute(f"SELECT {columns} FROM {quoted(shape.table)}").fetchall()  # noqa: S608
        finally:
            rollback(connection)
    return shape, [dict(zip(shape.columns, row, strict=True)) for row in found]


@contextmanager
def _opened(path: str, deadline_ms: int) -> Iterator[sqlite3.Connection]:
    try:
        with closing(connect(path, mode="ro", deadline_ms=deadline_ms)) as connection:
            connection.text_factory = text_cell
            with explained(path, deadline_ms):
                yield connection
    except NotFound as problem:
        hint = problem.hint if "table" in problem.message else "give the legacy database with --planner-db"
        raise NotFound(problem.message, hint=hint) from problem
    except NotPermitted as problem:
        raise NotPermitted(
            f"{path} cannot be read",
            hint="check the modes of file and folder; a WAL database that nobody has open can only be read in a"
            " folder that you may write: otherwise copy it, with its -wal, and give the copy",
        ) from problem


def _refuse_job_store(connection: sqlite3.Connection, path: str) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
        raise BadData(
            f"{path} is a job store of carolctl", hint="give the planner database with --planner-db"
        )


def _shape(connection: sqlite3.Connection, path: str, table: str) -> Shape:
    made = connection.execute(
        "SELECT name, iif(type = 'table', sql, NULL) FROM sqlite_schema"
        " WHERE type IN ('table', 'view') AND lower(name) = lower(?)",
        (table,),
    ).fetchone()
    if made is None:
        raise NotFound(f"{path} has no table {table!r}", hint=_tables_hint(connection))
    columns = connection.execute(
        "SELECT name, hidden FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table,)
    ).fetchall()
    names = [made[0], *(name for name, _ in columns)]
    if not all(isinstance(name, str) for name in names):
        raise BadData(f"{path}: table {table!r} has a name that is no UTF-8", hint="rename it in a copy")
    return Shape(
        table=made[0],
        sql=made[1] if isinstance(made[1], str) else None,
        columns=tuple(name for name, _ in columns),
        computed=tuple(name for name, hidden in columns if hidden),
    )


def _tables_hint(connection: sqlite3.Connection) -> str:
    found = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name LIMIT 12"
    ).fetchall()
    names = ", ".join(str(name) for (name,) in found)
    return (
        f"say which it is with --table; it has: {names}"
        if names
        else "it has no tables: is it the right file?"
    )


# -- writing ----


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the legacy table's own constraints do not take."""

    row: Row
    problem: str


def write_new_file(
    path: str, shape: Shape, rows: Sequence[Row], key: str, *, deadline_ms: int
) -> list[RefusedRow]:
    """Make the SQLite file `path` with the table and `rows`; whole or not at all, replacing what was there."""
    require_unlocked("writing a database file")
    partial = f"{path}.{os.getpid()}.partial"
    try:
        connection = connect(partial, mode="rwc", deadline_ms=deadline_ms)
        with closing(connection), explained(partial, deadline_ms):
            refused = _write(connection, shape, rows, key, deadline_ms)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    return refused


def write_into(
    path: str, shape: Shape, rows: Sequence[Row], key: str, *, overwrite: bool, deadline_ms: int
) -> list[RefusedRow]:
    """Write `rows` into a table of an existing database, in one transaction; rows of other keys stay."""
    with (
        closing(connect(path, mode="rw", deadline_ms=deadline_ms)) as connection,
        explained(path, deadline_ms),
    ):
        begin(connection, "BEGIN DEFERRED TRANSACTION", deadline_ms)
        try:
            _refuse_job_store(connection, path)
            taken = connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE lower(name) = lower(?)", (shape.table,)
            ).fetchone()
        finally:
            rollback(connection)
        if taken and not overwrite:
            raise Refused(
                f"{path} has a table {shape.table} already",
                hint="--overwrite replaces its rows of the same ids",
            )
        return _write(connection, shape, rows, key, deadline_ms)


def script_of(shape: Shape, rows: Sequence[Row], key: str) -> tuple[list[str], list[RefusedRow]]:
    """The lines of an SQL script that does what `write_into` would, and the rows that would be refused."""
    with closing(connect("", mode="rwc", deadline_ms=0)) as scratch:
        refused = _write(scratch, shape, rows, key, 0)
    out = [refusal.row for refusal in refused]
    create = "".join(c if c.isprintable() or c == "\n" else " " for c in shape.create_sql())
    lines = ["BEGIN IMMEDIATE;", *f"{create}\n;".split("\n")]
    for row in rows:
        if row not in out:
            lines += _row_script(shape, row, key)
    return [*lines, "COMMIT;"], refused


def _row_script(shape: Shape, row: Row, key: str) -> list[str]:
    table, names = quoted(shape.table), _writable(shape, row)
    columns = ", ".join(map(quoted, names))
    values = ", ".join(literal(row[name]) for name in names)
    return [
        f"DELETE FROM {table} WHERE {quoted(key)} IS {literal(row[key])};",  # noqa: S608 - literals of ours
        f"INSERT INTO {table} ({columns}) VALUES ({values});",  # noqa: S608
    ]


def _write(
    connection: sqlite3.Connection, shape: Shape, rows: Sequence[Row], key: str, deadline_ms: int
) -> list[RefusedRow]:
    begin(connection, "BEGIN IMMEDIATE", deadline_ms)
    try:
        _create(connection, shape)
        refused = [refusal for row in rows if (refusal := _write_row(connection, shape, row, key))]
        connection.execute("COMMIT")
    finally:
        rollback(connection)
    return refused


def _create(connection: sqlite3.Connection, shape: Shape) -> None:
    try:
        connection.execute(shape.create_sql())
    except sqlite3.OperationalError as error:
        raise BadData(f"table {shape.table} cannot be made here: {error}") from error


def _write_row(connection: sqlite3.Connection, shape: Shape, row: Row, key: str) -> RefusedRow | None:
    table, names = quoted(shape.table), _writable(shape, row)
    connection.execute("SAVEPOINT one_row")
    try:
        connection.execute(
            f"DELETE FROM {table} WHERE {quoted(key)} IS {_slot(row[key])}",  # noqa: S608
            (_bound(row[key]),),
        )
        connection.execute(
            f"INSERT INTO {table} ({', '.join(map(quoted, names))})"  # noqa: S608
            f" VALUES ({', '.join(_slot(row[name]) for name in names)})",
            [_bound(row[name]) for name in names],
        )
    except sqlite3.IntegrityError as error:
        connection.execute("ROLLBACK TO one_row")
        return RefusedRow(row, str(error))
    finally:
        connection.execute("RELEASE one_row")
    return None


def _writable(shape: Shape, row: Row) -> list[str]:
    return [name for name in shape.columns if name in row and name not in shape.computed]


def _slot(cell: Cell) -> str:
    """The place of a bound cell: bytes that are to become text again need a cast."""
    return "CAST(? AS TEXT)" if isinstance(cell, RawText) else "?"


def _bound(cell: Cell) -> Any:
    if isinstance(cell, RawText):
        return cell.raw
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def literal(cell: Cell) -> str:
    """A cell as an SQL literal that gives the same type and value, in printable characters only."""
    match cell:
        case None:
            return "NULL"
        case int():
            return str(cell)
        case float():
            return _real(cell)
        case bytes():
            return f"X'{cell.hex()}'"
        case RawText():
            return f"CAST(X'{cell.raw.hex()}' AS TEXT)"
        case str() if cell.isprintable():
            return "'" + cell.replace("'", "''") + "'"
    return f"CAST(X'{cell.encode('utf-8', 'replace').hex()}' AS TEXT)"


def _real(number: float) -> str:
    """SQLite reads decimal fractions a little wrongly now and then; a quotient of whole numbers it gets right."""
    if math.isinf(number):
        return "9e999" if number > 0 else "-9e999"
    over, under = number.as_integer_ratio()
    if abs(over) < 2**63 and under < 2**62:
        return f"(CAST({over} AS REAL) / {under})"
    return repr(number)


def other_tables(path: str, table: str, *, deadline_ms: int) -> list[str]:
    """The tables of a database besides `table`; none for a file that is missing or no database."""
    try:
        with _opened(path, deadline_ms) as connection:
            found = connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
                " AND lower(name) <> lower(?) ORDER BY name",
                (table,),
            ).fetchall()
    except (NotFound, BadData):
        return []
    return [str(name) for (name,) in found]
