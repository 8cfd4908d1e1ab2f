"""Ends that come late or never: the spool, the leases, lost processes, launches that come to nothing, retries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from carolctl.cancel import cancel_runs
from carolctl.model import Millis
from tests import builders
from tests.builders import HOUR, MINUTE, T0, job
from tests.crash.harness import LEASE_SEC, TICK_MS, World, hours
from tests.endpoint import Endpoint, Reply

LEASE_MS = LEASE_SEC * 1000
END = "SELECT status, failure_reason, attempt FROM runs"


@pytest.fixture(autouse=True)
def _the_first_slot_is_due(world: World) -> None:
    world.now = Millis(T0 + HOUR)


def _pass(world: World, milliseconds: int) -> None:
    world.now = Millis(world.now + milliseconds)


def _tick(world: World, **env: str) -> dict[str, Any]:
    report = world.tick(**env)
    assert report is not None
    return report


def _spool_one(world: World, **columns: Any) -> None:
    """A command that ends while a foreign writer holds the lock: its runner leaves a file and is gone."""
    world.add(job("careful", argv=world.work(waits=True), **columns))
    _tick(world, CAROL_BUSY_TIMEOUT_MS="150")
    world.wait_until(world.marks, what="the command to begin")
    with world.locked():
        world.go.touch()
        assert world.wait_idle()
    assert world.spooled() == ["finish-1-1.json"]
    assert world.statuses() == ["running"]


# -- the spool -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["tick", "reap", "drain"])
def test_a_spooled_finish_beats_the_reaper_though_its_process_is_dead_and_past_its_lease(
    world: World, command: str
) -> None:
    _spool_one(world)
    _pass(world, LEASE_MS + TICK_MS)
    report = world.run(command, "--json")
    assert report is not None
    assert report.get("reaped", []) == report.get("lost", []) == report.get("leases", []) == []
    assert world.query("SELECT status, failure_reason, result_summary FROM runs") == [
        ("completed", None, "claim 1")
    ]
    assert world.violations(slots=hours(1), undisturbed=True) == []


def test_a_spooled_finish_of_a_failed_attempt_is_tried_again_like_any_other(world: World) -> None:
    world.add(job("careful", argv=("/bin/sh", "-c", 'sleep 0.3; test "$CAROL_CLAIM" -gt 1'), max_attempts=2))
    _tick(world, CAROL_BUSY_TIMEOUT_MS="100")
    world.wait_until(lambda: world.statuses() == ["running"])
    with world.locked():
        assert world.wait_idle()
    assert world.spooled() == ["finish-1-1.json"]
    world.drain()
    assert world.query(END) == [("completed", None, 2)]
    assert world.violations(slots=hours(1)) == []


def test_a_finish_file_of_an_old_claim_changes_nothing_and_is_taken_away(world: World) -> None:
    _spool_one(world, idempotent=True, max_attempts=2)
    kept = (world.home / "spool" / "new" / "finish-1-1.json").read_bytes()
    _tick(world)
    before = world.query("SELECT * FROM runs")
    (world.home / "spool" / "new" / "finish-1-1.json").write_bytes(kept)
    _tick(world)
    assert world.query("SELECT * FROM runs") == before
    assert world.violations(slots=hours(1), undisturbed=True) == []


def test_a_tick_under_a_global_pause_takes_the_spool_in_and_fires_nothing(world: World) -> None:
    _spool_one(world)
    world.change("INSERT INTO meta VALUES ('paused_until', 'forever')")
    _pass(world, HOUR)
    report = _tick(world)
    assert report["paused"] is True
    assert report["fired"] == report["claimed"] == report["reaped"] == []
    assert world.statuses() == ["completed"]
    assert world.spooled() == []


#: Writes and dies, so that its log is left; then stands in the way as a process does that was stopped in the
#: midst of SQLite's recovery: a blank index, and the locks for writing, checkpoint and recovery (bytes 120 to 122).
_STANDS_STILL_IN_RECOVERY = """
import fcntl, os, signal, sqlite3, sys
if os.fork() == 0:
    sqlite3.connect(sys.argv[1], isolation_level=None).execute("INSERT INTO meta VALUES ('a', 'b')")
    os._exit(0)
os.wait()
with open(sys.argv[1] + "-shm", "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 3, 120)
    index.write(bytes(136))
    index.flush()
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.slow
def test_a_store_whose_recovery_stands_still_is_busy_and_no_bug(world: World) -> None:
    world.add(job("careful", argv=world.work()))
    script = [sys.executable, "-c", _STANDS_STILL_IN_RECOVERY, str(world.db)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-I", "-m", "carolctl", "tick"],
            env=world.environment(CAROL_BUSY_TIMEOUT_MS="300"),
            capture_output=True,
            timeout=60,
            check=False,
        )
        sleeper.kill()
    assert done.returncode == 75, done.stderr
    _tick(world)
    world.drain()
    assert world.violations(slots=hours(1), undisturbed=True) == []


# -- leases and stops ------------------------------------------------------------------------------------------

_POLITE = 'trap "exit 0" TERM; echo >"$1"; while :; do sleep 0.05; done'


def _polite(world: World) -> None:
    """A command that takes SIGTERM for a reason to say that all went well."""
    world.add(job("polite", argv=("/bin/sh", "-c", _POLITE, "polite", str(world.go))))
    _tick(world)
    world.wait_until(world.go.exists, what="the command to begin")


def test_a_job_that_traps_term_and_exits_0_at_the_end_of_its_lease_is_recorded_as_stopped(
    world: World,
) -> None:
    _polite(world)
    _pass(world, LEASE_MS)
    assert _tick(world)["reaped"] == [1]
    assert world.wait_idle()
    assert world.query("SELECT status, failure_reason, stop_reason FROM runs") == [
        ("failed", "lease_expired", "lease_expired")
    ]
    assert world.violations(slots=hours(1)) == []


def test_a_job_that_traps_term_and_exits_0_when_it_is_cancelled_is_recorded_as_cancelled(
    world: World,
) -> None:
    _polite(world)
    store = builders.store(world.home, create=False)
    try:
        with store.read() as tx:
            live = tx.live_runs()
        assert cancel_runs(store, live, now=world.now) == ([], [1])
    finally:
        store.close()
    assert world.wait_idle()
    assert world.query("SELECT status, failure_reason, stop_reason FROM runs") == [
        ("cancelled", None, "cancelled")
    ]
    assert world.query("SELECT failure_streak FROM scheduled_jobs") == [(0,)]


def test_expired_leases_are_reaped_in_one_sweep_and_fresh_ones_left_alone(
    new_world: Callable[..., World],
) -> None:
    world = new_world(cap=5)
    world.now = Millis(T0 + HOUR)
    world.add(
        *(job(f"short-{n}", argv=world.work(waits=True)) for n in range(3)),
        *(
            job(f"long-{n}", argv=world.work(waits=True), max_run_duration_sec=3 * LEASE_SEC)
            for n in range(2)
        ),
    )
    _tick(world)
    world.wait_until(lambda: len(world.marks()) == 5, what="the commands to begin")
    _pass(world, LEASE_MS - 1)
    assert _tick(world)["reaped"] == []
    _pass(world, 1)
    report = _tick(world)
    assert len(report["reaped"]) == 3
    world.wait_until(lambda: world.statuses().count("failed") == 3, what="the stopped ones to end")
    assert world.query("SELECT job_id FROM runs WHERE status = 'running' ORDER BY job_id") == [
        ("long-0",),
        ("long-1",),
    ]
    world.go.touch()
    assert world.wait_idle()
    assert sorted(world.statuses()) == ["completed"] * 2 + ["failed"] * 3
    assert world.violations(slots=hours(1)) == []


# -- lost processes --------------------------------------------------------------------------------------------


def test_a_dead_runner_is_process_lost_within_one_tick_and_its_command_does_not_outlive_that(
    world: World,
) -> None:
    world.add(job("careful", argv=world.work(waits=True), max_attempts=3))
    _tick(world)
    world.wait_until(world.marks, what="the command to begin")
    world.kill_role("runner")
    assert [process.role for process in world.processes()] != []
    _pass(world, 1000)
    assert _tick(world)["reaped"] == [1]
    assert world.query(END) == [("failed", "process_lost", 1)]
    assert world.violations(slots=hours(1)) == []


def test_a_killed_job_is_killed_and_not_lost(world: World) -> None:
    world.add(job("careful", argv=("sleep", "60")))
    _tick(world)
    world.wait_until(lambda: any(process.role == "job" for process in world.processes()))
    world.kill_role("job")
    assert world.wait_idle()
    assert world.query("SELECT status, failure_reason, exit_status FROM runs") == [("failed", "killed", 137)]
    assert world.violations(slots=hours(1)) == []


def test_an_idempotent_job_is_tried_again_after_its_runner_died(world: World) -> None:
    world.add(job("hardy", argv=world.work(seconds=0.3), idempotent=True, max_attempts=2))
    _tick(world)
    world.wait_until(world.marks, what="the command to begin")
    world.kill_role("runner")
    world.drain()
    assert world.query(END) == [("completed", None, 2)]
    assert world.violations(slots=hours(1)) == []


# -- launches that come to nothing -----------------------------------------------------------------------------

_STILLBORN = {"CAROL_FAILPOINT": "runner-before-start:kill"}


def test_a_claim_that_was_never_started_is_launched_again_after_60_s_and_not_before(world: World) -> None:
    world.add(job("careful", argv=world.work()))
    _tick(world, **_STILLBORN)
    assert world.wait_idle()
    _pass(world, 59_999)
    assert _tick(world)["launched"] == []
    _pass(world, 1)
    assert _tick(world)["launched"] == [1]
    assert world.wait_idle()
    assert world.query("SELECT status, claim_no, launches, attempt FROM runs") == [("completed", 2, 2, 1)]
    assert world.violations(slots=hours(1), undisturbed=True) == []


def test_a_claim_that_was_launched_three_times_and_never_started_is_launch_failed(world: World) -> None:
    world.add(job("careful", argv=world.work()))
    launched = []
    for _ in range(4):
        launched.append(_tick(world, **_STILLBORN)["launched"])
        assert world.wait_idle()
        _pass(world, MINUTE)
    assert launched == [[1], [1], [1], []]
    assert world.query("SELECT status, failure_reason, claim_no, launches FROM runs") == [
        ("failed", "launch_failed", 3, 3)
    ]
    assert world.marks() == []
    assert world.violations(slots=hours(1)) == []


# -- retries ---------------------------------------------------------------------------------------------------


def test_a_failed_run_is_tried_again_as_the_same_run_up_to_its_max_attempts(world: World) -> None:
    world.add(job("stubborn", argv=("false",), max_attempts=3))
    _tick(world)
    world.drain()
    assert world.query("SELECT run_id, status, failure_reason, attempt, claim_no FROM runs") == [
        (1, "failed", "exit_nonzero", 3, 3)
    ]
    assert world.query("SELECT attempt FROM schedule_firing_metrics ORDER BY attempt") == [(1,), (2,), (3,)]
    assert world.query("SELECT failure_streak FROM scheduled_jobs") == [(1,)]
    assert world.violations(slots=hours(1)) == []


def test_a_retry_waits_for_its_time(world: World) -> None:
    world.add(job("stubborn", argv=("false",), max_attempts=2))
    _tick(world)
    assert world.wait_idle()
    [(status, not_before)] = world.query("SELECT status, not_before FROM runs")
    assert status == "queued"
    assert 20_000 < not_before - world.now < 60_000
    before = world.now
    world.now = Millis(not_before - 1)
    assert _tick(world)["claimed"] == []
    world.now = Millis(not_before)
    assert _tick(world)["claimed"] == [1]
    assert world.now > before


def test_a_retry_never_goes_past_the_next_slot(world: World) -> None:
    world.add(job("stubborn", cron="* * * * *", catch_up="skip", argv=("false",), max_attempts=5))
    world.now = Millis(T0 + MINUTE + 50_000)
    _tick(world)
    assert world.wait_idle()
    assert world.query(END) == [("failed", "exit_nonzero", 1)]


@pytest.mark.parametrize(
    "reply, reason",
    [(Reply(status=401), "auth_failed"), (Reply(json={"failure_reason": "budget_exceeded"}), None)],
)
def test_some_failures_are_never_tried_again(world: World, reply: Reply, reason: str | None) -> None:
    with Endpoint() as endpoint:
        world.add(job("refused", url=endpoint.on("/job", reply), idempotent=True, max_attempts=3))
        _tick(world)
        assert world.wait_idle()
        assert world.query(END) == [("failed", reason or "budget_exceeded", 1)]
        assert len(endpoint.seen) == 1


def test_an_http_runner_that_dies_after_sending_leaves_its_outcome_unknown(world: World) -> None:
    with Endpoint() as endpoint:
        url = endpoint.on("/job", Reply(json={}, delay=30))
        world.add(
            job("careful", url=url, max_attempts=3), job("hardy", url=url, idempotent=True, max_attempts=2)
        )
        _tick(world)
        endpoint.wait_for(2)
        world.kill_role("runner")
        endpoint.on("/job", Reply(json={}))
        _pass(world, 1000)
        assert len(_tick(world)["reaped"]) == 2
        world.drain()
        assert world.query("SELECT job_id, status, failure_reason, attempt FROM runs ORDER BY job_id") == [
            ("careful", "failed", "outcome_unknown", 1),
            ("hardy", "completed", None, 2),
        ]
        keys = {seen.headers["idempotency-key"] for seen in endpoint.seen}
        assert len(keys) == 2
        assert world.violations(slots=hours(1), endpoint=endpoint) == []
