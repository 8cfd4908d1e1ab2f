"""One file into the spool, durable before anyone relies on it. Light: half of an `emit` would be imports.

Incident: a first cure for the contention of 22 agents acknowledged events before they were durable. Decision: a
file is written in ``tmp``, synced, renamed into ``new``, and the folder synced; only then may anyone say that it
is there. Consequence: what was acknowledged survives any death, and a reader never sees half a file.
"""

from __future__ import annotations

import os

from carolctl import places
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.spool_owner import AsOwner


def put(name: str, content: bytes) -> str:
    """Write `content` durably as `name` in ``new``; its path. Raises OSError when the disk does not take it.

    A file of that name is replaced. After an error it may still be there, but nobody has been told so.
    """
    require_unlocked("writing to the spool")
    with AsOwner():
        try:
            return _put(name, content)
        except FileNotFoundError:
            # The first file ever; to look for the folders each time would be a tenth of an emit.
            folder("tmp")
            folder("new")
            return _put(name, content)


def _put(name: str, content: bytes) -> str:
    temporary = os.path.join(places.spool(), "tmp", f"{name}.{os.getpid()}")
    target = os.path.join(places.spool(), "new", name)
    try:
        write_synced(temporary, content)
        failpoint("spool-before-rename")
        os.rename(temporary, target)
    except BaseException:
        _remove(temporary)
        raise
    failpoint("spool-after-rename")
    sync_folder(os.path.dirname(target))
    return target


def folder(name: str) -> str:
    """The path of ``tmp``, ``new`` or ``bad``, made if need be, for its owner alone."""
    path = os.path.join(places.spool(), name)
    _make_folder(path)
    return path


def _make_folder(path: str) -> None:
    """Make it and what is above it; each is on disk before anything in it can be."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_folder(above)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        # Somebody else's mkdir may not be synced yet.
        if not os.path.isdir(path):
            raise
    sync_folder(above)


def write_synced(path: str, content: bytes) -> None:
    """Write a private file, durably but for its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def sync_folder(path: str) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
