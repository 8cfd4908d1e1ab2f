"""The schema: numbered SQL files, each applied with its version in one transaction; a newer one is refused."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator

from carolctl.errors import BadData, NotFound
from carolctl.store import APPLICATION_ID, SCHEMA_VERSION

_FOLDER = os.path.join(os.path.dirname(__file__), "schema")


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema version of an open database; 0 for an empty one.

    Raises `BadData` for somebody else's database or a schema newer than this program.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            return 0
        raise BadData(
            f"{path} is a database of another program",
            hint="the job store is a file of its own; set CAROL_SCHEDULER_DB or --db",
        )
    if version > SCHEMA_VERSION:
        raise BadData(
            f"{path} has schema version {version}, newer than this program knows ({SCHEMA_VERSION})",
            hint="upgrade carolctl; the file was left as it is",
        )
    return version


def refuse_empty(path: str, version: int) -> None:
    """Raise `NotFound` when a command that only reads meets a database without our tables."""
    if version == 0:
        raise NotFound(
            f"{path} holds no jobs table yet", hint="check the path; add-job or migrate-jobs makes them"
        )


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Apply the files above `version`. The caller holds the write transaction."""
    for number, script in _scripts():
        if number > version:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
    if version == 0:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO meta VALUES ('store_uuid', ?)", (os.urandom(16).hex(),))


def _scripts() -> Iterator[tuple[int, str]]:
    for name in sorted(os.listdir(_FOLDER)):
        if name.endswith(".sql"):
            with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
                yield int(name[:4]), file.read()


def _statements(script: str) -> Iterator[str]:
    """The script's statements one by one: executescript() would commit the transaction first."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
