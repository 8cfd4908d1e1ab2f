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
import time
from itertools import islice

from carolctl import spool_write
from carolctl.event_append import LIVE
from carolctl.event_values import MAX_BYTES, is_event_id
from carolctl.lockguard import require_unlocked
from carolctl.notices import warn

_MOST_NAMES = 20_000
_MOST_BYTES = 64 * 1024 * 1024
"""The end of a longer log is read: the newest events count most."""

_NAME = re.compile(r"event-[A-Za-z0-9._-]{1,80}\.json")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def bring_home(folder: str, run_id: int) -> int:
    """Copy the events of `run_id` from ``spool/new`` in `folder` to our spool, durably; how many."""
    require_unlocked("bringing events home")
    told = _found(folder, run_id)
    if not told:
        return 0
    # One log and one sync for all of them: a slow disk would take the hook's time for the end itself.
    name = f"events-{time.time_ns()}-{os.getpid()}@0.jsonl"
    try:
        spool_write.put(name, b"".join(told.values()))
    except OSError as trouble:
        warn(
            f"run {run_id}: {len(told)} events of it are lost: the spool does not take them: {trouble.strerror}"
        )
        return 0
    return len(told)


def _found(folder: str, run_id: int) -> dict[str, bytes]:
    """The events about the run by their ids, each as a line."""
    descriptors: list[int] = []
    try:
        for name in (folder, "spool", "new"):
            descriptors.append(os.open(name, _FOLDER, dir_fd=descriptors[-1] if descriptors else None))
        uid = os.fstat(descriptors[0]).st_uid
        texts = _texts(descriptors[-1], uid, run_id)
    except OSError:
        # No such folder: it emitted nothing. A link in its place is not ours to follow.
        return {}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return dict(event for text in texts if (event := _event(text, run_id)) is not None)


def _texts(folder: int, uid: int, run_id: int) -> list[bytes]:
    """The lines of its log, and its files of one event each."""
    names = sorted(name for name in islice(os.listdir(folder), _MOST_NAMES) if _NAME.fullmatch(name))
    log = _read(folder, LIVE, uid, _MOST_BYTES)
    if len(log) == _MOST_BYTES or len(names) == _MOST_NAMES:
        warn(f"run {run_id} left more events than are taken in")
    return [*log.splitlines(), *(_read(folder, name, uid, MAX_BYTES) for name in names)]


def _read(folder: int, name: str, uid: int, most: int) -> bytes:
    """The last bytes of a plain file of `uid`, at most `most`; nothing, where it is something else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        plain = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid == uid
        if not plain:
            return b""
        file.seek(max(0, facts.st_size - most))
        return file.read(most)


def _event(text: bytes, run_id: int) -> tuple[str, bytes] | None:
    """The id of an event about `run_id`, and its line of a log; None for whatever else it is."""
    try:
        document = json.loads(text) if len(text) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or (document.get("kind"), document.get("run_id")) != ("event", run_id):
        return None
    event_id = document.get("event_id")
    if not (isinstance(event_id, str) and is_event_id(event_id)):
        return None
    return event_id, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
