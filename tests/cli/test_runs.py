"""Commands about runs, through the real program."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders import Carol, add_jobs, job
from tests.cli.test_tick import all_ended, due_job, wait_until
from tests.endpoint import Endpoint, Reply


def manual(job_id: str, *argv: str, **columns: object) -> object:
    return job(job_id, manual=True, argv=argv or ("true",), **columns)


def test_five_run_jobs_at_once_under_cap_2_start_two_and_refuse_three_without_a_row(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, *(manual(f"j{n}", "sleep", "3") for n in range(5)))
    running = [carol.spawn("run-job", f"j{n}", "--json") for n in range(5)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert sorted(code for _, code in ended) == [0, 0, 75, 75, 75]
    for (_, err), code in ended:
        if code == 75:
            error = json.loads(err)
            assert error["error"] == "capacity_full"
            assert isinstance(error["slot_eta_sec"], int)
    assert len(carol("list-runs", "--json").json()["runs"]) == 2
    wait_until(lambda: all_ended(carol))


def test_run_job_of_a_live_job_is_refused_as_job_running(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("busy", "sleep", "2"))
    assert carol("run-job", "busy").code == 0
    refused = carol("run-job", "busy", "--json")
    assert (refused.code, refused.error()["error"]) == (75, "job_running")
    wait_until(lambda: all_ended(carol))


def test_force_passes_the_cap_and_writes_one_audit_row_with_its_reason(carol: Carol, home: Path) -> None:
    add_jobs(home, *(manual(f"j{n}", "sleep", "2") for n in range(3)))
    assert carol("run-job", "j0").code == carol("run-job", "j1").code == 0
    assert carol("run-job", "j2", "--force").code == 2
    assert carol("run-job", "j2", "--force", "--reason", "the boss asked").code == 0
    connection = sqlite3.connect(home / "scheduler.db")
    rows = connection.execute("SELECT reason FROM audit_log WHERE command = 'manual_force_bypass'").fetchall()
    connection.close()
    assert rows == [("the boss asked",)]
    wait_until(lambda: all_ended(carol))


@pytest.mark.parametrize(("script", "code", "status"), [("true", 0, "completed"), ("exit 7", 1, "failed")])
def test_wait_follows_a_run_to_its_end_and_exits_by_it(
    carol: Carol, home: Path, script: str, code: int, status: str
) -> None:
    add_jobs(home, manual("once", "sh", "-c", script))
    result = carol("run-job", "once", "--wait", "--json")
    assert (result.code, result.json()["status"]) == (code, status)


def test_a_manual_run_never_moves_the_schedule(carol: Carol, home: Path) -> None:
    add_jobs(home, job("nightly", daily_at="03:00", now=int(time.time() * 1000)))
    before = carol("list-jobs", "--json").json()["jobs"][0]["next_fire_at"]
    assert carol("run-job", "nightly", "--wait").code == 0
    after = carol("list-jobs", "--json").json()["jobs"][0]
    assert (after["next_fire_at"], after["last_status"]) == (before, "completed")


def test_run_job_of_an_unknown_job_is_66_and_names_similar_ones(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("nightly-backup"))
    result = carol("run-job", "backup")
    assert (result.code, "nightly-backup" in result.err) == (66, True)


def test_monitor_is_an_empty_array_when_nothing_truly_runs(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("long", "sleep", "60"))
    assert carol("monitor", "--json").json() == []
    run_id = carol("run-job", "long", "--json").json()["run_id"]
    [run] = wait_until(lambda: [r for r in carol("monitor", "--json").json() if r["status"] == "running"])
    assert (run["run_id"], run["job_id"], run["liveness"]) == (run_id, "long", "alive")
    subprocess.run(["kill", "-9", str(run["pid"])], check=True)
    wait_until(lambda: carol("monitor", "--json").json() == [])
    assert carol("list-runs", "--json").json()["runs"][0]["status"] == "running"
    assert carol("tick", "--json").json()["reaped"] == [run_id]
    ended = carol("show-run", str(run_id), "--json").json()
    assert (ended["status"], ended["failure_reason"]) == ("failed", "process_lost")


def test_cancel_run_ends_a_waiting_run_at_once_and_stops_a_running_one_first(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, due_job("first", argv=("sleep", "60")), due_job("second"))
    assert len(carol("tick", "--json", SCHEDULE_MAX_CONCURRENT="1").json()["claimed"]) == 1
    [running] = wait_until(lambda: [r for r in carol("monitor", "--json").json() if r["status"] == "running"])
    [waiting] = carol("list-runs", "--status", "queued", "--json").json()["runs"]
    for run in (waiting, running):
        assert carol("cancel-run", str(run["run_id"]), SCHEDULE_MAX_CONCURRENT="1").code == 0
    ended = wait_until(lambda: all_ended(carol))
    assert {run["status"] for run in ended} == {"cancelled"}
    assert carol("cancel-run", str(running["run_id"])).code == 1
    assert carol("cancel-run", "999").code == 66
    streaks = [one["failure_streak"] for one in carol("list-jobs", "--json").json()["jobs"]]
    assert streaks == [0, 0]


def test_a_job_that_traps_term_and_exits_0_is_recorded_as_stopped(carol: Carol, home: Path) -> None:
    add_jobs(
        home, manual("polite", "sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done")
    )
    run_id = str(carol("run-job", "polite", "--json").json()["run_id"])
    wait_until(lambda: "ready" in carol("logs", run_id).out)
    carol("cancel-run", run_id)
    [run] = wait_until(lambda: all_ended(carol))
    assert (run["status"], run["stop_reason"], run["exit_status"]) == ("cancelled", "cancelled", 0)


def test_an_accepted_run_lives_under_its_lease_until_finish_run_names_its_claim(
    carol: Carol, home: Path
) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=202))
        add_jobs(home, job("agent", manual=True, url=endpoint.url("/agent")))
        run_id = str(carol("run-job", "agent", "--json").json()["run_id"])
        [request] = endpoint.wait_for(1)
    assert request.json["claim"] == 1
    wait_until(lambda: carol("show-run", run_id, "--json").json()["pid"] is None)
    assert carol("tick", "--json").json()["reaped"] == []
    stale = carol("finish-run", run_id, "--claim", "2", "--status", "completed")
    assert stale.code == 1
    assert carol("show-run", run_id, "--json").json()["status"] == "running"
    done = carol(
        "finish-run", run_id, "--claim", "1", "--status", "completed", "--turns", "12", "--summary", "ok"
    )
    assert done.code == 0, done.err
    run = carol("show-run", run_id, "--json").json()
    assert (run["status"], run["turn_count"], run["result_summary"]) == ("completed", 12, "ok")
    again = carol("finish-run", run_id, "--claim", "1", "--status", "failed")
    assert again.code == 1
    assert carol("show-run", run_id, "--json").json()["status"] == "completed"


def test_a_lease_is_the_claim_plus_its_seconds(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("own", max_run_duration_sec=90), manual("common"))
    for job_id in ("own", "common"):
        assert carol("run-job", job_id, "--wait").code == 0
    connection = sqlite3.connect(home / "scheduler.db")
    leases = dict(
        connection.execute("SELECT job_id, lease_expires_at - slot_claimed_at FROM runs").fetchall()
    )
    connection.close()
    assert leases == {"own": 90_000, "common": 1_200_000}


def test_three_expired_leases_are_reaped_in_one_sweep_and_fresh_ones_are_left(
    carol: Carol, home: Path
) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=202))
        add_jobs(
            home,
            *(
                job(f"short{n}", manual=True, url=endpoint.url("/agent"), max_run_duration_sec=60)
                for n in range(3)
            ),
            job("long", manual=True, url=endpoint.url("/agent")),
        )
        cap = {"SCHEDULE_MAX_CONCURRENT": "4"}
        ids = {
            name: carol("run-job", name, "--json", **cap).json()["run_id"]
            for name in ("short0", "short1", "short2", "long")
        }
        wait_until(
            lambda: (
                [r["pid"] for r in carol("monitor", "--json").json() if r["status"] == "running"]
                == [None] * 4
            )
        )
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 70))
    report = carol("reap", "--json", CAROL_NOW=later, **cap).json()
    assert report == {"leases": sorted(ids[f"short{n}"] for n in range(3)), "lost": [], "orphans": []}
    states = {run["job_id"]: run["status"] for run in carol("list-runs", "--json").json()["runs"]}
    assert states == {"short0": "failed", "short1": "failed", "short2": "failed", "long": "running"}


def test_the_output_of_a_run_is_shown_harmless(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("loud", "printf", r"\033]0;owned\007 [red]plain[/red] \302\233\ttail\n"))
    run_id = str(carol("run-job", "loud", "--wait", "--json").json()["run_id"])
    shown = carol("logs", run_id).out
    assert "[red]plain[/red]" in shown
    assert shown.endswith("\ttail\n")
    assert not [c for c in shown if (ord(c) < 0x20 and c not in "\t\n") or 0x7F <= ord(c) <= 0x9F]
    for command in (("list-runs",), ("show-run", run_id)):
        text = carol(*command).out
        assert not [c for c in text if (ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) <= 0x9F]


def test_following_a_log_ends_with_the_run(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("slow", "sh", "-c", "echo one; sleep 1; echo two"))
    run_id = str(carol("run-job", "slow", "--json").json()["run_id"])
    assert carol("logs", run_id, "--follow").out == "one\ntwo\n"


def test_following_a_log_as_a_document_waits_for_the_whole_of_it(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("slow", "sh", "-c", "echo one; sleep 1; echo two"))
    run_id = str(carol("run-job", "slow", "--json").json()["run_id"])
    assert carol("logs", run_id, "--follow", "--json").json()["text"] == "one\ntwo\n"


def test_an_interrupted_wait_ends_with_130_and_the_run_goes_on(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("slow", "sleep", "2"))
    waiting = carol.spawn("run-job", "slow", "--wait")
    wait_until(lambda: carol("list-jobs").code == 0 and carol("monitor", "--json").json())
    waiting.send_signal(signal.SIGINT)
    began = time.monotonic()
    waiting.communicate(timeout=10)
    assert (waiting.returncode, time.monotonic() - began < 2) == (130, True)
    [run] = wait_until(lambda: all_ended(carol))
    assert run["status"] == "completed"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list-runs", "--status", "done"),
        ("list-runs", "--since", "soon"),
        ("finish-run", "1", "--claim", "0", "--status", "completed"),
        ("finish-run", "1", "--claim", "1", "--status", "done"),
        ("finish-run", "1", "--claim", "1", "--status", "completed", "--reason", "timeout"),
        ("finish-run", "1", "--claim", "1", "--status", "failed", "--reason", "bad luck"),
        ("show-run", "x"),
        ("cancel-run",),
    ],
)
def test_a_bad_value_is_one_line_and_exit_2(carol: Carol, home: Path, arguments: tuple[str, ...]) -> None:
    add_jobs(home, manual("any"))
    result = carol(*arguments, "--json")
    assert result.code == 2, result
    assert len(result.err.strip().splitlines()) == 1
    assert set(result.error()) >= {"error", "message", "hint"}


@pytest.mark.parametrize(
    ("option", "path", "why"),
    [
        ("--working-directory", "/no/such", "no such folder: /no/such"),
        ("--environment-file", "/no/such", "/no/such cannot be read: No such file or directory"),
    ],
)
def test_what_keeps_a_command_from_running_is_called_by_its_name(
    carol: Carol, option: str, path: str, why: str
) -> None:
    assert carol("add-job", "a", "--manual", option, path, "--", "true").code == 0
    done = carol("run-job", "a", "--wait")
    assert done.code == 1
    [run] = carol("list-runs", "--json").json()["runs"]
    assert (run["failure_reason"], run["result_summary"]) == ("launch_failed", why)
