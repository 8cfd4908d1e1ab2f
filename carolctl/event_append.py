"""One event at the end of the spool's log, durable before anyone is told. Light: half of an `emit` would be imports.

A file an event costs a name, an inode and two syncs each, and an emptying drain fights the agents for them. So agents
append lines to one file, ``events.jsonl`` in ``new``, each by a single write and one sync that all who wait share. A
drain takes the file away by renaming it, and knows from a lock on it when the last one in it is done (`event_log`).
"""

from __future__ import annotations

import fcntl
import os
import stat

from carolctl import places, spool_write
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.spool_owner import AsOwner

LIVE = "events.jsonl"
BEGINNING = b'{"kind":"event",'
"""With this every line begins."""

_TRIES = 20
"""How often the log may be taken away between its opening and its lock, before a file of its own is quicker."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def append(event_id: str, document: bytes) -> None:
    """Write one event durably: as a line of the log, else as a file of its own. Raises OSError when neither can be.

    `document` is one line that begins with `BEGINNING`. After an error it may still be there, but nobody has been
    told so.
    """
    require_unlocked("writing to the spool")
    with AsOwner():
        # A newline in front too: what was cut off before it must not spoil it.
        if not _append(b"\n%s\n" % document):
            spool_write.put(f"event-{event_id}.json", document)


def _append(line: bytes) -> bool:
    path = os.path.join(places.spool(), "new", LIVE)
    try:
        for _ in range(_TRIES):
            descriptor = _open(path)
            failpoint("event-log-opened")
            try:
                if _is_held(descriptor, path):
                    return _write(descriptor, line, path)
            finally:
                os.close(descriptor)
    except OSError:
        # Somebody else's, a link, no room for all of it: a file of its own is possible, or says why not.
        return False
    return False


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except FileNotFoundError:
        # The first event ever; to look for the folder each time would be a tenth of an emit.
        spool_write.folder("new")
        return os.open(path, _FLAGS, 0o600)


def _is_held(descriptor: int, path: str) -> bool:
    """Lock the log against being declared complete; False where it has been taken away meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False


def _write(descriptor: int, line: bytes, path: str) -> bool:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_uid != os.geteuid():
        return False
    if facts.st_size == 0:
        # Before its first byte: whoever sees any need not ask whether the name is on disk.
        spool_write.sync_folder(os.path.dirname(path))
    if os.write(descriptor, line) != len(line):
        return False
    failpoint("event-appended")
    os.fdatasync(descriptor)
    return True
