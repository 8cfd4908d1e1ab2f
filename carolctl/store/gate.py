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
import stat
from collections.abc import Iterator
from contextlib import contextmanager

SUFFIX = "-gate"


@contextmanager
def queued(path: str, longest_sec: float) -> Iterator[bool | None]:
    """Stand in line for the job store at `path`; whether it is our turn, false if we waited for `longest_sec` in
    vain. None where there is no line to stand in.

    Our turn lasts to the end of the block: let it hold the whole transaction, and the next finds the lock free.
    """
    descriptor = _opened(path)
    if descriptor is None:
        yield None
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
        # Never a file that has another name as well: it might be anybody's.
        is_new = made.st_nlink == 1 and not made.st_size and stat.S_ISREG(made.st_mode) and not made.st_uid
        if is_new and (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError:
        pass


def _taken(descriptor: int, longest_sec: float) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _waited_for(descriptor, longest_sec) if longest_sec > 0 else False
    return True


class _TimeIsUp(Exception):
    pass


def _waited_for(descriptor: int, longest_sec: float) -> bool | None:
    """Wait in the kernel, with an alarm for an end; None in a thread, which gets no alarms.

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
        return None
    # Whoever started us may have blocked it.
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
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
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGALRM, before)
    return True
