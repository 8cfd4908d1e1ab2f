"""Proof of life and death of the process that owns a run, and the end of whatever it left behind.

Incident: an agent died in the middle of its run; for 25 hours its row said ``running`` and a monitor showed it
as alive. Decision: the row names its owner by host, boot, process id and start time, and only what /proc says
about exactly that process is believed: an id that was reused is not the owner, a process that cannot be seen
is not dead. Consequence: a lost run is found within one tick, and none is lost on a guess.

A supervisor leads a session of its own, so what it left behind is found by the session id, whatever became of
parents and process groups. A process that made a session of its own is out of reach.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from carolctl import clock
from carolctl.lockguard import require_unlocked
from carolctl.model import Run

Liveness = Literal["alive", "dead", "unknown"]

_BURIAL_SEC = 2.0
_LOOK_AGAIN_SEC = 0.01


class Process(NamedTuple):
    """A line of the process table; `start` is in clock ticks since boot."""

    pid: int
    state: str
    group: int
    session: int
    start: int

    @property
    def has_ended(self) -> bool:
        """It only waits for its parent to notice."""
        return self.state in "ZX"


def look(pid: int | str) -> Process | None:
    """What /proc says about a process; None when it says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name of the program stands in brackets and may hold brackets and spaces itself.
    fields = text[text.rindex(b")") + 2 :].split()
    group, session, start = (int(fields[position]) for position in (2, 3, 19))
    return Process(int(text.split(b" ", 1)[0]), fields[0].decode(), group, session, start)


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with its id and the boot, its identity."""
    process = look(pid)
    return process.start if process else None


def process_table() -> Iterator[Process]:
    """Every process that may be seen from here; none where there is no /proc."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit() and (process := look(name)):
            yield process


def probe(runs: Iterable[Run], *, host: str, boot_id: str) -> dict[int, Liveness]:
    """Whether the owner of each run lives, by run id."""
    require_unlocked("looking for the owners of runs")
    return {run.run_id: _liveness(run, host, boot_id) for run in runs}


def _liveness(run: Run, host: str, boot_id: str) -> Liveness:
    if run.pid is None or run.host != host:
        # Never started, or accepted by the other side, or not ours to see.
        return "unknown"
    if is_of_another_boot(run, boot_id):
        return "dead"
    return _liveness_of(run.pid, run.pid_start)


def is_of_another_boot(run: Run, boot_id: str) -> bool:
    """Whether the run was claimed before this machine last started."""
    return bool(run.boot_id) and "unknown" not in (run.boot_id, boot_id) and run.boot_id != boot_id


def _liveness_of(pid: int, pid_start: int | None) -> Liveness:
    process = look(pid)
    if process is None:
        # /proc may hide the processes of others; the kernel says "no such process" only of the dead.
        return "unknown" if exists(pid) else "dead"
    if process.has_ended:
        return "dead"
    if pid_start is None:
        return "unknown"
    return "alive" if process.start == pid_start else "dead"


def exists(pid: int) -> bool:
    """Whether there is such a process: /proc may hide those of others, but the kernel says of the dead alone
    that there is none.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def ask_to_end(runs: Iterable[Run]) -> None:
    """SIGTERM to each live owner on this host and boot; nobody waits here."""
    require_unlocked("stopping runs")
    for pid, pid_start in _owners_here(runs).items():
        if _liveness_of(pid, pid_start) == "alive":
            send(pid, signal.SIGTERM)
            # One that was stopped meanwhile would never notice.
            send(pid, signal.SIGCONT)


def kill(runs: Iterable[Run]) -> None:
    """SIGKILL to each live owner on this host and boot, and to every member of its session."""
    require_unlocked("killing runs")
    owners = _owners_here(runs)
    alive = {pid for pid, pid_start in owners.items() if _liveness_of(pid, pid_start) == "alive"}
    _clear({pid: owners[pid] for pid in alive}, owners_too=True)


def bury(runs: Iterable[Run]) -> None:
    """SIGKILL to whatever is left in the sessions of dead owners, until nothing is."""
    require_unlocked("killing what a dead run left behind")
    _clear(_owners_here(runs), owners_too=False)


def _clear(owners: Mapping[int, int], *, owners_too: bool) -> None:
    """Again and again, since a process may have made another one meanwhile."""
    give_up = time.monotonic() + _BURIAL_SEC
    while owners and (left := _left_of(owners, owners_too=owners_too)) and time.monotonic() < give_up:
        # The owner first: it is not to record an end while its command is being taken away.
        for process in sorted(left, key=lambda member: member.pid != member.session):
            send(process.pid, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_SEC)


def _owners_here(runs: Iterable[Run]) -> dict[int, int]:
    """The start times of the owners on this host and boot, by process id."""
    host, boot_id = clock.hostname(), clock.boot_id()
    return {
        run.pid: run.pid_start
        for run in runs
        if run.pid is not None
        and run.pid_start is not None
        and run.host == host
        and not is_of_another_boot(run, boot_id)
    }


def _left_of(owners: Mapping[int, int], *, owners_too: bool) -> list[Process]:
    """The living members of the owners' sessions; only where the owner itself is dead, unless `owners_too`.

    The kernel does not reuse a process id that is still the id of a session: a process of that id with another
    start time means that the session is long gone, and whoever has its number now is a stranger.
    """
    table = list(process_table())
    spared = {
        process.pid
        for process in table
        if process.pid in owners
        and (process.start != owners[process.pid] or not (process.has_ended or owners_too))
    }
    found = members(table, owners.keys() - spared)
    return [process for process in found if process.start >= owners[process.session]]


def members(table: Iterable[Process], sessions: Iterable[int]) -> list[Process]:
    """The living processes in those sessions."""
    wanted = set(sessions)
    return [process for process in table if process.session in wanted and not process.has_ended]


def members_but_me() -> Sequence[Process]:
    """The living members of the session that this process leads, itself left out."""
    me = os.getpid()
    return [process for process in members(process_table(), [me]) if process.pid != me]


def send(pid: int, number: signal.Signals) -> None:
    """A signal; a process that is gone or not ours to signal is passed over."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
