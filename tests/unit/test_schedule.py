"""Schedules of every kind: what is understood, what is refused, what is stored, what they cost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import islice

import pytest

from carolctl.errors import BadSchedule, Exit, UsageError
from carolctl.model import DstRule, Millis
from carolctl.schedule import Schedule, parse, parse_duration, spread_offset_ms
from tests.unit.cron_oracle import ms, utc

NEW_YEAR = Millis(ms(utc("2024-01-01T00:00Z")))
DAY = 86_400_000


def cron(line: str, zone: str = "UTC", rule: DstRule = "once") -> Schedule:
    return parse("cron", line, zone, rule, anchor_at=NEW_YEAR)


def days(schedule: Schedule, after: str, until: str) -> list[str]:
    slots = schedule.between(Millis(ms(utc(after)) - 1), Millis(ms(utc(until)) - 1))
    return [time.strftime("%m-%d", time.gmtime(slot / 1000)) for slot in slots]


# -- what the parser would get wrong ---------------------------------------------------------------


@pytest.mark.parametrize(
    "written, meant",
    [
        ("5-5 * * * *", "5 * * * *"),
        ("0 9-9 * * *", "0 9 * * *"),
        ("0 9 * * MON-MON", "0 9 * * 1"),
        ("0 9 * JAN-JAN *", "0 9 * 1 *"),
        ("0 9 7-7 * *", "0 9 7 * *"),
        ("0 9 * * 7-7", "0 9 * * 0"),
        ("30-30/7 * * * *", "30 * * * *"),
        ("1,5-5,9 * * * *", "1,5,9 * * * *"),
    ],
)
def test_an_equal_range_means_its_one_value(written: str, meant: str) -> None:
    until = Millis(NEW_YEAR + 400 * DAY)
    assert list(cron(written).between(NEW_YEAR, until)) == list(cron(meant).between(NEW_YEAR, until))


def test_a_day_field_that_starts_with_a_star_is_anded() -> None:
    assert days(cron("0 0 */2 * MON"), "2024-01-01T00:00Z", "2024-02-01T00:00Z") == [
        "01-01",
        "01-15",
        "01-29",
    ]
    assert days(cron("0 0 1,15 * */2"), "2024-01-01T00:00Z", "2024-03-01T00:00Z") == ["02-01", "02-15"]


def test_other_restricted_day_fields_are_ored() -> None:
    assert days(cron("0 0 1-3 * MON"), "2024-01-01T00:00Z", "2024-01-16T00:00Z") == [
        "01-01",
        "01-02",
        "01-03",
        "01-08",
        "01-15",
    ]


def test_a_date_that_never_comes_may_stand_beside_a_weekday() -> None:
    assert days(cron("0 0 31 2 MON"), "2024-01-01T00:00Z", "2025-01-01T00:00Z") == [
        "02-05",
        "02-12",
        "02-19",
        "02-26",
    ]


def test_a_wildcard_job_keeps_its_cadence_through_a_half_hour_repeat() -> None:
    # 2025-04-06 in Lord Howe: 02:00+11:00 becomes 01:30+10:30.
    slots = cron("*/7 * * * *", "Australia/Lord_Howe").between(
        Millis(ms(utc("2025-04-06T01:55+11:00"))), Millis(ms(utc("2025-04-06T02:00+10:30")))
    )
    walls = ["01:56+11:00", "01:35+10:30", "01:42+10:30", "01:49+10:30", "01:56+10:30", "02:00+10:30"]
    assert list(slots) == [ms(utc(f"2025-04-06T{wall}")) for wall in walls]


def test_a_start_between_the_two_passes_does_not_fire_a_fixed_job_again() -> None:
    after = Millis(ms(utc("2024-10-27T02:10+01:00")))
    assert cron("30 2 * * *", "Europe/Berlin").next_after(after) == ms(utc("2024-10-28T02:30+01:00"))


@pytest.mark.parametrize(
    "line, expected",
    [
        ("0 0 L * *", "01-31 02-29 03-31 04-30"),
        ("0 0 1,L 2 *", "02-01 02-29"),
        ("0 0 1-29,31,L 1 *", " ".join(f"01-{day:02}" for day in range(1, 32) if day != 30)),
        ("0 0 2-31,L 4 *", " ".join(f"04-{day:02}" for day in range(2, 31))),
        ("0 0 * * L5", "01-26 02-23 03-29 04-26"),
        ("0 0 * * L7", "01-28 02-25 03-31 04-28"),
        ("0 0 * * FRI#2", "01-12 02-09 03-08 04-12"),
        ("0 0 * * 5#2", "01-12 02-09 03-08 04-12"),
        ("0 0 * * MON#1,WED#3,L0", "01-01 01-17 01-28 02-05 02-21 02-25 03-04 03-20 03-31 04-01 04-17 04-28"),
        ("0 0 * * MON#5", "01-29 04-29"),
        ("0 0 15W * *", "01-15 02-15 03-15 04-15"),
        ("0 0 16W * *", "01-16 02-16 03-15 04-16"),
        ("0 0 1W * *", "01-01 02-01 03-01 04-01"),
        ("0 0 31W * *", "01-31 02-29 03-29 04-30"),
        ("0 0 * 2 MON#5", ""),
        (
            "0 0 */10 * *",
            "01-01 01-11 01-21 01-31 02-01 02-11 02-21 03-01 03-11 03-21 03-31 04-01 04-11 04-21",
        ),
    ],
)
def test_special_days_of_the_month_and_week(line: str, expected: str) -> None:
    assert days(cron(line), "2024-01-01T00:00Z", "2024-05-01T00:00Z") == expected.split()


def test_the_nearest_weekday_never_leaves_its_month() -> None:
    # 2024-06-01 is a Saturday, 2024-06-30 a Sunday.
    assert days(cron("0 0 1W 6 *"), "2024-06-01T00:00Z", "2024-07-01T00:00Z") == ["06-03"]
    assert days(cron("0 0 30W 6 *"), "2024-06-01T00:00Z", "2024-07-01T00:00Z") == ["06-28"]


@pytest.mark.parametrize("sunday", ["0", "7", "SUN", "sun", "7,0", "7-7"])
def test_sunday_has_several_names(sunday: str) -> None:
    assert days(cron(f"0 0 * * {sunday}"), "2024-01-01T00:00Z", "2024-01-20T00:00Z") == ["01-07", "01-14"]


@pytest.mark.parametrize(
    "alias, line",
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        (" @Midnight ", "0 0 * * *"),
        ("@HOURLY", "0 * * * *"),
    ],
)
def test_an_alias_is_its_line(alias: str, line: str) -> None:
    until = Millis(NEW_YEAR + 800 * DAY)
    assert list(cron(alias).between(NEW_YEAR, until)) == list(cron(line).between(NEW_YEAR, until))
    assert cron(alias).expr == alias.strip().lower()


def test_a_leap_day_is_found_over_the_year_2100() -> None:
    schedule = cron("0 0 29 2 *")
    assert schedule.next_after(Millis(ms(utc("2096-03-01T00:00Z")))) == ms(utc("2104-02-29T00:00Z"))
    assert schedule.latest_at(Millis(ms(utc("2104-02-28T00:00Z")))) == ms(utc("2096-02-29T00:00Z"))
    # A leap day on a weekend: */6 is Sunday and Saturday, and its star makes it an AND.
    weekend = cron("0 0 29 2 */6")
    assert weekend.next_after(Millis(ms(utc("2024-01-01T00:00Z")))) == ms(utc("2032-02-29T00:00Z"))


# -- what is refused -------------------------------------------------------------------------------

REFUSED_CRON = [
    ("0 0 30 2 *", "day of month"),
    ("0 0 31 2 *", "day of month"),
    ("0 0 30,31 2 *", "day of month"),
    ("0 0 31 4 *", "day of month"),
    ("0 0 31 2,4,6,9,11 *", "day of month"),
    ("0 0 31 2-4/2 *", "day of month"),
    ("0 0 30-31 FEB *", "day of month"),
    ("0 0 31 NOV *", "day of month"),
    ("*/5 * 31 6 *", "day of month"),
    ("0 0 31 2 */2", "day of month"),
    ("R * * * *", "minute"),
    ("0 R * * *", "hour"),
    ("R(0-5) * * * *", "minute"),
    ("0 0 R * *", "day of month"),
    ("H * * * *", "minute"),
    ("0 H(8-17) * * *", "hour"),
    ("0 0 ? * *", "day of month"),
    ("0 0 * * ?", "day of week"),
    ("0 0 * * * *", "6 fields"),
    ("0 0 * * * 0 2030", "7 fields"),
    ("* * * *", "4 fields"),
    ("", "0 fields"),
    ("0 22-2 * * *", "hour"),
    ("50-10 * * * *", "minute"),
    ("0 0 20-5 * *", "day of month"),
    ("0 0 * NOV-FEB *", "month"),
    ("0 0 * * FRI-MON", "day of week"),
    ("0 0 * * SAT-SUN", "day of week"),
    ("0 0 * * 7-1", "day of week"),
    ("１ * * * *", "character"),
    ("٣ * * * *", "character"),
    ("0\u00a00 * * *", "character"),
    ("0 0 * *\u00a0*", "character"),
    ("0 0 *\x00 * *", "character"),
    ("0 0 * *\n*", "character"),
    ("1_0 * * * *", "minute"),
    ("+5 * * * *", "minute"),
    ("-5 * * * *", "minute"),
    ("5- * * * *", "minute"),
    ("1--5 * * * *", "minute"),
    ("60 * * * *", "minute"),
    ("99999999999999999999 * * * *", "minute"),
    ("0 24 * * *", "hour"),
    ("0 0 0 * *", "day of month"),
    ("0 0 32 * *", "day of month"),
    ("0 0 * 0 *", "month"),
    ("0 0 * 13 *", "month"),
    ("0 0 * FOO *", "month"),
    ("0 0 * MON *", "month"),
    ("0 0 * * 8", "day of week"),
    ("0 0 * * JAN", "day of week"),
    ("0 0 * * MONDAY", "day of week"),
    ("*/0 * * * *", "minute"),
    ("*/100 * * * *", "minute"),
    ("*/61 * * * *", "minute"),
    ("0 */25 * * *", "hour"),
    ("0 0 */32 * *", "day of month"),
    ("0 0 * */13 *", "month"),
    ("0 0 * * */8", "day of week"),
    ("*/ * * * *", "minute"),
    ("/5 * * * *", "minute"),
    ("1-5/2/3 * * * *", "minute"),
    ("*-5 * * * *", "minute"),
    ("1,,2 * * * *", "minute"),
    (", * * * *", "minute"),
    ("** * * * *", "minute"),
    ("1.5 * * * *", "minute"),
    ("0 0 L * MON", "day of month"),
    ("0 0 L * */2", "day of month"),
    ("0 0 15W * 1", "day of month"),
    ("0 0 1 * MON#1", "day of week"),
    ("0 0 15 * FRI#2", "day of week"),
    ("0 0 L * L5", "day of month"),
    ("0 0 */2 * L5", "day of week"),
    ("0 0 L-3 * *", "day of month"),
    ("0 0 1-L * *", "day of month"),
    ("0 0 LW * *", "day of month"),
    ("0 0 W * *", "day of month"),
    ("0 0 0W * *", "day of month"),
    ("0 0 32W * *", "day of month"),
    ("0 0 15W,20 * *", "day of month"),
    ("0 0 * 1W *", "month"),
    ("L * * * *", "minute"),
    ("0 0 * * L", "day of week"),
    ("0 0 * * 5L", "day of week"),
    ("0 0 * * L9", "day of week"),
    ("0 0 * * 5#0", "day of week"),
    ("0 0 * * 5#6", "day of week"),
    ("0 0 * * 5#", "day of week"),
    ("0 0 * * #2", "day of week"),
    ("0 0 * * 5#2,5", "day of week"),
    ("0 0 * * 0-6,5#2", "day of week"),
    ("0 0 * * MON-FRI#2", "day of week"),
    ("0#2 0 * * *", "minute"),
    ("@reboot", "alias"),
    ("@every 5m", "alias"),
    ("@", "alias"),
    ("0 " * 200, "256"),
]


@pytest.mark.parametrize("line, culprit", REFUSED_CRON)
def test_a_line_that_cannot_be_trusted_is_refused_with_the_field_named(line: str, culprit: str) -> None:
    with pytest.raises(BadSchedule) as caught:
        cron(line)
    assert caught.value.field == "cron"
    assert caught.value.code == Exit.USAGE
    assert culprit in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


ODD_ZONES = ["", " ", "Europe/Berlin\n", "Europe/Berl\x00in", "\ud800", "A" * 5000]
BAD_ZONES = """utc Mars/Olympus ../x /etc/localtime Europe/../Europe/Berlin Europe//Berlin Europe localtime
posixrules posix/UTC right/UTC Ｅurope/Berlin tzdata.zi Europe/berlin +02:00 EST5EDT4,M3"""


@pytest.mark.parametrize("zone", [*ODD_ZONES, *BAD_ZONES.split()])
def test_an_unknown_zone_is_refused_for_every_kind(zone: str) -> None:
    kinds = {"cron": "* * * * *", "daily_at": "07:00", "every": "5m", "at": "2024-01-01T00:00Z", "manual": ""}
    for kind, expr in kinds.items():
        with pytest.raises(BadSchedule) as caught:
            parse(kind, expr, zone, anchor_at=NEW_YEAR)  # type: ignore[arg-type]
        assert caught.value.field == "timezone"
        assert caught.value.message.isprintable()


BAD_TIMES = "7 24:00 12:60 -1:00 007:00 7:5 7:05:00 ٠٧:٠٥ 07:05pm 7.05 : +7:05"


@pytest.mark.parametrize("text", ["", *BAD_TIMES.split()])
def test_a_bad_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(BadSchedule) as caught:
        parse("daily_at", text, anchor_at=NEW_YEAR)
    assert caught.value.field == "daily_at"


ODD_DURATIONS = ["", "5 m", "9" * 30, "9" * 5000 + "d", "5\x00"]
BAD_DURATIONS = "0 0s -5 +5 1.5h m 5w 5M 1h30m ٣m 1_0 1e3 3651d inf"


@pytest.mark.parametrize("text", [*ODD_DURATIONS, *BAD_DURATIONS.split()])
def test_a_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(BadSchedule) as caught:
        parse("every", text, anchor_at=NEW_YEAR)
    assert caught.value.field == "every"
    with pytest.raises(UsageError) as plain:
        parse_duration(text, field="--spread")
    assert plain.value.field == "--spread"
    assert plain.value.message.startswith("--spread: ")


BAD_INSTANTS = """now tomorrow 2024-03-31 2024-W13-7 02:30 2024-02-30T00:00 2024-03-31T25:00
0001-01-01T00:00+14:00 9999-12-31T23:59:59-14:00 1970-01-01T00:00Z ２024-03-31T00:00"""


@pytest.mark.parametrize("text", ["", "x" * 9000, *BAD_INSTANTS.split()])
def test_a_bad_instant_is_refused(text: str) -> None:
    with pytest.raises(BadSchedule) as caught:
        parse("at", text, "Europe/Berlin", anchor_at=NEW_YEAR)
    assert caught.value.field == "at"
    assert len(caught.value.message) < 200


ANYTHING = "0 1 2 5 7 9 * / - , L W # ? R H @ MON FRI JAN feb 31 59 */5 1-5 é ٣ 15W"
LIKELY = "* * * */5 0 1-5 1,15 31 30 2 5-5 */2 7 1-7/3"


def made_up_line(dice: random.Random) -> str:
    """A line of five likely fields, or, every other time, of whatever comes to hand."""
    if dice.random() < 0.5:
        tokens = [" ", "\t", *ANYTHING.split()]
        return "".join(dice.choice(tokens) for _ in range(dice.randint(1, 30)))
    plain = LIKELY.split()
    special = [["L", "15W", "1,L"], ["FEB", "JAN-MAR", "11"], ["MON#1", "L5", "MON-FRI", "sun,wed"]]
    fields = [dice.choice(plain) for _ in range(2)]
    return " ".join(fields + [dice.choice(plain + more) for more in special])


def test_thousands_of_made_up_lines_either_work_or_are_refused_and_quickly() -> None:
    dice = random.Random(20_240_331)
    slowest, understood = 0.0, 0
    for _ in range(2_000):
        line, zone = made_up_line(dice), dice.choice(["UTC", "Europe/Berlin", "Pacific/Apia"])
        started = time.process_time()
        try:
            schedule = cron(line, zone)
        except BadSchedule:
            schedule = None
        if schedule is not None:
            slot = schedule.next_after(NEW_YEAR)
            assert slot is not None, line
            assert slot > NEW_YEAR, line
            assert schedule.latest_at(slot) == slot, line
            understood += 1
        slowest = max(slowest, time.process_time() - started)
    assert understood > 300
    assert slowest < 0.1


# -- the other kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, stored", [("7:05", "07:05"), (" 07:05 ", "07:05"), ("00:00", "00:00"), ("23:59", "23:59")]
)
def test_a_time_of_day_is_stored_in_full(text: str, stored: str) -> None:
    schedule = parse("daily_at", text, anchor_at=NEW_YEAR)
    assert (schedule.expr, schedule.compiled) == (stored, None)
    slot = schedule.next_after(NEW_YEAR)
    assert slot is not None
    assert time.strftime("%H:%M", time.gmtime(slot / 1000)) == stored


@pytest.mark.parametrize(
    "text, stored, seconds",
    [("90", "90s", 90), ("90s", "90s", 90), (" 15m ", "15m", 900), ("2h", "2h", 7200)],
)
def test_an_interval_counts_from_its_anchor(text: str, stored: str, seconds: int) -> None:
    anchor = Millis(NEW_YEAR + 123)
    schedule = parse("every", text, "Europe/Berlin", anchor_at=anchor)
    assert schedule.expr == stored
    period = seconds * 1000
    assert list(islice(schedule.between(Millis(0), Millis(anchor + DAY)), 3)) == [
        anchor + period,
        anchor + 2 * period,
        anchor + 3 * period,
    ]
    assert schedule.latest_at(Millis(anchor + period - 1)) is None
    assert schedule.latest_at(Millis(anchor + period)) == anchor + period
    assert schedule.next_after(Millis(anchor + period)) == anchor + 2 * period
    assert schedule.newest(Millis(anchor + 5), Millis(anchor + 10 * period), limit=2) == [
        anchor + 9 * period,
        anchor + 10 * period,
    ]
    assert schedule.count(anchor, Millis(anchor + 10 * period), limit=4) == 4


def test_an_interval_is_not_bent_by_a_clock_change() -> None:
    schedule = parse("every", "1d", "Europe/Berlin", anchor_at=Millis(ms(utc("2024-03-30T12:00Z"))))
    assert schedule.next_after(Millis(ms(utc("2024-03-31T00:00Z")))) == ms(utc("2024-03-31T12:00Z"))


def test_a_single_instant_is_its_one_slot() -> None:
    schedule = parse("at", "2024-03-01 09:00:00.250+01:00", anchor_at=NEW_YEAR)
    slot = ms(utc("2024-03-01T08:00Z")) + 250
    assert schedule.expr == "2024-03-01T08:00:00.250Z"
    assert parse("at", schedule.expr, "Asia/Tokyo", anchor_at=NEW_YEAR).next_after(NEW_YEAR) == slot
    assert (schedule.next_after(Millis(slot - 1)), schedule.next_after(Millis(slot))) == (slot, None)
    assert (schedule.latest_at(Millis(slot)), schedule.latest_at(Millis(slot - 1))) == (slot, None)
    assert schedule.newest(Millis(0), Millis(slot), limit=5) == [slot]
    assert schedule.count(Millis(slot), Millis(slot + 1), limit=5) == 0


def test_a_manual_job_never_fires() -> None:
    schedule = parse("manual", "", anchor_at=NEW_YEAR)
    assert schedule.expr == ""
    assert schedule.next_after(Millis(0)) is None
    assert schedule.latest_at(NEW_YEAR) is None
    assert schedule.count(Millis(0), NEW_YEAR, limit=10) == 0
    assert schedule.newest(Millis(0), NEW_YEAR, limit=10) == []
    assert list(schedule.between(Millis(0), NEW_YEAR)) == []


@pytest.mark.parametrize(
    "text, seconds",
    [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86_400), ("3650d", 315_360_000)],
)
def test_a_duration_is_whole_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text, field="--for") == seconds


def test_spread_is_stable_and_within_its_bounds() -> None:
    assert spread_offset_ms("nightly", 0) == 0
    assert spread_offset_ms("nightly", 300) == spread_offset_ms("nightly", 300) == 6_000
    offsets = [spread_offset_ms(f"job-{number}", 60) for number in range(600)]
    assert set(offsets) == {second * 1000 for second in range(60)}


# -- what is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, expr", [("cron", "*/5 * * * *"), ("daily_at", "02:30"), ("every", "7m")])
def test_empty_and_odd_ranges_hold_nothing(kind: str, expr: str) -> None:
    schedule = parse(kind, expr, "Europe/Berlin", anchor_at=Millis(0))  # type: ignore[arg-type]
    later = Millis(NEW_YEAR + DAY)
    for after, until in ((NEW_YEAR, NEW_YEAR), (later, NEW_YEAR)):
        assert schedule.count(after, until, limit=10) == 0
        assert schedule.newest(after, until, limit=10) == []
        assert list(schedule.between(after, until)) == []
    assert schedule.newest(NEW_YEAR, later, limit=0) == []
    assert schedule.count(NEW_YEAR, later, limit=0) == 0


def test_the_ends_of_time_are_quiet() -> None:
    schedule = cron("0 0 * * *", "America/New_York")
    first, end = schedule.next_after(Millis(-(10**15))), Millis(ms(utc("2200-01-01T00:00Z")))
    assert first == ms(utc("1970-01-01T05:00Z"))
    assert schedule.latest_at(Millis(first - 1)) is None
    assert schedule.next_after(end) is None
    assert schedule.next_after(Millis(10**17)) is None
    last = schedule.latest_at(Millis(10**17))
    assert last is not None
    assert end - DAY < last < end
    assert schedule.count(Millis(-(10**15)), Millis(10**17), limit=10**6) == 84_006
    assert cron("* * * * *").count(Millis(0), end, limit=10**9) == end // 60_000 - 1


def test_a_year_of_outage_is_counted_without_stepping_through_it() -> None:
    for zone in ("UTC", "Europe/Berlin"):
        schedule = cron("* * * * *", zone)
        until = Millis(NEW_YEAR + 366 * DAY)
        started = time.process_time()
        assert schedule.count(NEW_YEAR, until, limit=10_000) == 10_000
        assert schedule.count(NEW_YEAR, until, limit=10**9) == 366 * 1440
        newest = schedule.newest(NEW_YEAR, until, limit=10_000)
        assert schedule.latest_at(until) == newest[-1] == until
        assert time.process_time() - started < 0.2
        assert newest[0] == until - 9_999 * 60_000


def test_a_schedule_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        cron("* * * * *").expr = "0 0 * * *"  # type: ignore[misc]


# -- what is stored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, stored",
    [(" 0\t0  *  * mon-fri ", "0 0 * * MON-FRI"), ("@Daily\n", "@daily"), ("0 0 * jan L5", "0 0 * JAN L5")],
)
def test_an_expression_has_one_spelling(written: str, stored: str) -> None:
    assert cron(written).expr == stored


LINES = ["*/5 1-3 * * MON-FRI", "@weekly", "0 0 L * *", "0 0 1,L 2,4 *", "0 0 15W * *"]
LINES += ["0 0 * * FRI#2,L1", "0 0 1 * 1"]


@pytest.mark.parametrize("line", LINES)
def test_compiled_fields_give_the_same_schedule(line: str) -> None:
    fresh = cron(line, "Europe/Berlin")
    again = parse("cron", line, "Europe/Berlin", anchor_at=NEW_YEAR, compiled=fresh.compiled)
    until = Millis(NEW_YEAR + 500 * DAY)
    assert again.compiled == fresh.compiled
    assert list(again.between(NEW_YEAR, until)) == list(fresh.between(NEW_YEAR, until))


def test_compiled_fields_are_short_and_can_be_read() -> None:
    assert cron("30 2 * * mon-fri").compiled == "30 2 * * MON-FRI = 40000000 4 fffffffe 1ffe 3e"


@pytest.mark.parametrize(
    "stale",
    [
        "",
        "30 2 * * *",
        "30 3 * * * = 40000000 8 fffffffe 1ffe 7f",
        "30 2 * * * = ",
        "30 2 * * * = 40000000 4 fffffffe 1ffe",
        "30 2 * * * = 40000000 4 fffffffe 1ffe 7f 7f",
        "30 2 * * * = 0 4 fffffffe 1ffe 7f",
        "30 2 * * * = 40000000 4 0 1ffe 0",
        "30 2 * * * = 40000000 4 fffffffe 0 7f",
        "30 2 * * * = -1 4 fffffffe 1ffe 7f",
        "30 2 * * * = ffffffffffffffffffff 4 fffffffe 1ffe 7f",
        "30 2 * * * = 40000000 four fffffffe 1ffe 7f",
        "\x00",
    ],
)
def test_a_stale_or_damaged_compiled_text_is_ignored(stale: str) -> None:
    schedule = parse("cron", "30 2 * * *", anchor_at=NEW_YEAR, compiled=stale)
    assert schedule.compiled == "30 2 * * * = 40000000 4 fffffffe 1ffe 7f"
    assert schedule.next_after(NEW_YEAR) == ms(utc("2024-01-01T02:30Z"))


def test_stored_fields_need_no_parser_and_utc_no_zone_data() -> None:
    program = """
import sys
from carolctl.schedule import parse
for line in (sys.argv[1], "@daily"):
    compiled = {"@daily": "@daily = 1 1 fffffffe 1ffe 7f"}.get(line, sys.argv[2])
    assert parse("cron", line, anchor_at=0, compiled=compiled).next_after(0)
assert parse("daily_at", "02:30", anchor_at=0).next_after(0)
assert parse("every", "5m", anchor_at=0).next_after(0)
print(sorted({"croniter", "dateutil", "zoneinfo", "json", "requests"} & set(sys.modules)))
berlin = parse("cron", "@daily", "Europe/Berlin", anchor_at=0, compiled="@daily = 1 1 fffffffe 1ffe 7f")
assert berlin.next_after(0)
print("croniter" in sys.modules, "dateutil" in sys.modules)
parse("cron", "1 * * * *", anchor_at=0)
print("croniter" in sys.modules)
"""
    line = "30 2 * * MON-FRI"
    compiled = cron(line).compiled
    assert compiled is not None
    ran = subprocess.run(
        [sys.executable, "-c", program, line, compiled],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout.split("\n"), ran.stderr) == (["[]", "False False", "True", ""], "")
