"""Percentiles, trends, leases and the cap: sums on values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from carolctl import firing_stats, prune
from carolctl.firing_stats import WEEK_MS, Attempt, CapEvidence, advise, of_job, spread, trend
from carolctl.model import Millis

NOW = Millis(100 * 86_400_000)


def attempt(duration: int = 1000, **more: Any) -> Attempt:
    values: dict[str, Any] = {
        "attempt": 1, "completed_at": NOW, "slot_wait_ms": 0, "duration_ms": duration, "lateness_ms": 0,
        "turn_count": None, "failure_reason": None,
    }  # fmt: skip
    return Attempt(**values | more)


def test_percentiles_are_values_that_occurred() -> None:
    hundred = spread([*range(1, 101), None])
    assert (hundred.count, hundred.p50, hundred.p95, hundred.p99, hundred.max) == (100, 50, 95, 99, 100)
    assert spread([7]).p99 == 7
    assert spread([None]) == firing_stats.Spread(count=0)


@pytest.mark.parametrize(
    ("values", "word"),
    [([100] * 9, "unknown"), ([100] * 10, "steady"), ([100] * 5 + [121] * 5, "rising"),
     ([100] * 5 + [79] * 5, "falling"), ([100] * 5 + [110] * 5, "steady"), ([0] * 5 + [1] * 5, "rising")],
)  # fmt: skip
def test_a_trend_is_the_newer_half_beside_the_older(values: list[int], word: str) -> None:
    assert trend(values).word == word


def test_a_retry_does_not_count_as_a_wait_or_as_late() -> None:
    found = of_job(
        "j",
        [attempt(failure_reason="timeout"), attempt(attempt=2, slot_wait_ms=99, lateness_ms=99)],
        {},
        lease_sec=60,
        drift_streak=0,
    )
    assert (found.wait_ms.max, found.lateness_ms.max, found.duration_ms.count) == (0, 0, 2)
    assert found.failures == {"timeout": 1}


@pytest.mark.parametrize(("streak", "suggested"), [(2, None), (3, 1800)])
def test_runs_above_80_percent_of_the_lease_three_firings_in_a_row_warn_to_raise_it(
    streak: int, suggested: int | None
) -> None:
    found = of_job("j", [attempt(990_000)] * 5, {}, lease_sec=1200, drift_streak=streak)
    assert (found.lease.over_share, found.lease.suggested_sec) == (5, suggested)
    told = firing_stats.warning(found)
    assert (told is not None) == (suggested is not None)
    assert told is None or "carolctl edit-job j --max-run-duration 30m" in told


WEEK = CapEvidence(
    since=Millis(NOW - WEEK_MS), firings=1000, waited=0, wait_p95_ms=0, peak=2, deferred=0, strained=0
)


@pytest.mark.parametrize(
    ("evidence", "advice", "to"),
    [
        (WEEK, "keep", None),
        (replace(WEEK, waited=50, peak=3), "raise", 4),
        (replace(WEEK, waited=49, peak=3), "keep", None),
        (replace(WEEK, waited=50, peak=3, strained=20), "keep", None),
        (replace(WEEK, waited=500, peak=3, deferred=20), "keep", None),
        (replace(WEEK, waited=500, deferred=50), "lower", 2),
        (replace(WEEK, strained=50), "lower", 2),
        (replace(WEEK, peak=1), "lower", 2),
        (replace(WEEK, peak=1, waited=20), "keep", None),
        (replace(WEEK, waited=500, since=Millis(NOW - WEEK_MS + 1)), "too_early", None),
        (replace(WEEK, firings=0), "too_early", None),
        (replace(WEEK, firings=49, waited=49, peak=3), "too_early", None),
        (replace(WEEK, firings=49, peak=0), "too_early", None),
        (replace(WEEK, firings=50, waited=50, peak=3), "raise", 4),
        (replace(WEEK, waited=500, peak=2), "keep", None),
        (replace(WEEK, waited_otherwise=500, peak=3), "keep", None),
        (replace(WEEK, since=None), "too_early", None),
    ],
)
def test_the_cap_is_recommended_on_the_evidence_of_a_week_alone(
    evidence: CapEvidence, advice: str, to: int | None
) -> None:
    found = advise(evidence, 3, now=NOW)
    assert (found.advice, found.to) == (advice, to)
    assert found.because


def test_a_batch_of_pruning_shrinks_when_a_write_took_long_and_grows_when_it_was_short() -> None:
    assert [prune.next_batch(200, took) for took in (5.0, 9.0, 30.0)] == [400, 200, 100]
    assert (prune.next_batch(1000, 1.0), prune.next_batch(1, 1000.0)) == (1000, 1)
