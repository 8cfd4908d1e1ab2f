"""What a command leaves behind: its output, in a file of bounded size, and its result file.

The output must never hold the command up nor make its run fail: a disk that takes nothing costs the output.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from carolctl.failure_text import class_of
from carolctl.lockguard import require_unlocked
from carolctl.model import FAILURE_CLASSES, FailureClass

SUMMARY_CAP = 2000
LAST_LINE_CAP = 200
TELLING_LINES = 5
"""How many lines may name the class of a failure."""
RESULT_CAP_BYTES = 64 * 1024
LARGEST_TURN_COUNT = 2**31 - 1

_RECENT_BYTES = 4096
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class CappedLog:
    """Output as it comes, readable meanwhile, never larger than `cap` bytes.

    The first half of `cap` is kept for good. Behind it the file grows to `cap` and is then cut back to its last
    quarter, with a line that says how much is missing: so between a quarter and a half of `cap` are the newest.
    """

    def __init__(self, path: str, cap: int) -> None:
        require_unlocked("opening a log file")
        self._fd = _create_private(path)
        self._cap = cap
        self._head = cap // 2
        self._size = 0
        self._mark = b""
        self._left_out = 0
        self._refused = 0
        self._recent = b""

    def add(self, chunk: bytes) -> None:
        """Take in some output; an error of the disk is noted in the file once it works again."""
        self._recent = (self._recent + chunk)[-_RECENT_BYTES:]
        if self._fd is None:
            return
        note = b"\n[... %d bytes could not be written ...]\n" % self._refused if self._refused else b""
        try:
            self._append(self._fd, note + chunk)
        except OSError:
            self._refused += len(chunk)
        else:
            self._refused = 0

    def last_line(self) -> str | None:
        """The last line of the output that says anything, without control characters."""
        return next(iter(self.last_lines(1)), None)

    def last_lines(self, count: int) -> list[str]:
        """So many of those lines, the last one first."""
        return telling_lines(self._recent.decode("utf-8", "replace"), count)

    def close(self) -> None:
        """No more output."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, fd: int, data: bytes) -> None:
        while data:
            if self._size >= self._cap:
                self._cut_back(fd)
            written = os.pwrite(fd, data[: self._cap - self._size], self._size)
            self._size += written
            data = data[written:]

    def _cut_back(self, fd: int) -> None:
        tail_from = self._head + len(self._mark)
        kept = os.pread(fd, self._cap // 4, self._size - self._cap // 4)
        # From the beginning of a line, if one begins soon enough.
        kept = kept[kept.find(b"\n", 0, len(kept) // 2) + 1 :]
        self._left_out += self._size - tail_from - len(kept)
        self._mark = b"\n[... %d bytes left out ...]\n" % self._left_out
        self._size = self._head
        for part in (self._mark, kept):
            self._size += os.pwrite(fd, part, self._size)
        os.ftruncate(fd, self._size)


def _create_private(path: str) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the command said of itself."""

    turns: int | None = None
    summary: str | None = None
    failure_reason: FailureClass | None = None


def prepare_result(path: str) -> None:
    """Make the folder of a result file, and room where an earlier one lay."""
    require_unlocked("preparing a result file")
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.unlink(path)


def take_result(path: str) -> Result:
    """Read the result file and remove it; whatever cannot be used in it counts as not said."""
    require_unlocked("reading a result file")
    try:
        document = json.loads(_read_plain_file(path))
    except (OSError, ValueError, RecursionError):
        document = None
    with suppress(OSError):
        os.unlink(path)
    return _result(document) if isinstance(document, dict) else Result()


def _read_plain_file(path: str) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang; O_NOFOLLOW: a link is not the command's to make us follow.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > RESULT_CAP_BYTES:
            raise ValueError("not a small plain file")
        return file.read(RESULT_CAP_BYTES)


def _result(document: dict[str, Any]) -> Result:
    turns, summary = document.get("turns"), document.get("summary")
    reason = document.get("failure_reason")
    failed = isinstance(reason, str) and reason != ""
    known = reason in FAILURE_CLASSES if failed else False
    meant = cast(FailureClass, reason) if known else class_of(str(reason), str(summary)) or "sdk_error"
    said = printable(summary)[:SUMMARY_CAP] if isinstance(summary, str) else ""
    if failed and not known:
        said = said or f"unknown failure reason {printable(str(reason))[:100]!r}"
    return Result(
        turns=turns if type(turns) is int and 0 <= turns <= LARGEST_TURN_COUNT else None,
        summary=said or None,
        failure_reason=meant if failed else None,
    )


def telling_lines(text: str, count: int = TELLING_LINES) -> list[str]:
    """The last lines that say anything, the last one first, without control characters."""
    lines = (
        printable(_CONTROL_SEQUENCE.sub("", line))[:LAST_LINE_CAP] for line in reversed(text.splitlines())
    )
    return list(islice((line for line in lines if line), count))


def printable(text: str) -> str:
    """`text` without anything that a terminal would act on or a database refuse."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t").strip()
