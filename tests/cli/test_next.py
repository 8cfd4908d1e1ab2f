"""next: when an expression fires, without any job store."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import Carol, Result
from tests.unit.test_schedule import made_up_line

Inside = Callable[..., Result]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["0 3 * * *"], ["2026-03-28T03:00:00Z", "2026-03-29T03:00:00Z", "2026-03-30T03:00:00Z"]),
        (["@hourly"], ["2026-03-28T01:00:00Z", "2026-03-28T02:00:00Z", "2026-03-28T03:00:00Z"]),
        (["23:59"], ["2026-03-28T23:59:00Z", "2026-03-29T23:59:00Z", "2026-03-30T23:59:00Z"]),
        (
            ["30 2 * * *", "--timezone", "Europe/Berlin"],
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        ),
        (
            ["30 2 * * *", "--timezone", "Europe/Berlin", "--dst-rule", "literal"],
            ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"],
        ),
    ],
)
def test_the_next_times_follow_the_zone(inside: Inside, arguments: list[str], expected: list[str]) -> None:
    answer = inside("next", *arguments, "--after", "2026-03-28T00:00:00", "--count", "3", "--json")
    assert answer.code == 0, answer.err
    assert answer.json()["next"] == expected


def test_the_document_names_expression_and_zone_and_the_count_is_five(inside: Inside) -> None:
    document = inside("next", " 0  3 * * mon ", "--json").json()
    assert (document["expr"], document["timezone"]) == ("0 3 * * MON", "UTC")
    assert len(document["next"]) == 5


def test_after_may_carry_an_offset_and_is_exclusive(inside: Inside) -> None:
    answer = inside("next", "0 * * * *", "--after", "2026-01-01T01:00:00+01:00", "--count", "1", "--json")
    assert answer.json()["next"] == ["2026-01-01T01:00:00Z"]


def test_people_see_both_clocks_side_by_side(inside: Inside) -> None:
    answer = inside(
        "next", "30 2 * * *", "--timezone", "Europe/Berlin", "--after", "2026-03-28T12:00Z", "--count", "2"
    )
    assert [line.split("  ") for line in answer.out.splitlines()[1:]] == [
        ["Sun 2026-03-29 01:00Z", "Sun 2026-03-29 03:00 CEST"],
        ["Mon 2026-03-30 00:30Z", "Mon 2026-03-30 02:30 CEST"],
    ]


def test_without_after_it_counts_from_now(carol: Carol) -> None:
    answer = carol("next", "@daily", "--count", "1", "--json", CAROL_NOW="2026-05-05T05:05:05Z")
    assert answer.json()["next"] == ["2026-05-06T00:00:00Z"]
    assert "rehearsal" in answer.err


def test_ten_thousand_times_are_soon_there(inside: Inside) -> None:
    times = inside(
        "next", "*/7 * * * *", "--timezone", "Australia/Lord_Howe", "--count", "10000", "--json"
    ).json()["next"]
    assert len(set(times)) == 10_000
    assert times == sorted(times)


def test_no_store_is_made_or_needed(inside: Inside, home: Path) -> None:
    assert inside("next", "@daily").code == 0
    assert not home.exists()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["61 * * * *"], "cron: minute"),
        (["0 0 30 2 *"], "cron: day of month"),
        (["* * * * * *"], "cron: 6 fields"),
        (["25:00"], "daily_at: "),
        (["every 5m"], "cron: "),
        ([""], "cron: "),
        (["@daily", "--timezone", "Nowhere"], "timezone: no such zone"),
        (["@daily", "--after", "yesterday"], "after: not an ISO 8601 time"),
        (["@daily", "--dst-rule", "x"], "dst_rule: "),
        (["@daily", "--count", "0"], "Invalid value for '--count'"),
        (["@daily", "--count", "10001"], "Invalid value for '--count'"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_meant_is_refused(inside: Inside, arguments: list[str], complaint: str) -> None:
    answer = inside("next", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"carolctl: {complaint}")
    assert answer.err.count("\n") == 1


def test_two_thousand_made_up_lines_each_give_times_or_one_clear_line(inside: Inside) -> None:
    dice = random.Random(20_261_121)
    codes = []
    for _ in range(2_000):
        line = made_up_line(dice)
        # Behind a dash the line would be read as an option, as it would in a shell.
        answer = inside("next", "--count", "1", "--", line)
        codes.append(answer.code)
        if answer.code == 0:
            assert len(answer.out.splitlines()) == 2, line
            assert answer.err == "", line
        else:
            assert (answer.code, answer.out) == (2, ""), (line, answer)
            [said] = answer.err.splitlines()
            assert said.startswith("carolctl: "), line
            assert "Traceback" not in said, line
            assert said.isprintable(), line
    assert 300 < codes.count(0) < 1_700
