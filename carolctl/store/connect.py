"""Opening a SQLite file, waiting for its lock, and SQLite's errors in our words.

Used for the job store and for the legacy planner database alike. The wait is a short jittered poll of our own:
SQLite's busy handler sleeps longer the longer one has waited, so newcomers win, and it does not feel Ctrl-C.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from carolctl.errors import BadConfig, BadData, CarolError, DiskFull, NotFound, NotPermitted, StoreBusy
from carolctl.lockguard import require_unlocked
from carolctl.store.side_files import may_be_left_beside

POLL_SEC = (0.002, 0.008)
#: At the head of the line, where nobody else polls; and after waiting in it in vain, when many may do the same.
POLL_AT_THE_HEAD_SEC, POLL_OUT_OF_LINE_SEC = (0.0005, 0.0015), (0.01, 0.03)
#: How much longer a sleep gets, for each second that the one before ended late, and at most.
_LATENESS_COUNTS, _MOST_FOR_LATENESS_SEC = 8, 0.03
_PROGRESS_STEPS = 100_000
_ROOM_FOR_SIDE_FILES = 64 * 1024
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "fuse.", "ceph", "gluster", "lustre", "ncpfs")

#: SQLite's error name, by prefix and in this order: the error of ours, what to say, the hint.
_EXPLANATIONS: tuple[tuple[str, type[CarolError], str, str], ...] = (
    ("SQLITE_NOTADB", BadData, "is not a SQLite database", "restore it from a backup; it was left as it is"),
    ("SQLITE_CORRUPT", BadData, "is a damaged database", "restore it from a backup; it was left as it is"),
    ("SQLITE_FULL", DiskFull, "cannot grow: the disk is full", "free some space; nothing was half-written"),
    ("SQLITE_READONLY", NotPermitted, "cannot be written: it or its folder is read-only", "check the modes"),
    ("SQLITE_PERM", NotPermitted, "may not be opened", "check the owner and the modes"),
    (
        "SQLITE_CANTOPEN",
        NotPermitted,
        "cannot be opened",
        "check the owner and the modes of it and its folder",
    ),
    (
        "SQLITE_IOERR",
        BadData,
        "cannot be read or written: the file system reports an error",
        "check the disk",
    ),
)


@contextmanager
def explained(path: str, deadline_ms: int) -> Iterator[None]:
    """Turn any `sqlite3.Error` inside the block into a `CarolError` that names `path`."""
    try:
        yield
    except sqlite3.Error as error:
        name: str = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_INTERRUPT":
            raise KeyboardInterrupt from None
        if is_busy(error):
            raise StoreBusy(
                f"{path} is locked by another program; gave up after {deadline_ms / 1000:g} s",
                hint="try again; CAROL_BUSY_TIMEOUT_MS sets how long to wait",
                database=path,
            ) from error
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and _is_full(path):
            name = "SQLITE_FULL"
        for prefix, kind, text, hint in _EXPLANATIONS:
            if name.startswith(prefix):
                raise kind(f"{path} {text}", hint=hint) from error
        if "no such table" in str(error) or "no such column" in str(error):
            raise NotFound(f"{path}: {error}", hint="is this the right database?") from error
        raise


def _is_full(path: str) -> bool:
    """Whether the disk has no room for SQLite's side files, which it reports as a fault of the disk."""
    try:
        facts = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return facts.f_bavail * facts.f_frsize < _ROOM_FOR_SIDE_FILES


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds a lock; told by SQLite's error name, never by text.

    SQLITE_PROTOCOL is what a connection gets that waits for another one's recovery of the WAL.
    """
    name: str = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def wait_for_lock(
    attempt: Callable[[], object], deadline_ms: float, *, poll_sec: tuple[float, float] = POLL_SEC
) -> None:
    """Call `attempt` until it stops raising SQLITE_BUSY; after `deadline_ms` let the error out.

    `poll_sec`: from how long to how long to sleep in between.
    """
    require_unlocked("waiting for a database lock")
    give_up = time.monotonic() + deadline_ms / 1000
    late = 0.0
    while True:
        try:
            attempt()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= give_up:
                raise
        else:
            return
        late = _sleep(poll_sec, late)


def _sleep(poll: tuple[float, float], late: float) -> float:
    """Sleep for a poll's length; `late` and the answer are by how many seconds the last sleep and this one overran.

    Sleepers that wake up late are more than the processors can wake. Were hundreds of them to poll on as before,
    they would take the holder's own turn from it: then each waits longer. A foreign holder makes nobody late, so
    the polls stay dense enough for the gap that it leaves.
    """
    import random

    wanted = random.uniform(*poll)  # noqa: S311 - jitter against lockstep, not a secret
    wanted += min(_LATENESS_COUNTS * late, _MOST_FOR_LATENESS_SEC) * random.uniform(0, 2)  # noqa: S311
    began = time.monotonic()
    time.sleep(wanted)
    return max(0.0, time.monotonic() - began - wanted)


def begin(
    connection: sqlite3.Connection,
    statement: str,
    deadline_ms: int,
    *,
    waited_ms: float = 0,
    poll_sec: tuple[float, float] = POLL_SEC,
) -> None:
    """Open a transaction by `statement`, waiting for what `waited_ms` left of `deadline_ms`; its snapshot is
    taken here. `poll_sec`: see `wait_for_lock`.
    """

    def attempt() -> None:
        connection.execute(statement)
        try:
            # A deferred transaction takes its snapshot at its first statement: take it inside the wait.
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        except BaseException:
            rollback(connection)
            raise

    connection.execute("PRAGMA busy_timeout = 0")
    try:
        wait_for_lock(attempt, deadline_ms - waited_ms, poll_sec=poll_sec)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(deadline_ms)}")


def rollback(connection: sqlite3.Connection) -> None:
    """Roll back if a transaction is open; SQLite ends it by itself on some errors, a full disk among them."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def connect(path: str, *, mode: str, deadline_ms: int) -> sqlite3.Connection:
    """A connection in autocommit mode. `mode` is SQLite's URI mode: ``ro``, ``rw`` or ``rwc``.

    Raises `NotFound` for a missing file (unless ``rwc``) or a folder, `NotPermitted` for one we may not open, or
    whose owner it would harm.
    """
    require_unlocked("opening a database")
    if os.path.isdir(path):
        raise NotFound(f"{path} is a folder, not a database file", hint="give the path of the file itself")
    if mode != "rwc" and not os.path.exists(path):
        _refuse_missing(path)
    if mode in ("ro", "rw") and not may_be_left_beside(path):
        _refuse_to_harm(path)
    with explained(path, deadline_ms):
        connection = sqlite3.connect(
            f"file:{uri_quoted(path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=deadline_ms / 1000,
            check_same_thread=False,
        )
    # Python code between the virtual machine's steps is where a pending Ctrl-C is noticed in a long query.
    connection.set_progress_handler(_noticing_signals, _PROGRESS_STEPS)
    return connection


def uri_quoted(path: str) -> str:
    """`path` for a SQLite URI; urllib.parse costs 2 ms of imports."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _noticing_signals() -> int:
    return 0


def _refuse_missing(path: str) -> None:
    folder = os.path.dirname(path)
    if os.path.isdir(folder) and not os.access(folder, os.X_OK):
        raise NotPermitted(f"{folder} may not be entered", hint="check the owner and the modes")
    raise NotFound(
        f"no such file: {path}", hint="check the path; add-job or migrate-jobs makes a new job store"
    )


def _refuse_to_harm(path: str) -> None:
    raise NotPermitted(
        f"{path} belongs to another user, who could not use the files that SQLite would make beside it",
        hint="may root not give files away here? of the units' sandbox: carolctl install-timers",
    )


def refuse_network_file_system(path: str) -> None:
    """Raise `BadConfig` when `path` lies on one: WAL needs memory shared by all writers, so one host.

    ``CAROL_ALLOW_NETWORK_FS=1`` forces it.
    """
    kind = file_system_type(path)
    if kind.startswith(_NETWORK_FILE_SYSTEMS) and os.environ.get("CAROL_ALLOW_NETWORK_FS") != "1":
        raise BadConfig(
            f"{path} lies on a network file system ({kind})",
            hint="keep the job store on a local disk; CAROL_ALLOW_NETWORK_FS=1 forces it",
        )


def file_system_type(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that holds `path`, or an empty text where /proc does not tell."""
    real = os.path.realpath(path)
    best, kind = -1, ""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = mount.split(" ")[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), rest.split(" ")[0]
    return kind
