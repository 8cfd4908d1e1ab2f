"""Looking at a database without leaving a trace: no file made, none changed, not even a time stamp.

A plain read-only connection to a WAL database makes ``-wal`` and ``-shm`` where there are none, and writes to the
``-shm`` where there is one. So: without a ``-wal`` the file is whole by itself and is read as immutable; with one, the
``-shm`` is only read. The plain way comes last, where SQLite gives no other (a ``-wal`` whose ``-shm`` is gone).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from carolctl.errors import CarolError, DiskFull, NotPermitted
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.store.connect import begin, connect, explained, rollback
from carolctl.store.tx import ReadTx

_IMMUTABLE = "ro&immutable=1"
_SHARED = "ro&readonly_shm=1"
_PLAIN = "ro"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What a database file is, and whether it is sound."""

    application_id: int
    version: int
    empty: bool
    #: None where it cannot be told without leaving a trace: nobody has the file open.
    journal_mode: str | None
    #: What SQLite's own check says; nothing for a sound file.
    problems: tuple[str, ...]
    bytes: int


def anatomy(path: str, *, deadline_ms: int, thorough: bool = False) -> Anatomy:
    """What the file at `path` is; `thorough` also compares every index with its table.

    Raises `NotFound`, `NotPermitted`, `BadData` (not a database, or too damaged to look at) or `StoreBusy`.
    """

    def gather(connection: sqlite3.Connection, mode: str) -> Anatomy:
        check = "PRAGMA integrity_check(20)" if thorough else "PRAGMA quick_check(20)"
        said = tuple(str(line) for (line,) in connection.execute(check).fetchall())
        return Anatomy(
            application_id=_number(connection, "PRAGMA application_id"),
            version=_number(connection, "PRAGMA user_version"),
            empty=_number(connection, "SELECT count(*) FROM sqlite_schema") == 0,
            journal_mode=None
            if mode == _IMMUTABLE
            else str(connection.execute("PRAGMA journal_mode").fetchone()[0]),
            problems=() if said == ("ok",) else said,
            bytes=_number(connection, "PRAGMA page_count") * _number(connection, "PRAGMA page_size"),
        )

    return without_trace(path, gather, deadline_ms)


def look(path: str, gather: Callable[[ReadTx], Found], *, deadline_ms: int) -> Found:
    """What `gather` finds in one snapshot of the job store at `path`; it may be called again, so it only asks."""
    return without_trace(path, lambda connection, _: gather(ReadTx(connection)), deadline_ms)


def migrated_tables(tx: ReadTx) -> list[str]:
    """The names of the legacy tables that jobs were brought over from, in lower case."""
    rows = tx._connection.execute("SELECT substr(key, 8) FROM meta WHERE key GLOB 'legacy:*' ORDER BY key")
    return [name for (name,) in rows.fetchall()]


def oldest_mark(tx: ReadTx) -> Millis | None:
    """When the run that waits longest for the ledger last moved, as far as its row tells."""
    row = tx._connection.execute(
        "SELECT min(coalesce(completed_at, started_at, queued_at)) FROM runs JOIN ledger_outbox USING (run_id)"
    ).fetchone()
    return None if row[0] is None else Millis(row[0])


def tables_of(path: str, *, deadline_ms: int) -> set[str]:
    """The names of the tables and views of any SQLite database, in lower case; see `anatomy` for the errors."""

    def gather(connection: sqlite3.Connection, _: str) -> set[str]:
        rows = connection.execute("SELECT lower(name) FROM sqlite_schema WHERE type IN ('table', 'view')")
        return {name for (name,) in rows.fetchall()}

    return without_trace(path, gather, deadline_ms)


def sqlite_version() -> tuple[int, ...]:
    """The version of the SQLite library that Python found."""
    return sqlite3.sqlite_version_info


def _number(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def without_trace(path: str, gather: Callable[[sqlite3.Connection, str], Found], deadline_ms: int) -> Found:
    """What `gather` finds, given a connection in a read transaction and the mode it was opened in."""
    require_unlocked("looking at a database")
    before = _state(path)
    if not os.path.lexists(f"{path}-wal"):
        try:
            found = _by(_IMMUTABLE, path, gather, deadline_ms)
        except CarolError:
            if _state(path) == before:
                raise
        else:
            # A writer that came meanwhile makes the immutable look worthless, whatever it saw.
            if _state(path) == before:
                return found
    try:
        return _by(_SHARED, path, gather, deadline_ms)
    except (NotPermitted, DiskFull):
        return _by(_PLAIN, path, gather, deadline_ms)


def _by(mode: str, path: str, gather: Callable[[sqlite3.Connection, str], Found], deadline_ms: int) -> Found:
    with (
        closing(connect(path, mode=mode, deadline_ms=deadline_ms)) as connection,
        explained(path, deadline_ms),
    ):
        begin(connection, "BEGIN DEFERRED TRANSACTION", deadline_ms)
        try:
            return gather(connection, mode)
        finally:
            rollback(connection)


def _state(path: str) -> tuple[object, ...]:
    try:
        facts = os.stat(path)
    except OSError:
        return (None,)
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, os.path.lexists(f"{path}-wal")
