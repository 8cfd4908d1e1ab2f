"""collision-check: against a brute force, as data and as pictures; its suggestions; what saving a job warns of."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from zlib import crc32

import pytest

from carolctl import collisions, forecast, schedule
from carolctl.cli import heatmap_svg
from tests import builders
from tests.builders import T0, Result, at, job
from tests.unit.cron_oracle import Oracle

Inside = Callable[..., Result]
NOON = "2026-03-28T12:00:00Z"


@pytest.fixture
def check(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """collision-check, in this process, on the day before Europe's clocks change."""
    monkeypatch.setenv("CAROL_NOW", NOON)
    return lambda *arguments: inside("collision-check", *arguments)


def swarm(home: Path, **columns: Any) -> None:
    """Five jobs of 2,520 turns at three in the morning."""
    jobs = [job(f"swarm-{n}", cron="0 3 * * *", avg_turns_per_firing=2520.0, **columns) for n in range(1, 6)]
    builders.add_jobs(home, *jobs)


# -- what collides ---------------------------------------------------------------------------------------------


def test_five_schedules_at_once_are_one_warning_with_its_minutes_and_turns(check: Inside, home: Path) -> None:
    swarm(home)
    answer = check("--json")
    assert answer.code == 0, answer.err
    document = answer.json()
    names = [f"swarm-{n}" for n in range(1, 6)]
    assert document["warnings"] == [
        {
            "type": "cron_collision",
            "overlapping_schedules": names,
            "overlapping_minutes": [180],
            "estimated_concurrent_steps": 12_600,
        }
    ]
    assert document["peaks"] == [
        {"start": "2026-03-29T03:00:00Z", "minute": 180, "turns": 12_600, "schedules": names}
    ]
    assert (document["threshold"], document["horizon_sec"], document["unmeasured"]) == (3000, 86_400, 0)
    assert check("--json").out == answer.out


@pytest.mark.parametrize(
    "jobs, found",
    [
        ([job("a", daily_at="03:00"), job("b", daily_at="15:00")], []),
        ([job("a", daily_at="03:00"), job("b", daily_at="03:04")], [180]),
        ([job("a", daily_at="03:04"), job("b", daily_at="03:05")], []),
        ([job("a", daily_at="03:00"), job("b", daily_at="03:00", status="paused")], []),
        ([job("a", daily_at="03:00"), job("b", manual=True)], []),
        ([job("a", daily_at="03:00")], []),
        ([job("a", daily_at="03:00"), job("b", daily_at="05:00", timezone="Europe/Berlin")], [180]),
        ([job("a", daily_at="12:00"), job("b", once_at="2026-03-29T11:59:00Z")], []),
        ([job("a", daily_at="23:55"), job("b", once_at="2026-03-28T23:59:30Z")], [1435]),
    ],
)  # fmt: skip
def test_schedules_collide_within_the_same_five_minutes_of_the_day(
    check: Inside, home: Path, jobs: list[Any], found: list[int]
) -> None:
    builders.add_jobs(home, *jobs)
    document = check("--json", "--threshold", "99").json()
    assert [warning["overlapping_minutes"] for warning in document["warnings"]] == ([found] if found else [])


def test_the_threshold_must_be_exceeded_and_is_a_setting(check: Inside, home: Path, inside: Inside) -> None:
    builders.add_jobs(
        home, job("a", daily_at="03:00", max_turns=1499), job("b", daily_at="03:00", max_turns=1501)
    )
    assert check("--json").json()["warnings"] == []
    inside("config", "set", "collision.threshold_turns", "2999")
    assert len(check("--json").json()["warnings"]) == 1
    assert check("--json", "--threshold", "3000").json()["warnings"] == []


def test_a_firing_weighs_its_average_else_its_budget_else_the_setting(
    check: Inside, home: Path, inside: Inside
) -> None:
    builders.add_jobs(
        home,
        job("measured", daily_at="03:00", max_turns=900, avg_turns_per_firing=7.25),
        job("budgeted", daily_at="04:00", max_turns=900),
        job("unknown", daily_at="05:00"),
        job("minutely", cron="0-9 6 * * *", avg_turns_per_firing=10.0),
    )
    inside("config", "set", "collision.default_turns", "40")
    document = check("--json").json()
    peaks = {peak["minute"]: peak["turns"] for peak in document["peaks"]}
    # A job that fires five times in a bucket weighs five times.
    assert [peaks[minute] for minute in (180, 240, 300, 360)] == [7.25, 900, 40, 50]
    assert document["unmeasured"] == 2


def test_a_project_alone_and_jobs_left_out(check: Inside, home: Path) -> None:
    swarm(home, project="night")
    builders.add_jobs(home, job("other", cron="0 3 * * *", avg_turns_per_firing=5.0))
    [all_of_them] = check("--json").json()["warnings"]
    assert len(all_of_them["overlapping_schedules"]) == 6
    [night] = check("--json", "--project", "night", "--exclude", "swarm-1").json()["warnings"]
    assert night["overlapping_schedules"] == [f"swarm-{n}" for n in range(2, 6)]
    assert check("--json", "--exclude", "nobody").code == 66


def test_buckets_with_the_same_schedules_are_one_warning_each_minute_of_the_day_once(
    check: Inside, home: Path
) -> None:
    builders.add_jobs(
        home, job("a", cron="0 */12 * * *"), job("b", cron="1 0,12 * * *"), job("c", daily_at="12:02")
    )
    warnings = check("--json", "--threshold", "60", "--horizon", "3d").json()["warnings"]
    assert [(w["overlapping_schedules"], w["overlapping_minutes"]) for w in warnings] == [
        (["a", "b", "c"], [720]),
        (["a", "b"], [0]),
    ]


# -- a candidate -----------------------------------------------------------------------------------------------


def test_a_candidate_is_checked_with_its_zone_and_turns(check: Inside, home: Path) -> None:
    builders.add_jobs(home, job("a", daily_at="03:00", avg_turns_per_firing=2000.0))
    arguments = ("--json", "--daily-at", "05:00", "--timezone", "Europe/Berlin")
    [warning] = check(*arguments, "--avg-turns", "1001").json()["warnings"]
    assert warning["overlapping_schedules"] == ["(candidate)", "a"]
    assert warning["estimated_concurrent_steps"] == 3001
    assert check(*arguments).json()["warnings"] == []


def test_a_candidate_takes_the_spread_of_the_job_whose_place_it_takes(check: Inside, home: Path) -> None:
    builders.add_jobs(home, job("mine", daily_at="03:00"))
    answer = check("--json", "--daily-at", "03:00", "--spread", "2h", "--exclude", "mine")
    [peak] = answer.json()["peaks"]
    assert peak["minute"] == (180 * 60 + crc32(b"mine") % 7200) // 300 * 5
    assert "is taken as 0" in check("--json", "--daily-at", "03:00", "--spread", "2h").err


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--cron", "61 * * * *"], "cron: minute"),
        (["--cron", "* * * * *", "--every", "5m"], "every: a job has one schedule"),
        (["--timezone", "Europe/Berlin"], "timezone: is for a candidate"),
        (["--avg-turns", "5"], "avg_turns: is for a candidate"),
        (["--avg-turns", "-5", "--every", "5m"], "Invalid value"),
        (["--every", "5m", "--dst-rule", "twice"], "dst_rule: "),
        (["--horizon", "32d"], "horizon: "),
        (["--horizon", "0"], "horizon: "),
        (["--threshold", "x"], "Invalid value"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    check: Inside, home: Path, arguments: list[str], complaint: str
) -> None:
    builders.add_jobs(home, job())
    answer = check(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert f"carolctl: {complaint}" in answer.err


def test_strict_is_exit_1_when_there_is_a_warning(check: Inside, home: Path) -> None:
    swarm(home)
    assert [check().code, check("--strict").code, check("--strict", "--threshold", "99999").code] == [0, 1, 0]


# -- against a brute force -------------------------------------------------------------------------------------

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
)


def fleet(dice: random.Random) -> list[Any]:
    """200 jobs in six zones, most of them in the small hours, some with a spread."""
    jobs = []
    for number in range(200):
        minute = dice.choice(["0", "0", "30", "*/15", "*/20", "7,37", str(dice.randrange(60)), "*"])
        hour = dice.choice(["*", "*/2", "1", "2", "2,3", "0-4", str(dice.randrange(24))])
        day = dice.choice(["* * *", "* * *", "* * *", "*/2 * *", "* * SUN", "29 * SAT"])
        columns: dict[str, Any] = {
            "timezone": dice.choice(ZONES),
            "dst_rule": dice.choice(["once", "once", "literal"]),
        }
        spread = dice.choice([0, 0, 900])
        turns = dice.choice([10.0, 100.5, 400.0])
        jobs.append(
            job(f"job-{number:03}", cron=f"{minute} {hour} {day}", spread_sec=spread,
                avg_turns_per_firing=turns, **columns)
        )  # fmt: skip
    return jobs


def brute(jobs: list[Any], start: datetime, threshold: int) -> list[dict[str, Any]]:
    """The warnings of one day, by reading the clock minute by minute."""
    turns: dict[int, float] = defaultdict(float)
    names: dict[int, set[str]] = defaultdict(set)
    end = start + timedelta(days=1)
    for one in jobs:
        offset = timedelta(seconds=crc32(one.job_id.encode()) % one.spread_sec if one.spread_sec else 0)
        slots = Oracle(one.schedule_expr).slots(
            one.timezone, start - timedelta(hours=1), end, literal=one.dst_rule == "literal"
        )
        for fires in (slot + offset for slot in slots):
            if start <= fires < end:
                minute = int((fires - start).total_seconds()) // 300 * 5 + start.hour * 60
                turns[minute % 1440] += one.avg_turns_per_firing
                names[minute % 1440].add(one.job_id)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for minute in sorted(turns):
        if turns[minute] > threshold and len(names[minute]) > 1:
            groups[tuple(sorted(names[minute]))].append(minute)
    return [
        {
            "type": "cron_collision",
            "overlapping_schedules": list(who),
            "overlapping_minutes": minutes,
            "estimated_concurrent_steps": max(turns[minute] for minute in minutes),
        }
        for who, minutes in groups.items()
    ]


@pytest.mark.parametrize(
    "day", ["2026-03-28T20", "2026-10-24T20", "2026-04-04T12", "2026-03-08T04", "2026-06-10T00"]
)
def test_200_jobs_in_six_zones_are_as_a_minute_count_has_them_when_clocks_change_too(
    inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch, day: str
) -> None:
    jobs, start = fleet(random.Random(day)), datetime.fromisoformat(day).replace(tzinfo=UTC)
    builders.add_jobs(home, *jobs)
    monkeypatch.setenv("CAROL_NOW", f"{day}:03:30Z")
    found = inside("collision-check", "--json", "--threshold", "1500").json()["warnings"]
    expected = brute(jobs, start, 1500)
    assert len(expected) > 5
    order = [(-w["estimated_concurrent_steps"], w["overlapping_schedules"]) for w in found]
    assert order == sorted(order)
    assert found == sorted(
        expected, key=lambda w: (-w["estimated_concurrent_steps"], w["overlapping_schedules"])
    )


# -- suggestions -----------------------------------------------------------------------------------------------

_HEAVY = {"avg_turns_per_firing": 2520.0}


def since(moment: str) -> dict[str, Any]:
    """An anchor on the day before the check."""
    return {"anchor_at": at(f"2026-03-28T{moment}Z")}


@pytest.mark.parametrize(
    "schedules",
    [
        [{"cron": "0 3 * * *"}] * 3,
        [{"daily_at": "03:00"}, {"daily_at": "05:00", "timezone": "Europe/Berlin"}],
        [{"every": "1h", **since("00:20:00")}, {"every": "4h", **since("01:20:10")}],
        [{"cron": "*/20 3 * * *"}, {"cron": "@hourly"}],
        [{"cron": "*/10 * * * *", "avg_turns_per_firing": 500.0}, {"every": "20m", **since("00:00:00")}],
        [{"cron": "0 3,9 * * *"}, {"daily_at": "03:00"}, {"daily_at": "09:00", "spread_sec": 10}],
    ],
)  # fmt: skip
def test_a_suggestion_that_is_followed_brings_exactly_what_it_promised(
    check: Inside, home: Path, inside: Inside, schedules: list[dict[str, Any]]
) -> None:
    builders.add_jobs(home, *(job(f"job-{n}", **(_HEAVY | given)) for n, given in enumerate(schedules)))
    before = check("--suggest", "--json").json()
    best = before["suggestion"]
    assert best["peak_before"] == before["peaks"][0]["turns"]
    assert (best["peak_after"], best["collisions_after"]) < (best["peak_before"], best["collisions_before"])
    assert best["command"].startswith(f"carolctl edit-job {best['job']} --")
    assert inside("edit-job", best["job"], *best["options"]).code == 0
    after = check("--suggest", "--json").json()
    assert after["peaks"][0]["turns"] == best["peak_after"]
    assert best["peak_falls_by"] == best["peak_before"] - best["peak_after"]
    assert sum(len(w["overlapping_minutes"]) for w in after["warnings"]) == best["collisions_after"]
    shared = max((w["estimated_concurrent_steps"] for w in after["warnings"]), default=0)
    assert shared in (0, best["shared_peak_after"])


def test_a_candidate_is_moved_to_its_quietest_minute(check: Inside, home: Path, inside: Inside) -> None:
    swarm(home)
    builders.add_jobs(home, *(job(f"at-{m}", cron=f"{m} 9 * * *", max_turns=2600) for m in range(0, 55, 5)))
    arguments = ("--daily-at", "09:10", "--avg-turns", "1000", "--json")
    best = check(*arguments, "--suggest").json()["suggestion"]
    assert (best["job"], best["expr"], best["command"]) == (
        "(candidate)",
        "09:55",
        "--daily-at 09:55 --timezone UTC",
    )
    assert (best["own_peak_before"], best["own_peak_after"]) == (3600, 1000)
    after = check("--json", "--avg-turns", "1000", *best["options"]).json()
    assert len(after["warnings"]) == 1


def test_where_no_move_helps_none_is_suggested(check: Inside, home: Path) -> None:
    builders.add_jobs(home, *(job(f"minutely-{n}", cron="* * * * *", max_turns=700) for n in range(2)))
    answer = check("--suggest", "--json").json()
    assert (len(answer["warnings"]), answer["suggestion"]) == (1, None)
    assert "no move of one schedule" in check("--suggest").out
    assert "suggestion" not in check("--json").json()


# -- pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_map_has_a_line_for_each_hour_and_says_who_and_how_much(
    check: Inside, home: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    swarm(home)
    builders.add_jobs(home, job("noon", daily_at="12:35", max_turns=1000))
    monkeypatch.setenv("COLUMNS", columns)
    answer = check("--suggest")
    lines = answer.out.splitlines()
    hours = [line for line in lines if line[2:5] == ":00"]
    assert len(hours) == 24
    assert hours[3].split()[1] == "███"
    assert hours[3].split()[13] == "12,600"
    assert hours[12].split()[8] == "░░░"
    assert "█ over 3,000" in answer.out
    assert "WARNING: 1 collision" in answer.out
    assert "carolctl edit-job swarm-1 --cron '5 3 * * *'" in answer.out
    assert max(map(len, lines[1:])) <= int(columns)
    assert "\x1b" not in answer.out


def test_plain_ascii_stands_where_blocks_cannot(carol: builders.Carol, home: Path) -> None:
    swarm(home)
    environment = carol.environment(PYTHONIOENCODING="ascii", CAROL_NOW=NOON)
    command = [sys.executable, "-m", "carolctl", "collision-check"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    assert b"03:00  ###  ." in done.stdout
    assert done.stdout.isascii()


def test_on_a_terminal_the_shades_have_colours_unless_no_color_is_set(
    check: Inside, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm(home)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[31m███" in check().out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = check().out
    assert "███" in plain
    assert "\x1b[31m" not in plain


def test_the_plot_is_sound_svg_that_says_its_figures_and_runs_nothing(
    check: Inside, home: Path, tmp_path: Path
) -> None:
    swarm(home)
    picture = tmp_path / "day.svg"
    picture.write_text("old")
    assert check("--plot", str(picture)).code == 0
    text = picture.read_text()
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert [root.find(f"{space}{name}") is not None for name in ("title", "desc")] == [True, True]
    told = [title.text or "" for title in root.iterfind(f"{space}rect/{space}title")]
    assert len(told) == 288
    assert told[36] == "03:00Z: 12,600 turns: swarm-1, swarm-2, swarm-3, swarm-4, swarm-5"
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert [path.name for path in tmp_path.iterdir() if "svg" in path.name] == ["day.svg"]


def test_hostile_names_stay_text_in_the_plot() -> None:
    name, times = "</title><script>\"'&\x1b]0;", schedule.parse("daily_at", "03:00", anchor_at=T0)
    loads = [forecast.Load(name=each, schedule=times, weight=9000) for each in (name, "b")]
    expected = forecast.expand(loads, forecast.window(T0, 86_400))
    found = collisions.Check(
        forecast=expected,
        collisions=forecast.collisions(expected, 1000),
        threshold=1,
        horizon_sec=86_400,
        default_turns=0,
        unmeasured=0,
        unreadable=(),
        suggested=False,
        suggestion=None,
    )
    root = ElementTree.fromstring(heatmap_svg.svg(found))
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    told = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "03:00Z: 18 turns: </title><script>\"'&\\x1b]0;, b" in told


def test_a_plot_that_cannot_be_written_is_one_line_and_nothing_is_left(
    check: Inside, home: Path, tmp_path: Path
) -> None:
    swarm(home)
    assert check("--plot", str(tmp_path / "nowhere" / "x.svg")).code == 66
    assert check("--plot", str(tmp_path)).code == 2
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert check("--plot", str(closed / "x.svg")).code == 77


# -- when a job is saved ---------------------------------------------------------------------------------------


def test_a_job_is_saved_with_a_line_for_each_collision_it_has_a_part_in(
    inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_NOW", NOON)
    swarm(home)
    added = inside("add-job", "sixth", "--cron", "4 3 * * *", "--json", "--", "true")
    assert added.code == 0
    [warning] = added.json()["warnings"]
    assert (warning["overlapping_minutes"], warning["estimated_concurrent_steps"]) == ([180], 12_650)
    assert [line for line in added.err.splitlines() if "warning: 6 schedules fire together at 03:00Z" in line]
    moved = inside("edit-job", "sixth", "--cron", "5 3 * * *", "--json")
    assert (moved.code, moved.json()["warnings"], "warning:" in moved.err) == (0, [], False)
    back = inside("edit-job", "sixth", "--cron", "4 3 * * *", "--max-turns", "100", "--json").json()
    assert back["warnings"][0]["estimated_concurrent_steps"] == 12_700
    assert inside("edit-job", "sixth", "--description", "x", "--json").json()["warnings"] == []
    aside = inside("add-job", "aside", "--daily-at", "04:00", "--json", "--", "true")
    assert (aside.json()["warnings"], "warning:" in aside.err) == ([], False)
