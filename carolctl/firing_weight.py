"""What a firing weighs in turns, and whether jobs could collide at all: the cheap look before a forecast. Pure.

A firing weighs what the firings of its job took on average; where none was measured the job's turn budget, else
that of all jobs, else the setting ``collision.default_turns``.
"""

from __future__ import annotations

from collections.abc import Iterable

from carolctl.config import Settings
from carolctl.errors import UsageError
from carolctl.model import Job
from carolctl.schedule import parse_duration

UNIT = 1000
"""The parts of a turn in which weights are counted: whole numbers, so that sums are exact in any order."""

_BUCKET_SEC = 300


def fires(job: Job) -> bool:
    """Whether it fires by itself at all."""
    return job.status == "active" and job.schedule_kind != "manual"


def weight_of(job: Job, settings: Settings) -> int:
    """What one firing weighs, in thousandths of a turn."""
    if job.avg_turns_per_firing is not None:
        return round(max(job.avg_turns_per_firing, 0.0) * UNIT)
    budget = settings.max_turns if job.max_turns is None else job.max_turns
    return (settings.collision_default_turns if budget is None else budget) * UNIT


def could_collide(chosen: Iterable[Job], settings: Settings) -> bool:
    """Whether these jobs would exceed the threshold if all of them fell into the same five minutes."""
    most = sum(weight_of(job, settings) * _most_firings(job) for job in chosen)
    return most > settings.collision_threshold_turns * UNIT


def _most_firings(job: Job) -> int:
    """At least as many as the job can fire in five minutes; 0 where its interval cannot be read."""
    if job.schedule_kind == "every":
        try:
            return _BUCKET_SEC // parse_duration(job.schedule_expr, field="every") + 1
        except UsageError:
            return 0
    # A slot a minute, and one that makes up for a gap.
    return 1 if job.schedule_kind == "at" else 6
