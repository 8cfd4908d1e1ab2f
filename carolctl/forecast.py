"""What the schedules will do: their firings over a stretch of time, in five-minute buckets, and where they collide.

Incident. Five schedules that each looked harmless fired at once, used 12,600 agent turns and starved the
interactive chat. Nobody could have seen it coming: a table of cron lines does not show what falls together.

Decision. Every schedule is expanded by the engine that fires it, zones, clock changes and spread included, and
weighed by the turns that a firing takes; a collision is at least two schedules in one bucket whose turns together
exceed a threshold. Times are nominal: what pressure puts off is not foreseen. A job that fires five times in a
bucket weighs five times.

Consequence. A collision is data: who, at which minutes of the UTC day, how many turns. Nothing here reads a
clock, a file or the store. Weights are whole numbers, thousandths of a turn, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import compress
from typing import NamedTuple

from carolctl.model import Millis
from carolctl.schedule import Schedule

BUCKET_MS = 300_000
DAY_BUCKETS = 288


class Window(NamedTuple):
    """Whole buckets: ``size`` of them from ``start`` on, which is the beginning of one."""

    start: Millis
    size: int

    def instant(self, bucket: int) -> Millis:
        """When a bucket begins; for ``size`` the end of the window."""
        return Millis(self.start + bucket * BUCKET_MS)

    def minute(self, bucket: int) -> int:
        """When a bucket begins, as a minute of the UTC day: 0 to 1435."""
        return self.instant(bucket) // 60_000 % 1440


def window(now: Millis, horizon_sec: int) -> Window:
    """The buckets from the one that ``now`` lies in; a day is 288 of them, each minute of the day once."""
    return Window(Millis(now - now % BUCKET_MS), -(-horizon_sec * 1000 // BUCKET_MS))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """A schedule, and what each of its firings weighs."""

    name: str
    schedule: Schedule
    #: How long after each slot it fires: its spread.
    offset_ms: int = 0
    #: Thousandths of a turn.
    weight: int

    def counts(self, span: Window) -> Sequence[int]:
        """How often it fires in each bucket."""
        return self.schedule.tallies(Millis(span.start - self.offset_ms), BUCKET_MS, span.size)

    def firings(self, after: Millis, until: Millis) -> Iterator[tuple[Millis, str]]:
        """Its firings in (after, until], each with the name."""
        slots = self.schedule.between(Millis(after - self.offset_ms), Millis(until - self.offset_ms))
        return ((Millis(slot + self.offset_ms), self.name) for slot in slots)


def firings(loads: Iterable[Load], after: Millis, until: Millis) -> Iterator[tuple[Millis, str]]:
    """The firings of all in (after, until], by time and then by name, lazily."""
    return merge(*(load.firings(after, until) for load in loads))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """The loads over a window, bucket by bucket."""

    span: Window
    #: By name.
    loads: Sequence[Load]
    #: How often each load fires in each bucket, in the order of ``loads``.
    counts: Sequence[Sequence[int]]
    #: What falls into each bucket: thousandths of a turn, and different schedules.
    weights: Sequence[int]
    schedules: Sequence[int]

    def buckets(self, name: str) -> list[int]:
        """Where a load fires; nowhere if there is none of that name."""
        own = (counts for load, counts in zip(self.loads, self.counts, strict=True) if load.name == name)
        return list(compress(range(self.span.size), next(own, ())))

    def names(self, bucket: int) -> list[str]:
        """Who fires in a bucket."""
        return [load.name for load, counts in zip(self.loads, self.counts, strict=True) if counts[bucket]]

    def peaks(self, most: int) -> list[int]:
        """The buckets that weigh most, the heaviest first, empty ones left out."""
        heaviest = sorted(range(self.span.size), key=lambda bucket: (-self.weights[bucket], bucket))
        return [bucket for bucket in heaviest[:most] if self.schedules[bucket]]


def expand(loads: Iterable[Load], span: Window) -> Forecast:
    """Count the firings of every load."""
    ordered = sorted(loads, key=lambda load: load.name)
    weights, schedules, places = [0] * span.size, [0] * span.size, range(span.size)
    found = []
    for load in ordered:
        counts = load.counts(span)
        found.append(counts)
        for bucket in compress(places, counts):
            weights[bucket] += load.weight * counts[bucket]
            schedules[bucket] += 1
    return Forecast(span=span, loads=ordered, counts=found, weights=weights, schedules=schedules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """Schedules that fall together: who, in which buckets, and what the heaviest of those weighs."""

    names: tuple[str, ...]
    buckets: tuple[int, ...]
    weight: int


def collides(weight: int, schedules: int, threshold: int) -> bool:
    """Whether a bucket is a collision, with the threshold in the unit of the weights."""
    return schedules >= 2 and weight > threshold


def collisions(forecast: Forecast, threshold: int, *, among: Iterable[int] | None = None) -> list[Collision]:
    """The buckets above ``threshold``, put together by who fires in them; the heaviest first.

    ``among``: only these buckets are looked at.
    """
    hot = [
        bucket
        for bucket in (range(forecast.span.size) if among is None else among)
        if collides(forecast.weights[bucket], forecast.schedules[bucket], threshold)
    ]
    by_names: dict[tuple[str, ...], list[int]] = {}
    for bucket, names in zip(hot, _members(forecast, hot), strict=True):
        by_names.setdefault(tuple(names), []).append(bucket)
    found = [
        Collision(names=names, buckets=tuple(buckets), weight=max(forecast.weights[b] for b in buckets))
        for names, buckets in by_names.items()
    ]
    return sorted(found, key=lambda collision: (-collision.weight, collision.names))


def _members(forecast: Forecast, buckets: Sequence[int]) -> list[list[str]]:
    """Who fires in each of these buckets."""
    members: list[list[str]] = [[] for _ in buckets]
    for load, counts in zip(forecast.loads, forecast.counts, strict=True):
        for names in compress(members, [counts[bucket] for bucket in buckets]):
            names.append(load.name)
    return members
