"""A copy of a job store, from its first byte to its name: whole, checked, and under an identity of its own.

Incident to prevent: a restored store goes on from an older point in time, so it would give run ids and idempotency
keys out a second time, and an endpoint would take new work for a repetition. Decision: every copy gets a fresh store
uuid before it has its name, every restore draws another one, and run ids go on above those of the store that is set
aside. Consequence: nothing that left the machine under the lost store is ever mistaken for something new.

A copy is made under a temporary name, checked, synced and renamed; a death at any point leaves no half backup.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from carolctl import clock
from carolctl.errors import BadData
from carolctl.model import Millis
from carolctl.store.backup import continue_run_ids_after, highest_run_id, private_store
from carolctl.store.examine import anatomy
from carolctl.store.records import AuditEntry
from carolctl.store.tx import WriteTx

ORIGIN = "restored_from"
"""Where the meta of a copy keeps the uuid of the store that it was made of."""

SIDE_FILES = ("-wal", "-shm", "-journal")
#: How far run ids leap when the lost store can no longer be asked how far it had come.
_LEAP = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, when, and how long a lock is waited for."""

    now: Millis
    actor: str
    deadline_ms: int


@contextmanager
def partial_file(target: str) -> Iterator[str]:
    """An empty private file beside `target` for what is not whole yet; gone when the block ends, unless renamed."""
    partial = f"{target}.{os.getpid()}.partial"
    names = [partial + suffix for suffix in ("", *SIDE_FILES)]
    unlink(names)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(partial, flags, 0o600))
    try:
        yield partial
    finally:
        unlink(names)


def unlink(paths: list[str]) -> None:
    """Remove files, those that are there."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def give_identity(
    partial: str, command: str, subject: str, caller: Caller, *, after_run: int | None = 0
) -> tuple[str, str]:
    """Draw a new store uuid for a copy; it and the uuid of the store that the copy goes back to."""
    fresh = os.urandom(16).hex()
    with private_store(partial, deadline_ms=caller.deadline_ms) as store, store.write() as tx:
        before = tx.store_uuid()
        origin = (tx.meta(ORIGIN) if command == "restore" else None) or before
        tx.set_meta("store_uuid", fresh)
        tx.set_meta(ORIGIN, origin)
        _continue_run_ids(tx, after_run)
        tx.audit(entry(command, subject, caller, before=before, after=fresh))
    return fresh, origin


def _continue_run_ids(tx: WriteTx, after_run: int | None) -> None:
    # A process of the lost store may yet report the end of a run: its id must not mean another run here.
    continue_run_ids_after(tx, highest_run_id(tx) + _LEAP if after_run is None else after_run)


def entry(
    command: str, subject: str, caller: Caller, *, before: str | None = None, after: str | None = None
) -> AuditEntry:
    """What the audit log says of a copy; `before` and `after` are store uuids."""
    return AuditEntry(
        at=caller.now,
        actor=caller.actor,
        command=command,
        subject=subject,
        before=before and {"store_uuid": before},
        after=after and {"store_uuid": after},
    )


def refuse_damage(partial: str, source: str, caller: Caller) -> None:
    """Raise `BadData` unless the copy of `source` is a sound database."""
    try:
        problems = anatomy(partial, deadline_ms=caller.deadline_ms, thorough=True).problems
    except BadData:
        problems = ("SQLite cannot read it",)
    if problems:
        raise BadData(f"{source} is damaged: {problems[0]}", hint="nothing was written; use an older backup")


def install(partial: str, target: str) -> None:
    """Give a whole copy its name, durably."""
    sync(partial)
    os.rename(partial, target)
    sync(os.path.dirname(target))


def sync(path: str) -> None:
    """Have a file or a folder on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def since(began: float) -> float:
    """Milliseconds since that moment of the performance counter."""
    return round((time.perf_counter() - began) * 1000, 3)


def compact(now: Millis) -> str:
    """An instant as names have it: ``20260329T010000Z``."""
    return re.sub("[-:]", "", clock.iso(now - now % 1000) or "")
