"""Processes that hold the locks of a database in every way there is: ``python lock_actors.py ROLE DATABASE [PORT]``.

Each says ``ready`` when it holds what it is to hold; a line on its standard input makes it commit and end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing

WAL_WRITER = 120
RESERVED = 0x40000001


def make_database(path: str, mode: str) -> None:
    """A database with one table and some rows, in journal mode `mode`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.execute("INSERT INTO t VALUES (0)")


def is_locked(path: str) -> bool:
    """Whether a second writer is turned away."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (2)")
            connection.execute("COMMIT")
        except sqlite3.OperationalError:
            return True
        return False


def _opened(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=30)


def _ready() -> None:
    print("ready", flush=True)


def _hold(connection: sqlite3.Connection) -> None:
    _ready()
    sys.stdin.readline()
    connection.execute("COMMIT")
    print("committed", flush=True)


def immediate(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (1)")
    _hold(connection)


def exclusive(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN EXCLUSIVE")
    _hold(connection)


def reader(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM t").fetchone()
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        other = _opened(path)
        for n in range(50):
            other.execute("INSERT INTO t VALUES (?)", (n,))
    _hold(connection)


def burner(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN IMMEDIATE")
    asked = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        asked.set()

    threading.Thread(target=listen, daemon=True).start()
    _ready()
    while not asked.is_set():
        sum(range(10_000))
    connection.execute("COMMIT")
    print("committed", flush=True)


def hog(path: str) -> None:
    _write_for_ever(path, hold_sec=0.18, rest_sec=0.02)


def short_writer(path: str) -> None:
    _write_for_ever(path, hold_sec=0.02, rest_sec=0.06)


def _write_for_ever(path: str, *, hold_sec: float, rest_sec: float) -> None:
    connection = _opened(path)
    said = False
    while True:
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (1)")
            if not said:
                said = True
                _ready()
            time.sleep(hold_sec)
            connection.execute("COMMIT")
        time.sleep(rest_sec)


def receiver(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN IMMEDIATE")
    with socket.create_connection(("127.0.0.1", int(sys.argv[3]))) as peer:
        _ready()
        peer.recv(1)
        connection.execute("COMMIT")
        print("committed", flush=True)


def ofd_lock(path: str) -> None:
    is_wal = os.path.exists(path + "-shm")
    descriptor = os.open(path + ("-shm" if is_wal else ""), os.O_RDWR)
    place = WAL_WRITER if is_wal else RESERVED
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    _ready()
    sys.stdin.readline()
    os.close(descriptor)
    print("committed", flush=True)


def store_holder(path: str) -> None:
    connection = _opened(path)
    connection.execute("BEGIN IMMEDIATE")
    _hold(connection)


def bystander(path: str) -> None:
    """Has the database open, so that its WAL stays, and does nothing."""
    connection = _opened(path)
    connection.execute("SELECT count(*) FROM t").fetchone()
    _ready()
    sys.stdin.readline()
    print("committed", flush=True)


ROLES: dict[str, Callable[[str], None]] = {
    role.__name__: role
    for role in (
        immediate,
        exclusive,
        reader,
        burner,
        hog,
        short_writer,
        receiver,
        ofd_lock,
        bystander,
        store_holder,
    )
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](sys.argv[2])
