"""Percentiles, histograms and verdicts of the contention test: pure arithmetic on what was measured."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: The upper edges of the histogram's classes, in milliseconds; the last class has none.
EDGES_MS = (1, 3, 10, 30, 100, 300, 1000, 3000)

_UNICODE_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the writers of a scenario did: milliseconds of each attempt, the failed ones included."""

    milliseconds: Sequence[float] = ()
    failures: int = 0

    @property
    def writes(self) -> int:
        """How many attempts did not fail."""
        return len(self.milliseconds) - self.failures


def measured(report: Mapping[str, Any]) -> Measured:
    """The figures in a child's report."""
    return Measured(milliseconds=report["milliseconds"], failures=report["failures"])


def together(parts: Iterable[Measured]) -> Measured:
    """All of them as one."""
    listed = list(parts)
    return Measured(
        milliseconds=[value for part in listed for value in part.milliseconds],
        failures=sum(part.failures for part in listed),
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of all are not above: one that was measured, or None."""
    if not values:
        return None
    # 0.95 * 20 is a hair more than 19.
    rank = math.ceil(round(share * len(values), 9))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold: `value` at most `most`, or at least `least`."""

    what: str
    value: float | None
    most: float | None = None
    least: float | None = None
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether it does; what was never measured does not."""
        if self.value is None:
            return False
        above = self.most is not None and self.value > self.most
        below = self.least is not None and self.value < self.least
        return not (above or below)

    @property
    def bound(self) -> str:
        """``at most 0``."""
        word, number = ("at most", self.most) if self.most is not None else ("at least", self.least)
        return f"{word} {brief(number)}{self.unit}"

    @property
    def limit(self) -> str:
        """``failures at most 0``."""
        return f"{self.what} {self.bound}"

    @property
    def finding(self) -> str:
        """``failures 3 (at most 0)``."""
        return f"{self.what} {brief(self.value)}{self.unit if self.value is not None else ''} ({self.bound})"


def brief(number: float | None) -> str:
    """A number for people: three digits are enough; whole ones stay whole."""
    if number is None:
        return "not measured"
    if number == int(number) or abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A scenario judged; `limit` says by what, `reason` what decided. Times in milliseconds."""

    name: str
    verdict: Literal["pass", "fail"]
    writes: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    limit: str
    reason: str
    histogram: tuple[int, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return self.verdict == "pass"


def judge(name: str, measured: Measured, checks: Sequence[Check]) -> Result:
    """The verdict on a scenario: it passes when something was written and every check holds."""
    checks = [Check(what="writes", value=measured.writes, least=1), *checks]
    broken = [check for check in checks if not check.holds]
    values = measured.milliseconds
    p50, p95, p99 = (_rounded(percentile(values, share)) for share in (0.5, 0.95, 0.99))
    return Result(
        name=name,
        verdict="fail" if broken else "pass",
        writes=measured.writes,
        failures=measured.failures,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=_rounded(max(values, default=None)),
        limit="; ".join(check.limit for check in checks[1:]),
        reason="; ".join(check.finding for check in broken or checks[1:]),
        histogram=histogram(values),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def histogram(values: Iterable[float]) -> tuple[int, ...]:
    """How many values lie in each class of `EDGES_MS`; an edge belongs to the class below it."""
    counts = [0] * (len(EDGES_MS) + 1)
    for value in values:
        counts[bisect_left(EDGES_MS, value)] += 1
    return tuple(counts)


def class_names() -> list[str]:
    """What heads each class of the histogram: ``1``, ``3`` ... ``1s``, and one for the rest."""
    return [*(f"{edge // 1000}s" if edge >= 1000 else str(edge) for edge in EDGES_MS), "more"]


def bars(counts: Sequence[int], *, unicode: bool) -> list[str]:
    """A bar for each class, three characters wide, the fullest class the highest; empty for none at all.

    Heights go by the square root, so that a handful of slow ones among thousands can be seen.
    """
    steps = _UNICODE_BARS if unicode else _ASCII_BARS
    fullest = max(counts, default=0)
    heights = (math.ceil(math.sqrt(count / fullest) * len(steps)) if count else 0 for count in counts)
    return [steps[height - 1] * 3 if height else "" for height in heights]


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """The largest number of (begin, end) spans that share an instant; one that ends where another begins does not."""
    edges = sorted(edge for begin, end in spans for edge in ((begin, 1), (end, -1)))
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def repeated(values: Iterable[object]) -> int:
    """How many times anything came again."""
    return sum(count - 1 for count in Counter(values).values())


def missing(acknowledged: Mapping[str, int], stored: Mapping[str, int]) -> int:
    """How many acknowledged writes are not stored, over all writers by name."""
    return sum(max(0, count - stored.get(name, 0)) for name, count in acknowledged.items())
