"""No I/O but SQLite's while a write transaction is open: an audit hook listens to real commands."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl import clock, finish, spool
from carolctl.config import Settings
from carolctl.model import Millis, Outcome
from carolctl.store.db import Store
from carolctl.store.records import AuditEntry
from tests import builders
from tests.builders import DAY, HOUR, T0, Carol, job

#: Runs one command and reports what it did while its write transaction was open, and how many it opened.
_LISTENER = textwrap.dedent(
    """
    import json, os, select, sys, time

    from carolctl import lockguard
    from carolctl.store import db

    report_to, names = sys.argv[1], (
        "open", "os.", "shutil.", "socket.", "subprocess.", "pty.", "signal.", "fcntl.", "urllib.", "http.", "ssl.",
        "tempfile.", "glob.", "sqlite3.connect", "import",
    )
    # Before Python 3.13 the hook is not told of these.
    waits = (time.sleep, select.select, select.poll)
    breaches, opened = [], 0

    def hook(event, details):
        if lockguard.write_is_open() and event.startswith(names):
            breaches.append(f"{event} {details!r}"[:200])

    def calls(frame, event, argument):
        code = frame.f_code
        if event == "call" and lockguard.write_is_open():
            if os.path.basename(code.co_filename) in ("schedule.py", "cronfields.py"):
                breaches.append(f"cron arithmetic: {code.co_name}")
        if event == "c_call" and argument in waits and lockguard.write_is_open():
            breaches.append(f"waiting: {argument.__name__}")

    def counted(is_open, plain=db.set_write_open):
        global opened
        plain(is_open)
        opened += is_open

    def report(code):
        sys.setprofile(None)
        with open(report_to, "w") as file:
            json.dump({"code": code, "opened": opened, "breaches": breaches}, file)

    db.set_write_open = counted
    sys.addaudithook(hook)
    sys.setprofile(calls)
    """
)

_PROGRAM = f"""{_LISTENER}
from carolctl.cli.entry import run
os.umask(0o077)
report(run(sys.argv[2:]))
"""

_RUNNER = f"""{_LISTENER}
from carolctl.runner import main
report(main(sys.argv[2:]))
"""

NOW = "2026-01-01T01:00:00Z"


def listen(
    carol: Carol, *arguments: str, script: str = _PROGRAM, stdin: str = "", **env: str
) -> dict[str, Any]:
    """Run a command under the listener; what it reports."""
    report = carol.home.parent / "report.json"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(report), *arguments],
        env=carol.environment(**env),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert report.exists(), done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found | {"out": done.stdout, "err": done.stderr}


def clean(
    carol: Carol, *arguments: str, code: int = 0, writes: int = 1, script: str = _PROGRAM, **env: str
) -> dict[str, Any]:
    """The command wrote, ended as it should, and did nothing else while it held the lock."""
    found = listen(carol, *arguments, script=script, **env)
    assert found["code"] == code, found
    assert found["breaches"] == []
    assert found["opened"] >= writes, found
    return found


def with_store(home: Path, act: Callable[[Store], Any]) -> Any:
    with closing(builders.store(home)) as store:
        return act(store)


def wait_for_the_start(home: Path) -> None:
    def started(store: Store) -> bool:
        with store.read() as tx:
            return tx.live_runs()[0].status == "running"

    for _ in range(500):
        if with_store(home, started):
            return
        time.sleep(0.02)


def wait_for_the_end(home: Path) -> None:
    """Until no run lives any more."""

    def waiting(store: Store) -> None:
        for _ in range(500):
            with store.read() as tx:
                if tx.count_live() == (0, 0):
                    return
            time.sleep(0.02)
        pytest.fail("a run does not end")

    with_store(home, waiting)


def queue(home: Path, *job_ids: str) -> None:
    def act(store: Store) -> None:
        with store.write() as tx:
            for job_id in job_ids:
                tx.insert_run(job_id, source="manual", now=T0)

    with_store(home, act)


# -- the listener itself ----


@pytest.mark.parametrize(
    "deed",
    ["open(os.devnull)", "open(os.devnull, 'w')", "os.listdir('/')", "time.sleep(0)", "os.kill(os.getpid(), 0)",
     "socket.socket().connect_ex(('127.0.0.1', 9))", "subprocess.run(['true'])", "os.mkdir('/proc/no')",
     "sqlite3.connect(':memory:')", "schedule.parse('cron', '1 * * * *', anchor_at=0)",
     "os.posix_spawn('/bin/true', ['true'], {})"],
    ids=lambda deed: deed.split("(")[0],
)  # fmt: skip
def test_the_listener_hears_what_is_done_under_the_lock(home: Path, carol: Carol, deed: str) -> None:
    builders.add_jobs(home, job())
    script = f"""{_LISTENER}
import contextlib, socket, sqlite3, subprocess, time
from carolctl import schedule
store = db.open_store(sys.argv[2], deadline_ms=0)
with contextlib.suppress(OSError): {deed}
assert not breaches
with store.write(), contextlib.suppress(OSError): {deed}
report(0)
"""
    found = listen(carol, str(home / "scheduler.db"), script=script)
    assert found["opened"] == 1
    assert found["breaches"]


# -- what timers and runs call ----


def test_a_tick_that_fires_skips_claims_and_launches(home: Path, carol: Carol) -> None:
    builders.add_jobs(
        home,
        *(job(f"due-{n}") for n in range(4)),
        job("http", url="http://127.0.0.1:9/", max_run_duration_sec=1),
        job("missed", catch_up="skip", last_scheduled_for=T0 - 9 * HOUR, every="10m"),
        job("bad", schedule_compiled=None),
    )
    with closing(sqlite3.connect(home / "scheduler.db")) as foreign, foreign:
        foreign.execute("UPDATE scheduled_jobs SET timezone = 'Mars/Olympus' WHERE job_id = 'bad'")
    (home / "tick.stamp").touch()
    os.utime(home / "tick.stamp", (0, 0))
    found = clean(carol, "tick", "--json", CAROL_NOW=NOW)
    done = json.loads(found["out"])
    assert (len(done["fired"]), len(done["launched"]), len(done["skipped"])) == (6, 2, 1)
    wait_for_the_end(home)


def test_a_tick_under_pressure(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    with closing(sqlite3.connect(home / "scheduler.db")) as foreign, foreign:
        foreign.execute("INSERT INTO pressure_sources (name, expires_at) VALUES ('chat', 9999999999999)")
    found = clean(carol, "tick", "--json", CAROL_NOW=NOW)
    assert json.loads(found["out"])["deferred"] == ["nightly"]


def test_a_dry_run_of_a_tick(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    clean(carol, "tick", "--dry-run", CAROL_NOW=NOW)


def lost_run(home: Path) -> int:
    """A run whose process is gone; its id."""
    child = subprocess.Popen(["true"])
    child.wait()

    def act(store: Store) -> int:
        with store.write() as tx:
            run_id = tx.insert_run("nightly", source="manual", now=T0)
            assert run_id is not None
            tx.claim(finish.claimant_now(T0, Settings()), cap=9, only=run_id)
            tx.start(run_id, 1, now=T0, pid=child.pid, pid_start=1, unit=None)
        return run_id

    return int(with_store(home, act))


@pytest.mark.parametrize("command", ["tick", "reap"])
def test_a_sweep_that_finds_a_run_lost_and_claims_the_next(home: Path, carol: Carol, command: str) -> None:
    builders.add_jobs(home, job(next_fire_at=None), job("next", manual=True))
    lost = lost_run(home)
    queue(home, "next")
    found = clean(carol, command, "--json", CAROL_NOW="2026-01-01T00:01:00Z", SCHEDULE_MAX_CONCURRENT="1")
    done = json.loads(found["out"])
    assert done.get("reaped", done.get("lost")) == [lost]
    wait_for_the_end(home)


def test_a_drain_that_ends_a_run_and_claims_the_next(
    home: Path, carol: Carol, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.add_jobs(home, job(on_failure="next"), job("next", manual=True))
    run_id = lost_run(home)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    spool.leave(
        Outcome(
            run_id=run_id, claim_no=1, status="failed", failure_reason="timeout", completed_at=Millis(T0 + 5)
        )
    )
    found = clean(carol, "drain", "--json", CAROL_NOW=NOW)
    done = json.loads(found["out"])
    assert done == {"drained": [run_id], "launched": [run_id + 1], "events": 0, "bad": 0}
    wait_for_the_end(home)


@pytest.mark.parametrize("command", ["tick", "drain"])
def test_events_that_are_taken_in_stop_a_run_and_are_cleared_away(
    home: Path, carol: Carol, command: str
) -> None:
    builders.add_jobs(home, job(argv=("sleep", "600"), max_turns=1))
    assert carol("tick", CAROL_NOW=NOW).code == 0
    wait_for_the_start(home)
    assert carol("emit", "1", "--kind", "turns", "--turns", "2", "--data", "[]").code == 0
    (home / "spool" / "new" / "event-bad.json").write_text("?")
    assert "it is stopped" in clean(carol, command, "--json", CAROL_NOW=NOW)["err"]
    assert os.listdir(home / "spool" / "new") == []
    wait_for_the_end(home)


def test_a_prune(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())

    def old_entries(store: Store) -> None:
        with store.write() as tx:
            tx.audit(AuditEntry(at=Millis(T0 - 500 * DAY), actor="x", command="y"))

    with_store(home, old_entries)
    found = clean(carol, "prune", "--json", CAROL_NOW=NOW)
    assert json.loads(found["out"])["pruned"]["audit_log"] == 1


@pytest.mark.parametrize(
    "argv", [("true",), ("false",), ("no-such-program-at-all",)], ids=lambda argv: argv[0]
)
def test_a_runner_from_start_to_finish(home: Path, carol: Carol, argv: tuple[str, ...]) -> None:
    builders.add_jobs(home, job(argv=argv), job("next", manual=True))
    queue(home, "nightly", "next")

    def claim(store: Store) -> None:
        with store.write() as tx:
            assert len(tx.claim(finish.claimant_now(clock.now(), Settings()), cap=1)) == 1

    with_store(home, claim)
    clean(carol, "command", "1", "1", script=_RUNNER, writes=2, SCHEDULE_MAX_CONCURRENT="1")
    wait_for_the_end(home)


def test_a_runner_of_http_calls_from_start_to_finish(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, *(job(f"http-{n}", url="http://127.0.0.1:9/") for n in range(3)))
    queue(home, "http-0", "http-1", "http-2")

    def claim(store: Store) -> None:
        who = finish.claimant_now(clock.now(), Settings(max_run_duration_sec=2))
        with store.write() as tx:
            assert len(tx.claim(who, cap=2)) == 2

    with_store(home, claim)
    clean(
        carol, "http", "1:1", "2:1", script=_RUNNER, writes=4, SCHEDULE_MAX_RUN_DURATION_SEC="2",
        SCHEDULE_MAX_CONCURRENT="2",
    )  # fmt: skip
    wait_for_the_end(home)


# -- what agents and people call ----


def test_jobs_are_added_edited_paused_resumed_and_removed(home: Path, carol: Carol) -> None:
    clean(
        carol, "add-job", "a", "--cron", "7 3 * * 1-5", "--timezone", "Europe/Berlin", "--", "true",
        CAROL_NOW="2026-01-01T00:00:00Z",
    )  # fmt: skip
    clean(carol, "add-job", "b", "--every", "1h", "--on-failure", "a", "--url", "http://localhost/")
    clean(carol, "edit-job", "a", "--cron", "*/5 * * * *", CAROL_NOW="2026-02-01T00:00:00Z")
    clean(carol, "edit-job", "a", "--description", "new")
    clean(carol, "pause", "a", CAROL_NOW="2026-02-01T01:00:00Z")
    clean(carol, "resume", "a", CAROL_NOW="2026-02-01T02:00:00Z")
    clean(carol, "remove-job", "b", "--yes")


def test_everything_is_paused_and_resumed(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    clean(carol, "pause", "--for", "1h")
    clean(carol, "resume")


def test_settings_are_set_and_unset(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    clean(carol, "config", "set", "schedule.max_concurrent", "3")
    clean(carol, "config", "unset", "schedule.max_concurrent")


def test_a_job_is_run_by_hand_also_past_the_cap(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job("a"), job("b"))
    clean(carol, "run-job", "a", "--json")
    clean(carol, "run-job", "b", "--force", "--reason", "now", SCHEDULE_MAX_CONCURRENT="0")
    wait_for_the_end(home)


def test_a_full_fleet_refuses_a_run_by_hand(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job("a"))
    clean(carol, "run-job", "a", SCHEDULE_MAX_CONCURRENT="0", code=75)


def test_runs_are_finished_by_their_agents_and_cancelled_by_people(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job("nightly"), job("next", manual=True), job("waiting", manual=True))
    run_id = lost_run(home)
    queue(home, "next", "waiting")
    clean(carol, "cancel-run", str(run_id + 2))
    clean(
        carol, "finish-run", str(run_id), "--claim", "1", "--status", "failed", "--reason", "timeout",
        CAROL_NOW=NOW,
    )  # fmt: skip
    wait_for_the_end(home)


def test_a_live_run_is_cancelled_by_asking_its_process(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job(argv=("sleep", "600")))
    assert carol("tick", CAROL_NOW=NOW).code == 0
    wait_for_the_start(home)
    clean(carol, "cancel-run", "1")
    wait_for_the_end(home)


def test_a_legacy_table_is_brought_over(home: Path, carol: Carol, tmp_path: Path) -> None:
    planner = tmp_path / "planner.db"
    with closing(sqlite3.connect(planner)) as foreign, foreign:
        foreign.execute(
            "CREATE TABLE scheduled_jobs (job_id TEXT PRIMARY KEY, droid_name TEXT, schedule_type TEXT,"
            " daily_at TEXT, interval_sec INTEGER, cron_expr TEXT, timezone TEXT, endpoint_url TEXT,"
            " enabled INTEGER)"
        )
        foreign.execute(
            "INSERT INTO scheduled_jobs VALUES ('old', 'droid', 'cron', NULL, NULL, '0 3 * * *', 'UTC',"
            " 'http://localhost/', 1)"
        )
    found = clean(carol, "migrate-jobs", "--planner-db", str(planner), "--json")
    assert json.loads(found["out"])["migrated"] == 1


# -- pressure, triggers, budgets ----


def test_a_source_that_is_held_and_released(home: Path, carol: Carol) -> None:
    clean(carol, "pressure", "hold", "chat", "--json")
    clean(carol, "pressure", "hold", "chat", "--ttl", "1s", "--", "sleep", "0.5", writes=2)
    clean(carol, "pressure", "release", "chat", "--json")


def test_a_trigger(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job("a", manual=True))
    clean(carol, "trigger", "a", "--event-id", "1", "--kind", "k")
    wait_for_the_end(home)


def test_a_breach_of_a_turn_budget_whose_grace_is_computed(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job(max_turns=5, max_turns_set_at=T0 - DAY))
    run_id = lost_run(home)
    clean(
        carol, "finish-run", str(run_id), "--claim", "1", "--status", "failed", "--reason",
        "turn_limit_exceeded", CAROL_NOW=NOW,
    )  # fmt: skip
    found = carol("show-job", "nightly", "--json").json()
    assert found["turn_budget_breach_streak"] == 1
