"""Legacy planner databases for tests: the one of the demonstration, and small ones of any rows."""

from __future__ import annotations

import hashlib
import importlib.util
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from carolctl.model import Job
from carolctl.store.db import Store
from tests.builders import Carol
from tests.builders import store as open_home

Opener = Callable[..., Store]
NOW: dict[str, Any] = {"CAROL_NOW": "2026-02-01T00:00:00Z"}
_SCRIPT = Path(__file__).parents[1] / "scripts" / "make_planner_db.py"
PLAIN: dict[str, Any] = {
    "droid_name": "droid",
    "schedule_type": "daily_at",
    "daily_at": "02:30",
    "endpoint_url": "http://127.0.0.1:9/x",
    "http_method": "POST",
}
"""A row with nothing unusual in it, but for its id."""


def script() -> ModuleType:
    """The script that makes the demonstration's planner database, as a module."""
    spec = importlib.util.spec_from_file_location("make_planner_db", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo_planner(path: Path) -> Path:
    """The planner database of 27 jobs."""
    script().write(str(path), "http://127.0.0.1:9")
    return path


def planner(path: Path, *rows: Mapping[str, Any], schema: str | None = None) -> Path:
    """A planner database of `rows`; a value that is a `Raw` is an SQL expression."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(schema or script().SCHEMA)
        for row in rows:
            insert(connection, row)
    return path


class Raw(str):
    """An SQL expression instead of a value."""

    __slots__ = ()


def insert(connection: sqlite3.Connection, row: Mapping[str, Any], table: str = "scheduled_jobs") -> None:
    """Add one row."""
    marks = ", ".join(value if isinstance(value, Raw) else "?" for value in row.values())
    names = ", ".join(f'"{name}"' for name in row)
    values = [value for value in row.values() if not isinstance(value, Raw)]
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)


def change(path: Path, statement: str, *values: Any) -> None:
    """One statement on a planner database."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def cells(path: Path, table: str = "scheduled_jobs", key: str = "job_id") -> dict[Any, dict[str, Any]]:
    """Every cell of a table as (type, bytes or number), by key and column."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        names = [row[1].decode() for row in connection.execute(f"PRAGMA table_info({table})")]
        wanted = ", ".join(f'typeof("{name}"), "{name}"' for name in names)
        rows = connection.execute(f"SELECT {wanted} FROM {table}").fetchall()
    typed = [dict(zip(names, zip(row[::2], row[1::2], strict=True), strict=True)) for row in rows]
    return {row[key][1].decode() if isinstance(row[key][1], bytes) else row[key][1]: row for row in typed}


def digest(path: Path) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ids(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The job ids of a listing."""
    return [job["job_id"] for job in jobs]


def migrated(carol: Carol, source: Path, *more: str, code: int = 0, **env: Any) -> Any:
    """The JSON report of a migration that ends with `code`."""
    done = carol("migrate-jobs", "--planner-db", str(source), "--json", *more, **(NOW | env))
    assert done.code == code, done.err
    return done.json()


def refused(carol: Carol, source: Path, *more: str, code: int, **env: Any) -> dict[str, Any]:
    """The error line of a migration that is refused with `code`."""
    done = carol("migrate-jobs", "--planner-db", str(source), "--json", *more, **env)
    assert done.code == code, done.out + done.err
    assert "Traceback" not in done.err
    return done.error()


def jobs_in(home: Path) -> dict[str, Job]:
    """The jobs of a data home, by id."""
    with closing(open_home(home, create=False)) as opened, opened.read() as tx:
        return {job.job_id: job for job in tx.jobs()}


def contents(home: Path) -> list[str]:
    """The whole content of a job store, as SQL."""
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return list(connection.iterdump())


@contextmanager
def locked(path: Path, statement: str) -> Iterator[None]:
    """Somebody else's transaction on `path`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(statement)
        yield
        other.execute("ROLLBACK")
