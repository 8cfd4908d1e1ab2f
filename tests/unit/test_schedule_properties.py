"""What holds for every schedule, by Hypothesis, a brute force and a second cron library."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from carolctl.errors import BadSchedule
from carolctl.model import DstRule, Millis
from carolctl.schedule import Schedule, parse
from tests.unit.cron_oracle import Oracle, ms

WHOLE_HOUR = ["Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Africa/Casablanca", "America/Havana"]
WHOLE_HOUR += ["Africa/Cairo", "Asia/Beirut", "Europe/London"]
ODD = ["Australia/Lord_Howe", "Pacific/Apia", "Asia/Pyongyang", "America/Caracas", "Asia/Kathmandu"]
ZONES = ["UTC", *WHOLE_HOUR, *ODD]

# Nights when one of those clocks changed, and two ends of a year.
DATES = """2024-03-31 2024-10-27 2024-03-10 2024-11-03 2018-11-04 2018-02-18 2024-04-14 2024-04-26 2024-11-01
2024-10-06 2024-04-07 2011-12-30 2012-04-01 2015-08-15 2016-05-01 2007-12-09 1986-01-01 2024-01-01"""
NIGHTS = [datetime.fromisoformat(f"{night}T00:00Z") for night in DATES.split()]


def items(low: int, high: int, names: list[str]) -> st.SearchStrategy[str]:
    value = st.sampled_from([*names, *map(str, range(low, high + 1))])
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted).map(lambda ends: f"{ends[0]}-{ends[1]}")
    stepped = st.builds(lambda item, step: f"{item}/{step}", st.one_of(st.just("*"), span), st.integers(1, 7))
    return st.one_of(value, span, stepped)


def fields(low: int, high: int, names: list[str] | None = None) -> st.SearchStrategy[str]:
    some = st.lists(items(low, high, names or []), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.just("*"), some)


# Hours lean towards the small ones, where the clocks change; days are mostly free, or few slots would be left.
HOURS = st.one_of(
    st.just("*"), st.sampled_from(["0", "1", "2", "3", "0-3", "1,2", "*/2", "23"]), fields(0, 23)
)
LINES = st.builds(
    " ".join,
    st.tuples(
        fields(0, 59),
        HOURS,
        st.one_of(st.just("*"), st.just("*"), fields(1, 31)),
        st.one_of(st.just("*"), st.just("*"), fields(1, 12, ["MAR", "OCT"])),
        st.one_of(st.just("*"), st.just("*"), fields(0, 7, ["SUN", "SAT"])),
    ),
)
RULES: st.SearchStrategy[DstRule] = st.sampled_from(["once", "literal"])
STARTS = st.builds(
    lambda night, minutes: night + timedelta(minutes=minutes),
    st.sampled_from(NIGHTS),
    st.integers(-30 * 60, 12 * 60),
)
INSTANTS = st.integers(ms(datetime(1971, 1, 1, tzinfo=UTC)), ms(datetime(2099, 1, 1, tzinfo=UTC))).map(Millis)
bounded = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def schedule_of(line: str, zone: str, rule: DstRule = "once") -> Schedule:
    try:
        return parse("cron", line, zone, rule, anchor_at=Millis(0))
    except BadSchedule as refusal:
        assume("never" not in refusal.message)
        raise


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, STARTS)
@example("30 2 * * *", "Europe/Berlin", "once", datetime(2024, 10, 26, 12, tzinfo=UTC))
@example("*/7 * * * *", "Australia/Lord_Howe", "once", datetime(2025, 4, 5, 12, tzinfo=UTC))
@example("0 0 * * *", "America/Havana", "literal", datetime(2024, 11, 2, 12, tzinfo=UTC))
def test_no_slot_is_skipped_or_doubled_against_the_brute_force(
    line: str, zone: str, rule: DstRule, start: datetime
) -> None:
    schedule, end = schedule_of(line, zone, rule), start + timedelta(hours=40)
    expected = [ms(at) for at in Oracle(line).slots(zone, start, end, literal=rule == "literal")]
    low, high = Millis(ms(start)), Millis(ms(end))
    assert list(schedule.between(low, high)) == expected
    assert schedule.newest(low, high, limit=10_000) == expected
    assert schedule.count(low, high, limit=10_000) == len(expected)


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, STARTS, st.integers(0, 59_999))
def test_stepping_forwards_and_back_gives_the_same_slots(
    line: str, zone: str, rule: DstRule, start: datetime, odd_ms: int
) -> None:
    schedule, low = schedule_of(line, zone, rule), Millis(ms(start) + odd_ms)
    steps: list[Millis] = []
    for _ in range(40):
        slot = schedule.next_after(steps[-1] if steps else low)
        assert slot is not None
        steps.append(slot)
    assert steps == sorted(set(steps))
    assert steps[0] > low
    assert list(schedule.between(low, steps[-1])) == steps
    back = [steps[-1]]
    while (before := schedule.latest_at(Millis(back[-1] - 1))) is not None and before > low:
        back.append(before)
    assert back[::-1] == steps


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, INSTANTS)
def test_next_and_latest_are_inverse_at_any_time(line: str, zone: str, rule: DstRule, at: Millis) -> None:
    schedule = schedule_of(line, zone, rule)
    after = schedule.next_after(at)
    assert after is not None
    assert after > at
    assert schedule.latest_at(after) == after
    assert schedule.next_after(Millis(after - 1)) == after
    before = schedule.latest_at(at)
    # Leap days on one weekday can be 40 years apart.
    assert before is not None or at < ms(datetime(2011, 1, 1, tzinfo=UTC))
    if before is not None:
        assert before <= at
        assert schedule.next_after(before) == after
        assert schedule.latest_at(Millis(after - 1)) == before


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, INSTANTS, st.integers(0, 200), st.integers(0, 400))
def test_count_newest_and_between_agree(
    line: str, zone: str, rule: DstRule, after: Millis, days: int, limit: int
) -> None:
    schedule, until = schedule_of(line, zone, rule), Millis(after + days * 86_400_000 + days)
    slots = list(schedule.between(after, until))
    assert schedule.count(after, until, limit=10**6) == len(slots)
    assert schedule.count(after, until, limit=limit) == min(limit, len(slots))
    assert schedule.newest(after, until, limit=limit) == (slots[-limit:] if limit else [])
    middle = Millis((after + until) // 2)
    assert [*schedule.between(after, middle), *schedule.between(middle, until)] == slots


@bounded
@given(LINES, st.sampled_from(ZONES), RULES, INSTANTS)
def test_compiled_and_fresh_schedules_are_one(line: str, zone: str, rule: DstRule, at: Millis) -> None:
    fresh = schedule_of(line, zone, rule)
    again = parse("cron", fresh.expr, zone, rule, anchor_at=Millis(0), compiled=fresh.compiled)
    assert (again.expr, again.compiled) == (fresh.expr, fresh.compiled)
    assert again.next_after(at) == fresh.next_after(at)
    assert again.latest_at(at) == fresh.latest_at(at)


def understood_alike(line: str) -> bool:
    """The other library takes ``5-5/2`` for ``5/2``: from 5 to the end."""
    return re.search(r"\b(\d+)-\1/", line) is None


@bounded
@given(LINES.filter(understood_alike), st.datetimes(datetime(1980, 1, 1), datetime(2095, 1, 1)))  # noqa: DTZ001
def test_a_second_cron_library_agrees_in_utc(line: str, start: datetime) -> None:
    schedule, start = schedule_of(line, "UTC"), start.replace(second=0, microsecond=0, tzinfo=UTC)
    other, slot = CronSim(line, start), Millis(ms(start))
    for _ in range(8):
        following = schedule.next_after(slot)
        assert following == ms(next(other))
        slot = following


@bounded
@given(LINES.filter(understood_alike), st.sampled_from([*WHOLE_HOUR, *ODD]), STARTS)
def test_a_second_cron_library_agrees_over_clock_changes(line: str, zone: str, start: datetime) -> None:
    wildcard = line.startswith("*") or line.split()[1].startswith("*")
    # It adds 60 minutes where the clock moves by less, and forgets which pass of a repeat it starts in.
    assume(zone in WHOLE_HOUR or not wildcard)
    local = start.astimezone(ZoneInfo(zone))
    assume(local.fold == 0)
    schedule, other, slot = schedule_of(line, zone), CronSim(line, local), Millis(ms(start))
    for _ in range(8):
        expected = ms(next(other))
        while expected <= slot:
            # The library repeats an instant when several skipped times end at the same gap.
            expected = ms(next(other))
        following = schedule.next_after(slot)
        assert following == expected
        slot = following


@bounded
@given(st.integers(1, 10**7), INSTANTS, INSTANTS, st.integers(0, 50))
def test_an_interval_is_an_exact_grid(seconds: int, anchor: Millis, at: Millis, limit: int) -> None:
    schedule = parse("every", str(seconds), anchor_at=anchor)
    period = seconds * 1000
    following, latest = schedule.next_after(at), schedule.latest_at(at)
    assert following is not None
    assert following > at
    assert (following - anchor) % period == 0
    assert following == anchor + period or following - period <= at
    assert latest == (following - period if following > anchor + period else None)
    slots = schedule.newest(Millis(at - 20 * period), at, limit=limit)
    assert slots == list(schedule.between(Millis(at - 20 * period), at))[-limit:] if limit else slots == []
    assert len(slots) == schedule.count(Millis(at - 20 * period), at, limit=limit)
