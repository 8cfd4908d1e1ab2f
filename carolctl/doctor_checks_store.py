"""The doctor's checks of the database file itself: is it sound, is it ours, is it in anybody's way."""

from __future__ import annotations

import os

from carolctl.doctor_checks import Evidence, Finding, fail, ok, skipped, warn
from carolctl.open_files import processes_with_deleted
from carolctl.store import APPLICATION_ID, SCHEMA_VERSION
from carolctl.store.connect import file_system_type, refuse_network_file_system
from carolctl.store.examine import sqlite_version

_MIB = 1024 * 1024
_LARGE_WAL = 64 * _MIB
_LEAST_SQLITE = (3, 37)
_RESTORE = "carolctl backup --restore FILE puts a backup in its place"
_NO_STORE = "carolctl add-job or migrate-jobs makes one"


def integrity(evidence: Evidence) -> Finding:
    """SQLite's own check of every page, and whether the file is a job store at all."""
    if evidence.no_store:
        return fail(f"there is no job store at {evidence.place.db}", _NO_STORE)
    body = evidence.anatomy
    if body is None:
        assert evidence.problem is not None
        return fail(evidence.problem.message, evidence.problem.hint)
    if body.application_id != APPLICATION_ID:
        return fail("the file is a database of another program", "set CAROL_SCHEDULER_DB or --db")
    if body.problems:
        return fail(f"damaged: {body.problems[0]}", _RESTORE, problems=list(body.problems))
    if evidence.problem:
        return fail(evidence.problem.message, evidence.problem.hint)
    return ok(f"sound, {body.bytes / 1024:,.0f} KiB", bytes=body.bytes)


def schema(evidence: Evidence) -> Finding:
    """Whether program and store speak of the same tables."""
    body = evidence.anatomy
    if body is None or body.application_id != APPLICATION_ID:
        return skipped("no job store to look at")
    figures = {"version": body.version, "known": SCHEMA_VERSION}
    if body.version > SCHEMA_VERSION:
        return fail(
            f"version {body.version} is newer than this program knows ({SCHEMA_VERSION})",
            "upgrade carolctl",
            **figures,
        )
    if body.version < SCHEMA_VERSION:
        return warn(
            f"version {body.version} of {SCHEMA_VERSION}: rows were not looked at",
            "the next command that writes brings it up to date",
            **figures,
        )
    return ok(f"version {body.version}", **figures)


def journal(evidence: Evidence) -> Finding:
    """Whether readers and writers leave each other alone."""
    body = evidence.anatomy
    mode = (body.journal_mode if body else None) or (evidence.locks or {}).get("journal_mode")
    if mode is None:
        return skipped("it cannot be told without opening the store for writing")
    if mode != "wal":
        return fail(f"journal mode {mode}: readers block writers", "restore a backup, or set WAL mode again")
    return ok("write-ahead log", mode=mode)


def wal(evidence: Evidence) -> Finding:
    """Whether somebody keeps the lock or pins the write-ahead log."""
    if evidence.no_store:
        return skipped("no job store to look at")
    size = _size(f"{evidence.place.db}-wal")
    found = evidence.locks or {}
    verdict, readers = str(found.get("verdict", "")), len(found.get("readers") or ())
    figures = {"wal_bytes": size, "verdict": verdict or None, "readers": readers}
    if verdict in ("starvation", "long_holder", "wedge", "unseen_holder"):
        return fail(str(found.get("headline", verdict)), str(found.get("advice", "")), **figures)
    if verdict == "long_reader":
        return warn(str(found.get("headline", verdict)), str(found.get("advice", "")), **figures)
    if size > _LARGE_WAL:
        return warn(
            f"{size // _MIB} MiB, and no reader keeps it", "the next writes make it smaller", **figures
        )
    held = f"; lock: {verdict}" if verdict else "; who holds the lock could not be told"
    return ok(f"{size // 1024:,} KiB{held}", **figures)


def replaced(evidence: Evidence) -> Finding:
    """Whether a process goes on with a store that was removed under it: what it writes is lost."""
    if not os.path.exists(evidence.place.db):
        return skipped("no job store to look at")
    found = sorted(
        {pid for suffix in ("", "-wal", "-shm") for pid in processes_with_deleted(evidence.place.db + suffix)}
    )
    if found:
        return fail(
            f"removed under process {', '.join(map(str, found[:8]))}, which writes into nothing",
            "end it; never remove or replace the store by hand",
            pids=found,
        )
    return ok("the file that everybody has open")


def file_system(evidence: Evidence) -> Finding:
    """Whether the store lies on a disk of this host."""
    refuse_network_file_system(evidence.place.db)
    kind = file_system_type(evidence.place.db)
    return ok(kind, type=kind) if kind else skipped("/proc does not tell")


def sqlite(evidence: Evidence) -> Finding:
    """Whether the library is new enough for STRICT tables."""
    version = sqlite_version()
    text = ".".join(map(str, version))
    if version < _LEAST_SQLITE:
        return fail(f"{text} is too old", "use a Python with SQLite 3.37 or newer", version=text)
    return ok(text, version=text)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
