"""The queue of carolctl's own writers before the write lock of a job store.

Measured: SQLite's lock is polled for, and two hundred processes that poll every few milliseconds take both processors
from the one that holds it. Decision: ours queue in the kernel, by flock on a side file, and only the first of them
polls. Consequence: the order is that of arrival, a process that is killed drops out by itself, and the poll can be
dense enough for the short gaps that a foreign writer leaves.

Nothing rests on the queue but the order. A foreign program knows nothing of it; who cannot open the file, or waits
behind a stopped process for too long, goes on without. The file is empty and stays.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

SUFFIX = "-gate"


@contextmanager
def queued(path: str, longest_sec: float) -> Iterator[bool]:
    """Stand in line for the job store at `path`; whether it is our turn, or we waited for `longest_sec` in vain.

    Our turn lasts to the end of the block: let it hold the whole transaction, and the next finds the lock free.
    """
    descriptor = _opened(path)
    if descriptor is None:
        yield False
        return
    try:
        yield _taken(descriptor, longest_sec)
    finally:
        # Closing lets go, whichever way the wait ended.
        os.close(descriptor)


def _opened(path: str) -> int | None:
    try:
        descriptor = os.open(
            path + SUFFIX, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
    except OSError:
        return None
    if os.geteuid() == 0:
        _leave_to_owner(path, descriptor)
    return descriptor


def _leave_to_owner(path: str, descriptor: int) -> None:
    """What root makes belongs to the owner of the database, as SQLite does it with its own side files."""
    try:
        owner, made = os.stat(path), os.fstat(descriptor)
        if (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError:
        pass


def _taken(descriptor: int, longest_sec: float) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return longest_sec > 0 and _waited_for(descriptor, longest_sec)
    return True


class _TimeIsUp(Exception):
    pass


def _waited_for(descriptor: int, longest_sec: float) -> bool:
    """Wait in the kernel, with an alarm for an end; false in a thread, which gets no alarms.

    Ctrl-C ends it too. The alarm repeats, so that one which comes just before the wait begins is not the last.
    """
    import signal

    waiting = True

    def ring(_number: int, _frame: object) -> None:
        # The wait may be over when the alarm is noticed.
        if waiting:
            raise _TimeIsUp

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except ValueError:
        return False
    try:
        signal.setitimer(signal.ITIMER_REAL, longest_sec, 0.05)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        waiting = False
    except (_TimeIsUp, OSError):
        waiting = False
        return False
    finally:
        waiting = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True
