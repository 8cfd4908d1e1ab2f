"""Looking at a database's locks again and again, from outside and without taking any.

Incident: a process that opened and closed a database by hand, while SQLite had it open too, lost all its locks
on it, and two writers were in at once. Decision: this never looks at a file that its own process has open, and
the program runs it in a process of its own. Consequence: looking costs nobody anything.

Two witnesses: ``/proc/locks`` names every holder, but under a device number that some file systems do not use
elsewhere; F_GETLK names one, whatever the file system. Both hide the processes of outer pid namespaces.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence

from carolctl import lock_holders
from carolctl.errors import BadData, NotFound, NotPermitted, UsageError
from carolctl.lock_formats import (
    PENDING,
    RESERVED,
    SHARED,
    WAL_CHECKPOINTER,
    WAL_READERS,
    WAL_RECOVERY,
    WAL_WRITER,
    FileLock,
    Header,
    WalIndex,
    parse_header,
    parse_locks,
    parse_wal_index,
)
from carolctl.lock_verdict import UNSEEN, Sample
from carolctl.lockguard import require_unlocked
from carolctl.store.gate import SUFFIX

_FLOCK = struct.Struct("hhqqi4x")
_HEAD = 136
_ROLLBACK_PLACES = ((PENDING, PENDING), (RESERVED, RESERVED), SHARED)
_WAL_PLACES = tuple((byte, byte) for byte in range(WAL_WRITER, WAL_READERS[1] + 1))
_PAUSE_SEC = 0.005
_ASK_EVERY_SEC = 0.1
_OTHER_DEVICE = "this file system goes by another device number in /proc/locks: matched by the inode alone"
#: How long the owner of a lock of an open file description is not searched for again, once it was not found.
_SEARCH_PAUSE_SEC = 0.25


class OpenFile:
    """A file opened to look at; its locks by both witnesses."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        facts = os.fstat(self.descriptor)
        self.identity = (facts.st_dev, facts.st_ino)
        self.device: str | None = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
        self.is_regular = stat.S_ISREG(facts.st_mode)

    def head(self) -> bytes:
        """Its first bytes."""
        return os.pread(self.descriptor, _HEAD, 0)

    def named(self, text: str) -> list[FileLock]:
        """Its locks in ``/proc/locks``."""
        return list(parse_locks(text, device=self.device, inode=self.identity[1]))

    def goes_by_another_device(self, table: str, pid: int) -> bool:
        """Whether `pid` holds locks there on such an inode elsewhere: then it is matched by the inode alone."""
        alike = [lock for lock in parse_locks(table, device=None, inode=self.identity[1]) if lock.pid == pid]
        if alike and not self.named(table):
            self.device = None
        return self.device is None

    def asked(self, first: int, last: int) -> FileLock | None:
        """A lock that would keep us from writing there; a hidden holder has the pid 0."""
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, last - first + 1, 0)
        kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(self.descriptor, fcntl.F_GETLK, question))
        if kind == fcntl.F_UNLCK:
            return None
        end = 2**63 - 1 if length == 0 else start + length - 1
        return FileLock(pid, kind == fcntl.F_WRLCK, start, end)

    def close(self) -> None:
        """Close it; this process holds no lock on it."""
        os.close(self.descriptor)


class Watched:
    """A database under observation. Raises `NotFound`, `BadData` or `NotPermitted`."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        refuse_own_files(self.path)
        self._database = _opened(path, self.path)
        self._index: OpenFile | None = None
        self._owners = _Owners()
        self.header = self._read_header(path)
        self.wal_index: WalIndex | None = None
        #: What was noticed on the way, in words.
        self.remarks: set[str] = set()
        self.checkpointers: set[int] = set()

    def _read_header(self, path: str) -> Header:
        header = parse_header(self._database.head()) if self._database.is_regular else None
        if header is None:
            self.close()
            raise BadData(f"{path} is not a SQLite database", hint="give the path of the file itself")
        return header

    @property
    def identity(self) -> str:
        """Device and inode of the database file."""
        return "{}:{}".format(*self._database.identity)

    def close(self) -> None:
        """Close what was opened to look at."""
        self._database.close()
        if self._index:
            self._index.close()

    def look(self, at: float) -> Sample:
        """One look."""
        self.header = parse_header(self._database.head()) or self.header
        text = self._lock_table()
        locks = self._witnessed(self._database, text, _ROLLBACK_PLACES)
        if not self.header.is_wal:
            return self._rollback_sample(at, locks)
        index = self._current_index()
        if index:
            self.wal_index = parse_wal_index(index.head()) or self.wal_index
        return self._wal_sample(at, self._witnessed(index, text, _WAL_PLACES) if index else [], locks)

    def first_in_line(self) -> int | None:
        """Who is first in the line of carolctl's own writers before this database, if there is one."""
        try:
            facts = os.stat(self.path + SUFFIX)
        except OSError:
            return None
        locks = parse_locks(self._lock_table(), device=None, inode=facts.st_ino, kinds=("FLOCK",))
        return next((lock.pid for lock in locks if lock.is_write and lock.pid > 0), None)

    def _rollback_sample(self, at: float, locks: Sequence[FileLock]) -> Sample:
        writer = _writer(locks, RESERVED, SHARED)
        shared = [lock.pid for lock in locks if not lock.is_write and lock.covers(*SHARED)]
        readers = {pid: None for pid in shared if pid != writer}
        pending = any(lock.is_write and lock.covers(PENDING) and not lock.covers(*SHARED) for lock in locks)
        return Sample(at=at, writer=writer, readers=readers, change=self.header.change, is_pending=pending)

    def _wal_sample(self, at: float, locks: Sequence[FileLock], on_file: Sequence[FileLock]) -> Sample:
        writer = _writer(locks, WAL_WRITER, (WAL_WRITER, WAL_WRITER))
        if writer is None:
            # Locking mode EXCLUSIVE, and leaving WAL mode, lock the database file itself.
            writer = _writer(on_file, RESERVED, SHARED)
        busy = (WAL_CHECKPOINTER, WAL_RECOVERY)
        checkpointers = {lock.pid for lock in locks if lock.is_write and lock.covers(*busy)}
        self.checkpointers |= checkpointers
        change = self.wal_index.change if self.wal_index else 0
        readers = self._wal_readers(locks)
        # A checkpoint that is to empty the WAL takes the write lock first, then waits for the readers.
        is_pending = writer in checkpointers and any(pid != writer for pid in readers)
        return Sample(at=at, writer=writer, readers=readers, change=change, is_pending=is_pending)

    def _wal_readers(self, locks: Sequence[FileLock]) -> dict[int, int | None]:
        readers: dict[int, int | None] = {}
        for lock in locks:
            for slot in range(WAL_READERS[1] - WAL_READERS[0] + 1):
                if self.wal_index and not lock.is_write and lock.covers(WAL_READERS[0] + slot):
                    behind = self.wal_index.frames_behind(slot)
                    readers[lock.pid] = max(behind, readers.get(lock.pid) or 0)
        return readers

    def _current_index(self) -> OpenFile | None:
        """The ``-shm`` file of the moment: it comes with the first connection and goes with the last."""
        path = self.path + "-shm"
        try:
            facts = os.stat(path)
            if self._index and self._index.identity == (facts.st_dev, facts.st_ino):
                return self._index
            if self._index:
                self._index.close()
            self._index = None
            self._index = OpenFile(path)
        except OSError as trouble:
            if trouble.errno != errno.ENOENT:
                self.remarks.add("the -shm file may not be read: WAL locks are out of sight")
            return None
        return self._index

    def _lock_table(self) -> str:
        try:
            with open("/proc/locks", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            self.remarks.add("/proc/locks is not to be seen here: at most one holder of each lock is known")
            return ""

    def _witnessed(self, file: OpenFile, table: str, places: Sequence[tuple[int, int]]) -> list[FileLock]:
        """The locks on these ranges of bytes: by the table, and by F_GETLK where the table names none."""
        locks = [lock for lock in file.named(table) if any(lock.covers(*place) for place in places)]
        for place in places:
            if not any(lock.covers(*place) for lock in locks) and (lock := file.asked(*place)):
                locks.append(lock)
                if lock.pid > 0 and file.goes_by_another_device(table, lock.pid):
                    self.remarks.add(_OTHER_DEVICE)
        return [self._owned(file, lock) for lock in locks]

    def _owned(self, file: OpenFile, lock: FileLock) -> FileLock:
        if lock.pid > 0:
            return lock
        if lock.pid == 0:
            self.remarks.add("a holder is hidden: it runs in another pid namespace, outside of this one")
            return lock
        pid = self._owners.of(file, lock)
        if pid == UNSEEN:
            self.remarks.add("a lock of an open file description, whose owner may not be seen from here")
        return lock._replace(pid=pid)


class _Owners:
    """Who holds locks of open file descriptions: found once, then only confirmed."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        self._search_from = 0.0

    def of(self, file: OpenFile, lock: FileLock) -> int:
        place = (file.identity[1], lock.first)
        known = self._known.get(place)
        if known and lock_holders.descriptor_holds(*known, lock.first, lock.last):
            return known[0]
        if time.monotonic() < self._search_from:
            return UNSEEN
        found = lock_holders.find_descriptor(file.identity, lock.first, lock.last)
        if found is None:
            self._search_from = time.monotonic() + _SEARCH_PAUSE_SEC
            return UNSEEN
        self._known[place] = found
        return found[0]


def _writer(locks: Sequence[FileLock], byte: int, shared: tuple[int, int]) -> int | None:
    for lock in locks:
        if lock.is_write and (lock.covers(byte) or lock.covers(*shared) or lock.covers(PENDING)):
            return lock.pid
    return None


def _opened(given: str, path: str) -> OpenFile:
    if os.path.isdir(path):
        raise NotFound(f"{given} is a folder, not a database file", hint="give the path of the file itself")
    try:
        return OpenFile(path)
    except FileNotFoundError:
        raise NotFound(f"no such file: {given}", hint="carolctl locks PATH looks at any database") from None
    except PermissionError:
        raise NotPermitted(f"{given} may not be read", hint="run it as its owner or as root") from None
    except OSError as trouble:
        raise BadData(f"{given} cannot be opened: {trouble.strerror}") from None


def refuse_own_files(path: str) -> None:
    """Fail when this process has the database open already: to close our look at it would drop its locks."""
    wanted = {_identity(path), _identity(path + "-shm")} - {None}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        if _identity(f"/proc/self/fd/{name}") in wanted:
            raise UsageError(
                f"{path} is open in this very process, by descriptor {name}", hint="do not redirect it"
            )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def watch(
    look: Callable[[float], Sample],
    *,
    at_least: float,
    at_most: float,
    is_clear: Callable[[list[Sample]], bool],
) -> list[Sample]:
    """Looks every 5 ms for `at_least` seconds; up to `at_most` while the picture is not clear."""
    require_unlocked("watching the locks of a database")
    began = time.monotonic()
    samples: list[Sample] = []
    ask_from = at_least
    while True:
        at = time.monotonic()
        samples.append(look(at))
        if at - began >= ask_from and len(samples) > 1:
            if at - began >= at_most or is_clear(samples):
                return samples
            ask_from += _ASK_EVERY_SEC
        time.sleep(_PAUSE_SEC)
