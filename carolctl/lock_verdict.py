"""What a series of looks at a database's locks amounts to. Pure: samples in, a verdict out.

Incident: one process sat in a transaction, waiting for an answer from the network, and for everybody else the
database was "locked" without a name. Decision: one look says nothing, since every writer holds the lock at some
instant; two hundred looks in a second tell a wedge from a hog from mere traffic. Consequence: whoever is kept
out is told by whom, and what that one is doing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Verdict = Literal["free", "contention", "starvation", "long_holder", "wedge", "long_reader", "unseen_holder"]
HARMLESS: tuple[Verdict, ...] = ("free", "contention")

#: Stands for a holder that the kernel does not name to us.
UNSEEN = 0
STARVING_SHARE = 0.6
FREE_SHARE = 0.1
STEADY_SEC = 0.9
WEDGED_MS = 60_000

ADVICE: dict[Verdict, str] = {
    "free": "nothing to do",
    "contention": "nothing is stuck: writers take turns; a longer busy timeout gets through",
    "starvation": "it commits, but holds the lock most of the time: let it do its other work between its "
    "transactions, and write in batches",
    "long_holder": "no transaction should last this long: let it commit before it computes or waits for the "
    "network; look again in a minute, or end it, which rolls its transaction back",
    "wedge": "it will not end by itself: continue it (kill -CONT) if it is stopped, else end it (kill); SQLite "
    "then rolls its transaction back. Never remove the -wal, -shm or -journal file",
    "long_reader": "let it fetch its rows at once and end its transaction, or end it (kill): reading leaves "
    "nothing to roll back",
    "unseen_holder": "run this as root on the host, outside of any container, to see who it is",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look: who writes (a pid, `UNSEEN`, or None), who reads, and the count of commits so far."""

    at: float
    writer: int | None
    #: Who holds a read mark, and how many frames behind the newest commit it is; in rollback mode nobody knows.
    readers: Mapping[int, int | None]
    change: int
    #: The writer can only go on when the readers have gone: a commit in rollback mode, a checkpoint in WAL mode.
    is_pending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How long and how much one process held the lock while we looked."""

    pid: int
    share: float
    #: The unbroken rest of the looks in which it was the holder, without a commit: in seconds, and from when.
    steady_sec: float
    steady_from: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The samples, counted."""

    sampled_sec: float
    commits: int
    #: Those who wrote, the busiest first.
    writers: tuple[Holding, ...]
    #: Those who read in every look, with the fewest frames that each was ever behind.
    readers: Mapping[int, int | None]
    is_pending: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a process did between two looks; None where we may not know."""

    state: str
    cpu_share: float
    disk_bytes: int | None
    waits: frozenset[str]
    peers: tuple[str, ...]


def tally(samples: Sequence[Sample]) -> Tally:
    """Count the samples; there is at least one."""
    sampled = samples[-1].at - samples[0].at
    shares = Counter(sample.writer for sample in samples if sample.writer is not None)
    return Tally(
        sampled_sec=sampled,
        commits=commits(samples),
        writers=tuple(_holding(samples, pid, count / len(samples)) for pid, count in shares.most_common()),
        readers=_lasting_readers(samples),
        is_pending=sum(sample.is_pending for sample in samples) > STARVING_SHARE * len(samples),
    )


def _holding(samples: Sequence[Sample], pid: int, share: float) -> Holding:
    last = samples[-1]
    began = None
    for sample in reversed(samples):
        if sample.writer != pid or sample.change != last.change:
            break
        began = sample.at
    return Holding(
        pid=pid, share=share, steady_sec=0.0 if began is None else last.at - began, steady_from=began
    )


def commits(samples: Sequence[Sample]) -> int:
    """How many commits were seen, at least: a count that starts afresh is one."""
    gone = [(after.change - before.change) % 2**32 for before, after in pairwise(samples)]
    return sum(step if step < 2**31 else 1 for step in gone)


def _lasting_readers(samples: Sequence[Sample]) -> dict[int, int | None]:
    lasting: dict[int, int | None] = {}
    writers = {sample.writer for sample in samples}
    for pid in samples[0].readers:
        if all(pid in sample.readers for sample in samples):
            behind = min(sample.readers[pid] or 0 for sample in samples)
            # A writer reads too: only what lies behind the newest commit counts for it.
            if behind or pid not in writers:
                lasting[pid] = None if samples[0].readers[pid] is None else behind
    return lasting


def is_clear(samples: Sequence[Sample]) -> bool:
    """Whether looking on would hardly change the verdict."""
    counted = tally(samples)
    holding = counted.writers[0] if counted.writers else None
    return holding is None or is_steady(counted, holding)


def is_steady(counted: Tally, holding: Holding) -> bool:
    """Whether it held the lock to the last, long enough, and committed nothing."""
    enough = min(STEADY_SEC, 0.9 * counted.sampled_sec)
    return holding.steady_from is not None and holding.steady_sec >= enough


def activity_words(activity: Activity | None, *, has_committed: bool) -> str:
    """What a process does, in words; the disk of one that commits tells nothing."""
    if activity is None:
        return "unknown"
    if activity.state in "Tt":
        return "stopped"
    if activity.state == "D":
        return "waiting on the disk"
    if activity.cpu_share > 0.03 or (activity.disk_bytes and not has_committed):
        return "working"
    return "waiting on the network" if _is_on_the_network(activity) else "idle in transaction"


#: Where the kernel has a thread that waits for a socket, or for whichever of several is ready.
_NETWORK_WAITS = (
    "wait_woken", "sk_", "tcp_", "inet", "__skb", "skb_", "ep_poll", "do_epoll", "poll_schedule", "do_sys_poll",
    "do_poll", "do_select", "io_cqring",
)  # fmt: skip


def _is_on_the_network(activity: Activity) -> bool:
    return bool(activity.peers) and any(wait.startswith(_NETWORK_WAITS) for wait in activity.waits)


def judge(counted: Tally, *, activity: str, idle_ms: int, is_wal: bool) -> Verdict:
    """The verdict; `activity` and `idle_ms` are those of the busiest writer.

    `idle_ms` is for how long it is known to hold the lock, idle and without a commit, earlier looks included.
    """
    if readers_block_writers(counted, activity=activity, is_wal=is_wal):
        return "long_reader"
    if counted.writers:
        verdict = _on_the_writer(counted, counted.writers[0], activity=activity, idle_ms=idle_ms)
        if verdict not in HARMLESS:
            return verdict
    if any(counted.readers.values()):
        return "long_reader"
    held = sum(holding.share for holding in counted.writers)
    return "free" if held < FREE_SHARE else "contention"


def readers_block_writers(counted: Tally, *, activity: str, is_wal: bool) -> bool:
    """Whether those who read keep others from writing, be it by way of a writer that waits for them."""
    others = counted.readers.keys() - {holding.pid for holding in counted.writers[:1]}
    if not others:
        return False
    if counted.is_pending:
        return activity not in ("stopped", "working", "waiting on the disk")
    return not is_wal and not counted.writers


def _on_the_writer(counted: Tally, holding: Holding, *, activity: str, idle_ms: int) -> Verdict:
    if is_steady(counted, holding):
        if holding.pid == UNSEEN:
            return "unseen_holder"
        is_idle = activity in ("idle in transaction", "waiting on the network")
        return "wedge" if activity == "stopped" or (is_idle and idle_ms >= WEDGED_MS) else "long_holder"
    if holding.share > STARVING_SHARE:
        return "unseen_holder" if holding.pid == UNSEEN else "starvation"
    return "contention"
