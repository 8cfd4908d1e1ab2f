"""The texts and bytes that tell who holds a SQLite lock, read into values. Pure.

The lock bytes are part of SQLite's file format: in WAL mode they lie in the ``-shm`` file, in rollback mode beyond
the first gigabyte of the database itself. All ranges here include both ends.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

WAL_WRITER = 120
WAL_CHECKPOINTER = 121
WAL_RECOVERY = 122
WAL_READERS = (123, 127)
PENDING = 0x40000000
RESERVED = PENDING + 1
SHARED = (PENDING + 2, PENDING + 511)

_MAGIC = b"SQLite format 3\0"
_WAL_INDEX_SIZE = 120
_WAL_INDEX = struct.Struct("=8xI4xI")
_CHECKPOINT = struct.Struct("=6I")
#: States of a TCP connection in which a peer is there, or hoped for: established, SYN sent, close wait.
_CONNECTED = {"01", "02", "08"}
_SECRET = re.compile(r"(?i)(pass(word|wd)?|secret|token|api.?key|credential|authorization)")
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


class FileLock(NamedTuple):
    """A lock that somebody holds; `pid` is -1 for a lock of an open file description, 0 where it is hidden."""

    pid: int
    is_write: bool
    first: int
    last: int

    def covers(self, first: int, last: int | None = None) -> bool:
        """Whether it lies on any byte from `first` to `last`."""
        return self.first <= (first if last is None else last) and self.last >= first


class Header(NamedTuple):
    """What the first page of a database says."""

    is_wal: bool
    change: int


class WalIndex(NamedTuple):
    """What the WAL-index says: a count of commits, frames written and moved, and the mark of each reader slot."""

    change: int
    frames: int
    backfilled: int
    marks: tuple[int, ...]

    def frames_behind(self, slot: int) -> int:
        """How many frames the reader in `slot` keeps from being reused; at most, since marks are shared."""
        # Slot 0 is for those who read the database file alone: nothing is moved into it under their feet.
        return max(0, self.frames - (self.marks[slot] if slot else self.backfilled))


class Stat(NamedTuple):
    """A line of the process table: CPU time and start in clock ticks."""

    state: str
    cpu: int
    start: int
    name: str


def parse_locks(
    text: str, *, device: str | None, inode: int, kinds: Collection[str] = ("POSIX", "OFDLCK")
) -> Iterator[FileLock]:
    """The locks on a file, from ``/proc/locks``; `device` is ``major:minor`` in hexadecimal, None means any."""
    wanted = f":{inode} "
    for line in text.splitlines():
        words = line.split()
        # `->` marks one who waits for a lock.
        if wanted not in line or len(words) != 8 or words[1] not in kinds:
            continue
        where, _, number = words[5].rpartition(":")
        if number == str(inode) and device in (None, where):
            last = 2**63 - 1 if words[7] == "EOF" else int(words[7])
            yield FileLock(int(words[4]), words[3] == "WRITE", int(words[6]), last)


def parse_header(page: bytes) -> Header | None:
    """The header of a database; None when it is none. An empty file is an empty database."""
    if not page:
        return Header(is_wal=False, change=0)
    if len(page) < 28 or not page.startswith(_MAGIC):
        return None
    return Header(is_wal=page[18] == 2, change=int.from_bytes(page[24:28], "big"))


def parse_wal_index(head: bytes) -> WalIndex | None:
    """The head of a ``-shm`` file, which is in the byte order of the machine; None while it is being made."""
    if len(head) < _WAL_INDEX_SIZE or not head[12]:
        return None
    change, frames = _WAL_INDEX.unpack_from(head)
    backfilled, *marks = _CHECKPOINT.unpack_from(head, 96)
    # An unused slot holds the highest number there is.
    return WalIndex(change, frames, min(backfilled, frames), tuple(min(mark, frames) for mark in marks))


def parse_stat(text: bytes) -> Stat:
    """``/proc/PID/stat``; the name stands in brackets and may hold brackets and spaces itself."""
    opening, closing = text.index(b"("), text.rindex(b")")
    fields = text[closing + 2 :].split()
    name = text[opening + 1 : closing].decode(errors="backslashreplace")
    return Stat(fields[0].decode(), int(fields[11]) + int(fields[12]), int(fields[19]), name)


def parse_io(text: str) -> int:
    """The bytes that a process read from and wrote to disks, from ``/proc/PID/io``."""
    numbers = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return int(numbers.get("read_bytes", 0)) + int(numbers.get("write_bytes", 0))


def parse_tcp(text: str) -> dict[str, str]:
    """The far ends of connections by the inode of their socket, from ``/proc/PID/net/tcp`` or ``tcp6``."""
    peers = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] in _CONNECTED:
            peers[words[9]] = _address(words[2])
    return peers


def _address(text: str) -> str:
    """``0100007F:1F90`` as ``127.0.0.1:8080``: words of four bytes, each in the byte order of the machine."""
    digits, _, port = text.partition(":")
    words = [int(digits[place : place + 8], 16) for place in range(0, len(digits), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed = packed[12:]
    family, form = (socket.AF_INET, "{}:{}") if len(packed) == 4 else (socket.AF_INET6, "[{}]:{}")
    return form.format(socket.inet_ntop(family, packed), int(port, 16))


def parse_cgroup(text: str) -> str | None:
    """The systemd unit that a process belongs to: the innermost service or scope, None outside of any."""
    for line in text.splitlines():
        for part in reversed(line.split(":", 2)[-1].split("/")):
            if part.endswith((".service", ".scope")):
                return part
    return None


def shown_command(cmdline: bytes, name: str) -> str:
    """A command line in one text, what looks like a secret masked; ``[name]`` where there is none."""
    words = cmdline.rstrip(b"\0").decode(errors="backslashreplace").split("\0")
    return " ".join(_masked(words))[:200] if words != [""] else f"[{name}]"


def _masked(words: Sequence[str]) -> Iterator[str]:
    hide_next = False
    for word in words:
        left, equals, _ = word.partition("=")
        is_secret = bool(_SECRET.search(left)) and len(left) < 40
        if hide_next:
            yield "***"
        elif is_secret and equals:
            yield f"{left}=***"
        else:
            yield _USER_IN_URL.sub("***@", word)
        hide_next = not hide_next and is_secret and not equals and word.startswith("-")
