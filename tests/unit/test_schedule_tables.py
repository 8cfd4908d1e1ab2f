"""Clock changes, zone by zone, as literal instants. The heading of each block says what the clock did."""

from __future__ import annotations

import pytest

from carolctl.model import Millis
from carolctl.schedule import Schedule, parse
from tests.unit.cron_oracle import Oracle, ms, utc

# (zone, window, [(cron line, slots under "once", slots under "literal" or None when they are the same)])
TABLES: dict[str, tuple[str, str, str, list[tuple[str, str, str | None]]]] = {
    # 2024-03-31 01:00Z: 02:00+01:00 becomes 03:00+02:00.
    "Berlin in spring": (
        "Europe/Berlin",
        "2024-03-30T23:30Z",
        "2024-03-31T02:00Z",
        [
            ("30 2 * * *", "03-31T01:00", ""),
            ("0,30 2 * * *", "03-31T01:00", ""),
            ("0 3 * * *", "03-31T01:00", None),
            ("30 2,3 * * *", "03-31T01:00 03-31T01:30", "03-31T01:30"),
            ("0 2,3 * * *", "03-31T01:00", None),
            ("15 1-3 * * *", "03-31T00:15 03-31T01:00 03-31T01:15", "03-31T00:15 03-31T01:15"),
            ("0 */2 * * *", "03-31T02:00", None),
            ("* 2 * * *", "", None),
            ("@hourly", "03-31T00:00 03-31T01:00 03-31T02:00", None),
        ],
    ),
    # 2024-10-27 01:00Z: 03:00+02:00 becomes 02:00+01:00.
    "Berlin in autumn": (
        "Europe/Berlin",
        "2024-10-26T22:30Z",
        "2024-10-27T02:30Z",
        [
            ("30 2 * * *", "10-27T00:30", "10-27T00:30 10-27T01:30"),
            ("0 3 * * *", "10-27T02:00", None),
            (
                "15 1-3 * * *",
                "10-26T23:15 10-27T00:15 10-27T02:15",
                "10-26T23:15 10-27T00:15 10-27T01:15 10-27T02:15",
            ),
            ("0 */2 * * *", "10-27T00:00 10-27T01:00", None),
            ("30 * * * *", "10-26T23:30 10-27T00:30 10-27T01:30 10-27T02:30", None),
        ],
    ),
    # 2024-03-10 07:00Z: 02:00-05:00 becomes 03:00-04:00.
    "New York in spring": (
        "America/New_York",
        "2024-03-10T05:30Z",
        "2024-03-10T08:00Z",
        [
            ("30 2 * * *", "03-10T07:00", ""),
            ("0 1,2,3 * * *", "03-10T06:00 03-10T07:00", None),
            ("*/30 2 * * *", "", None),
            ("30 2 * * SUN", "03-10T07:00", ""),
            ("30 2 * * MON", "", None),
        ],
    ),
    # 2024-11-03 06:00Z: 02:00-04:00 becomes 01:00-05:00.
    "New York in autumn": (
        "America/New_York",
        "2024-11-03T04:30Z",
        "2024-11-03T07:30Z",
        [
            ("30 1 * * *", "11-03T05:30", "11-03T05:30 11-03T06:30"),
            ("0 1,2 * * *", "11-03T05:00 11-03T07:00", "11-03T05:00 11-03T06:00 11-03T07:00"),
            ("*/30 1 * * *", "11-03T05:00 11-03T05:30 11-03T06:00 11-03T06:30", None),
        ],
    ),
    # 2018-11-04 03:00Z: midnight never comes, 00:00-03:00 becomes 01:00-02:00.
    "Sao Paulo in spring": (
        "America/Sao_Paulo",
        "2018-11-04T02:00Z",
        "2018-11-04T04:00Z",
        [
            ("0 0 * * *", "11-04T03:00", ""),
            ("30 0 * * *", "11-04T03:00", ""),
            ("0 0,1 * * *", "11-04T03:00", None),
            ("30 */1 * * *", "11-04T02:30 11-04T03:30", None),
            ("0 0 5 * *", "", None),
        ],
    ),
    # 2018-02-18 02:00Z: 00:00-02:00 becomes 23:00-03:00 of the day before.
    "Sao Paulo in autumn": (
        "America/Sao_Paulo",
        "2018-02-18T00:30Z",
        "2018-02-18T03:30Z",
        [
            ("30 23 * * *", "02-18T01:30", "02-18T01:30 02-18T02:30"),
            ("0 0 * * *", "02-18T03:00", None),
            ("*/30 23 * * *", "02-18T01:00 02-18T01:30 02-18T02:00 02-18T02:30", None),
        ],
    ),
    # 2024-10-05 15:30Z: half an hour, 02:00+10:30 becomes 02:30+11:00.
    "Lord Howe in spring": (
        "Australia/Lord_Howe",
        "2024-10-05T14:00Z",
        "2024-10-05T17:00Z",
        [
            ("15 2 * * *", "10-05T15:30", ""),
            ("0 2 * * *", "10-05T15:30", ""),
            ("45 2 * * *", "10-05T15:45", None),
            ("45 * * * *", "10-05T14:15 10-05T15:15 10-05T15:45 10-05T16:45", None),
        ],
    ),
    # 2024-04-06 15:00Z: half an hour, 02:00+11:00 becomes 01:30+10:30.
    "Lord Howe in autumn": (
        "Australia/Lord_Howe",
        "2024-04-06T13:30Z",
        "2024-04-06T16:30Z",
        [
            ("45 1 * * *", "04-06T14:45", "04-06T14:45 04-06T15:15"),
            ("0 2 * * *", "04-06T15:30", None),
            ("45 * * * *", "04-06T13:45 04-06T14:45 04-06T15:15 04-06T16:15", None),
            ("*/20 1 * * *", "04-06T14:00 04-06T14:20 04-06T14:40 04-06T15:10", None),
        ],
    ),
    # 2011-12-30 10:00Z: the 30th never comes, 12-30 00:00-10:00 becomes 12-31 00:00+14:00.
    "Apia leaves a day out": (
        "Pacific/Apia",
        "2011-12-29T12:00Z",
        "2011-12-31T20:00Z",
        [
            (
                "0 9 * * *",
                "12-29T19:00 12-30T10:00 12-30T19:00 12-31T19:00",
                "12-29T19:00 12-30T19:00 12-31T19:00",
            ),
            ("0 0 * * *", "12-30T10:00 12-31T10:00", None),
            ("0 12 30 12 *", "12-30T10:00", ""),
            ("0 */12 * * *", "12-29T22:00 12-30T10:00 12-30T22:00 12-31T10:00", None),
        ],
    ),
    # 2012-03-31 14:00Z: 04:00+14:00 becomes 03:00+13:00.
    "Apia in autumn": (
        "Pacific/Apia",
        "2012-03-31T12:00Z",
        "2012-03-31T16:00Z",
        [("30 3 * * *", "03-31T13:30", "03-31T13:30 03-31T14:30"), ("0 4 * * *", "03-31T15:00", None)],
    ),
    # 2024-03-10 02:00Z: Ramadan, 03:00+01:00 becomes 02:00+00:00.
    "Casablanca enters Ramadan": (
        "Africa/Casablanca",
        "2024-03-10T00:30Z",
        "2024-03-10T03:30Z",
        [
            ("30 2 * * *", "03-10T01:30", "03-10T01:30 03-10T02:30"),
            ("15 3 * * *", "03-10T03:15", None),
            ("0 * * * *", "03-10T01:00 03-10T02:00 03-10T03:00", None),
        ],
    ),
    # 2024-04-14 02:00Z: back again, 02:00+00:00 becomes 03:00+01:00.
    "Casablanca leaves Ramadan": (
        "Africa/Casablanca",
        "2024-04-14T00:30Z",
        "2024-04-14T03:30Z",
        [
            ("30 2 * * *", "04-14T02:00", ""),
            ("15 3 * * *", "04-14T02:15", None),
            ("0 * * * *", "04-14T01:00 04-14T02:00 04-14T03:00", None),
        ],
    ),
    # No change at all, but 5 h 45 min east of Greenwich.
    "Kathmandu as ever": (
        "Asia/Kathmandu",
        "2024-03-30T12:00Z",
        "2024-03-31T18:10Z",
        [
            ("0 0 * * *", "03-30T18:15", None),
            ("45 23 * * *", "03-30T18:00 03-31T18:00", None),
            ("0 */6 31 * *", "03-30T18:15 03-31T00:15 03-31T06:15 03-31T12:15", None),
        ],
    ),
    # 1985-12-31 18:30Z: 00:00+05:30 becomes 00:15+05:45, in the last hours of the UTC year.
    "Kathmandu at New Year 1986": (
        "Asia/Kathmandu",
        "1985-12-31T17:00Z",
        "1985-12-31T20:30Z",
        [
            ("5 0 * * *", "12-31T18:30", ""),
            ("30 23 * * *", "12-31T18:00", None),
            ("10 * 1 1 *", "12-31T19:25 12-31T20:25", None),
        ],
    ),
    # 2024-03-10 05:00Z: midnight never comes, 00:00-05:00 becomes 01:00-04:00.
    "Havana in spring": (
        "America/Havana",
        "2024-03-10T04:00Z",
        "2024-03-10T06:00Z",
        [("0 0 * * *", "03-10T05:00", ""), ("30 0 * * *", "03-10T05:00", ""), ("@daily", "03-10T05:00", "")],
    ),
    # 2024-11-03 05:00Z: midnight comes twice, 01:00-04:00 becomes 00:00-05:00.
    "Havana in autumn": (
        "America/Havana",
        "2024-11-03T03:45Z",
        "2024-11-03T06:15Z",
        [
            ("@daily", "11-03T04:00", "11-03T04:00 11-03T05:00"),
            ("30 0 * * *", "11-03T04:30", "11-03T04:30 11-03T05:30"),
            ("0 1 * * *", "11-03T06:00", None),
            ("30 */1 * * *", "11-03T04:30 11-03T05:30", None),
        ],
    ),
    # 2015-08-14 15:00Z: 00:00+09:00 becomes 23:30+08:30 of the day before, and stays.
    "Pyongyang moves for good": (
        "Asia/Pyongyang",
        "2015-08-14T13:30Z",
        "2015-08-14T16:00Z",
        [
            ("45 23 * * *", "08-14T14:45", "08-14T14:45 08-14T15:15"),
            ("*/20 23 * * *", "08-14T14:00 08-14T14:20 08-14T14:40 08-14T15:10", None),
            ("0 0 * * *", "08-14T15:30", None),
        ],
    ),
}

CASES = [
    pytest.param(zone, after, until, line, rule, slots if literal is None or rule == "once" else literal)
    for zone, after, until, rows in TABLES.values()
    for line, slots, literal in rows
    for rule in ("once", "literal")
]


def instants(text: str, year: str) -> list[int]:
    return [ms(utc(f"{year}-{word}Z")) for word in text.split()]


def cron(line: str, zone: str, rule: str) -> Schedule:
    return parse("cron", line, zone, "literal" if rule == "literal" else "once", anchor_at=Millis(0))


@pytest.mark.parametrize("zone, after, until, line, rule, slots", CASES)
def test_a_clock_change_gives_exactly_these_slots_in_every_direction(
    zone: str, after: str, until: str, line: str, rule: str, slots: str
) -> None:
    schedule = cron(line, zone, rule)
    low, high = Millis(ms(utc(after))), Millis(ms(utc(until)))
    expected = instants(slots, after[:4])
    assert list(schedule.between(low, high)) == expected
    assert schedule.newest(low, high, limit=1000) == expected
    assert schedule.count(low, high, limit=1000) == len(expected)
    forwards, at = [], schedule.next_after(low)
    while at is not None and at <= high:
        forwards.append(at)
        at = schedule.next_after(at)
    assert forwards == expected
    backwards, at = [], schedule.latest_at(high)
    while at is not None and at > low:
        backwards.append(at)
        at = schedule.latest_at(Millis(at - 1))
    assert backwards[::-1] == expected


@pytest.mark.parametrize("zone, after, until, line, rule, slots", CASES)
def test_the_tables_agree_with_the_brute_force(
    zone: str, after: str, until: str, line: str, rule: str, slots: str
) -> None:
    plain = {"@hourly": "0 * * * *", "@daily": "0 0 * * *"}.get(line, line)
    found = Oracle(plain).slots(zone, utc(after), utc(until), literal=rule == "literal")
    assert [ms(at) for at in found] == instants(slots, after[:4])


@pytest.mark.parametrize(
    "zone, wall, instant",
    [
        ("UTC", "2024-03-31T02:30", "2024-03-31T02:30:00Z"),
        ("Europe/Berlin", "2024-07-01T12:00", "2024-07-01T10:00:00Z"),
        ("Europe/Berlin", "2024-03-31T02:30", "2024-03-31T01:00:00Z"),
        ("Europe/Berlin", "2024-10-27T02:30", "2024-10-27T00:30:00Z"),
        ("Europe/Berlin", "2024-10-27T02:30:00+01:00", "2024-10-27T01:30:00Z"),
        ("Europe/Berlin", "2024-10-27T02:30:00Z", "2024-10-27T02:30:00Z"),
        ("Australia/Lord_Howe", "2024-10-06T02:10", "2024-10-05T15:30:00Z"),
        ("Australia/Lord_Howe", "2024-04-07T01:40", "2024-04-06T14:40:00Z"),
        ("Pacific/Apia", "2011-12-30T12:00", "2011-12-30T10:00:00Z"),
        ("Asia/Kathmandu", "1986-01-01T00:10", "1985-12-31T18:30:00Z"),
    ],
)
def test_a_single_instant_on_the_wall_takes_the_first_pass_or_the_end_of_the_gap(
    zone: str, wall: str, instant: str
) -> None:
    schedule = parse("at", wall, zone, anchor_at=Millis(0))
    assert schedule.expr == instant
    assert schedule.next_after(Millis(0)) == ms(utc(instant))


def test_a_daily_time_is_the_fixed_cron_line_of_that_time() -> None:
    low, high = Millis(ms(utc("2024-01-01T00:00Z"))), Millis(ms(utc("2026-01-01T00:00Z")))
    for zone in ("Europe/Berlin", "America/Havana", "Australia/Lord_Howe"):
        daily = parse("daily_at", "02:30", zone, anchor_at=Millis(0))
        line = cron("30 2 * * *", zone, "once")
        assert list(daily.between(low, high)) == list(line.between(low, high))
        assert daily.count(low, high, limit=10_000) == 731


def test_a_fixed_job_fires_once_on_every_day_of_a_long_time() -> None:
    # On Apia's wall it goes from 2009-12-31 13:00 to 2014-01-01 14:00; the day left out has its slot as well.
    schedule = cron("30 3 * * *", "Pacific/Apia", "once")
    low, high = Millis(ms(utc("2010-01-01T00:00Z"))), Millis(ms(utc("2014-01-01T00:00Z")))
    assert schedule.count(low, high, limit=100_000) == 1462


def test_an_offset_with_seconds_does_no_harm() -> None:
    # Monrovia was 44 min 30 s behind Greenwich until 1972-01-07, when its clocks jumped to 00:44:30 UTC.
    schedule = cron("15 0 * * *", "Africa/Monrovia", "once")
    low = Millis(ms(utc("1972-01-05T12:00Z")))
    assert [ms(utc(f"1972-01-{text}Z")) for text in ("06T00:59:30", "07T00:44:30", "08T00:15:00")] == list(
        schedule.between(low, Millis(low + 3 * 86_400_000))
    )
