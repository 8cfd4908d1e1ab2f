"""What runs waited for: how much of a wait the cap is to blame for. Pure.

A queued run waits for one of three things: a free slot, the end of another run of its own job, or the end of a
pause. Only the time in which every slot was taken, nothing was paused and no run of its own job held it back speaks
for a higher cap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from carolctl import global_pause
from carolctl.model import Millis

Span = tuple[int, int]
"""[from, until), in milliseconds."""


class Held(NamedTuple):
    """One attempt of one run: queued, given a slot, ended."""

    job_id: str
    attempt: int
    queued_at: Millis
    claimed_at: Millis
    ended_at: Millis


def full(spans: Iterable[Span], level: int) -> list[Span]:
    """Where at least `level` of the spans overlap, ascending and disjoint."""
    changes = sorted(change for begin, end in spans if begin < end for change in ((begin, 1), (end, -1)))
    found: list[Span] = []
    count, since = 0, 0
    for at, step in changes:
        was, count = count, count + step
        if was < level <= count:
            since = at
        elif count < level <= was and since < at:
            found.append((since, at))
    return found


def within(spans: Sequence[Span], begin: int, end: int) -> Iterator[Span]:
    """The parts of ascending, disjoint spans in [begin, end)."""
    first = max(0, bisect_right(spans, (begin, begin)) - 1)
    for one in spans[first : bisect_left(spans, (end, end))]:
        low, high = max(begin, one[0]), min(end, one[1])
        if low < high:
            yield low, high


def minus(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """The parts of ascending, disjoint spans that others, ascending and disjoint as well, do not cover."""
    found: list[Span] = []
    for begin, end in spans:
        for low, high in within(others, begin, end):
            if begin < low:
                found.append((begin, low))
            begin = high
        if begin < end:
            found.append((begin, end))
    return found


def total(spans: Iterable[Span]) -> int:
    """How long they are, together."""
    return sum(end - begin for begin, end in spans)


def length(spans: Sequence[Span], begin: int, end: int, *, without: Sequence[Span] = ()) -> int:
    """How many milliseconds of [begin, end) the ascending, disjoint spans cover, those of `without` left out."""
    return total(minus(within(spans, begin, end), without))


def pauses(entries: Iterable[Mapping[str, Any]], now: Millis) -> list[Span]:
    """When everything was paused, from the entries of the audit log by which it was and no longer was, oldest first."""
    found: list[Span] = []
    since: int | None = None
    ends: int | None = None
    for entry in entries:
        word = (entry["after"] or {}).get(global_pause.KEY)
        if since is not None:
            found.append((since, min(entry["at"], entry["at"] if ends is None else ends)))
        since = None if word is None else entry["at"]
        ends = None if word is None else global_pause.ends_at(word)
    if since is not None:
        found.append((since, now if ends is None else min(now, ends)))
    return full(found, 1)


def for_cap(
    attempts: Sequence[Held],
    *,
    cap: int,
    longer_than_ms: int,
    paused: Sequence[Span] = (),
    resting: Mapping[str, Sequence[Span]] | None = None,
    parallel: Collection[str] = (),
) -> int:
    """How many firings waited longer than that for the cap alone.

    `paused`: when everything was, and `resting`: when a job was. `parallel`: the jobs of which several may run at once.
    """
    taken = full(((one.claimed_at, one.ended_at) for one in attempts), cap)
    waited = [one for one in attempts if one.attempt == 1 and one.claimed_at - one.queued_at > longer_than_ms]
    own: dict[str, list[Span]] = defaultdict(list)
    names = {one.job_id for one in waited}
    for one in attempts:
        if one.job_id in names and one.job_id not in parallel:
            own[one.job_id].append((one.claimed_at, one.ended_at))
    excused = {name: full([*own[name], *paused, *(resting or {}).get(name, ())], 1) for name in names}
    return sum(
        length(taken, one.queued_at, one.claimed_at, without=excused[one.job_id]) > longer_than_ms
        for one in waited
    )
