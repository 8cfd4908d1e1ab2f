"""What is forecast, beside what the ticks then do."""

from __future__ import annotations

import random
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from carolctl import clock, jobs, outlook, simulation
from carolctl.cli import gantt, gantt_svg, outlook_commands
from carolctl.clock import iso
from carolctl.model import Job, Millis
from carolctl.outlook import Forecast
from carolctl.store.records import FiringMetrics
from tests.builders import DAY, HOUR, MINUTE, T0, Carol, job
from tests.fleet import Fleet

TICK = simulation.TICK_MS


def foresee(fleet: Fleet, hours: int, cap: int | None = None) -> Forecast:
    return outlook.forecast(fleet.session(), hours=hours, cap=cap, default_ms=60_000)


def measured(fleet: Fleet, job_id: str, duration_ms: int) -> None:
    """As if one attempt of the job had taken that long."""
    with fleet.store.write() as tx:
        names = FiringMetrics.__slots__
        values: dict[str, Any] = dict.fromkeys(names) | {
            "run_id": -crc32(job_id.encode()), "attempt": 1, "job_id": job_id, "fired_at": 1,
            "completed_at": 1, "duration_ms": duration_ms,
        }  # fmt: skip
        tx.record_metrics(FiringMetrics(**values))


def really(fleet: Fleet, until: int, durations: dict[str, int]) -> None:
    """Tick every 30 s, and let each run end when its job's duration is over, between the ticks."""
    tick_at = fleet.now
    while tick_at < until:
        while fleet.running:
            end, run_id = min(
                (one.run.started_at + durations[one.run.job_id], run_id)
                for run_id, one in fleet.running.items()
                if one.run.started_at is not None
            )
            if end > tick_at:
                break
            fleet.at(end).end(run_id)
        fleet.at(tick_at)
        if _has_work(fleet):
            fleet.tick()
        tick_at = Millis(tick_at + TICK)


def _has_work(fleet: Fleet) -> bool:
    """The idle look: most ticks end with it."""
    with fleet.store.read() as tx:
        [(found,)] = tx._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND next_fire_at <= ?)"
            " OR EXISTS (SELECT 1 FROM runs WHERE status = 'queued')",
            (fleet.now,),
        ).fetchall()
    return bool(found)


def crowd(chance: random.Random) -> list[Job]:
    """Forty jobs of every kind, many of which fall together."""
    kinds: list[dict[str, Any]] = [
        {"cron": "0 * * * *"}, {"cron": "*/20 * * * *"}, {"daily_at": "03:00"}, {"every": "95m"},
        {"cron": "0,30 8-18 * * *"}, {"daily_at": "03:00", "timezone": "Europe/Berlin"}, {"every": "47s"},
        {"cron": "5 */3 * * *"},
    ]  # fmt: skip
    return [
        job(
            f"job-{number:02}",
            priority=chance.choice((0, 0, 5)),
            overlap=chance.choice(("skip", "skip", "queue", "allow")),
            spread_sec=chance.choice((0, 0, 240)),
            max_run_duration_sec=3600,
            **(kinds[number % 8] if number != 6 else {"every": "6m"}),
        )
        for number in range(40)
        if number % 8 != 6 or number == 6
    ]


@pytest.mark.timeout(120)
def test_every_start_of_48_hours_is_within_one_tick_of_what_the_ticks_then_do(fleet: Fleet) -> None:
    chance = random.Random(5)
    fleet.monkeypatch.setenv("SCHEDULE_MAX_CONCURRENT", "3")
    everyone = crowd(chance)
    fleet.add(*everyone)
    durations = {one.job_id: chance.randrange(10_000, 700_000) for one in everyone}
    for name, taken in durations.items():
        measured(fleet, name, taken)
    found = foresee(fleet, 48)
    really(fleet, T0 + 2 * DAY, durations)
    runs = fleet.runs()
    began = {(run.job_id, run.scheduled_for): run.slot_claimed_at or 0 for run in runs if run.started_at}
    skipped = {(run.job_id, run.scheduled_for) for run in runs if run.status == "skipped"}
    foreseen = {(one.job_id, one.scheduled_for): one.start or 0 for one in found.outlook.starts()}
    print(len(foreseen), len(skipped), found.longest_wait_ms(), simulation.running_peak(found.outlook))
    assert len(foreseen) > 1000
    assert len(skipped) > 20
    assert found.longest_wait_ms() > 5 * MINUTE
    assert foreseen.keys() == began.keys()
    off = {key: start - began[key] for key, start in foreseen.items() if abs(start - began[key]) > TICK}
    assert off == {}
    told = [one for one in found.outlook.expected if one.skip_reason]
    assert sum(one.coalesced for one in told) == sum(run.coalesced for run in runs if run.status == "skipped")
    assert [slot for slot in skipped if not any(stands_for(one, *slot) for one in told)] == []


def stands_for(one: simulation.Expected, job_id: str, slot: int | None) -> bool:
    assert one.slots_from is not None
    assert one.scheduled_for is not None
    return one.job_id == job_id and one.slots_from <= (slot or 0) <= one.scheduled_for


@pytest.fixture
def cut(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    """Six minutely jobs of 90 s under two slots: for half of their slots too much is to be foreseen."""
    fleet.add(*(job(f"job-{number}", cron="* * * * *") for number in range(6)))
    for number in range(6):
        measured(fleet, f"job-{number}", 90_000)
    monkeypatch.setattr(simulation, "MOST_ROWS", 600)
    return foresee(fleet, 3)


def test_a_forecast_that_is_cut_ends_where_it_is_cut_and_says_so(fleet: Fleet, cut: Forecast) -> None:
    document = cut.document()
    until = clock.parse_iso(document["until"], field="test")
    assert (document["cut"], document["asked_until"]) == (True, "2026-01-01T03:00:00Z")
    assert T0 + 95 * MINUTE < until < T0 + 105 * MINUTE
    fleet.monkeypatch.setattr(simulation, "MOST_ROWS", 10_000)
    whole = foresee(fleet, 3).document()
    assert (whole["cut"], whole["until"]) == (False, whole["asked_until"])
    assert document["starts"] == [one for one in whole["starts"] if one["start"] < document["until"]]
    # No slot is free all the time, from the first minute on.
    assert document["full_sec"] == (until - T0) // 1000 - 60
    assert whole["full_sec"] == 3 * 3600 - 60


def test_pictures_of_a_cut_forecast_end_at_the_cut(
    cut: Forecast, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outlook_commands._print_forecast(cut)
    told = " ".join(capsys.readouterr().out.split())
    until = iso(cut.outlook.until)
    assert f"WARNING: cut off at {until}: there is too much to foresee until 2026-01-01T03:00:00Z" in told
    picture = gantt_svg.svg(cut)
    assert f"cut off at {until}" in picture
    assert f"00:00:00Z to {until}: " in picture
    assert ">01:40Z<" in picture
    assert ">02:30Z<" not in picture
    assert "2026-01-01T02:" not in picture.replace("cut off at", "")


def test_the_svg_of_a_large_fleet_is_of_a_size_that_can_be_shown_and_says_what_is_left_out(
    fleet: Fleet,
) -> None:
    fleet.add(*(job(f"job-{number:03}", cron="*/10 * * * *") for number in range(110)))
    picture = gantt_svg.svg(foresee(fleet, 24, cap=110))
    assert "and 10 more jobs" in picture
    assert 3900 < picture.count("<rect") < 4100
    assert len(picture) < 1_000_000
    assert "job-099: " in picture
    assert "job-100: " not in picture
    assert re.search(r"job-000: \d+ x runs between 2026-01-01", picture)


@pytest.mark.parametrize(
    ("hours", "first", "second"),
    [(1, "00:05Z", "00:10Z"), (24, "02:00Z", "04:00Z"), (48, "01-01 06:00Z", "01-01 12:00Z"),
     (744, "01-03 00:00Z", "01-07 00:00Z")],
)  # fmt: skip
def test_axes_show_times_and_beyond_a_day_dates(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], hours: int, first: str, second: str
) -> None:
    fleet.add(job(every="6h"))
    found = foresee(fleet, hours)
    picture = gantt_svg.svg(found)
    labels = re.findall(r'text-anchor="middle">([^<]*)<', picture)
    assert first in labels
    assert second in labels
    assert 5 <= len(labels) <= 13
    gantt.print_gantt(found.outlook)
    shown = capsys.readouterr().out
    assert ("01-01 00:00Z" in shown) == (hours > 24)
    assert "00:00Z" in shown


def test_a_peak_of_nothing_has_no_time(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job())
    jobs.pause_all(fleet.session(), until=None, reason=None)
    with fleet.store.write() as tx:
        tx.insert_run("nightly", source="manual", now=fleet.now)
    told = carol("forecast", CAROL_NOW=str(iso(T0))).out
    assert "peak" in told
    assert "None" not in told


def test_live_and_queued_runs_and_missed_slots_are_where_it_begins(fleet: Fleet) -> None:
    fleet.add(*(job(name) for name in ("a", "b", "c")))
    for name in ("a", "b", "c"):
        measured(fleet, name, 10 * MINUTE)
    fleet.at(T0 + 3 * HOUR).tick()
    fleet.at(fleet.now + 4 * MINUTE)
    document = foresee(fleet, 1).document()
    shown = [(one["job_id"], one["run_id"], one["start"][11:16]) for one in document["starts"]]
    assert shown[:3] == [("a", 1, "03:00"), ("b", 3, "03:00"), ("c", 5, "03:10")]
    assert [(one, start) for one, run_id, start in shown if run_id is None] == [
        ("a", "04:00"),
        ("b", "04:00"),
    ]
    assert (document["peak"]["running"], document["peak"]["queued"], document["longest_wait_sec"]) == (
        2,
        1,
        600,
    )
    assert [one["job_id"] for one in document["waiting"]] == ["c"]
    assert foresee(fleet, 1, cap=3).document()["waiting"] == []


def test_a_pause_of_everything_puts_off_what_is_caught_up_after_it(fleet: Fleet) -> None:
    fleet.add(job())
    jobs.pause_all(fleet.session(), until=Millis(T0 + 150 * MINUTE), reason=None)
    [first, second] = foresee(fleet, 4).document()["starts"]
    assert (first["start"], first["coalesced"]) == ("2026-01-01T02:30:00Z", 2)
    assert second["start"] == "2026-01-01T03:00:00Z"
    jobs.pause_all(fleet.session(), until=None, reason=None)
    assert foresee(fleet, 4).document()["starts"] == []


def test_the_fleet_played_forward_for_an_eta_puts_off_what_held_pressure_would(fleet: Fleet) -> None:
    fleet.add(job("minutely", cron="* * * * *"), job("often", cron="*/7 * * * *"), job("seldom"))
    durations = {"minutely": 20_000, "often": 90_000, "seldom": 100_000}
    for name, taken in durations.items():
        measured(fleet, name, taken)
    with fleet.store.write() as tx:
        tx.set_setting("pressure.max_deferral_sec", "600", now=fleet.now)
        tx.hold_pressure("chat", now=fleet.now, until=Millis(T0 + 25 * MINUTE))
    assert foresee(fleet, 2).document()["starts"][0]["start"] == "2026-01-01T00:01:00Z"
    with fleet.store.read() as tx:
        now = outlook.present(tx, fleet.session().settings(tx), fleet.now).fleet
    until = Millis(T0 + 2 * HOUR)
    found = simulation.simulate(now, now=fleet.now, until=until, first_tick=fleet.now)
    really(fleet, until, durations)
    foreseen = {(one.job_id, one.scheduled_for): one.start or 0 for one in found.starts()}
    began = {
        (run.job_id, run.scheduled_for): run.slot_claimed_at or 0 for run in fleet.runs() if run.started_at
    }
    assert min(began.values()) >= T0 + 10 * MINUTE
    assert foreseen == began


def test_no_metrics_means_the_default_and_a_lease_bounds_what_is_expected(fleet: Fleet) -> None:
    fleet.add(job("new"), job("long", max_run_duration_sec=120))
    measured(fleet, "long", HOUR)
    document = foresee(fleet, 2).document()
    assert {(one["job_id"], one["duration_sec"], one["measured"]) for one in document["starts"]} == {
        ("new", 60, False),
        ("long", 120, True),
    }
    assert document["unmeasured"] == ["new"]


def test_the_command_shows_a_picture_in_the_terminal_and_as_svg(
    fleet: Fleet, carol: Carol, tmp_path: Path
) -> None:
    fleet.add(*(job(f"job-{number}", every="50m") for number in range(5)))
    for number in range(5):
        measured(fleet, f"job-{number}", 15 * MINUTE + number)
    plot = tmp_path / "gantt.svg"
    env = {"CAROL_NOW": str(iso(T0)), "COLUMNS": "80"}
    told = carol("forecast", "--hours", "4", "--plot", str(plot), **env)
    assert told.code == 0, told.err
    assert all(len(line) <= 80 for line in told.out.splitlines())
    assert "█" in told.out
    assert "░" in told.out
    tree = ET.parse(plot)
    titles = [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("job-4" in title for title in titles) >= 4
    assert carol("forecast", "--hours", "0", **env).code == 2
    assert carol("forecast", "--plot", "/nowhere/x.svg", **env).code == 66
    assert carol("forecast", "--plot", str(tmp_path / "gantt.png"), **env).code == 2


def test_plain_ascii_stands_where_blocks_cannot(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job())
    # Without -I, so that the variable counts.
    command = [part for part in carol.command("forecast", "--hours", "4") if part != "-I"]
    environment = carol.environment(PYTHONIOENCODING="ascii", CAROL_NOW=str(iso(T0)))
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.isascii()
    assert b"#" in done.stdout


def test_the_real_tick_starts_what_was_forecast_when_it_was_forecast(carol: Carol) -> None:
    at = "2026-01-01T00:59:45Z"
    assert carol("add-job", "nightly", "--cron", "0 * * * *", "--", "true", CAROL_NOW=str(iso(T0))).code == 0
    [one] = carol("forecast", "--hours", "1", "--json", CAROL_NOW=at).json()["starts"]
    assert one["start"] == "2026-01-01T01:00:15Z"
    assert carol("tick", "--json", CAROL_NOW=at).json()["fired"] == []
    assert len(carol("tick", "--json", CAROL_NOW=one["start"]).json()["launched"]) == 1
