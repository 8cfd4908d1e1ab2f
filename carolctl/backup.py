"""backup: a whole copy of the job store beside running writers, under an identity of its own (`store_copy`)."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from carolctl import places, store_copy
from carolctl.errors import CarolError, NotFound, NotPermitted, Refused
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.store import APPLICATION_ID
from carolctl.store.backup import copy_store
from carolctl.store.db import open_store
from carolctl.store_copy import SIDE_FILES, Caller

DEFAULT_KEEP = 7

_NAME = re.compile(r"carolctl-\d{8}T\d{6}Z\.db")
_LEFT_BEHIND = re.compile(r"carolctl-\d{8}T\d{6}Z\.db\.\d+\.partial(-journal|-wal|-shm)?")
_LEFT_BEHIND_SEC = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was made. `store_uuid` is the copy's own, `backup_of` that of the store it was made of."""

    backup: str
    bytes: int
    store_uuid: str
    backup_of: str
    integrity: str
    removed: list[str]
    elapsed_ms: float


def backup(source: str, given: str | None, caller: Caller, *, keep: int | None = None) -> Backup:
    """Copy the job store `source` to `given`: a folder, a file, or None for the data home's own folder.

    In a folder the `keep` newest stay. Raises `Refused` rather than write over something else, `DiskFull`,
    `NotFound`, `BadData` (the store, or its copy, is damaged).
    """
    require_unlocked("making a backup")
    began = time.perf_counter()
    target, rotates = _destination(given, caller.now)
    if keep is not None and not rotates:
        raise Refused("--keep goes with a folder", hint="give a folder, or leave it out")
    _refuse_target(target, source)
    with store_copy.partial_file(target) as partial:
        copy_store(source, partial, deadline_ms=caller.deadline_ms)
        store_copy.refuse_damage(partial, source, caller)
        uuid, origin = store_copy.give_identity(partial, "backup", source, caller)
        if rotates:
            target = _install_beside(partial, os.path.dirname(target), caller.now)
        else:
            store_copy.install(partial, target)
    removed = _rotate(os.path.dirname(target), keep or DEFAULT_KEEP, target) if rotates else []
    _tell_the_store(source, target, caller)
    return Backup(
        backup=target,
        bytes=os.stat(target).st_size,
        store_uuid=uuid,
        backup_of=origin,
        integrity="ok",
        removed=removed,
        elapsed_ms=store_copy.since(began),
    )


def _destination(given: str | None, now: Millis) -> tuple[str, bool]:
    """The file to make, and whether it lies in a folder whose old backups go.

    What is no folder yet is one if it ends in ``/`` or has no suffix.
    """
    path = os.path.abspath(given or os.path.join(places.data_home(), "backups"))
    named = os.path.isfile(path) or os.path.splitext(path)[1] != ""
    if given and not os.path.isdir(path) and named and not given.endswith("/"):
        if not os.path.isdir(os.path.dirname(path)):
            raise NotFound(f"no such folder: {os.path.dirname(path)}", hint="make it, or give another one")
        return path, False
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as problem:
        raise NotPermitted(f"{path} cannot be made: {problem.strerror}", hint="give another folder") from None
    return _dated(path, now), True


def _dated(folder: str, now: Millis) -> str:
    return os.path.join(folder, f"carolctl-{store_copy.compact(now)}.db")


def _refuse_target(target: str, source: str) -> None:
    hint = "nothing was written; give a new file, or a folder"
    if os.path.realpath(target) in {os.path.realpath(source) + suffix for suffix in ("", *SIDE_FILES)}:
        raise Refused(f"{target} belongs to the job store itself", hint=hint)
    try:
        facts = os.lstat(target)
    except FileNotFoundError:
        return
    if os.path.exists(source) and os.path.samestat(facts, os.stat(source)):
        raise Refused(f"{target} is the job store itself", hint=hint)
    if not stat.S_ISREG(facts.st_mode) or (facts.st_size and not _is_job_store(target)):
        raise Refused(f"{target} is there and is no backup", hint=hint)
    if os.path.exists(f"{target}-wal") and os.path.getsize(f"{target}-wal"):
        raise Refused(f"{target} is in use: it has a -wal beside it", hint=hint)


def _is_job_store(path: str) -> bool:
    # By its header: nobody in this process has the file open, so that no lock can be lost by closing it.
    with open(path, "rb") as file:
        head = file.read(72)
    return head.startswith(b"SQLite format 3\0") and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


def _rotate(folder: str, keep: int, just_made: str) -> list[str]:
    """Remove all but the newest backups, by name, and what a killed backup left behind."""
    names = os.listdir(folder)
    # The one just made stays even if the clock was set back.
    made = os.path.basename(just_made)
    others = sorted((name for name in names if _NAME.fullmatch(name) and name != made), reverse=True)
    removed = [os.path.join(folder, name) for name in others[keep - 1 :]]
    for path in [*removed, *_left_behind(folder, names)]:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return removed


def _left_behind(folder: str, names: list[str]) -> Iterator[str]:
    for name in names:
        path = os.path.join(folder, name)
        with suppress(FileNotFoundError):
            if _LEFT_BEHIND.fullmatch(name) and time.time() - os.lstat(path).st_mtime > _LEFT_BEHIND_SEC:
                yield path


def _tell_the_store(source: str, target: str, caller: Caller) -> None:
    """An audit entry in the store itself; a backup is no less good where that cannot be written."""
    try:
        store = open_store(source, deadline_ms=min(caller.deadline_ms, 1000))
        try:
            with store.write() as tx:
                tx.audit(store_copy.entry("backup", target, caller))
        finally:
            store.close()
    except CarolError as problem:
        warn(f"the backup is made, but its audit entry is not written: {problem.message}")


def _install_beside(partial: str, folder: str, now: Millis) -> str:
    """Give the copy the name of the first second that no other backup has: those of one second do not collide."""
    store_copy.sync(partial)
    for second in range(3600):
        target = _dated(folder, Millis(now + 1000 * second))
        try:
            os.link(partial, target)
        except FileExistsError:
            continue
        except OSError:
            # A file system without links.
            os.rename(partial, target)
        else:
            os.unlink(partial)
        store_copy.sync(folder)
        return target
    raise Refused(f"{folder} holds a backup of every second of the next hour", hint="look at the clock")
