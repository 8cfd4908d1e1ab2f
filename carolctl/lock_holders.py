"""What /proc tells of a process that holds a lock: who it is, what it does, whom it waits for.

Each function makes do with what it may see: as another user that is the command line, the state and the CPU
time, but neither sockets nor disk traffic. A process that has gone tells nothing, which is no error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from carolctl.lock_formats import (
    Stat,
    parse_cgroup,
    parse_io,
    parse_locks,
    parse_stat,
    parse_tcp,
    shown_command,
)
from carolctl.lock_verdict import Activity

_MOST_THREADS = 64
_MOST_PEERS = 8


class Glimpse(NamedTuple):
    """A process at one instant; `disk` is None where we may not know."""

    at: float
    stat: Stat
    disk: int | None


class Identity(NamedTuple):
    """Who a process is; None where /proc does not tell."""

    command: str | None
    user: str | None
    unit: str | None


def glimpse(pid: int, at: float) -> Glimpse | None:
    """Its state and its counters; None when it has gone or may not be seen."""
    text = _read(pid, "stat")
    if not text:
        return None
    disk = _read(pid, "io")
    return Glimpse(at, parse_stat(text), None if disk is None else parse_io(disk.decode()))


def identity(pid: int) -> Identity:
    """Its command line (secrets masked, otherwise as hostile as it came), its user, its systemd unit."""
    cmdline, stat = _read(pid, "cmdline"), _read(pid, "stat")
    name = parse_stat(stat).name if stat else ""
    cgroup = _read(pid, "cgroup")
    return Identity(
        command=shown_command(cmdline or b"", name) if stat else None,
        user=_user(pid),
        unit=parse_cgroup(cgroup.decode(errors="replace")) if cgroup else None,
    )


def activity(pid: int, before: Glimpse, at: float) -> Activity | None:
    """What it did since `before`; None when it has gone, or its pid belongs to another one now."""
    after = glimpse(pid, at)
    if after is None or after.stat.start != before.stat.start:
        return None
    ticks = (after.stat.cpu - before.stat.cpu) / os.sysconf("SC_CLK_TCK")
    known = after.disk is not None and before.disk is not None
    return Activity(
        state=after.stat.state,
        cpu_share=ticks / max(at - before.at, 0.01),
        disk_bytes=(after.disk or 0) - (before.disk or 0) if known else None,
        waits=frozenset(_waits(pid)),
        peers=tuple(peers(pid)),
    )


def peers(pid: int) -> list[str]:
    """The far ends of its TCP connections, at most eight; none where its sockets may not be seen."""
    sockets = {link[8:-1] for _, link in _descriptors(pid) if link.startswith("socket:[")}
    if not sockets:
        return []
    found: dict[str, str] = {}
    for table in ("net/tcp", "net/tcp6"):
        found |= parse_tcp((_read(pid, table) or b"").decode())
    return sorted({peer for inode, peer in found.items() if inode in sockets})[:_MOST_PEERS]


def may_see_inside(pid: int) -> bool:
    """Whether its sockets and its disk traffic are ours to see."""
    return os.access(f"/proc/{pid}/fd", os.R_OK) and _read(pid, "io") is not None


def find_descriptor(file: tuple[int, int], first: int, last: int) -> tuple[int, int] | None:
    """The process and the descriptor that own a lock of an open file description; None if not to be seen."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        for number, _ in _descriptors(pid):
            if _is(f"/proc/{pid}/fd/{number}", file) and descriptor_holds(pid, number, first, last):
                return pid, number
    return None


def descriptor_holds(pid: int, number: int, first: int, last: int) -> bool:
    """Whether that descriptor owns a lock of exactly these bytes."""
    text = (_read(pid, f"fdinfo/{number}") or b"").decode(errors="replace")
    lines = [line.partition("lock:")[2] for line in text.splitlines() if line.startswith("lock:")]
    inode = next((line.split()[5].rpartition(":")[2] for line in lines if len(line.split()) == 8), "0")
    locks = parse_locks("\n".join(lines), device=None, inode=int(inode))
    return any((lock.pid, lock.first, lock.last) == (-1, first, last) for lock in locks)


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue


def _is(path: str, file: tuple[int, int]) -> bool:
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return (facts.st_dev, facts.st_ino) == file


def _waits(pid: int) -> Iterator[str]:
    """Where in the kernel its threads wait."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")[:_MOST_THREADS]
    except OSError:
        return
    for thread in threads:
        where = _read(pid, f"task/{thread}/wchan")
        if where:
            yield where.decode(errors="replace")


def _user(pid: int) -> str | None:
    status = (_read(pid, "status") or b"").decode(errors="replace")
    uids = next((line.split() for line in status.splitlines() if line.startswith("Uid:")), None)
    if uids is None:
        return None
    import pwd

    try:
        return pwd.getpwuid(int(uids[2])).pw_name
    except KeyError:
        return f"uid {uids[2]}"


def _read(pid: int, name: str) -> bytes | None:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None
