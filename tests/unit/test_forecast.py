"""Schedules counted into buckets: the same numbers as stepping from slot to slot, on the days of a clock change too."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carolctl import rearrange
from carolctl.config import Settings
from carolctl.firing_weight import could_collide, weight_of
from carolctl.forecast import BUCKET_MS, Load, collisions, expand, firings, window
from carolctl.model import DstRule, Millis, ScheduleKind
from carolctl.schedule import Schedule, parse
from tests.builders import HOUR, T0, job
from tests.unit.cron_oracle import ms
from tests.unit.test_schedule_properties import LINES, RULES, STARTS, ZONES, bounded, schedule_of

MINUTE = 60_000


def stepped(schedule: Schedule, start: Millis, width: int, size: int) -> list[int]:
    """The same by the engine's own next_after, one slot at a time."""
    found: Counter[int] = Counter()
    slot = schedule.next_after(Millis(start - 1))
    while slot is not None and slot < start + width * size:
        found[(slot - start) // width] += 1
        slot = schedule.next_after(slot)
    return [found[number] for number in range(size)]


@bounded
@given(
    LINES, st.sampled_from(ZONES), RULES, STARTS, st.integers(0, 599_999), st.sampled_from([1, 5, 7, 60, 300])
)
@example("30 2 * * *", "Europe/Berlin", "once", datetime.fromisoformat("2024-03-30T12:00Z"), 0, 5)
@example("*/7 * * * *", "Australia/Lord_Howe", "once", datetime.fromisoformat("2025-04-05T12:00Z"), 30_500, 5)
@example("* * * * *", "UTC", "once", datetime.fromisoformat("2024-12-31T12:00Z"), 1, 5)
def test_buckets_of_a_cron_line_hold_what_stepping_finds(
    line: str, zone: str, rule: DstRule, start: datetime, odd_ms: int, minutes: int
) -> None:
    schedule, low = schedule_of(line, zone, rule), Millis(ms(start) + odd_ms)
    size = 40 * 60 // minutes
    assert list(schedule.tallies(low, minutes * MINUTE, size)) == stepped(
        schedule, low, minutes * MINUTE, size
    )


@bounded
@given(st.integers(1, 7200), st.integers(-(10**8), 10**8), st.integers(1, 60), st.integers(0, 100))
def test_buckets_of_an_interval_hold_what_stepping_finds(
    seconds: int, anchor: int, minutes: int, size: int
) -> None:
    schedule = parse("every", str(seconds), anchor_at=Millis(anchor))
    if seconds < 60:
        size = min(size, 3)
    assert list(schedule.tallies(Millis(0), minutes * MINUTE, size)) == stepped(
        schedule, Millis(0), minutes * MINUTE, size
    )


def test_local_times_that_were_off_by_seconds_are_counted_apart() -> None:
    schedule = parse("cron", "* * * * *", "Africa/Monrovia", anchor_at=Millis(0))
    start = Millis(ms(datetime.fromisoformat("1972-01-07T00:00Z")))
    assert list(schedule.tallies(start, 5 * MINUTE, 288)) == stepped(schedule, start, 5 * MINUTE, 288)


# -- over a window ---------------------------------------------------------------------------------------------


def load(name: str, expr: str, *, turns: int = 1, offset_ms: int = 0, zone: str = "UTC") -> Load:
    return Load(
        name=name,
        schedule=parse("cron", expr, zone, anchor_at=T0),
        weight=turns * 1000,
        offset_ms=offset_ms,
    )


def test_a_day_from_any_instant_has_each_minute_of_the_day_once() -> None:
    span = window(Millis(T0 + 7 * MINUTE + 1), 86_400)
    assert (span.start, span.size) == (T0 + 5 * MINUTE, 288)
    assert sorted(span.minute(bucket) for bucket in range(span.size)) == list(range(0, 1440, 5))
    assert window(T0, 301).size == 2


def test_the_firings_of_all_are_listed_by_time_and_name_with_their_spread() -> None:
    loads = [load("b", "0 * * * *"), load("a", "0 * * * *"), load("late", "59 * * * *", offset_ms=61_000)]
    found = list(firings(loads, Millis(T0 - 1), Millis(T0 + HOUR)))
    assert found == [
        (T0, "a"), (T0, "b"), (T0 + 1000, "late"), (T0 + HOUR, "a"), (T0 + HOUR, "b"),
    ]  # fmt: skip


def test_what_is_listed_is_what_is_counted() -> None:
    dice = random.Random(7)
    loads = [
        load(f"j{n}", f"{dice.randrange(60)} */{dice.randrange(1, 5)} * * *", offset_ms=dice.randrange(10**6))
        for n in range(30)
    ]
    forecast = expand(loads, window(T0, 86_400))
    listed = Counter(
        (name, (at - T0) // BUCKET_MS)
        for at, name in firings(loads, Millis(T0 - 1), Millis(T0 + 24 * HOUR - 1))
    )
    counted = {
        (one.name, bucket): number
        for one, counts in zip(forecast.loads, forecast.counts, strict=True)
        for bucket, number in enumerate(counts)
        if number
    }
    assert counted == listed
    assert sum(forecast.weights) == listed.total() * 1000


# -- moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, expr, shift, expected",
    [
        ("cron", "0 3 * * *", 7, "7 3 * * *"),
        ("cron", "58 3 1 */2 MON-FRI", 7, "5 3 1 */2 MON-FRI"),
        ("cron", "*/15 * * * *", 7, "7-59/15 * * * *"),
        ("cron", "7-59/15 * * * *", 8, "*/15 * * * *"),
        ("cron", "0,30 1-5 * * *", 10, "10,40 1-5 * * *"),
        ("cron", "0-9 * * * *", 55, "0,1,2,3,4,55,56,57,58,59 * * * *"),
        ("cron", "@daily", 5, "5 0 * * *"),
        ("cron", "0 0 L * *", 5, "5 0 L * *"),
        ("cron", "* 3 * * *", 5, None),
        ("daily_at", "23:50", 15, "23:05"),
        ("every", "20m", 5, "5,25,45 * * * *"),
        ("every", "10m", 5, "5-59/10 * * * *"),
        ("every", "1h", 5, "5 * * * *"),
        ("every", "6h", 10, "10 */6 * * *"),
        ("every", "1d", 10, "10 0 * * *"),
        ("every", "7m", 5, None),
        ("every", "90s", 5, None),
        ("at", "2026-02-01T00:00:00Z", 5, None),
        ("manual", "", 5, None),
    ],
)
def test_a_schedule_moves_within_its_hour(
    kind: ScheduleKind, expr: str, shift: int, expected: str | None
) -> None:
    times = parse(kind, expr, anchor_at=T0)
    other = rearrange.moved(times, shift, after=expand([], window(T0, 86_400)))
    assert (other.expr if other else None) == expected


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, st.integers(1, 59))
def test_a_moved_line_means_what_its_text_means(line: str, zone: str, rule: DstRule, shift: int) -> None:
    times = schedule_of(line, zone, rule)
    span = window(Millis(ms(datetime.fromisoformat("2024-03-30T12:00Z"))), 2 * 86_400)
    other = rearrange.moved(times, shift, after=expand([], span))
    if other is not None:
        again = parse("cron", other.expr, zone, rule, anchor_at=T0)
        assert (again.expr, again.compiled) == (other.expr, other.compiled)


def test_the_forecast_after_a_move_is_the_one_that_was_promised() -> None:
    dice = random.Random(3)
    for _ in range(20):
        loads = [
            load(f"j{n:02}", f"{dice.choice(['0', '*/20', '30'])} {dice.choice(['3', '3', '*/6'])} * * *",
                 turns=dice.randrange(1000, 2000), zone=dice.choice(ZONES))
            for n in range(12)
        ]  # fmt: skip
        before = expand(loads, window(T0, 86_400))
        worst = collisions(before, 1_500_000)
        names = rearrange.heaviest_in(before, worst[0])
        best = rearrange.best_move(before, names, 1_500_000, range(5, 60, 5))
        assert best is not None
        changed = [
            load(one.name, best.expr, turns=one.weight // 1000, zone=best.timezone)
            if one.name == best.name
            else one
            for one in loads
        ]
        after = expand(changed, window(T0, 86_400))
        assert max(before.weights) == best.before.peak
        assert max(after.weights) == best.after.peak
        assert sum(len(found.buckets) for found in collisions(after, 1_500_000)) == best.after.collisions
        assert best.after < best.before


# -- weights ---------------------------------------------------------------------------------------------------


def test_a_firing_weighs_its_average_its_budget_the_common_budget_or_the_default() -> None:
    settings = Settings(max_turns=70, collision_default_turns=40)
    assert weight_of(job(avg_turns_per_firing=1.2345, max_turns=9), settings) == 1234
    assert weight_of(job(max_turns=9), settings) == 9000
    assert weight_of(job(), settings) == 70_000
    assert weight_of(job(), Settings(collision_default_turns=40)) == 40_000


def test_few_light_jobs_need_no_forecast_and_a_damaged_interval_does_no_harm() -> None:
    few = [job(f"j{n}") for n in range(10)]
    assert not could_collide(few, Settings())
    assert could_collide([job(f"j{n}") for n in range(11)], Settings())
    assert could_collide([job(every="1s", max_turns=10)], Settings())
    assert not could_collide(
        [job(schedule_kind="every", schedule_expr="nonsense", max_turns=9999)], Settings()
    )
