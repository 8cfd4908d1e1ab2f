"""The log that agents append their events to (`event_append`): taken away, read in parts, removed once all is stored.

A log is taken away by renaming it; whoever comes next starts a new one. Its name says how far it is stored,
``events-WHEN-BY@OFFSET.jsonl``, and is changed after each COMMIT: a drain that is killed in between reads some lines
again, which changes nothing. It is removed only when no agent can be in the middle of a line: each holds a shared
lock on it, and goes elsewhere when the file has lost its name.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from carolctl import spool
from carolctl.errors import BadData
from carolctl.event_append import BEGINNING, LIVE
from carolctl.event_values import MAX_BYTES
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.spool import Unusable

_ENDLESS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or as much of it as an event may have; `path` is its log's, with its place in it."""

    path: str
    content: bytes
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What was read of one log: its `lines` from one offset to `end`; `is_last`: nothing follows, nor ever will."""

    path: str
    lines: tuple[Line, ...]
    end: int
    is_last: bool

    @property
    def is_progress(self) -> bool:
        """Whether there is less to do once it is stored."""
        return self.is_last or self.end > _offset(self.path)


def take_away() -> None:
    """Take the log that is being appended to out of the agents' way, if there is one."""
    require_unlocked("taking the log of events")
    folder = spool.new_folder()
    taken = f"events-{time.time_ns()}-{os.getpid()}@0.jsonl"
    # Where it cannot be, there is none, or nothing could be removed either.
    with suppress(OSError):
        os.rename(os.path.join(folder, LIVE), os.path.join(folder, taken))
    failpoint("events-taken-away")


def parts(limit: int) -> Iterator[Part | Unusable]:
    """The logs, oldest first, up to `limit` lines of all; the one that is being appended to is the last."""
    for path in sorted(spool.paths("log"), key=_age):
        if limit <= 0:
            return
        part = spool.read_plain(path, functools.partial(_read, path=path, limit=limit))
        if part is not None:
            yield part
        if isinstance(part, Part):
            limit -= len(part.lines)


def advance(part: Part) -> None:
    """After COMMIT: its lines need not be read again. Harmless where somebody else has done so."""
    require_unlocked("emptying the log of events")
    with suppress(FileNotFoundError):
        if part.is_last:
            os.unlink(part.path)
        elif part.is_progress and os.path.basename(part.path) != LIVE:
            os.rename(part.path, f"{part.path.rpartition('@')[0]}@{part.end}.jsonl")


def _age(path: str) -> tuple[bool, str]:
    return os.path.basename(path) == LIVE, path


def _offset(path: str) -> int:
    name = os.path.basename(path)
    return 0 if name == LIVE else int(name.rpartition("@")[2].removesuffix(".jsonl"))


def _read(file: BinaryIO, path: str, limit: int) -> Part:
    # First whether it is complete, then its bytes: nobody can have added any in between.
    is_complete = os.path.basename(path) != LIVE and _is_complete(file)
    end = _offset(path)
    file.seek(end)
    lines: list[Line] = []
    for content, size in _lines(file, is_complete=is_complete):
        is_whole = len(content) == size
        if not (is_whole and _is_cut_off(content)):
            lines.append(Line(f"{path}#{end}", content, is_whole))
        end += size
        if len(lines) >= limit:
            break
    is_last = is_complete and end >= os.fstat(file.fileno()).st_size
    return Part(path=path, lines=tuple(lines), end=end, is_last=is_last)


def _is_cut_off(content: bytes) -> bool:
    """Whether it is nothing, or the beginning of an event: a full disk or a death cut it off, and nobody was told."""
    begun = content.startswith(BEGINNING) or BEGINNING.startswith(content.rstrip())
    return begun and not content.rstrip().endswith(b"}")


def _is_complete(file: BinaryIO) -> bool:
    """Whether no agent can be adding to a log that was taken away."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _lines(file: BinaryIO, *, is_complete: bool) -> Iterator[tuple[bytes, int]]:
    """Each line, up to what an event may be, and its size; one that somebody may still be writing is left for later.

    Raises `BadData` when the first of them is endless: no agent wrote it.
    """
    is_first = True
    while content := file.readline(MAX_BYTES + 1):
        rest, is_ended = (0, True) if content.endswith(b"\n") else _skip(file)
        if rest > _ENDLESS and is_first:
            raise BadData("a log with a line that does not end")
        if rest > _ENDLESS or not (is_ended or is_complete):
            return
        yield content, len(content) + rest
        is_first = False


def _skip(file: BinaryIO) -> tuple[int, bool]:
    """The size of what is left of a line, and whether it ends."""
    size = 0
    while size <= _ENDLESS and (chunk := file.readline(MAX_BYTES)):
        size += len(chunk)
        if chunk.endswith(b"\n"):
            return size, True
    return size, False
