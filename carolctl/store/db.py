"""The job store: opening it, and its two transactions, the only ways in.

Incident: deferred transactions of twenty-two agents deadlocked when they upgraded to a write. Decision: every
write is BEGIN IMMEDIATE in a wait loop of our own, behind a queue of our own (`gate`), one short transaction; and
`Store` itself has no verb: what may be asked lives on the transaction objects. Consequence: SQL outside a
transaction cannot be written down, and code that reaches the network is never handed the means to write.

synchronous=FULL: a claim must be durable before its request leaves the machine; batching makes that cheap.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from carolctl.errors import NotPermitted
from carolctl.failpoints import failpoint
from carolctl.lockguard import IOUnderLock, require_unlocked, set_write_open, write_is_open
from carolctl.store import SCHEMA_VERSION, migrate
from carolctl.store.connect import (
    POLL_AT_THE_HEAD_SEC,
    POLL_OUT_OF_LINE_SEC,
    POLL_SEC,
    begin,
    connect,
    explained,
    refuse_network_file_system,
    rollback,
)
from carolctl.store.gate import queued
from carolctl.store.tx import ReadTx, WriteTx

#: How much of the deadline may pass behind other writers of ours, one of which might have been stopped.
_SHARE_IN_LINE = 0.6
#: By what `queued` gives.
_POLLS = {True: POLL_AT_THE_HEAD_SEC, False: POLL_OUT_OF_LINE_SEC, None: POLL_SEC}
_JOURNAL_SIZE_LIMIT = 16 * 1024 * 1024


class Store:
    """One SQLite job store, opened."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: str,
        *,
        deadline_ms: int,
        mirrored: bool = False,
        shared: bool = True,
    ) -> None:
        self._connection = connection
        self.path = path
        self._deadline_ms = deadline_ms
        self._mirrored = mirrored
        #: Whether there may be other writers to stand in line with.
        self._shared = shared
        #: How long the last write transaction held the lock, in milliseconds.
        self.write_lock_ms = 0.0

    @contextmanager
    def read(self) -> Iterator[ReadTx]:
        """One consistent snapshot. Its verbs fetch all rows at once: no reader pins the WAL while it prints."""
        with explained(self.path, self._deadline_ms):
            begin(self._connection, "BEGIN DEFERRED TRANSACTION", self._deadline_ms)
            try:
                yield ReadTx(self._connection)
            finally:
                rollback(self._connection)

    @contextmanager
    def write(self, *, dry_run: bool = False) -> Iterator[WriteTx]:
        """One write transaction; rolled back on any exception, and always when `dry_run`.

        Raises `StoreBusy` when the lock was not to be had within the busy deadline.
        """
        if write_is_open():
            raise IOUnderLock("a write transaction inside a write transaction")
        arrived = time.monotonic()
        with (
            explained(self.path, self._deadline_ms),
            self._turn() as turn,
        ):
            waited_ms = (time.monotonic() - arrived) * 1000
            begin(
                self._connection,
                "BEGIN IMMEDIATE",
                self._deadline_ms,
                waited_ms=waited_ms,
                poll_sec=_POLLS[turn],
            )
            began = time.perf_counter()
            set_write_open(True)
            try:
                yield WriteTx(self._connection, mirrored=self._mirrored)
                failpoint("store-before-commit")
                self._connection.execute("ROLLBACK" if dry_run else "COMMIT")
            finally:
                # Also on a Ctrl-C between two statements: no transaction stays open.
                rollback(self._connection)
                set_write_open(False)
                self.write_lock_ms = (time.perf_counter() - began) * 1000
        failpoint("store-after-commit")

    @contextmanager
    def checkpoints_apart(self) -> Iterator[Callable[[], None]]:
        """Meanwhile no write of ours ends with a checkpoint, which others would wait for; call what is given for one.

        It keeps no writer out, and goes as far as the readers let it.
        """
        with explained(self.path, self._deadline_ms):
            [(before,)] = self._connection.execute("PRAGMA wal_autocheckpoint").fetchall()
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
            try:
                yield self._checkpoint
            finally:
                self._connection.execute(f"PRAGMA wal_autocheckpoint = {int(before)}")

    def _checkpoint(self) -> None:
        require_unlocked("a checkpoint")
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _turn(self) -> AbstractContextManager[bool | None]:
        return (
            queued(self.path, _SHARE_IN_LINE * self._deadline_ms / 1000)
            if self._shared
            else nullcontext(True)
        )

    def close(self) -> None:
        """Close the connection. Short-lived commands leave it to the end of the process: closing the last
        connection of a WAL database checkpoints it, which costs five fsyncs more."""
        self._connection.close()


def open_store(path: str, *, deadline_ms: int, create: bool = False, mirrored: bool = False) -> Store:
    """Open the job store at `path`; only with `create` is a missing or empty one made.

    `mirrored`: every change of a run made through it is to reach the legacy ledger, even before a tick has
    said so in the store (`RunWrites.mirror_runs`).
    Raises `NotFound`, `NotPermitted`, `BadData` or `BadConfig`; see the table of exit codes.
    """
    require_unlocked("opening the job store")
    refuse_network_file_system(path)
    if create and not os.path.lexists(path):
        _make_private_file(path)
    connection = connect(path, mode="rwc" if create else "rw", deadline_ms=deadline_ms)
    try:
        with explained(path, deadline_ms):
            _prepare(connection, path, deadline_ms=deadline_ms, create=create)
    except BaseException:
        connection.close()
        raise
    return Store(connection, path, deadline_ms=deadline_ms, mirrored=mirrored)


def _make_private_file(path: str) -> None:
    """An empty file of mode 0600 in a folder of mode 0700; SQLite gives its side files the same mode."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as problem:
        raise NotPermitted(
            f"{path} cannot be made: {problem.strerror}", hint="set CAROL_DATA_DIR to a folder of yours"
        ) from problem


def _prepare(connection: sqlite3.Connection, path: str, *, deadline_ms: int, create: bool) -> None:
    begin(connection, "BEGIN DEFERRED TRANSACTION", deadline_ms)
    version = migrate.version_of(connection, path)
    rollback(connection)
    if not create:
        migrate.refuse_empty(path, version)
    connection.execute("PRAGMA synchronous = FULL")
    # With the default of 2 MB a large tick would spill its own pages while it holds the lock.
    connection.execute("PRAGMA cache_size = -32768")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT}")
    if version < SCHEMA_VERSION:
        _upgrade(connection, path, deadline_ms)


def _upgrade(connection: sqlite3.Connection, path: str, deadline_ms: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    begin(connection, "BEGIN IMMEDIATE", deadline_ms)
    try:
        # Another process may have done it while we waited for the lock.
        migrate.upgrade(connection, migrate.version_of(connection, path))
        connection.execute("COMMIT")
    finally:
        rollback(connection)
