"""What an outside writer feels: one-row writes to a database of somebody's, in turns with the same to one of nobody's.

Each is durable (synchronous=FULL), in a transaction of its own, with SQLite's own wait for the lock. Called with
DATABASE SECONDS it writes and prints what it felt, so that it can be run in an environment of its own.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass

DEADLINE_SEC = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Felt:
    """Milliseconds of the writes beside somebody, the `locked` ones included, and of those beside nobody."""

    beside: list[float]
    alone: list[float]
    locked: int


def prepare(database: str) -> None:
    """Give the outsider a table there, and a database that nobody else uses."""
    for path in (database, _twin(database)):
        with closing(_connected(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL") if path != database else None
            connection.execute("CREATE TABLE IF NOT EXISTS outside (id INTEGER PRIMARY KEY, n INTEGER)")
            connection.execute("INSERT OR REPLACE INTO outside VALUES (1, 0)")


def feel(database: str, seconds: float) -> Felt:
    """Write to both in turns for so long."""
    beside: list[float] = []
    alone: list[float] = []
    locked = 0
    with closing(_connected(database)) as busy, closing(_connected(_twin(database))) as idle:
        # The first commit of a connection also syncs the folder.
        _write(busy, [])
        _write(idle, [])
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            locked += not _write(busy, beside)
            time.sleep(random.uniform(0.005, 0.015))
            _write(idle, alone)
            time.sleep(random.uniform(0.005, 0.015))
    return Felt(beside=beside, alone=alone, locked=locked)


def _twin(database: str) -> str:
    return f"{database}-idle"


def _connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=DEADLINE_SEC)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _write(connection: sqlite3.Connection, milliseconds: list[float]) -> bool:
    """One write, timed; whether the lock was to be had."""
    began = time.perf_counter()
    try:
        connection.execute("UPDATE outside SET n = n + 1 WHERE id = 1")
    except sqlite3.OperationalError:
        return False
    finally:
        milliseconds.append((time.perf_counter() - began) * 1000)
    return True


if __name__ == "__main__":
    print(json.dumps(asdict(feel(sys.argv[1], float(sys.argv[2])))))
