"""Outcomes that could not be written: one small file each, durable before anyone relies on it.

A file is written in ``tmp``, synced, renamed into ``new``, and the folder synced. It is unlinked only after the
COMMIT that took it in; taking it in twice changes nothing, because an outcome is a compare-and-swap. Whatever is
not a plain file of our own is moved to ``bad`` and never read: a link, a FIFO, somebody else's, an endless one.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import cast

from carolctl import places
from carolctl.errors import BadData
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.model import Outcome

_MAX_BYTES = 64 * 1024
_END_OF_CALENDAR = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One file in ``new`` and the outcome that it holds."""

    path: str
    outcome: Outcome


def leave(outcome: Outcome) -> str:
    """Write one outcome durably; its path. Raises OSError when the disk does not take it."""
    require_unlocked("writing to the spool")
    name = f"finish-{outcome.run_id}-{outcome.claim_no}.json"
    temporary = os.path.join(_folder("tmp"), f"{name}.{os.getpid()}")
    target = os.path.join(_folder("new"), name)
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with open(descriptor, "wb") as file:
        file.write(json.dumps({"kind": "finish"} | asdict(outcome)).encode())
        file.flush()
        os.fsync(file.fileno())
    failpoint("spool-before-rename")
    os.rename(temporary, target)
    _sync_folder(os.path.dirname(target))
    return target


def pending() -> list[SpoolFile]:
    """The outcomes that wait in ``new``; what cannot be used is moved to ``bad``."""
    require_unlocked("reading the spool")
    folder = os.path.join(places.spool(), "new")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        path = os.path.join(folder, name)
        try:
            found.append(SpoolFile(path, _outcome(_read(path))))
        except (ValueError, TypeError, KeyError, RecursionError, BadData):
            set_aside(path)
        except OSError as trouble:
            # Gone, or not to be read now: it may hold a good outcome. A link is never followed, so never read.
            if trouble.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                set_aside(path)
    return found


def unlink(files: Iterable[SpoolFile]) -> None:
    """Remove files whose outcomes are committed."""
    require_unlocked("emptying the spool")
    for file in files:
        try:
            os.unlink(file.path)
        except FileNotFoundError:
            continue


def set_aside(path: str) -> None:
    """Move a file that cannot be used to ``bad``, where a person may look at it."""
    name = os.path.join(_folder("bad"), os.path.basename(path))
    for target in (name, f"{name}.{time.time_ns()}"):
        # A folder does not replace one that is there and not empty.
        with suppress(OSError):
            os.rename(path, target)
            return


def _read(path: str) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang; O_NOFOLLOW: a link is not ours to follow.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and facts.st_nlink == 1
        if not ours or facts.st_size > _MAX_BYTES:
            raise BadData(f"{path} is not a spool file of ours")
        return file.read(_MAX_BYTES + 1)


def _outcome(content: bytes) -> Outcome:
    """The outcome in a file. Raises `BadData` for anything that a transaction could not take in."""
    document = json.loads(content)
    if not isinstance(document, dict) or document.pop("kind", None) != "finish":
        raise BadData("not a finish file")
    for name, value in document.items():
        if name not in _SOUND or not _SOUND[name](value):
            raise BadData(f"a finish file whose {name} cannot be")
    return Outcome(**document)


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**62


def _is_instant(value: object) -> bool:
    return _is_whole(value) and 0 <= cast(int, value) < _END_OF_CALENDAR


def _is_text(value: object) -> bool:
    # A lone surrogate is text to JSON and not to SQLite.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_pause(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) < 1e9


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_SOUND: dict[str, Callable[[object], bool]] = {
    "run_id": _is_whole,
    "claim_no": _is_whole,
    "status": _is_text,
    "completed_at": _is_instant,
    "failure_reason": _or_none(_is_text),
    "turns": _or_none(_is_whole),
    "summary": _or_none(_is_text),
    "exit_status": _or_none(_is_whole),
    "http_status": _or_none(_is_whole),
    "retry_after_sec": _or_none(_is_pause),
}


def _folder(name: str) -> str:
    path = os.path.join(places.spool(), name)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
