"""What a change does to a job, as a value: build, edit, pause, resume. Pure; `jobs` writes it.

Incident: an edit of a schedule fired the job for every slot between its old and its new one, at once. Decision: an
edit of schedule, zone, DST rule or spread starts the job's time afresh from now; it, a pause and a resume first
lay down the slots that were due by then as skipped, in the same transaction; every other edit leaves the
schedule alone. Consequence: nothing fires by surprise, and no slot is without its row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

from carolctl import job_values, policy, timing
from carolctl.errors import BadSchedule, UsageError
from carolctl.model import Job, Millis, SkipReason, SlotRow
from carolctl.said import Said
from carolctl.schedule import Schedule

_SCHEDULE_COLUMNS = ("schedule_kind", "schedule_expr", "timezone", "dst_rule", "spread_sec")
#: Columns that follow from others, so they would only swell the audit log.
DERIVED = frozenset({"updated_at", "schedule_compiled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an edit, a pause or a resume does to a job: the job before and after, and the slots it skips."""

    before: Job
    after: Job
    skipped: Sequence[SlotRow] = ()
    reason: str | None = None

    def columns(self) -> list[str]:
        """The columns that change, without those that follow from others."""
        names = (field.name for field in fields(Job) if field.name not in DERIVED)
        return [name for name in names if getattr(self.before, name) != getattr(self.after, name)]


# -- times -----------------------------------------------------------------------------------------------------


def times_of(job: Job) -> Schedule | None:
    """The job's schedule; None for one that cannot be read."""
    try:
        return timing.schedule_of(job)
    except BadSchedule:
        return None


# -- new -------------------------------------------------------------------------------------------------------


def build(job_id: str, said: Said, *, now: Millis) -> Job:
    """A new job from what was said of it. Raises `UsageError` naming the field."""
    timing = job_values.spoken_schedule(said)
    if timing is None:
        raise UsageError("one of --cron, --daily-at, --every, --at, --manual is needed", field="schedule")
    action = job_values.spoken_action(said, None)
    if action is None:
        raise UsageError("--url URL or -- COMMAND... is needed", field="action")
    blank = Job(
        job_id=job_values.check_job_id(job_id),
        schedule_kind=timing[0],
        schedule_expr=timing[1],
        anchor_at=now,
        action=action,
        last_scheduled_for=now,
        created_at=now,
        updated_at=now,
    )
    return _anchored(_with_columns(blank, said, now), now)


def _with_columns(job: Job, said: Said, now: Millis) -> Job:
    """`job` with the plain columns that were spoken of."""
    values = job_values.columns(said)
    if values.get("on_failure") == job.job_id:
        raise UsageError("a job cannot handle its own failure", field="on_failure")
    if "max_turns" in values and values["max_turns"] != job.max_turns:
        values["max_turns_set_at"] = None if values["max_turns"] is None else now
    return replace(job, **values)


def _anchored(job: Job, now: Millis) -> Job:
    """`job` with its time started afresh from `now`."""
    fresh = timing.reanchored(replace(job, schedule_compiled=None), now)
    times = timing.schedule_of(fresh)
    if times.next_after(now) is None and job.schedule_kind != "manual":
        raise BadSchedule(f"{times.expr} has passed: it can never fire", field=job.schedule_kind)
    return replace(fresh, schedule_expr=times.expr, schedule_compiled=times.compiled)


# -- edits -----------------------------------------------------------------------------------------------------


def plan_edit(
    job: Job,
    said: Said,
    *,
    now: Millis,
    taken: Collection[Millis] = frozenset(),
    reason: str | None = None,
) -> Change | None:
    """The edit of `job` as a value; None when it changes nothing. `taken`: as for `policy.plan_firing`."""
    timing = job_values.spoken_schedule(said)
    action = job_values.spoken_action(said, job.action)
    after = replace(job, action=action) if action else job
    if timing:
        after = replace(after, schedule_kind=timing[0], schedule_expr=timing[1])
    after = _with_columns(after, said, now)
    skipped: Sequence[SlotRow] = ()
    if _differs_in_time(job, after, now):
        skipped = _elapsed(job, "edited", now, taken)
        after = replace(_anchored(after, now), schedule_rev=job.schedule_rev + 1)
    else:
        after = replace(after, schedule_expr=job.schedule_expr)
    return _change(job, after, skipped, now, reason)


def _differs_in_time(before: Job, after: Job, now: Millis) -> bool:
    """Whether the two fire at different times: the same schedule in another spelling is no change."""
    if all(getattr(before, name) == getattr(after, name) for name in _SCHEDULE_COLUMNS):
        return False
    spelled = replace(after, schedule_expr=timing.schedule_of(after).expr)
    return any(getattr(before, name) != getattr(spelled, name) for name in _SCHEDULE_COLUMNS)


def _elapsed(job: Job, why: SkipReason, now: Millis, taken: Collection[Millis]) -> Sequence[SlotRow]:
    times = times_of(job)
    return policy.skip_elapsed(job, times, now=now, reason=why, taken=taken) if times else ()


def _change(
    before: Job, after: Job, skipped: Sequence[SlotRow], now: Millis, reason: str | None = None
) -> Change | None:
    if after == before and not skipped:
        return None
    return Change(before=before, after=replace(after, updated_at=now), skipped=skipped, reason=reason)


# -- pause and resume ------------------------------------------------------------------------------------------


def plan_pause(
    job: Job, reason: str, *, now: Millis, taken: Collection[Millis] = frozenset()
) -> Change | None:
    """The pause of `job` as a value; None when it is paused."""
    if job.status == "paused":
        return None
    skipped = _elapsed(job, "paused", now, taken)
    after = replace(
        job,
        status="paused",
        paused_reason=reason,
        next_fire_at=None,
        deferred_at=None,
        last_scheduled_for=_watermark(job, skipped),
    )
    return _change(job, after, skipped, now, reason)


def plan_resume(job: Job, *, now: Millis, taken: Collection[Millis] = frozenset()) -> Change | None:
    """The resumption of `job` as a value; None when it is active. Raises `BadSchedule` when it cannot fire."""
    if job.status == "active":
        return None
    times = timing.schedule_of(job)
    skipped = _elapsed(job, "paused", now, taken)
    after = replace(
        job,
        status="active",
        paused_reason=None,
        failure_streak=0,
        turn_budget_breach_streak=0,
        breaches_before_success=0,
        lease_drift_streak=0,
        last_scheduled_for=_watermark(job, skipped),
    )
    return _change(job, replace(after, next_fire_at=timing.wake_up(after, times, now)), skipped, now)


def _watermark(job: Job, skipped: Sequence[SlotRow]) -> Millis:
    return skipped[-1].scheduled_for if skipped else job.last_scheduled_for
