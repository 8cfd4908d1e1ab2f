"""Schedules counted into buckets: the same numbers as stepping from slot to slot, on the days of a clock change too."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from hypothesis import example, given
from hypothesis import strategies as st

from carolctl.model import DstRule, Millis
from carolctl.schedule import Schedule, parse
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
