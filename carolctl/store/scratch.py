"""Plain clients of a SQLite file, for the contention test: programs that are not ours and have no manners of ours.

They wait as SQLite makes them wait (``busy_timeout``), hold the lock as long as they like, and leave one row for
each write in a table of their own, so that what they say can be counted. Only ever used on scratch files.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from carolctl.store.connect import is_busy

_TABLE = "CREATE TABLE IF NOT EXISTS outside_writes (write_id INTEGER PRIMARY KEY, writer TEXT NOT NULL)"
_LEDGER = (
    "CREATE TABLE droid_runs (id INTEGER PRIMARY KEY AUTOINCREMENT, execution_id INTEGER,"
    " droid_name TEXT NOT NULL, initiative_id TEXT, event_id TEXT, trigger_kind TEXT, status TEXT NOT NULL,"
    " started_at TEXT, completed_at TEXT, result_summary TEXT)"
)


class PlainClient:
    """One connection; `patience_ms` is its ``busy_timeout``."""

    def __init__(self, path: str, *, patience_ms: int) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=patience_ms / 1000)
        self._connection.execute("PRAGMA synchronous = FULL")

    def write(self, writer: str) -> bool:
        """One row, as a transaction of its own; False when the lock was not to be had in time."""
        return self._done_in_time("INSERT INTO outside_writes (writer) VALUES (?)", (writer,))

    def take_lock(self) -> bool:
        """Begin a write transaction and leave it open; False as for `write`."""
        return self._done_in_time("BEGIN IMMEDIATE")

    def give_lock_back(self) -> None:
        """End the open write transaction."""
        self._connection.execute("COMMIT")

    def written(self) -> dict[str, int]:
        """How many rows there are, by writer."""
        return dict(
            self._connection.execute("SELECT writer, count(*) FROM outside_writes GROUP BY writer").fetchall()
        )

    def close(self) -> None:
        """Close the connection, its open transaction included."""
        self._connection.close()

    def _done_in_time(self, statement: str, values: tuple[str, ...] = ()) -> bool:
        try:
            self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        return True


@contextmanager
def plain_client(path: str, *, patience_ms: int) -> Iterator[PlainClient]:
    """A `PlainClient`, closed at the end."""
    with closing(PlainClient(path, patience_ms=patience_ms)) as client:
        yield client


def prepare_outside_table(path: str) -> None:
    """Make the table of `PlainClient.write` in a file, and the file in WAL mode if it is not there."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_TABLE)


def make_planner(path: str) -> None:
    """A planner database with the ledger that other programs write, and a table for outside writes."""
    prepare_outside_table(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(_LEDGER)


def lock_is_held(path: str) -> bool:
    """Whether somebody holds the write lock of the file at this moment."""
    with plain_client(path, patience_ms=0) as client:
        return not client.take_lock()


def audited(path: str, command: str) -> dict[str, int]:
    """How many entries the audit log of a job store has for a command, by subject."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return dict(
            connection.execute(
                "SELECT subject, count(*) FROM audit_log WHERE command = ? GROUP BY subject", (command,)
            ).fetchall()
        )


def stored_events(path: str) -> dict[str, int]:
    """How often each event is stored in a job store, by event id."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return dict(connection.execute("SELECT event_id, count(*) FROM events GROUP BY event_id").fetchall())
