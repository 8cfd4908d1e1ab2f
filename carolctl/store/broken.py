"""DELIBERATELY WRONG. The statements of the incidents' own designs, for ``contention-test --broken`` alone.

Nothing here is ever to be called on a live file, nor copied: each does what a rule of the store forbids, so that
the contention test can prove that it would notice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from carolctl.store.connect import is_busy, rollback


def _connect(path: str, patience_ms: int) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=patience_ms / 1000)


@contextmanager
def locked_across(path: str, *, patience_ms: int) -> Iterator[None]:
    """WRONG: a write transaction round whatever the caller does, its network calls included."""
    with closing(_connect(path, patience_ms)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO outside_writes (writer) VALUES ('scheduler')")
        yield
        connection.execute("COMMIT")


def prepare_counter(path: str) -> None:
    """The table of `DeferredWriter`."""
    with closing(_connect(path, 5000)) as connection:
        connection.execute("CREATE TABLE counters (writer TEXT PRIMARY KEY, n INTEGER NOT NULL)")


class DeferredWriter:
    """WRONG: reads first and upgrades to a write, so SQLite refuses at once what came second, whatever the wait."""

    def __init__(self, path: str, writer: str, *, patience_ms: int) -> None:
        self._connection = _connect(path, patience_ms)
        self._writer = writer
        self._connection.execute("INSERT INTO counters VALUES (?, 0)", (writer,))

    def add_one(self, between: Callable[[], None]) -> bool:
        """One more; `between` comes after the read. False when SQLite refused it."""
        try:
            self._connection.execute("BEGIN")
            row = self._connection.execute(
                "SELECT n FROM counters WHERE writer = ?", (self._writer,)
            ).fetchone()
            between()
            self._connection.execute("UPDATE counters SET n = ? WHERE writer = ?", (row[0] + 1, self._writer))
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            rollback(self._connection)
            if is_busy(error):
                return False
            raise
        return True


def counted(path: str) -> dict[str, int]:
    """What the counters stand at, by writer."""
    with closing(_connect(path, 5000)) as connection:
        return dict(connection.execute("SELECT writer, n FROM counters").fetchall())


def prepare_claims(path: str, *, queued: int) -> None:
    """The table of `TwoStepClaimer`, with so many runs in it."""
    with closing(_connect(path, 5000)) as connection:
        connection.execute("CREATE TABLE claims (run_id INTEGER PRIMARY KEY, status TEXT NOT NULL)")
        connection.executemany("INSERT INTO claims (status) VALUES (?)", [("queued",)] * queued)


class TwoStepClaimer:
    """WRONG: looks whether there is room and who is next, and only then claims, without a transaction."""

    def __init__(self, path: str, *, patience_ms: int) -> None:
        self._connection = _connect(path, patience_ms)

    def claim(self, cap: int, between: Callable[[], None]) -> int | None:
        """The run it believes to have claimed; `between` comes after the look."""
        occupied = self._connection.execute(
            "SELECT count(*) FROM claims WHERE status = 'running'"
        ).fetchone()[0]
        row = self._connection.execute("SELECT min(run_id) FROM claims WHERE status = 'queued'").fetchone()
        if occupied >= cap or row[0] is None:
            return None
        between()
        self._connection.execute("UPDATE claims SET status = 'running' WHERE run_id = ?", row)
        run_id: int = row[0]
        return run_id

    def end(self, run_id: int) -> None:
        """Free the slot and queue another run."""
        self._connection.execute("UPDATE claims SET status = 'completed' WHERE run_id = ?", (run_id,))
        self._connection.execute("INSERT INTO claims (status) VALUES ('queued')")


def store_events(path: str, events: Sequence[str], *, patience_ms: int) -> None:
    """The late half of an acknowledgement that came too early: store what was acknowledged long ago."""
    with closing(_connect(path, patience_ms)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO events (event_id, run_id, kind, emitted_at, received_at) VALUES (?, 1, 'progress', 0, 0)",
            [(event,) for event in events],
        )
        connection.execute("COMMIT")
