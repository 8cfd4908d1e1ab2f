"""The events of a job that runs as another user, taken from that user's folder into our own spool.

Such a job may not enter our data home, so it is given a folder under /run for as long as its unit lives. Whoever
takes its events home is privileged and must not be led astray: no link is followed, only plain files of the
folder's owner are read, and an event about any other run is left behind with the folder.
"""

from __future__ import annotations

import json
import os
import re
import stat
from itertools import islice

from carolctl import spool_write
from carolctl.event_values import MAX_BYTES
from carolctl.lockguard import require_unlocked
from carolctl.notices import warn

MOST = 500
"""Events that are taken home at the end of one run: the hook that does it has little time."""

_NAME = re.compile(r"event-[A-Za-z0-9._-]{1,80}\.json")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def bring_home(folder: str, run_id: int) -> int:
    """Copy the events of `run_id` from ``spool/new`` in `folder` to our spool, durably; how many."""
    require_unlocked("bringing events home")
    descriptors: list[int] = []
    try:
        for name in (folder, "spool", "new"):
            descriptors.append(os.open(name, _FOLDER, dir_fd=descriptors[-1] if descriptors else None))
        uid = os.fstat(descriptors[0]).st_uid
        return _copy(descriptors[-1], uid, run_id)
    except OSError:
        # No such folder: it emitted nothing. A link in its place is not ours to follow.
        return 0
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _copy(folder: int, uid: int, run_id: int) -> int:
    names = sorted(name for name in islice(os.listdir(folder), 20_000) if _NAME.fullmatch(name))
    if len(names) > MOST:
        warn(f"run {run_id} left {len(names)} events, of which {MOST} are taken in")
    taken = 0
    for name in names[:MOST]:
        content = _read(folder, name, uid)
        if content is not None and _is_about(content, run_id):
            spool_write.put(name, content)
            taken += 1
    return taken


def _read(folder: int, name: str, uid: int) -> bytes | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        plain = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid == uid
        return file.read(MAX_BYTES) if plain and facts.st_size <= MAX_BYTES else None


def _is_about(content: bytes, run_id: int) -> bool:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("kind") == "event" and document.get("run_id") == run_id
