"""Which processes have a file open, from /proc: nothing is opened, so that no lock of ours is lost over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from carolctl.lockguard import require_unlocked

_GONE = " (deleted)"


def processes_with(path: str) -> list[int]:
    """The other processes that have the file at `path` open, as far as they may be seen."""
    require_unlocked("looking for who has a file open")
    try:
        facts = os.stat(path)
    except OSError:
        return []
    wanted = (facts.st_dev, facts.st_ino)
    return sorted({pid for pid, link in _descriptors() if _identity(link) == wanted})


def processes_with_deleted(path: str) -> list[int]:
    """The other processes that work on a file of that name which has been removed under them."""
    require_unlocked("looking for who has a deleted file open")
    wanted = os.path.realpath(path) + _GONE
    return sorted({pid for pid, link in _descriptors() if _target(link) == wanted})


def _descriptors() -> Iterator[tuple[int, str]]:
    me = os.getpid()
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != me:
                with suppress(OSError):
                    for number in os.listdir(f"/proc/{name}/fd"):
                        yield int(name), f"/proc/{name}/fd/{number}"


def _identity(link: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(link)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
