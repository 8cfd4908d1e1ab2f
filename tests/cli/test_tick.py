"""Ticks of the real program on real stores, commands and a loopback endpoint."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import MINUTE, Carol, add_jobs, job
from tests.endpoint import Endpoint, Reply


def now() -> int:
    return int(time.time() * 1000)


def due_job(job_id: str, **columns: Any) -> Any:
    """A minutely job whose latest slot came a second ago."""
    moment = now()
    return job(
        job_id,
        cron="* * * * *",
        now=moment,
        last_scheduled_for=moment // MINUTE * MINUTE - 1,
        next_fire_at=moment // MINUTE * MINUTE,
        **columns,
    )


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)
    return found


def statuses(carol: Carol) -> list[str]:
    return sorted(run["status"] for run in carol("list-runs", "--json").json()["runs"])


def all_ended(carol: Carol) -> list[dict[str, Any]] | None:
    runs: list[dict[str, Any]] = carol("list-runs", "--json").json()["runs"]
    live = [run for run in runs if run["status"] in ("queued", "claimed", "running")]
    return None if live else runs


def test_a_live_tick_dispatches_due_jobs_and_updates_last_run_state(carol: Carol, home: Path) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(json={"turns": 9, "summary": "done"}))
        add_jobs(
            home,
            due_job("by-command", argv=("sh", "-c", "echo worked")),
            due_job("by-http", url=endpoint.url("/agent")),
            job("not-due", cron="0 0 1 1 *"),
        )
        report = carol("tick", "--json").json()
        assert len(report["fired"]) == 2
        assert sorted(report["launched"]) == sorted(report["claimed"]) == sorted(report["fired"])
        runs = wait_until(lambda: all_ended(carol))
    assert {run["job_id"]: (run["status"], run["result_summary"]) for run in runs} == {
        "by-command": ("completed", "worked"),
        "by-http": ("completed", "done"),
    }
    jobs = {one["job_id"]: one for one in carol("list-jobs", "--json").json()["jobs"]}
    for job_id in ("by-command", "by-http"):
        assert jobs[job_id]["last_status"] == "completed"
        assert jobs[job_id]["last_fired_at"] is not None
        assert jobs[job_id]["firing_count"] == 1
    assert jobs["by-http"]["last_turn_count"] == 9
    assert jobs["not-due"]["last_fired_at"] is None


def test_five_due_at_once_under_cap_2_run_two_at_a_time_and_all_five_end(carol: Carol, home: Path) -> None:
    add_jobs(home, *(due_job(f"j{n}", argv=("sleep", "0.5")) for n in range(5)))
    report = carol("tick", "--json").json()
    assert (len(report["fired"]), len(report["claimed"])) == (5, 2)
    assert (report["running"], report["queued"]) == (2, 3)
    runs = wait_until(lambda: all_ended(carol))
    assert [run["status"] for run in runs] == ["completed"] * 5


def test_cap_0_fires_nothing_and_due_slots_wait(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("waits"))
    report = carol("tick", "--json", SCHEDULE_MAX_CONCURRENT="0").json()
    assert (report["fired"], report["claimed"], report["skipped"], report["queued"]) == ([], [], [], 0)
    assert carol("list-runs", "--json").json()["runs"] == []
    assert len(carol("tick", "--json").json()["fired"]) == 1
    wait_until(lambda: all_ended(carol))


def test_a_one_row_write_lands_at_once_while_a_tick_dispatches_to_an_endpoint_that_takes_5_s(
    carol: Carol, home: Path
) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/slow", Reply(delay=5))
        add_jobs(home, due_job("slow", url=endpoint.url("/slow")))
        assert len(carol("tick", "--json").json()["launched"]) == 1
        endpoint.wait_for(1)
        connection = sqlite3.connect(home / "scheduler.db", timeout=0, isolation_level=None)
        for _ in range(20):
            began = time.monotonic()
            connection.execute("UPDATE scheduled_jobs SET description = 'outside' WHERE job_id = 'slow'")
            assert time.monotonic() - began < 0.5
        connection.close()
        edited = carol("edit-job", "slow", "--daily-at", "00:05", CAROL_BUSY_TIMEOUT_MS="500")
        assert edited.code == 0, edited.err
        assert statuses(carol) == ["running"]
        assert wait_until(lambda: all_ended(carol))[0]["status"] == "completed"


def test_a_paused_fleet_fires_nothing_says_so_and_exits_0(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("held"))
    assert carol("pause").code == 0
    result = carol("tick")
    assert (result.code, "paused" in result.out) == (0, True)
    assert carol("tick", "--json").json()["paused"] is True
    assert carol("list-runs", "--json").json()["runs"] == []
    carol("resume")
    assert len(carol("tick", "--json").json()["fired"]) == 1
    wait_until(lambda: all_ended(carol))


def test_a_dry_run_reports_what_a_tick_would_do_and_changes_nothing(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("one"), due_job("two"), due_job("three"))
    before = dump(home)
    report = carol("tick", "--json", "--dry-run").json()
    assert (len(report["fired"]), len(report["claimed"]), report["launched"]) == (3, 2, [])
    assert dump(home) == before
    assert not (home / "tick.stamp").exists()


def dump(home: Path) -> list[str]:
    connection = sqlite3.connect(home / "scheduler.db")
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_an_idle_tick_touches_its_stamp_and_answers_like_a_full_one(carol: Carol, home: Path) -> None:
    add_jobs(home, job("far", cron="0 0 1 1 *", now=now()))
    full = carol("tick", "--json").json()
    stamp = home / "tick.stamp"
    os.utime(stamp, (time.time() - 40, time.time() - 40))
    idle = carol("tick", "--json").json()
    assert time.time() - stamp.stat().st_mtime < 20
    for report in (full, idle):
        report.pop("elapsed_ms")
    assert idle == full
    assert carol("tick").out == "nothing to do\n"


def test_a_tick_that_comes_late_leaves_an_audit_row_of_the_gap(carol: Carol, home: Path) -> None:
    add_jobs(home, job("far", cron="0 0 1 1 *", now=now()))
    carol("tick")
    os.utime(home / "tick.stamp", (time.time() - 600, time.time() - 600))
    assert carol("tick").code == 0
    connection = sqlite3.connect(home / "scheduler.db")
    [(command, after)] = connection.execute("SELECT command, after FROM audit_log WHERE command = 'tick_gap'")
    connection.close()
    assert command == "tick_gap"
    assert '"from"' in after


def test_a_job_whose_row_cannot_be_used_steps_aside_and_the_others_fire(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("sound"), due_job("bad-zone"), due_job("bad-action"))
    connection = sqlite3.connect(home / "scheduler.db", isolation_level=None)
    connection.execute("UPDATE scheduled_jobs SET timezone = 'Mars/Olympus' WHERE job_id = 'bad-zone'")
    connection.execute("UPDATE scheduled_jobs SET action = '[]' WHERE job_id = 'bad-action'")
    connection.close()
    result = carol("tick", "--json")
    assert result.code == 0, result.err
    assert len(result.json()["fired"]) == 1
    jobs = carol("list-jobs", "--json").json()
    by_id = {one["job_id"]: one for one in jobs["jobs"]}
    assert by_id["bad-zone"]["status"] == "paused"
    assert "Mars/Olympus" in by_id["bad-zone"]["paused_reason"]
    wait_until(lambda: all_ended(carol))


def test_a_watermark_far_ahead_of_the_clock_is_re_anchored_audited_and_warned(
    carol: Carol, home: Path
) -> None:
    ahead = now() + 30 * 3600 * 1000
    add_jobs(home, job("ahead", cron="* * * * *", now=now(), last_scheduled_for=ahead, next_fire_at=ahead))
    result = carol("tick", "--json")
    assert "ahead" in result.err
    shown = carol("list-jobs", "--json").json()["jobs"][0]
    assert shown["next_fire_at"] < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))


@pytest.mark.parametrize("command", ["tick", "reap", "drain", "prune", "list-runs", "monitor", "list-jobs"])
def test_a_command_that_only_reads_or_sweeps_never_makes_a_store(
    carol: Carol, home: Path, command: str
) -> None:
    result = carol(command, "--json")
    assert result.code == 66
    assert result.error()["error"] == "not_found"
    assert not home.exists()


def test_a_bad_number_in_the_environment_is_warned_about_and_the_next_source_counts(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, due_job("a"), due_job("b"), due_job("c"))
    result = carol("tick", "--json", SCHEDULE_MAX_CONCURRENT="two")
    assert result.code == 0
    assert "SCHEDULE_MAX_CONCURRENT" in result.err
    assert len(result.json()["claimed"]) == 2
    wait_until(lambda: all_ended(carol))


def test_the_pinned_clock_is_said_on_every_output(carol: Carol, home: Path) -> None:
    add_jobs(home, job("any"))
    for command in (("tick",), ("list-jobs",), ("monitor", "--json")):
        assert "2026-03-01T00:00:00Z" in carol(*command, CAROL_NOW="2026-03-01T00:00:00Z").err
    refused = carol("tick", CAROL_NOW="yesterday")
    assert (refused.code, "CAROL_NOW" in refused.err) == (2, True)


def test_an_edit_of_a_migrated_job_lands_while_its_dispatch_is_in_flight_and_the_planner_database_is_locked(
    carol: Carol, home: Path, tmp_path: Path
) -> None:
    planner = tmp_path / "plangenerator.db"
    with Endpoint() as endpoint:
        script = Path(__file__).parents[2] / "scripts" / "make_planner_db.py"
        subprocess.run(
            [sys.executable, str(script), str(planner), "--endpoint", endpoint.url("")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        assert carol("migrate-jobs", "--planner-db", str(planner)).code == 0
        url = carol("show-job", "gen-tasks-01", "--json").json()["action"]["url"]
        endpoint.on(url.removeprefix(endpoint.url("")), Reply(delay=3))
        assert carol("run-job", "gen-tasks-01").code == 0
        endpoint.wait_for(1)
        foreign = sqlite3.connect(planner, isolation_level=None)
        foreign.execute("BEGIN EXCLUSIVE")
        edited = carol("edit-job", "gen-tasks-01", "--daily-at", "00:05", CAROL_BUSY_TIMEOUT_MS="500")
        assert (edited.code, edited.err) == (0, "")
        assert statuses(carol) == ["running"]
        foreign.close()
        assert wait_until(lambda: all_ended(carol))[0]["status"] == "completed"
