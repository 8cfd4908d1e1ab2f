"""backup and restore: a whole copy of the job store under an identity of its own, and the way back to one.

Incident to prevent: a restored store goes on from an older point in time, so it would give run ids and idempotency
keys out a second time, and an endpoint would take new work for a repetition. Decision: every copy gets a fresh store
uuid before it has its name, every restore draws another one, and run ids go on above those of the store that is set
aside. Consequence: nothing that left the machine under the lost store is ever mistaken for something new.

A copy is made under a temporary name, checked, synced and renamed; a death at any point leaves no half backup.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from carolctl import clock, global_pause, places
from carolctl.errors import BadData, CarolError, NotFound, NotPermitted, Refused, StoreBusy
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.open_files import processes_with
from carolctl.store import APPLICATION_ID
from carolctl.store.backup import continue_run_ids_after, copy_store, highest_run_id, private_store
from carolctl.store.db import open_store
from carolctl.store.examine import anatomy
from carolctl.store.records import AuditEntry
from carolctl.store.tx import WriteTx

DEFAULT_KEEP = 7
ORIGIN = "restored_from"
"""Where the meta of a copy keeps the uuid of the store that it was made of."""

_NAME = re.compile(r"carolctl-\d{8}T\d{6}Z\.db")
_LEFT_BEHIND = re.compile(r"carolctl-\d{8}T\d{6}Z\.db\.\d+\.partial(-journal|-wal|-shm)?")
_LEFT_BEHIND_SEC = 3600
_SIDE_FILES = ("-wal", "-shm", "-journal")
#: How far run ids leap when the lost store can no longer be asked how far it had come.
_LEAP = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, when, and how long a lock is waited for."""

    now: Millis
    actor: str
    deadline_ms: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What is in force now, and where the store before it lies."""

    restored: str
    from_backup: str
    store_uuid: str
    restored_from: str
    #: The files of the store that was there; empty if there was none.
    set_aside: list[str]
    #: Runs that were under way when the backup was made.
    live_runs: int
    integrity: str
    elapsed_ms: float


# -- backup ----


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
    with _partial(target) as partial:
        copy_store(source, partial, deadline_ms=caller.deadline_ms)
        _refuse_damage(partial, source, caller)
        uuid, origin = _give_identity(partial, "backup", source, caller)
        if rotates:
            target = _install_beside(partial, os.path.dirname(target), caller.now)
        else:
            _install(partial, target)
    removed = _rotate(os.path.dirname(target), keep or DEFAULT_KEEP, target) if rotates else []
    _tell_the_store(source, target, caller)
    return Backup(
        backup=target,
        bytes=os.stat(target).st_size,
        store_uuid=uuid,
        backup_of=origin,
        integrity="ok",
        removed=removed,
        elapsed_ms=_since(began),
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
    return os.path.join(folder, f"carolctl-{_compact(now)}.db")


def _compact(now: Millis) -> str:
    return re.sub("[-:]", "", clock.iso(now - now % 1000) or "")


def _refuse_target(target: str, source: str) -> None:
    hint = "nothing was written; give a new file, or a folder"
    if os.path.realpath(target) in {os.path.realpath(source) + suffix for suffix in ("", *_SIDE_FILES)}:
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
                tx.audit(_entry("backup", target, caller))
        finally:
            store.close()
    except CarolError as problem:
        warn(f"the backup is made, but its audit entry is not written: {problem.message}")


# -- restore ----


def restore(file: str, live: str, caller: Caller, *, even_if_used: bool = False) -> Restored:
    """Put the backup `file` in the place of the job store `live`, which is set aside with its side files.

    Raises `Refused` while runs are under way there or somebody has it open, unless `even_if_used`; `NotFound`,
    `BadData` for a file that is damaged or no job store.
    """
    require_unlocked("restoring a backup")
    began = time.perf_counter()
    file = os.path.abspath(file)
    if os.path.exists(file) and os.path.exists(live) and os.path.samefile(file, live):
        raise Refused(f"{file} is the job store itself", hint="give a backup of it")
    _make_home(live)
    with _partial(live) as partial:
        copy_store(file, partial, deadline_ms=caller.deadline_ms)
        _refuse_damage(partial, file, caller)
        highest = _fence(live, caller, even_if_used=even_if_used)
        uuid, origin = _give_identity(partial, "restore", file, caller, after_run=highest)
        with private_store(partial, deadline_ms=caller.deadline_ms) as store, store.read() as tx:
            live_runs = tx.count_live()[1]
        moved = _set_aside(live, caller.now)
        _install(partial, live)
    return Restored(
        restored=live,
        from_backup=file,
        store_uuid=uuid,
        restored_from=origin,
        set_aside=moved,
        live_runs=live_runs,
        integrity="ok",
        elapsed_ms=_since(began),
    )


def _make_home(live: str) -> None:
    try:
        os.makedirs(os.path.dirname(live), mode=0o700, exist_ok=True)
    except OSError as problem:
        raise NotPermitted(
            f"{os.path.dirname(live)} cannot be made: {problem.strerror}", hint="check the modes"
        ) from None


def _fence(live: str, caller: Caller, *, even_if_used: bool) -> int | None:
    """Pause the store that is to be set aside, if nothing runs there; the highest run id it ever gave out.

    One transaction, so that no tick claims between the look and the move: a tick that has the old store open
    finds it paused. None for a store that cannot be asked.
    """
    users = processes_with(live)
    if users and not even_if_used:
        raise _in_use(f"{live} is open in process {', '.join(map(str, users[:8]))}")
    try:
        store = open_store(live, deadline_ms=caller.deadline_ms)
    except NotFound:
        return 0 if not os.path.exists(live) or not os.path.getsize(live) else None
    except BadData as problem:
        warn(f"{problem.message}; it is set aside as it is")
        return None
    try:
        with store.write() as tx:
            held = tx.count_live()[1]
            if held and not even_if_used:
                raise _in_use(f"{held} runs are under way in {live}")
            tx.set_meta(global_pause.KEY, global_pause.FOREVER)
            tx.audit(_entry("restore", live, caller))
            return highest_run_id(tx)
    except (BadData, StoreBusy) as problem:
        if isinstance(problem, StoreBusy) and not even_if_used:
            raise
        warn(f"{problem.message}; it is set aside as it is")
        return None
    finally:
        store.close()


def _in_use(message: str) -> Refused:
    return Refused(message, hint="let them end (carolctl pause, then monitor), or give --yes")


def _set_aside(live: str, now: Millis) -> list[str]:
    """Move the store and its side files to a name of their own; their new names.

    At no moment does a ``-wal`` lie beside another store than its own, and none is ever without its: the side files
    get their second name first and lose the old one last.
    """
    there = _aside_name(live, now)
    sides = [suffix for suffix in _SIDE_FILES if os.path.lexists(live + suffix)]
    moved = [there] if os.path.lexists(live) else []
    for suffix in sides:
        os.link(live + suffix, there + suffix)
    if moved:
        os.rename(live, there)
    _unlink([live + suffix for suffix in sides])
    return [*moved, *(there + suffix for suffix in sides)]


def _aside_name(live: str, now: Millis) -> str:
    wanted = f"{live}.before-restore-{_compact(now)}"
    number, found = 1, wanted
    while any(os.path.lexists(found + suffix) for suffix in ("", *_SIDE_FILES)):
        number += 1
        found = f"{wanted}-{number}"
    return found


# -- a copy, from its first byte to its name ----


@contextmanager
def _partial(target: str) -> Iterator[str]:
    """An empty private file beside `target` for what is not whole yet; gone when the block ends, unless renamed."""
    partial = f"{target}.{os.getpid()}.partial"
    names = [partial + suffix for suffix in ("", *_SIDE_FILES)]
    _unlink(names)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(partial, flags, 0o600))
    try:
        yield partial
    finally:
        _unlink(names)


def _unlink(paths: list[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _give_identity(
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
        tx.audit(_entry(command, subject, caller, before=before, after=fresh))
    return fresh, origin


def _continue_run_ids(tx: WriteTx, after_run: int | None) -> None:
    # A process of the lost store may yet report the end of a run: its id must not mean another run here.
    continue_run_ids_after(tx, highest_run_id(tx) + _LEAP if after_run is None else after_run)


def _entry(
    command: str, subject: str, caller: Caller, *, before: str | None = None, after: str | None = None
) -> AuditEntry:
    return AuditEntry(
        at=caller.now,
        actor=caller.actor,
        command=command,
        subject=subject,
        before=before and {"store_uuid": before},
        after=after and {"store_uuid": after},
    )


def _refuse_damage(partial: str, source: str, caller: Caller) -> None:
    try:
        problems = anatomy(partial, deadline_ms=caller.deadline_ms, thorough=True).problems
    except BadData:
        problems = ("SQLite cannot read it",)
    if problems:
        raise BadData(f"{source} is damaged: {problems[0]}", hint="nothing was written; use an older backup")


def _install_beside(partial: str, folder: str, now: Millis) -> str:
    """Give the copy the name of the first second that no other backup has: those of one second do not collide."""
    _sync(partial)
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
        _sync(folder)
        return target
    raise Refused(f"{folder} holds a backup of every second of the next hour", hint="look at the clock")


def _install(partial: str, target: str) -> None:
    """Give a whole copy its name, durably."""
    _sync(partial)
    os.rename(partial, target)
    _sync(os.path.dirname(target))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
