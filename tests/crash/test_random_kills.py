"""Death at random moments. ``CAROL_CRASH_KILLS`` sets how many (150), ``CAROL_CRASH_SEED`` which (a fixed one)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash import chaos


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_slot_is_lost_or_doubled_when_ticks_runners_and_jobs_are_killed_at_random_moments(
    tmp_path: Path,
) -> None:
    kills = int(os.environ.get("CAROL_CRASH_KILLS", "150"))
    verdict = chaos.rage(kills, int(os.environ.get("CAROL_CRASH_SEED", "20260101")), tmp_path)
    print(verdict.coverage.report())
    assert verdict.violations == []
    assert verdict.kills >= kills
    assert {"tick", "runner", "job"} <= set(verdict.coverage.kills)
    assert len(verdict.coverage.states) >= 10
