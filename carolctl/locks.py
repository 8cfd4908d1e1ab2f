"""Who holds the write lock of a database, since when, and doing what.

`diagnose` looks at the database by itself, so it belongs into a process that has no database open: the command
``carolctl locks``. Everybody else calls `holder_phrase`, which runs that command as a child.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from carolctl import clock, lock_holders, lock_state, lock_verdict
from carolctl.lock_child import culprit, holder_phrase
from carolctl.lock_holders import Glimpse, Identity
from carolctl.lock_report import Diagnosis, Holder, Other, Reader
from carolctl.lock_state import Memory
from carolctl.lock_verdict import UNSEEN, Activity, Holding, Sample, Tally
from carolctl.lock_watch import Watched, watch
from carolctl.model import Millis

__all__ = ["LookFor", "culprit", "diagnose", "holder_phrase"]

_MOST_LISTED = 10
_IDLE = ("idle in transaction", "waiting on the network")
_LOWER_BOUND = "it may have held the lock for longer: the kernel keeps no date of a lock"
_NO_MEMORY = "there is no data home to remember this look in: a later look will not know of it"
_WHOLE_PROCESS = (
    "'working' is judged by the whole process: one thread may work while another sits in the transaction"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookFor:
    """How long to look, in seconds: up to `at_most` while the picture is not clear."""

    at_least: float = 1.0
    at_most: float = 1.8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The busiest writer, looked at more closely."""

    holding: Holding
    identity: Identity | None
    glimpse: Glimpse | None
    activity: Activity | None
    words: str
    memory: Memory | None


class _Witness:
    """Looks at a database, and at every process the moment that it first turns up."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.glimpses: dict[int, Glimpse] = {}
        self.identities: dict[int, Identity] = {}

    def look(self, at: float) -> Sample:
        sample = self._watched.look(at)
        for pid in (sample.writer, *sample.readers):
            if pid and pid not in self.identities:
                self.identities[pid] = lock_holders.identity(pid)
                if glimpse := lock_holders.glimpse(pid, at):
                    self.glimpses[pid] = glimpse
        return sample


def diagnose(path: str, *, now: Millis, state_file: str | None, look_for: LookFor) -> Diagnosis:
    """Look at the locks of the database at `path`; `now` is when the looking begins.

    Raises `NotFound`, `BadData` (not a database) or `NotPermitted`. Must not be called in a process that has
    that database open in SQLite.
    """
    watched = Watched(path)
    witness = _Witness(watched)
    try:
        samples = watch(
            witness.look,
            at_least=look_for.at_least,
            at_most=look_for.at_most,
            is_clear=lock_verdict.is_clear,
        )
        return _concluded(watched, witness, samples, now=now, state_file=state_file)
    finally:
        watched.close()


def _concluded(
    watched: Watched, witness: _Witness, samples: list[Sample], *, now: Millis, state_file: str | None
) -> Diagnosis:
    counted = lock_verdict.tally(samples)
    ended = Millis(now + int((samples[-1].at - samples[0].at) * 1000))
    found = _busiest(counted, witness, samples, ended) if counted.writers else None
    found, remarks = _with_memory(found, watched.identity, state_file, ended)
    memory = found.memory if found else None
    idle_ms = ended - memory.idle_since if memory and memory.idle_since is not None else 0
    words = found.words if found else ""
    is_wal = watched.header.is_wal
    verdict = lock_verdict.judge(counted, activity=words, idle_ms=idle_ms, is_wal=is_wal)
    blamed = found if verdict in ("starvation", "long_holder", "wedge") else None
    return Diagnosis(
        database=watched.path,
        journal_mode="wal" if is_wal else "rollback",
        verdict=verdict,
        holder=_holder(blamed, now=now, ended=ended) if blamed else None,
        holders=_writers(counted, witness),
        commits=counted.commits,
        sampled_ms=round(counted.sampled_sec * 1000),
        samples=len(samples),
        readers=_readers(counted, witness),
        readers_block_writers=lock_verdict.readers_block_writers(counted, activity=words, is_wal=is_wal),
        wal=_wal(watched),
        limits=(*sorted(watched.remarks), *remarks, *_limits(blamed), *_stopped_in_line(watched)),
    )


def _busiest(counted: Tally, witness: _Witness, samples: list[Sample], ended: Millis) -> _Found:
    holding = counted.writers[0]
    glimpse = witness.glimpses.get(holding.pid)
    last = samples[-1]
    activity = lock_holders.activity(holding.pid, glimpse, last.at) if glimpse else None
    words = lock_verdict.activity_words(activity, has_committed=counted.commits > 0)
    memory = None
    if glimpse and holding.steady_from is not None and lock_verdict.is_steady(counted, holding):
        since = int(ended - holding.steady_sec * 1000)
        memory = Memory(
            pid=holding.pid,
            start=glimpse.stat.start,
            boot=clock.boot_id(),
            change=last.change,
            since=since,
            idle_since=since if words in _IDLE else None,
            seen=ended,
        )
    return _Found(
        holding=holding,
        identity=witness.identities.get(holding.pid),
        glimpse=glimpse,
        activity=activity,
        words=words,
        memory=memory,
    )


def _with_memory(
    found: _Found | None, database: str, state_file: str | None, ended: Millis
) -> tuple[_Found | None, list[str]]:
    """`found` with what earlier looks knew of it, written down for later ones; and what to say about that."""
    fresh = found.memory if found else None
    if state_file is None:
        return found, [_NO_MEMORY] if fresh else []
    memory = lock_state.continued(lock_state.recall(state_file).get(database), fresh) if fresh else None
    kept = lock_state.remember(state_file, database, memory, now=ended)
    said = [] if kept else [f"{state_file} cannot be written: a later look will not know of this one"]
    if found is None or memory is None:
        return found, said
    return replace(found, memory=memory), said


def _holder(found: _Found, *, now: Millis, ended: Millis) -> Holder:
    since = found.memory.since if found.memory else now
    start = found.glimpse.stat.start if found.glimpse else None
    who = found.identity or Identity(None, None, None)
    return Holder(
        pid=found.holding.pid,
        start=_started_at(start, ended),
        start_ticks=start,
        command=who.command,
        state=found.activity.state if found.activity else None,
        user=who.user,
        unit=who.unit,
        since=clock.iso(since),
        held_at_least_sec=round((ended - since) / 1000, 3),
        held_share=round(found.holding.share, 3),
        activity=found.words,
        peers=found.activity.peers if found.activity else (),
    )


def _started_at(ticks: int | None, now: Millis) -> str | None:
    """The start of a process as a time, from its clock ticks since boot."""
    boottime = clock.boottime_ms()
    if ticks is None or boottime is None:
        return None
    began = now - boottime + ticks * 1000 // os.sysconf("SC_CLK_TCK")
    return clock.iso(began - began % 1000)


def _writers(counted: Tally, witness: _Witness) -> tuple[Other, ...]:
    nobody = Identity(None, None, None)
    return tuple(
        Other(
            pid=holding.pid if holding.pid != UNSEEN else None,
            command=(who := witness.identities.get(holding.pid, nobody)).command,
            user=who.user,
            held_share=round(holding.share, 3),
        )
        for holding in counted.writers[:_MOST_LISTED]
    )


def _readers(counted: Tally, witness: _Witness) -> tuple[Reader, ...]:
    nobody = Identity(None, None, None)
    oldest = sorted(counted.readers.items(), key=lambda item: -(item[1] or 0))[:_MOST_LISTED]
    return tuple(
        Reader(
            pid=pid if pid != UNSEEN else None,
            command=(who := witness.identities.get(pid, nobody)).command,
            user=who.user,
            state=now.stat.state if (now := lock_holders.glimpse(pid, 0.0)) else None,
            frames_behind=behind,
        )
        for pid, behind in oldest
    )


def _wal(watched: Watched) -> dict[str, object] | None:
    if not watched.header.is_wal:
        return None
    try:
        size = os.stat(watched.path + "-wal").st_size
    except OSError:
        size = 0
    index = watched.wal_index
    return {
        "bytes": size,
        "frames": index.frames if index else 0,
        "backfilled": index.backfilled if index else 0,
        "checkpointers": sorted(watched.checkpointers - {UNSEEN}),
    }


def _stopped_in_line(watched: Watched) -> list[str]:
    pid = watched.first_in_line()
    glimpse = lock_holders.glimpse(pid, 0.0) if pid else None
    if glimpse is None or glimpse.stat.state not in ("T", "t"):
        return []
    return [
        f"pid {pid} is stopped at the head of the line of carolctl's own writers: each of them waits for most of its"
        f" deadline, then goes on without; continue it (kill -CONT {pid}) or end it"
    ]


def _limits(found: _Found | None) -> list[str]:
    """What we could not see of the one who is to blame, and why."""
    if found is None:
        return []
    said = [_LOWER_BOUND] if found.memory else []
    if found.words == "working":
        said.append(_WHOLE_PROCESS)
    if not lock_holders.may_see_inside(found.holding.pid):
        user = found.identity.user if found.identity else None
        owner = "" if user == "root" else f" or as {user or 'its user'}"
        said.append(f"its sockets and disk traffic are hidden: run this as root{owner}")
    return said
