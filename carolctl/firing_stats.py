"""What the firing metrics say: waits, durations, lateness, turns, failures, trends; leases and the cap. Pure.

Decision: the cap is static, and raised on the evidence of a week of metrics, by a person. Consequence: here it is
recommended with its reasons, and never applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

from carolctl.clock import iso
from carolctl.model import Millis

WEEK_MS = 7 * 86_400_000
WAITED_MS = 60_000
"""A firing that waited longer than this for a slot has waited."""

LEAST_FIRINGS = 50
"""No advice rests on fewer in the week."""

DRIFT_STREAK = 3
DRIFT_SHARE = 0.8
_TREND_LEAST = 10
_TREND_NOISE = 0.2
_MINUTE_MS = 60_000
#: Shares of the firings of a week.
_OFTEN, _SELDOM = 0.05, 0.02


class Attempt(NamedTuple):
    """One attempt of one run, by the columns of its metrics; milliseconds."""

    attempt: int
    completed_at: Millis
    slot_wait_ms: int | None
    duration_ms: int | None
    lateness_ms: int | None
    turn_count: int | None
    failure_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Nearest-rank percentiles of `count` values; None of none."""

    count: int
    p50: int | None = None
    p95: int | None = None
    p99: int | None = None
    max: int | None = None


def spread(values: Iterable[int | None]) -> Spread:
    """The percentiles of the values that are there."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return Spread(count=0)
    p50, p95, p99 = (_nearest_rank(known, percent) for percent in (50, 95, 99))
    return Spread(count=len(known), p50=p50, p95=p95, p99=p99, max=known[-1])


def _nearest_rank(ordered: Sequence[int], percent: int) -> int:
    return ordered[-(-len(ordered) * percent // 100) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The median of the newer half beside that of the older; ``unknown`` of fewer than ten."""

    word: Literal["rising", "falling", "steady", "unknown"] = "unknown"
    older: float | None = None
    newer: float | None = None


def trend(values: Iterable[int | None]) -> Trend:
    """Of values from old to new; a change of up to a fifth is noise."""
    known = [value for value in values if value is not None]
    if len(known) < _TREND_LEAST:
        return Trend()
    half = len(known) // 2
    older, newer = median(known[:half]), median(known[half:])
    if newer > older * (1 + _TREND_NOISE):
        return Trend(word="rising", older=older, newer=newer)
    word: Literal["falling", "steady"] = "falling" if newer < older * (1 - _TREND_NOISE) else "steady"
    return Trend(word=word, older=older, newer=newer)


# -- one job -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """How near to its lease a job's runs end; `suggested_sec` where it is to be raised."""

    lease_sec: int
    streak: int
    over_share: int
    suggested_sec: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStats:
    """The figures of one job over its newest attempts."""

    job_id: str
    attempts: int
    since: Millis | None
    wait_ms: Spread
    duration_ms: Spread
    lateness_ms: Spread
    turns: Spread
    failures: Mapping[str, int]
    skips: Mapping[str, int]
    duration_trend: Trend
    turns_trend: Trend
    lease: Lease

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"since": iso(self.since)}


def of_job(
    job_id: str, attempts: Sequence[Attempt], skips: Mapping[str, int], *, lease_sec: int, drift_streak: int
) -> JobStats:
    """The figures of a job from its attempts, oldest first. A retry's wait and lateness are the retry's own doing."""
    first = [one for one in attempts if one.attempt == 1]
    durations = spread(one.duration_ms for one in attempts)
    return JobStats(
        job_id=job_id,
        attempts=len(attempts),
        since=attempts[0].completed_at if attempts else None,
        wait_ms=spread(one.slot_wait_ms for one in first),
        duration_ms=durations,
        lateness_ms=spread(one.lateness_ms for one in first),
        turns=spread(one.turn_count for one in attempts),
        failures=dict(Counter(one.failure_reason for one in attempts if one.failure_reason).most_common()),
        skips=skips,
        duration_trend=trend(one.duration_ms for one in attempts),
        turns_trend=trend(one.turn_count for one in attempts),
        lease=_lease(attempts, durations, lease_sec, drift_streak),
    )


def _lease(attempts: Sequence[Attempt], durations: Spread, lease_sec: int, streak: int) -> Lease:
    limit = DRIFT_SHARE * lease_sec * 1000
    over = sum(one.duration_ms is not None and one.duration_ms > limit for one in attempts)
    suggested = None
    if streak >= DRIFT_STREAK:
        wanted = max(1.5 * lease_sec * 1000, (durations.p99 or 0) / 0.6)
        suggested = int(-(-wanted // _MINUTE_MS) * 60)
    return Lease(lease_sec=lease_sec, streak=streak, over_share=over, suggested_sec=suggested)


def warning(stats: JobStats) -> str | None:
    """The lease-drift warning of a job: three firings in a row ended above 80 % of it."""
    lease = stats.lease
    if lease.suggested_sec is None:
        return None
    return (
        f"{stats.job_id}: the last {lease.streak} firings ended above {DRIFT_SHARE:.0%} of the lease of"
        f" {lease.lease_sec} s; raise it: carolctl edit-job {stats.job_id}"
        f" --max-run-duration {lease.suggested_sec // 60}m"
    )


# -- the cap -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CapEvidence:
    """A week of the whole fleet."""

    since: Millis | None
    firings: int
    #: Of those, how many waited more than a minute because all slots were taken; and how many for something else:
    #: the end of another run of their job, or of a pause.
    waited: int
    waited_otherwise: int = 0
    #: The 95th percentile of all waits, whatever they were for.
    wait_p95_ms: int | None
    #: The most runs that held a slot at the same time.
    peak: int
    #: Firings that pressure put off, however often each was looked at again.
    deferred: int
    #: Ended by a rate limit or for want of memory.
    strained: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapAdvice:
    """What to do about the cap, and why; `to` where it is to change. Never applied."""

    advice: Literal["raise", "keep", "lower", "too_early"]
    cap: int
    to: int | None
    because: str
    evidence: CapEvidence

    def document(self) -> dict[str, Any]:
        """As JSON."""
        told = asdict(self)
        told["evidence"]["since"] = iso(self.evidence.since)
        return told


def advise(evidence: CapEvidence, cap: int, *, now: Millis) -> CapAdvice:
    """Raise where firings wait for the cap and nothing is strained, lower where much is or slots idle; else keep."""
    advice, to, because = _too_early(evidence, now) or _weigh(evidence, cap)
    return CapAdvice(advice=advice, cap=cap, to=to, because=because, evidence=evidence)


_Verdict = tuple[Literal["raise", "keep", "lower", "too_early"], int | None, str]


def _too_early(evidence: CapEvidence, now: Millis) -> _Verdict | None:
    if evidence.since is None or now - evidence.since < WEEK_MS:
        days = 0.0 if evidence.since is None else (now - evidence.since) / (WEEK_MS / 7)
        return "too_early", None, f"7 days of metrics are needed, there are {days:.1f}"
    if evidence.firings < LEAST_FIRINGS:
        return (
            "too_early",
            None,
            f"{LEAST_FIRINGS} firings in 7 days are needed, there were {evidence.firings}",
        )
    return None


def _weigh(evidence: CapEvidence, cap: int) -> _Verdict:
    waited, strained, deferred = (
        part / evidence.firings for part in (evidence.waited, evidence.strained, evidence.deferred)
    )
    trouble = (
        f"{strained:.0%} were rate-limited or out of memory, {evidence.deferred:,} were put off by pressure"
    )
    if cap > 1 and max(strained, deferred) >= _OFTEN:
        return "lower", cap - 1, f"of {evidence.firings:,} firings {trouble}"
    if waited >= _OFTEN and evidence.peak >= cap:
        said = f"{waited:.0%} of {evidence.firings:,} firings waited over a minute with all {cap} slots taken"
        if max(strained, deferred) < _SELDOM:
            return "raise", cap + 1, said
        return "keep", None, f"{said}, but {trouble}"
    if waited < _SELDOM and evidence.peak + 1 < cap:
        return (
            "lower",
            evidence.peak + 1,
            f"never more than {evidence.peak} runs at once, and nothing waits for the cap",
        )
    return (
        "keep",
        None,
        f"{waited:.1%} of {evidence.firings:,} firings waited over a minute for it; {trouble}",
    )
