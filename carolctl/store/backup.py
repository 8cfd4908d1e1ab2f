"""Copies of the job store: one snapshot, page by page, and a store that nobody else knows of yet.

The copy is made inside one read transaction: writers go on, and what they commit meanwhile does not start it afresh.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from carolctl.store import migrate
from carolctl.store.connect import connect, explained
from carolctl.store.db import Store
from carolctl.store.examine import without_trace
from carolctl.store.tx import ReadTx, WriteTx

#: 4 MiB with pages of 4 KiB: between two steps a Ctrl-C is felt.
_PAGES_A_STEP = 1024


def copy_store(source: str, target: str, *, deadline_ms: int) -> None:
    """Copy one snapshot of the job store at `source` over the file at `target`; `source` is only read.

    Raises `NotFound`, `BadData` for what is no job store of a schema we know, `DiskFull`, `StoreBusy`.
    """

    def gather(there: sqlite3.Connection, _: str) -> None:
        migrate.refuse_empty(source, migrate.version_of(there, source))
        with (
            closing(connect(target, mode="rw", deadline_ms=deadline_ms)) as here,
            explained(target, deadline_ms),
        ):
            there.backup(here, pages=_PAGES_A_STEP, progress=_noticing_signals)

    without_trace(source, gather, deadline_ms)


@contextmanager
def private_store(path: str, *, deadline_ms: int) -> Iterator[Store]:
    """The store at `path`, opened for us alone; closed, and whole without side files, when the block ends.

    Without shared memory, so that a backup may lie on a file system that has none to offer.
    """
    with closing(connect(path, mode="rw", deadline_ms=deadline_ms)) as connection:
        with explained(path, deadline_ms):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA synchronous = FULL")
        yield Store(connection, path, deadline_ms=deadline_ms, shared=False)


def highest_run_id(tx: ReadTx) -> int:
    """The highest id that a run ever had here, deleted ones included."""
    row = tx._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'runs'").fetchone()
    return int(row[0]) if row else 0


def continue_run_ids_after(tx: WriteTx, run_id: int) -> None:
    """The next run gets an id above `run_id`."""
    connection = tx._connection
    moved = connection.execute(
        "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'runs'", (run_id,)
    ).rowcount
    if not moved:
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('runs', ?)", (run_id,))


def _noticing_signals(status: int, remaining: int, total: int) -> None:
    """Python code between two steps is where a pending Ctrl-C is noticed."""
