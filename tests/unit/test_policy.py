"""The decisions: what a due job leaves behind, what becomes of a live run, what an end means."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carolctl import endings, policy, schedule
from carolctl.model import FAILURE_CLASSES, Firing, Job, Millis, Outcome, Run
from carolctl.policy import End, Leave, LiveScheduled, Relaunch, Stop, StopAgain
from tests.builders import DAY, HOUR, MINUTE, T0, job

SECOND = 1000
IDLE = LiveScheduled()

#: No example is timed: a machine that is busy with something else is no counterexample.
calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Slots:
    """A schedule that is a list of instants: the simplest thing that a plan can be laid out over."""

    def __init__(self, instants: Iterable[int]) -> None:
        self.all = sorted({Millis(instant) for instant in instants})

    def next_after(self, after: Millis) -> Millis | None:
        at = bisect_right(self.all, after)
        return self.all[at] if at < len(self.all) else None

    def within(self, after: int, until: int) -> list[Millis]:
        return self.all[bisect_right(self.all, after) : bisect_right(self.all, until)]

    def count(self, after: Millis, until: Millis, *, limit: int) -> int:
        return min(limit, len(self.within(after, until)))

    def newest(self, after: Millis, until: Millis, *, limit: int) -> list[Millis]:
        return self.within(after, until)[-limit:]


def hourly(hours: int = 1000) -> Slots:
    return Slots(T0 + hour * HOUR for hour in range(1, hours))


def minutely(minutes: int) -> Slots:
    return Slots(T0 + minute * MINUTE for minute in range(1, minutes + 1))


def plan(
    a_job: Job, slots: Any, now: int, *, offset_ms: int = 0, live: LiveScheduled = IDLE
) -> tuple[list[tuple[int, int, int, Any]], Firing]:
    """The rows as (slots_from, scheduled_for, coalesced, skip_reason), in milliseconds after T0; the firing."""
    firing = policy.plan_firing(a_job, slots, now=Millis(now), offset_ms=offset_ms, live=live)
    rows = [(r.slots_from - T0, r.scheduled_for - T0, r.coalesced, r.skip_reason) for r in firing.rows]
    return rows, firing


def run(**columns: Any) -> Run:
    """A run that was claimed at T0 with a lease of 20 minutes and runs since; `columns` change that."""
    values: dict[str, Any] = dict.fromkeys(Run.__slots__)
    values |= {
        "run_id": 7, "job_id": "nightly", "source": "scheduled", "scheduled_for": T0, "slots_from": T0,
        "coalesced": 1, "schedule_rev": 1, "status": "running", "queued_at": T0, "slot_claimed_at": T0,
        "claim_no": 1, "launches": 1, "lease_expires_at": T0 + 20 * MINUTE, "started_at": T0, "attempt": 1,
        "forced": False, "host": "here", "boot_id": "this-boot", "pid": 4242, "pid_start": 1,
    }  # fmt: skip
    return Run(**values | columns)


def outcome(reason: str | None = None, **columns: Any) -> Outcome:
    """A success at T0 + 1 min, or a failure of class `reason`."""
    values: dict[str, Any] = {
        "run_id": 7, "claim_no": 1, "status": "failed" if reason else "completed",
        "completed_at": T0 + MINUTE, "failure_reason": reason,
    }  # fmt: skip
    return Outcome(**values | columns)


# -- firings: on time ----


def test_a_slot_on_time_is_one_run_and_moves_watermark_and_wake_up() -> None:
    rows, firing = plan(job(), hourly(), T0 + HOUR + 5 * SECOND)
    assert rows == [(HOUR, HOUR, 1, None)]
    assert (firing.watermark_before, firing.watermark) == (T0, T0 + HOUR)
    assert firing.next_fire_at == T0 + 2 * HOUR


def test_a_tick_exactly_at_the_slot_fires_it() -> None:
    assert plan(job(), hourly(), T0 + HOUR)[0] == [(HOUR, HOUR, 1, None)]


def test_a_tick_one_millisecond_early_fires_nothing_and_leaves_the_watermark() -> None:
    rows, firing = plan(job(), hourly(), T0 + HOUR - 1)
    assert (rows, firing.watermark, firing.next_fire_at) == ([], T0, T0 + HOUR)


def test_a_watermark_ahead_of_the_clock_fires_nothing_and_is_not_moved_back() -> None:
    ahead = job(last_scheduled_for=T0 + 5 * HOUR)
    rows, firing = plan(ahead, hourly(), T0 + 2 * HOUR)
    assert (rows, firing.watermark, firing.next_fire_at) == ([], T0 + 5 * HOUR, T0 + 6 * HOUR)


def test_a_schedule_that_is_used_up_has_no_next_wake_up() -> None:
    rows, firing = plan(job(), Slots([T0 + HOUR]), T0 + HOUR)
    assert (len(rows), firing.next_fire_at) == (1, None)


def test_a_spread_delays_the_wake_up_and_keeps_the_nominal_instant() -> None:
    offset = 7 * MINUTE
    assert plan(job(), hourly(), T0 + HOUR + offset - 1, offset_ms=offset)[0] == []
    rows, firing = plan(job(), hourly(), T0 + HOUR + offset, offset_ms=offset)
    assert rows == [(HOUR, HOUR, 1, None)]
    assert firing.next_fire_at == T0 + 2 * HOUR + offset


def test_a_spread_longer_than_the_period_loses_no_slot() -> None:
    rows, _ = plan(job(overlap="allow"), minutely(9), T0 + 9 * MINUTE, offset_ms=7 * MINUTE)
    assert [until for _, until, _, _ in rows] == [MINUTE, 2 * MINUTE]


# -- firings: missed slots ----


@pytest.mark.parametrize(
    ("age_ms", "skip_reason"), [(0, None), (59_999, None), (60_000, None), (60_001, "missed")]
)
def test_a_slot_is_missed_when_it_is_older_than_a_minute(age_ms: int, skip_reason: str | None) -> None:
    rows, _ = plan(job(catch_up="skip"), Slots([T0 + HOUR]), T0 + HOUR + age_ms)
    assert rows == [(HOUR, HOUR, 1, skip_reason)]


def test_catch_up_latest_leaves_one_run_that_stands_for_all_missed_slots() -> None:
    rows, firing = plan(job(), hourly(), T0 + 5 * HOUR + 30 * MINUTE)
    assert rows == [(HOUR, 5 * HOUR, 5, None)]
    assert firing.watermark == T0 + 5 * HOUR


def test_catch_up_skip_leaves_one_skipped_row_for_all_missed_slots() -> None:
    rows, firing = plan(job(catch_up="skip"), hourly(), T0 + 5 * HOUR + 30 * MINUTE)
    assert rows == [(HOUR, 5 * HOUR, 5, "missed")]
    assert firing.watermark == T0 + 5 * HOUR


@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
def test_catch_up_all_queues_every_missed_slot_whatever_overlap_says(overlap: str) -> None:
    rows, _ = plan(
        job(catch_up="all", overlap=overlap),
        hourly(),
        T0 + 4 * HOUR + 30 * MINUTE,
        live=LiveScheduled(total=100, waiting=1),
    )
    assert rows == [(hour * HOUR, hour * HOUR, 1, None) for hour in (1, 2, 3, 4)]


def test_catch_up_all_stops_at_the_newest_hundred_and_says_so_of_the_rest() -> None:
    rows, _ = plan(job(catch_up="all"), hourly(), T0 + 150 * HOUR + 30 * MINUTE)
    assert rows[0] == (HOUR, 50 * HOUR, 50, "catch_up_limit")
    assert [until // HOUR for _, until, _, _ in rows[1:]] == list(range(51, 151))


def test_a_caught_up_run_makes_the_slot_on_time_an_overlap_of_a_job_that_skips() -> None:
    rows, _ = plan(job(), hourly(), T0 + 3 * HOUR + 5 * SECOND)
    assert rows == [(HOUR, 2 * HOUR, 2, None), (3 * HOUR, 3 * HOUR, 1, "overlap")]


@pytest.mark.parametrize(
    ("age_sec", "skip_reason"), [(300, None), (301, "misfire"), (3000, "misfire"), (0, None)]
)
def test_a_slot_older_than_the_grace_is_a_misfire(age_sec: int, skip_reason: str | None) -> None:
    rows, _ = plan(job(misfire_grace_sec=300), Slots([T0 + HOUR]), T0 + HOUR + age_sec * SECOND)
    assert rows == [(HOUR, HOUR, 1, skip_reason)]


def test_misfires_come_before_what_is_caught_up() -> None:
    rows, _ = plan(job(misfire_grace_sec=2 * 3600), hourly(), T0 + 5 * HOUR + 30 * MINUTE)
    assert rows == [(HOUR, 3 * HOUR, 3, "misfire"), (4 * HOUR, 5 * HOUR, 2, None)]


def test_a_grace_shorter_than_a_minute_is_obeyed() -> None:
    rows, _ = plan(job(misfire_grace_sec=10), Slots([T0 + HOUR]), T0 + HOUR + 30 * SECOND)
    assert rows == [(HOUR, HOUR, 1, "misfire")]


def test_no_grace_means_that_nothing_is_ever_a_misfire() -> None:
    rows, _ = plan(job(misfire_grace_sec=None), Slots([T0 + HOUR]), T0 + 300 * DAY)
    assert rows == [(HOUR, HOUR, 1, None)]


def test_a_year_of_missed_minutes_is_one_row_counted_to_ten_thousand() -> None:
    a_job = job(cron="* * * * *")
    times = schedule.parse("cron", "* * * * *", anchor_at=T0)
    rows, firing = plan(a_job, times, T0 + 365 * DAY + 30 * SECOND)
    missed_until = 365 * DAY - MINUTE
    assert rows == [(MINUTE, missed_until, 10_000, None), (365 * DAY, 365 * DAY, 1, "overlap")]
    assert firing.next_fire_at == T0 + 365 * DAY + MINUTE


# -- firings: slots that have their row already ----


@calmly
@given(
    st.sampled_from(["skip", "queue", "allow"]),
    st.sampled_from(["latest", "all", "skip"]),
    st.sets(st.integers(1, 30), max_size=30),
    st.integers(0, 30 * 60),
)
def test_no_row_is_laid_on_a_slot_that_has_one_and_every_other_slot_is_stood_for(
    overlap: Any, catch_up: Any, hours: set[int], minutes: int
) -> None:
    taken, now = {Millis(T0 + hour * HOUR) for hour in hours}, Millis(T0 + minutes * MINUTE)
    a_job = job(overlap=overlap, catch_up=catch_up, misfire_grace_sec=20 * 3600)
    firing = policy.plan_firing(
        a_job, hourly(), now=now, offset_ms=0, live=IDLE, taken={slot for slot in taken if slot <= now}
    )
    assert not {row.scheduled_for for row in firing.rows} & taken
    assert all(
        row.coalesced == len(hourly().within(row.slots_from - 1, row.scheduled_for)) for row in firing.rows
    )
    stood_for = {
        slot for row in firing.rows for slot in hourly().within(row.slots_from - 1, row.scheduled_for)
    }
    due = hourly().within(T0, now)
    assert set(due) <= stood_for | taken
    assert firing.watermark == max([T0, *due])


# -- firings: put off by pressure ----


def test_a_slot_that_was_put_off_is_late_and_not_missed() -> None:
    put_off = job(catch_up="skip", misfire_grace_sec=60, deferred_at=T0 + HOUR + 10 * SECOND)
    rows, _ = plan(put_off, Slots([T0 + HOUR]), T0 + HOUR + 20 * MINUTE)
    assert rows == [(HOUR, HOUR, 1, None)]


def test_what_was_missed_before_the_deferral_stays_missed() -> None:
    put_off = job(catch_up="skip", overlap="allow", deferred_at=T0 + 3 * HOUR + 10 * SECOND)
    rows, _ = plan(put_off, hourly(), T0 + 4 * HOUR + 20 * MINUTE)
    assert rows == [
        (HOUR, 2 * HOUR, 2, "missed"),
        (3 * HOUR, 3 * HOUR, 1, None),
        (4 * HOUR, 4 * HOUR, 1, None),
    ]


def test_a_deferral_longer_than_ten_thousand_slots_leaves_a_row_for_each_of_them() -> None:
    put_off = job(every="1s", overlap="queue", deferred_at=T0 + SECOND)
    rows, _ = plan(put_off, Slots(T0 + n * SECOND for n in range(1, 12_001)), T0 + 12_000 * SECOND)
    covered = sum((until - since) // SECOND + 1 for since, until, _, _ in rows)
    assert covered == 12_000


# -- firings: overlap ----


@pytest.mark.parametrize(
    ("overlap", "live", "skip_reason"),
    [
        ("skip", LiveScheduled(total=0, waiting=0), None),
        ("skip", LiveScheduled(total=1, waiting=0), "overlap"),
        ("skip", LiveScheduled(total=1, waiting=1), "overlap"),
        ("queue", LiveScheduled(total=1, waiting=0), None),
        ("queue", LiveScheduled(total=2, waiting=1), "overlap"),
        ("allow", LiveScheduled(total=99, waiting=99), None),
        ("allow", LiveScheduled(total=100, waiting=0), "overlap"),
    ],
)
def test_overlap_looks_at_the_live_scheduled_runs(
    overlap: str, live: LiveScheduled, skip_reason: str | None
) -> None:
    rows, _ = plan(job(overlap=overlap), hourly(), T0 + HOUR, live=live)
    assert rows == [(HOUR, HOUR, 1, skip_reason)]


def test_a_live_manual_or_event_run_never_makes_a_slot_skip() -> None:
    runs = [run(source="manual"), run(source="event", status="queued")]
    assert policy.count_scheduled(runs) == {}


def test_live_scheduled_runs_are_counted_by_job() -> None:
    runs = [run(), run(status="queued"), run(job_id="b", status="claimed"), run(job_id="b", source="event")]
    assert policy.count_scheduled(runs) == {
        "nightly": LiveScheduled(total=2, waiting=1),
        "b": LiveScheduled(total=1, waiting=0),
    }


def test_neighbouring_slots_that_overlap_share_a_row() -> None:
    rows, _ = plan(job(every="10s"), Slots(T0 + n * 10 * SECOND for n in range(1, 9)), T0 + 50 * SECOND)
    assert rows == [(10 * SECOND, 10 * SECOND, 1, None), (20 * SECOND, 50 * SECOND, 4, "overlap")]


def test_an_overlap_row_keeps_how_many_slots_it_stands_for() -> None:
    rows, _ = plan(job(), hourly(), T0 + 5 * HOUR + 30 * MINUTE, live=LiveScheduled(total=1))
    assert rows == [(HOUR, 5 * HOUR, 5, "overlap")]


# -- firings: edits and pauses ----


def test_elapsed_slots_become_one_skipped_row_with_the_reason() -> None:
    [row] = policy.skip_elapsed(job(), hourly(), now=Millis(T0 + 3 * HOUR), reason="edited")
    assert (row.slots_from, row.scheduled_for, row.coalesced) == (T0 + HOUR, T0 + 3 * HOUR, 3)
    assert row.skip_reason == "edited"


def test_no_elapsed_slot_leaves_no_row() -> None:
    assert policy.skip_elapsed(job(), hourly(), now=Millis(T0 + HOUR - 1), reason="paused") == []


# -- firings: what holds for all of them ----


@st.composite
def situations(draw: st.DrawFn) -> tuple[Job, Slots, int, int, LiveScheduled]:
    """A job, its slots, the instant of the tick, its spread and what is live; in seconds round T0."""
    near = st.integers(min_value=-2 * 3600, max_value=12 * 3600)
    slots = Slots(T0 + second * SECOND for second in draw(st.lists(near, max_size=130)))
    now = T0 + draw(near) * SECOND
    total = draw(st.integers(0, 101))
    a_job = job(
        overlap=draw(st.sampled_from(["skip", "queue", "allow"])),
        catch_up=draw(st.sampled_from(["latest", "all", "skip"])),
        misfire_grace_sec=draw(st.none() | st.integers(0, 7200)),
        deferred_at=draw(st.none() | st.integers(0, 4 * 3600).map(lambda ago: Millis(now - ago * SECOND))),
    )
    live = LiveScheduled(total=total, waiting=draw(st.integers(0, min(total, 1))))
    return a_job, slots, now, draw(st.integers(0, 3600)) * SECOND, live


@calmly
@given(situations())
def test_every_due_slot_has_exactly_one_row(situation: tuple[Job, Slots, int, int, LiveScheduled]) -> None:
    a_job, slots, now, offset, live = situation
    _, firing = plan(a_job, slots, now, offset_ms=offset, live=live)
    due = slots.within(a_job.last_scheduled_for, now - offset)
    covered = [slot for row in firing.rows for slot in slots.within(row.slots_from - 1, row.scheduled_for)]
    assert covered == due
    assert [row.coalesced for row in firing.rows] == [
        len(slots.within(row.slots_from - 1, row.scheduled_for)) for row in firing.rows
    ]


@calmly
@given(situations())
def test_the_watermark_is_the_last_due_slot_and_the_wake_up_the_first_that_is_not(
    situation: tuple[Job, Slots, int, int, LiveScheduled],
) -> None:
    a_job, slots, now, offset, live = situation
    _, firing = plan(a_job, slots, now, offset_ms=offset, live=live)
    due = slots.within(a_job.last_scheduled_for, now - offset)
    assert firing.watermark == (due[-1] if due else a_job.last_scheduled_for)
    upcoming = slots.next_after(Millis(max(now - offset, a_job.last_scheduled_for)))
    assert firing.next_fire_at == (None if upcoming is None else upcoming + offset)


@calmly
@given(situations())
def test_a_second_tick_at_the_same_instant_finds_nothing_left(
    situation: tuple[Job, Slots, int, int, LiveScheduled],
) -> None:
    a_job, slots, now, offset, live = situation
    _, firing = plan(a_job, slots, now, offset_ms=offset, live=live)
    again = replace(a_job, last_scheduled_for=firing.watermark)
    assert plan(again, slots, now, offset_ms=offset, live=live)[0] == []


@calmly
@given(situations(), st.integers(0, 4 * 3600))
def test_two_ticks_leave_the_same_slots_as_one(
    situation: tuple[Job, Slots, int, int, LiveScheduled], earlier_sec: int
) -> None:
    a_job, slots, now, offset, live = situation
    _, first = plan(a_job, slots, now - earlier_sec * SECOND, offset_ms=offset, live=live)
    later = replace(a_job, last_scheduled_for=first.watermark, deferred_at=None)
    _, second = plan(later, slots, now, offset_ms=offset, live=live)
    covered = [
        slot
        for row in (*first.rows, *second.rows)
        for slot in slots.within(row.slots_from - 1, row.scheduled_for)
    ]
    assert covered == slots.within(a_job.last_scheduled_for, now - offset)


@calmly
@given(situations())
def test_the_overlap_rule_bounds_what_is_queued(
    situation: tuple[Job, Slots, int, int, LiveScheduled],
) -> None:
    a_job, slots, now, offset, live = situation
    _, firing = plan(replace(a_job, catch_up="latest"), slots, now, offset_ms=offset, live=live)
    queued = sum(row.skip_reason is None for row in firing.rows)
    room = {
        "skip": 1 if live.total == 0 else 0,
        "queue": 1 - live.waiting,
        "allow": max(0, policy.ALLOW_LIMIT - live.total),
    }
    assert queued <= room[a_job.overlap]


@calmly
@given(
    st.sampled_from(["*/7 * * * *", "0 3 * * *", "30 2 * * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    st.integers(0, 400 * 24 * 60),
    st.integers(0, 3 * 24 * 60),
)
def test_a_real_schedule_loses_and_doubles_nothing_over_ticks_at_any_distance(
    expr: str, zone: str, since_min: int, for_min: int
) -> None:
    start, end = Millis(T0 + since_min * MINUTE), Millis(T0 + (since_min + for_min) * MINUTE)
    times = schedule.parse("cron", expr, zone, anchor_at=T0)
    a_job = job(cron=expr, timezone=zone, last_scheduled_for=start, catch_up="all", overlap="allow")
    halfway = plan(a_job, times, (start + end) // 2)[1]
    _, firing = plan(replace(a_job, last_scheduled_for=halfway.watermark), times, end)
    covered = [
        slot
        for row in (*halfway.rows, *firing.rows)
        for slot in times.between(Millis(row.slots_from - 1), row.scheduled_for)
    ]
    assert covered == list(times.between(start, end))


# -- live runs ----

LEASE = 20 * MINUTE


def judge(a_run: Run, liveness: Any, after_ms: int, *, is_http: bool = False) -> policy.Verdict:
    """The verdict `after_ms` after the claim, on a clock that nobody sets."""
    return policy.judge(
        a_run, liveness, now=Millis(T0 + after_ms), boottime_ms=None, boot_id="this-boot", is_http=is_http
    )


def claimed(**columns: Any) -> Run:
    return run(status="claimed", started_at=None, pid=None, pid_start=None, **columns)


@pytest.mark.parametrize(
    ("a_run", "liveness", "after_ms", "verdict"),
    [
        (run(), "alive", 0, Leave()),
        (run(), "alive", LEASE - 1, Leave()),
        (run(), "alive", LEASE, Stop("lease_expired")),
        (run(), "unknown", LEASE - 1, Leave()),
        (run(stop_reason="cancelled", stop_requested_at=T0), "alive", 14_999, StopAgain(kill=False)),
        (run(stop_reason="cancelled", stop_requested_at=T0), "alive", 15_000, StopAgain(kill=True)),
        (run(stop_reason="lease_expired"), "alive", LEASE + DAY, StopAgain(kill=False)),
        (claimed(), "unknown", 59_999, Leave()),
        (claimed(), "unknown", 60_000, Relaunch()),
        (claimed(launches=2), "unknown", 60_000, Relaunch()),
        (claimed(lease_expires_at=T0 + 30_000), "unknown", 14_999, Leave()),
        (claimed(lease_expires_at=T0 + 30_000), "unknown", 15_000, Relaunch()),
    ],
)
def test_what_is_left_to_live(a_run: Run, liveness: str, after_ms: int, verdict: policy.Verdict) -> None:
    assert judge(a_run, liveness, after_ms) == verdict


@pytest.mark.parametrize(
    ("a_run", "liveness", "after_ms", "is_http", "reason"),
    [
        (run(), "dead", 0, False, "process_lost"),
        (run(), "dead", 0, True, "outcome_unknown"),
        (run(), "dead", LEASE, False, "lease_expired"),
        (run(), "dead", LEASE, True, "lease_expired"),
        (run(), "unknown", LEASE, False, "lease_expired"),
        (claimed(launches=3), "unknown", 60_000, False, "launch_failed"),
        (claimed(lease_expires_at=T0 + 30_000), "unknown", 30_000, False, "lease_expired"),
    ],
)
def test_what_is_ended(a_run: Run, liveness: str, after_ms: int, is_http: bool, reason: str) -> None:
    verdict = judge(a_run, liveness, after_ms, is_http=is_http)
    assert isinstance(verdict, End)
    assert verdict.failure_reason == reason


@calmly
@given(
    st.sampled_from(["claimed", "running"]),
    st.sampled_from(["alive", "dead", "unknown"]),
    st.integers(-HOUR, 3 * DAY),
    st.integers(1, 5),
    st.sampled_from([None, "cancelled", "lease_expired", "turn_limit_exceeded"]),
    st.booleans(),
)
def test_no_slot_is_freed_under_a_live_owner_and_none_on_a_guess(
    status: str, liveness: str, after_ms: int, launches: int, stop_reason: str | None, is_http: bool
) -> None:
    a_run = run(status=status, launches=launches, stop_reason=stop_reason)
    verdict = judge(a_run, liveness, after_ms, is_http=is_http)
    if status == "running" and liveness == "alive":
        assert not isinstance(verdict, End | Relaunch)
    if status == "running" and liveness == "unknown" and stop_reason is None:
        assert isinstance(verdict, End) == (after_ms >= LEASE)
    if status == "running" and liveness == "dead":
        assert isinstance(verdict, End)


def test_a_run_to_be_stopped_without_an_owner_here_ends_in_the_same_sweep() -> None:
    accepted = run(pid=None, pid_start=None, stop_reason="turn_limit_exceeded", stop_requested_at=T0)
    assert isinstance(judge(accepted, "unknown", MINUTE), End)


@pytest.mark.parametrize(
    ("wall_ms", "boot_ms", "elapsed"),
    [
        (10 * MINUTE, 10 * MINUTE, 10 * MINUTE),
        (11 * MINUTE, 10 * MINUTE, 11 * MINUTE),
        (11 * MINUTE + 1, 10 * MINUTE, 10 * MINUTE),
        (-HOUR, 10 * MINUTE, 10 * MINUTE),
        (9 * MINUTE, 10 * MINUTE, 9 * MINUTE),
        (9 * MINUTE - 1, 10 * MINUTE, 10 * MINUTE),
    ],
)
def test_boot_time_decides_when_the_wall_clock_was_set(wall_ms: int, boot_ms: int, elapsed: int) -> None:
    a_run = run(claimed_boottime_ms=5_000)
    found = policy.elapsed_ms(
        a_run, now=Millis(T0 + wall_ms), boottime_ms=5_000 + boot_ms, boot_id="this-boot"
    )
    assert found == elapsed


@pytest.mark.parametrize(
    ("claimed_at", "boottime_ms", "boot_id"),
    [(5_000, 999_999_999, "next-boot"), (5_000, None, "this-boot"), (None, 5_000, "this-boot")],
)
def test_the_wall_clock_decides_after_a_reboot_or_without_boot_time(
    claimed_at: int | None, boottime_ms: int | None, boot_id: str
) -> None:
    a_run = run(claimed_boottime_ms=claimed_at)
    found = policy.elapsed_ms(a_run, now=Millis(T0 + HOUR), boottime_ms=boottime_ms, boot_id=boot_id)
    assert found == HOUR


def test_a_clock_that_was_set_back_does_not_lengthen_a_lease() -> None:
    verdict = policy.judge(
        run(claimed_boottime_ms=0),
        "alive",
        now=Millis(T0 - HOUR),
        boottime_ms=LEASE,
        boot_id="this-boot",
        is_http=False,
    )
    assert verdict == Stop("lease_expired")


# -- outcomes ----


@pytest.mark.parametrize(
    ("stop_reason", "said", "status", "reason"),
    [
        (None, outcome(), "completed", None),
        (None, outcome("exit_nonzero"), "failed", "exit_nonzero"),
        ("cancelled", outcome(), "cancelled", None),
        ("cancelled", outcome("killed"), "cancelled", None),
        ("lease_expired", outcome(), "failed", "lease_expired"),
        ("lease_expired", outcome("killed"), "failed", "lease_expired"),
        ("turn_limit_exceeded", outcome(), "failed", "turn_limit_exceeded"),
        ("turn_limit_exceeded", outcome(status="cancelled"), "failed", "turn_limit_exceeded"),
    ],
)
def test_a_stop_reason_stands_above_whatever_the_process_said(
    stop_reason: str | None, said: Outcome, status: str, reason: str | None
) -> None:
    final = endings.final_outcome(run(stop_reason=stop_reason), said)
    assert (final.status, final.failure_reason) == (status, reason)


def test_the_rest_of_an_outcome_survives_a_stop_reason() -> None:
    said = outcome(turns=12, summary="half done", exit_status=0)
    final = endings.final_outcome(run(stop_reason="lease_expired"), said)
    assert (final.turns, final.summary, final.exit_status) == (12, "half done", 0)


def tried(reason: str | None = "exit_nonzero", **columns: Any) -> Millis | None:
    """When a failure of that class is tried again, with three attempts and no slot near."""
    a_job = job(max_attempts=3, idempotent=columns.pop("idempotent", False), next_fire_at=T0 + 30 * DAY)
    a_run = run(attempt=columns.pop("attempt", 1), stop_reason=columns.pop("stop_reason", None))
    return endings.retry_at(a_run, a_job, outcome(reason, **columns))


_NEVER = {"auth_failed", "turn_limit_exceeded", "budget_exceeded"}
_TWICE_DOES_HARM = {"process_lost", "outcome_unknown", "lease_expired", "aborted"}


@pytest.mark.parametrize("reason", FAILURE_CLASSES)
def test_which_failures_are_tried_again(reason: str) -> None:
    assert (tried(reason) is not None) == (reason not in _NEVER | _TWICE_DOES_HARM)
    assert (tried(reason, idempotent=True) is not None) == (reason not in _NEVER)


def test_neither_a_success_nor_a_cancelled_run_is_tried_again() -> None:
    assert tried(None) is None
    assert tried(None, status="cancelled") is None


def test_a_run_that_was_stopped_is_not_tried_again() -> None:
    assert tried("exit_nonzero", stop_reason="lease_expired", idempotent=True) is None


def test_a_run_without_its_job_is_not_tried_again() -> None:
    assert endings.retry_at(run(), None, outcome("exit_nonzero")) is None


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (2, True), (3, False), (4, False)])
def test_the_last_attempt_is_the_last(attempt: int, again: bool) -> None:
    assert (tried(attempt=attempt) is not None) == again


@pytest.mark.parametrize(("said_sec", "waited_ms"), [(0.0, 1000), (0.5, 1000), (2.5, 2500), (90.0, 90_000)])
def test_retry_after_is_obeyed_and_never_less_than_a_second(said_sec: float, waited_ms: int) -> None:
    assert tried("rate_limited", retry_after_sec=said_sec) == T0 + MINUTE + waited_ms


@pytest.mark.parametrize("wait_ms", [2_000, 1_000_000])
def test_no_retry_reaches_the_next_slot(wait_ms: int) -> None:
    said = outcome("rate_limited", retry_after_sec=wait_ms / 1000)
    at = said.completed_at + wait_ms
    a_job = job(max_attempts=2)
    a_tick_later = at + endings.TICK_MS
    assert endings.retry_at(run(), replace(a_job, next_fire_at=Millis(a_tick_later)), said) is None
    assert endings.retry_at(run(), replace(a_job, next_fire_at=Millis(a_tick_later + 1)), said) == at
    assert endings.retry_at(run(), replace(a_job, next_fire_at=None), said) == at


@calmly
@given(st.integers(1, 2**40), st.integers(1, 99))
def test_the_pause_before_a_retry_grows_to_an_hour_and_is_the_same_when_asked_again(
    run_id: int, attempt: int
) -> None:
    a_job = job(max_attempts=100, next_fire_at=None)
    a_run = run(run_id=run_id, attempt=attempt)
    at = endings.retry_at(a_run, a_job, outcome("exit_nonzero"))
    assert at is not None
    pause, plain = at - (T0 + MINUTE), min(30 * 2 ** (attempt - 1), 3600) * SECOND
    assert 0.75 * plain <= pause <= 1.25 * plain
    assert at == endings.retry_at(a_run, a_job, outcome("exit_nonzero"))


# -- streaks ----


def streaks(a_job: Job, ended: Outcome) -> tuple[int, int, str | None]:
    found = endings.streaks_after(a_job, ended, failure_pause=3, breach_pause=5)
    return found.failure_streak, found.turn_budget_breach_streak, found.pause_reason


@pytest.mark.parametrize(
    ("ended", "failures", "breaches"),
    [
        (outcome(), 0, 0),
        (outcome("exit_nonzero"), 2, 3),
        (outcome("lease_expired"), 2, 3),
        (outcome("turn_limit_exceeded"), 1, 4),
        (outcome("aborted"), 1, 3),
        (outcome(status="cancelled"), 1, 3),
    ],
)
def test_each_kind_of_end_counts_in_its_own_streak(ended: Outcome, failures: int, breaches: int) -> None:
    before = job(failure_streak=1, turn_budget_breach_streak=3)
    assert streaks(before, ended) == (failures, breaches, None)


def test_the_third_failure_in_a_row_pauses_with_its_class() -> None:
    counted, _, reason = streaks(job(failure_streak=2), outcome("timeout"))
    assert counted == 3
    assert reason == "3 failures in a row, the last one timeout"


def test_the_fifth_breach_in_a_row_pauses() -> None:
    _, counted, reason = streaks(job(turn_budget_breach_streak=4), outcome("turn_limit_exceeded"))
    assert counted == 5
    assert reason == "5 turn-limit breaches in a row"


def test_a_success_after_two_failures_starts_the_count_again() -> None:
    _, _, reason = streaks(job(failure_streak=0), outcome("timeout"))
    assert streaks(job(failure_streak=2), outcome()) == (0, 0, None)
    assert reason is None


@calmly
@given(st.lists(st.sampled_from([None, "cancelled", *FAILURE_CLASSES]), max_size=30))
def test_streaks_are_what_counting_backwards_gives(ends: list[str | None]) -> None:
    a_job = job()
    for end in ends:
        ended = outcome(status="cancelled") if end == "cancelled" else outcome(end)
        found = endings.streaks_after(a_job, ended, failure_pause=3, breach_pause=5)
        a_job = replace(
            a_job,
            failure_streak=found.failure_streak,
            turn_budget_breach_streak=found.turn_budget_breach_streak,
        )
    since = ends[len(ends) - ends[::-1].index(None) :] if None in ends else ends
    breaches = since.count("turn_limit_exceeded")
    uncounted = since.count("aborted") + since.count("cancelled")
    assert (a_job.failure_streak, a_job.turn_budget_breach_streak) == (
        len(since) - breaches - uncounted,
        breaches,
    )


def test_the_slots_of_these_tests_behave_as_a_schedule_does() -> None:
    times, mine = schedule.parse("every", "1h", anchor_at=T0), hourly()
    for after in (T0 - 1, T0, T0 + HOUR - 1, T0 + HOUR):
        assert times.next_after(Millis(after)) == mine.next_after(Millis(after))
    assert times.newest(T0, Millis(T0 + 5 * HOUR), limit=2) == mine.newest(T0, Millis(T0 + 5 * HOUR), limit=2)
