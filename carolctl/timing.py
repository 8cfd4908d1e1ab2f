"""A job and its schedule together: its slots, and when it wakes up for them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from carolctl import schedule
from carolctl.instant import Millis

if TYPE_CHECKING:
    from carolctl.model import Job
    from carolctl.schedule import Schedule

FAR = Millis(7_258_118_400_000)
"""The year 2200, where schedules end."""


def schedule_of(job: Job) -> Schedule:
    """The schedule of a job, from its compiled fields where they are current. Raises `BadSchedule`."""
    return schedule.parse(
        job.schedule_kind,
        job.schedule_expr,
        job.timezone,
        job.dst_rule,
        anchor_at=job.anchor_at,
        compiled=job.schedule_compiled,
    )


def spread_ms(job: Job) -> int:
    """How long after each nominal slot the job wakes up, in milliseconds."""
    return schedule.spread_offset_ms(job.job_id, job.spread_sec)


def wake_up(job: Job, times: Schedule, after: Millis) -> Millis | None:
    """When an active job is to be looked at next; None for a paused one and where no slot is left."""
    upcoming = times.next_after(after)
    return None if upcoming is None or job.status == "paused" else Millis(upcoming + spread_ms(job))


def reanchored(job: Job, now: Millis) -> Job:
    """`job` with its time started afresh from `now`: anchor, watermark and wake-up. Raises `BadSchedule`."""
    fresh = replace(job, anchor_at=now, last_scheduled_for=now, deferred_at=None)
    return replace(fresh, next_fire_at=wake_up(fresh, schedule_of(fresh), now))
