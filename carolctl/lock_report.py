"""What was found out about a database's locks: as a document for programs, in sentences for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from carolctl.errors import Exit
from carolctl.lock_verdict import ADVICE, HARMLESS, Verdict

_LONGEST_COMMAND = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that keeps the write lock from others. Times are ISO 8601; `since` is a lower bound."""

    pid: int
    start: str | None
    start_ticks: int | None
    command: str | None
    state: str | None
    user: str | None
    unit: str | None
    since: str | None
    held_at_least_sec: float
    held_share: float
    activity: str
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A process that was seen to write, with its share of the looks."""

    pid: int | None
    command: str | None
    user: str | None
    held_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A process that read in every look; `frames_behind` is None in rollback mode, where it blocks all commits."""

    pid: int | None
    command: str | None
    user: str | None
    state: str | None
    frames_behind: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The whole finding."""

    database: str
    journal_mode: str
    verdict: Verdict
    holder: Holder | None
    holders: tuple[Other, ...]
    commits: int
    sampled_ms: int
    samples: int
    readers: tuple[Reader, ...]
    readers_block_writers: bool
    wal: Mapping[str, Any] | None
    limits: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 when nobody needs to do anything."""
        return Exit.OK if self.verdict in HARMLESS else Exit.FAILED

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.verdict]

    def document(self) -> dict[str, Any]:
        """The members that programs rely on."""
        found = asdict(self)
        limits = found.pop("limits")
        return found | {"headline": self.headline(), "limits": list(limits), "advice": self.advice}

    def headline(self) -> str:
        """The finding in one sentence."""
        seconds = f"{self.sampled_ms / 1000:.1f} s"
        match self.verdict:
            case "free":
                return f"nobody holds the write lock (looked {self.samples} times in {seconds})"
            case "contention":
                return f"{self._turns()}; {_count(self.commits, 'commit')} in {seconds}"
            case "unseen_holder":
                return "a process that cannot be seen from here holds the write lock"
            case "long_reader":
                return self._on_readers()
        assert self.holder is not None
        who, doing = named(self.holder.pid, self.holder.command), doing_words(asdict(self.holder))
        if self.verdict == "starvation":
            share = f"{self.holder.held_share:.0%} of the time"
            return (
                f"{who} holds the write lock {share}, {_count(self.commits, 'commit')} in {seconds}; {doing}"
            )
        held = _duration(self.holder.held_at_least_sec)
        return f"{who} has held the write lock for at least {held} without a commit; {doing}"

    def _turns(self) -> str:
        busiest = self.holders[0]
        who = f"{named(busiest.pid, busiest.command)} ({busiest.held_share:.0%})"
        if len(self.holders) == 1:
            return f"the write lock is held now and then, by {who}"
        return f"{len(self.holders)} processes take turns with the write lock, most of it {who}"

    def _on_readers(self) -> str:
        reader = self.readers[0]
        who = named(reader.pid, reader.command)
        if self.readers_block_writers:
            return f"{who} keeps reading, and nobody can {'write' if self.wal else 'commit'} meanwhile"
        return (
            f"{who} reads a state {reader.frames_behind} WAL frames old; the WAL cannot be reused meanwhile"
        )


def named(pid: int | None, command: str | None) -> str:
    """A process in a sentence."""
    if pid is None:
        return "a process that cannot be seen from here"
    return f"pid {pid} ({_short(command)})" if command else f"pid {pid}"


def doing_words(holder: Mapping[str, Any]) -> str:
    """What a holder does, in words."""
    peers: Sequence[str] = holder["peers"]
    if holder["activity"] == "waiting on the network":
        return f"idle in transaction, waiting on {', '.join(peers)}"
    return f"{holder['activity']}, connected to {', '.join(peers)}" if peers else str(holder["activity"])


def culprit_words(document: Mapping[str, Any]) -> str | None:
    """Whom to blame for a lock that was not to be had, from a `Diagnosis` as a document; None if nobody."""
    holder = document["holder"]
    if holder:
        held = _duration(holder["held_at_least_sec"])
        who = named(holder["pid"], holder["command"])
        how = f"{holder['held_share']:.0%} of the time" if document["commits"] else f"for at least {held}"
        return f"held by {who} {how}, {doing_words(holder)}"
    if document["verdict"] == "unseen_holder":
        return "held by a process that cannot be seen from here"
    if document["readers_block_writers"]:
        reader = document["readers"][0]
        return f"read without a pause by {named(reader['pid'], reader['command'])}, so that nobody can write"
    return None


def _short(command: str) -> str:
    return command if len(command) <= _LONGEST_COMMAND else command[: _LONGEST_COMMAND - 3] + "..."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
