"""What earlier looks at a lock found, in one small file: a lock has no date of its own.

The kernel does not say when a lock was taken. The same process (pid, start time, boot), seen as the holder
before, with no commit by anybody since: then it has held it all that time, or has come back having changed
nothing, which is no better for those who wait.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from carolctl.lockguard import require_unlocked
from carolctl.model import Millis

_MOST_BYTES = 64 * 1024
_MOST_DATABASES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A steady holder: who, after which commit, since when at least, and since when idle."""

    pid: int
    start: int
    boot: str
    change: int
    since: int
    idle_since: int | None
    seen: int

    def is_of(self, other: Memory) -> bool:
        """Whether both tell of one process that committed nothing in between."""
        return (self.pid, self.start, self.boot, self.change) == (
            other.pid,
            other.start,
            other.boot,
            other.change,
        )


def continued(old: Memory | None, fresh: Memory) -> Memory:
    """`fresh` with the dates of `old`, where that is the same holding."""
    if old is None or not old.is_of(fresh) or old.since > fresh.since:
        return fresh
    was_idle = old.idle_since is not None and fresh.idle_since is not None
    return Memory(
        **asdict(fresh) | {"since": old.since, "idle_since": old.idle_since if was_idle else fresh.idle_since}
    )


def recall(path: str) -> dict[str, Memory]:
    """The memories by database (device and inode); none where the file is missing or not what we write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            document = json.loads(file.read(_MOST_BYTES))
        return {str(key): _memory(value) for key, value in document.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _memory(value: Mapping[str, Any]) -> Memory:
    for name in ("pid", "start", "change", "since", "seen"):
        if type(value[name]) is not int:
            raise TypeError(name)
    return Memory(**{field.name: value[field.name] for field in fields(Memory)})


def remember(path: str, database: str, memory: Memory | None, *, now: Millis) -> bool:
    """Replace what is known of one database, at one stroke; False when it cannot be written.

    The folder is not made: whoever only looks leaves nothing behind in places that are not there.
    """
    require_unlocked("writing down who holds a lock")
    known = recall(path)
    if memory is None and database not in known:
        return True
    known.pop(database, None)
    if memory:
        known[database] = memory
    newest = sorted(known.items(), key=lambda item: -item[1].seen)[:_MOST_DATABASES]
    return _replace(path, json.dumps({key: asdict(value) for key, value in newest}))


def _replace(path: str, text: str) -> bool:
    temporary = f"{path}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if os.geteuid() == 0:
                # Root looks into the data home of a user, who is to read it too.
                folder = os.stat(os.path.dirname(path))
                os.fchown(descriptor, folder.st_uid, folder.st_gid)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    return True
