"""Events taken in over a real store: each once, with its effect, and only what is committed is ever unlinked."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl import clock, drain, emit, events, global_pause, policy, spool
from carolctl.errors import StoreBusy
from carolctl.launch import owner
from carolctl.model import Millis, Outcome, Run
from carolctl.session import Session
from carolctl.store.db import Store
from carolctl.store.runs import Claimant
from tests import builders
from tests.builders import DAY, HOUR, MINUTE, T0, Carol, job

LATER = "2026-01-01T00:01:00Z"


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A job store with one job, in the data home that the environment names."""
    for name in [name for name in os.environ if name.startswith(("CAROL_", "SCHEDULE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    opened = builders.store(home)
    with opened.write() as tx:
        tx.insert_jobs([job(next_fire_at=None)])
    yield opened
    opened.close()


def running(store: Store, *, pid: int | None = None, max_turns: int | None = 10) -> Run:
    """A run, claimed and started at T0 on this host; without `pid` it was accepted elsewhere."""
    who = Claimant(now=T0, boottime_ms=None, host=clock.hostname(), boot_id=clock.boot_id(), lease_sec=1200)
    with store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=T0, max_turns=max_turns)
        assert run_id is not None
        tx.claim(who, cap=99, only=run_id)
        start = owner.start_time(pid) if pid else None
        started = tx.start(run_id, 1, now=T0, pid=pid, pid_start=start, unit=None)
    assert started is not None
    return started.run


def say(event_id: str, run: int = 1, **given: str) -> None:
    emit.emit(run=str(run), kind="progress", event_id=event_id, now=T0, **given)


def flood(home: Path, count: int) -> None:
    """Many events, without a word to the disk for each."""
    new = home / "spool" / "new"
    new.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = (
            f'{{"kind":"event","event_id":"f{number}","run_id":1,"event_kind":"progress","emitted_at":{T0}}}'
        )
        (new / f"event-f{number}.json").write_text(text)


def take(store: Store, *, now: int = T0 + MINUTE) -> events.Taken:
    """Take one batch in, as a tick does, and clear it."""
    batch = events.pending()
    with store.write() as tx:
        taken = events.take_in(tx, batch.files, now=Millis(now))
    events.clear(batch, taken)
    return taken


def look(store: Store, run: Run) -> Run:
    with store.read() as tx:
        found = tx.run(run.run_id)
    assert found is not None
    return found


def stored(home: Path) -> dict[str, tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        rows = connection.execute("SELECT event_id, run_id, kind, turns, received_at FROM events").fetchall()
    return {row[0]: row[1:] for row in rows}


def waiting(home: Path, folder: str = "new") -> list[str]:
    try:
        return sorted(os.listdir(home / "spool" / folder))
    except FileNotFoundError:
        return []


def session(store: Store) -> Session:
    return Session(store=store, now=Millis(T0 + MINUTE), actor="test")


# -- once ----


def test_an_event_is_stored_once_however_often_its_file_comes(store: Store, home: Path) -> None:
    for turns in ("3", "9"):
        say("one", turns=turns)
        assert take(store, now=T0 + int(turns)).new == (turns == "3")
    assert stored(home) == {"one": (1, "progress", 3, T0 + 3)}
    assert waiting(home) == []


def test_of_a_transaction_that_was_rolled_back_nothing_is_stored_and_every_file_stays(
    store: Store, home: Path
) -> None:
    run = running(store)
    say("one", turns="99")
    batch = events.pending()
    before = waiting(home)
    with store.write(dry_run=True) as tx:
        assert events.take_in(tx, batch.files, now=T0).new == 1
    assert (stored(home), len(before), waiting(home)) == ({}, 1, before)
    assert look(store, run).stop_reason is None


def test_an_event_that_the_database_refuses_is_undone_whole_and_set_aside_while_its_neighbours_stay(
    store: Store, home: Path
) -> None:
    run = running(store)
    with closing(sqlite3.connect(home / "scheduler.db")) as foreign, foreign:
        foreign.execute(
            "CREATE TRIGGER picky AFTER UPDATE OF turn_count ON runs WHEN NEW.turn_count = 5"
            " BEGIN SELECT RAISE(ABORT, 'not five'); END"
        )
    for event_id, turns in (("a", "4"), ("b", "5"), ("c", "3")):
        say(event_id, turns=turns)
    taken = take(store)
    assert (taken.new, [file.reason for file in taken.refused]) == (2, ["RefusedValue: not five"])
    assert sorted(stored(home)) == ["a", "c"]
    assert look(store, run).turn_count == 4
    assert (waiting(home), waiting(home, "bad")) == ([], ["event-b.json", "event-b.json.reason"])


def test_poison_is_moved_with_its_reason_and_its_neighbours_are_stored(
    store: Store, home: Path, carol: Carol
) -> None:
    say("good")
    new = home / "spool" / "new"
    (new / "event-half.json").write_text('{"kind":"event","event_id":"ha')
    (new / "event-link.json").symlink_to("/etc/passwd")
    os.mkfifo(new / "event-fifo.json")
    (new / "event-deep.json").write_text("[" * 1_000_000)
    (new / "finish-1-1.json").write_text("?")
    assert carol("drain", "--json").json() == {"drained": [], "launched": [], "events": 1, "bad": 5}
    assert sorted(stored(home)) == ["good"]
    assert waiting(home) == []
    reasons = {path.name: path.read_text() for path in (home / "spool" / "bad").glob("*.reason")}
    assert sorted(reasons) == [
        "event-deep.json.reason", "event-fifo.json.reason", "event-half.json.reason", "event-link.json.reason",
        "finish-1-1.json.reason",
    ]  # fmt: skip
    assert reasons["event-deep.json.reason"] == "too large: 1000000 bytes\n"
    assert "JSONDecodeError" in reasons["event-half.json.reason"]


# -- what an event does to its run ----


def test_turns_only_rise_and_nothing_else_of_the_run_changes(store: Store) -> None:
    run = running(store)
    for event_id, turns in (("a", "4"), ("b", "7"), ("c", "6")):
        say(event_id, turns=turns)
        take(store)
    say("d")
    take(store)
    now = look(store, run)
    assert now.turn_count == 7
    assert (now.lease_expires_at, now.status, now.stop_reason) == (run.lease_expires_at, "running", None)


def test_as_many_turns_as_it_may_use_are_no_breach_and_one_more_stops_it_once(store: Store) -> None:
    run = running(store)
    say("a", turns="10")
    assert take(store).stops == []
    say("b", turns="11")
    say("c", turns="12")
    [stopped] = take(store).stops
    assert (stopped.run_id, stopped.stop_reason) == (run.run_id, "turn_limit_exceeded")
    assert look(store, run).stop_reason == "turn_limit_exceeded"


def test_a_run_without_a_budget_is_never_stopped_for_its_turns(store: Store) -> None:
    run = running(store, max_turns=None)
    say("a", turns=str(2**53 - 1))
    assert take(store).stops == []
    assert look(store, run).turn_count == 2**53 - 1


def test_an_event_of_another_claim_is_stored_and_changes_nothing(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(store)
    monkeypatch.setenv("CAROL_RUN_ID", "1")
    monkeypatch.setenv("CAROL_CLAIM", "2")
    say("stale", turns="99")
    assert take(store).stops == []
    assert look(store, run) == run
    assert "stale" in stored(home)


def test_an_event_of_a_run_that_is_unknown_waits_or_has_ended_changes_nothing(
    store: Store, home: Path
) -> None:
    with store.write() as tx:
        tx.insert_run("nightly", source="manual", now=T0, max_turns=1)
        tx.insert_run("nightly", source="manual", now=T0, max_turns=1)
        tx.cancel_queued(2, now=T0, summary="x")
        before = tx.runs_by_id([1, 2])
    for run_id in (1, 2, 4_000_000):
        say(f"e{run_id}", run_id, turns="5")
    assert take(store).stops == []
    with store.read() as tx:
        assert tx.runs_by_id([1, 2]) == before
    assert len(stored(home)) == 3


def test_a_run_that_was_accepted_elsewhere_ends_in_the_next_sweep_for_its_turns(
    store: Store, carol: Carol
) -> None:
    run = running(store)
    say("a", turns="11")
    assert carol("drain", CAROL_NOW=LATER).code == 0
    assert look(store, run).status == "running"
    reaped = carol("reap", "--json", CAROL_NOW=LATER).json()
    assert (reaped["leases"], reaped["lost"]) == ([run.run_id], [])
    ended = look(store, run)
    assert (ended.status, ended.failure_reason) == ("failed", "turn_limit_exceeded")
    with store.read() as tx:
        after = tx.job("nightly")
    assert after is not None
    assert (after.turn_budget_breach_streak, after.failure_streak, after.last_turn_count) == (1, 0, 11)


def test_past_its_turns_and_its_lease_a_run_ended_for_its_turns(store: Store) -> None:
    say("a", turns="11")
    run = running(store)
    take(store)
    verdict = policy.judge(
        look(store, run), "unknown", now=Millis(T0 + HOUR), boottime_ms=None, boot_id="x", is_http=True
    )
    assert isinstance(verdict, policy.End)
    assert verdict.failure_reason == "turn_limit_exceeded"


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


@pytest.mark.parametrize("command", ["tick", "drain"])
def test_while_everything_is_paused_events_are_taken_in_and_stop_what_used_up_its_turns(
    store: Store, home: Path, carol: Carol, command: str
) -> None:
    with _sleeper() as process:
        run = running(store, pid=process.pid)
        with store.write() as tx:
            tx.set_meta(global_pause.KEY, global_pause.FOREVER)
        say("a", turns="11")
        done = carol(command, "--json", CAROL_NOW=LATER)
        assert (done.code, process.wait(timeout=20)) == (0, -15)
        assert "used 11 of 10 turns" in done.err
    assert look(store, run).stop_reason == "turn_limit_exceeded"
    assert waiting(home) == []


def test_a_stop_that_was_not_carried_out_is_asked_for_again_even_while_paused(
    store: Store, carol: Carol
) -> None:
    with _sleeper() as process:
        running(store, pid=process.pid)
        with store.write() as tx:
            tx.set_meta(global_pause.KEY, global_pause.FOREVER)
        say("a", turns="11")
        died = carol("tick", CAROL_NOW=LATER, CAROL_FAILPOINT="store-after-commit:kill")
        assert (died.code, process.poll()) == (-9, None)
        assert carol("tick", CAROL_NOW=LATER).code == 0
        assert process.wait(timeout=20) == -15


_AGENT = """
trap 'echo asked; exit 0' TERM
"$1" -I -m carolctl emit $CAROL_RUN_ID --kind turns --turns 6 >/dev/null
while :; do sleep 0.05; done
"""


def test_a_command_that_traps_the_signal_and_says_success_has_failed_by_its_turns(
    home: Path, carol: Carol
) -> None:
    # By hand only: the tick below is at the real time, and must not fire a second one.
    agent = ("/bin/sh", "-c", _AGENT, "agent", sys.executable)
    builders.add_jobs(home, job(manual=True, argv=agent, max_turns=5))
    assert carol("run-job", "nightly").code == 0
    deadline = time.monotonic() + 30
    while not waiting(home):
        assert time.monotonic() < deadline, "the agent does not emit"
        time.sleep(0.02)
    assert carol("tick", "--json").code == 0
    while (row := carol("show-run", "1", "--json").json())["status"] == "running":
        assert time.monotonic() < deadline, row
    assert (row["status"], row["failure_reason"], row["exit_status"]) == ("failed", "turn_limit_exceeded", 0)
    assert (row["turn_count"], [event["turns"] for event in row["events"]]) == (6, [6])
    found = carol("show-job", "nightly", "--json").json()
    assert (found["turn_budget_breach_streak"], found["failure_streak"]) == (1, 0)


# -- ticks and drains ----


def test_a_flood_is_taken_in_batch_after_batch_and_the_outcome_of_a_live_run_is_found_in_it(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(store)
    flood(home, 2 * events.BATCH + 7)
    monkeypatch.setattr(spool, "_MOST_NAMES", events.BATCH)
    spool.leave(Outcome(run_id=1, claim_no=1, status="completed", completed_at=T0))
    report = drain.drain(session(store), longest_sec=0)
    assert (report.drained, report.events >= events.BATCH - 1) == ([1], True)
    assert look(store, run).status == "completed"
    assert drain.drain(session(store)).events + report.events == 2 * events.BATCH + 7
    assert (len(stored(home)), waiting(home)) == (2 * events.BATCH + 7, [])


def test_a_drain_ends_when_its_time_is_up_and_the_rest_waits(store: Store, home: Path) -> None:
    flood(home, events.BATCH + 1)
    assert drain.drain(session(store), longest_sec=0).events == events.BATCH
    assert len(waiting(home)) == 1


def test_files_that_cannot_be_unlinked_are_taken_in_once_and_do_not_go_round_for_ever(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("a")

    def refuse(path: str) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "unlink", refuse)
    assert drain.drain(session(store)).events == 1
    assert drain.drain(session(store)).events == 0
    assert "stay in the spool" in capsys.readouterr().err


def test_a_tick_fires_what_is_due_before_the_rest_of_a_flood_is_taken_in(
    store: Store, home: Path, carol: Carol
) -> None:
    with store.write() as tx:
        tx.insert_jobs([job("due")])
    flood(home, events.BATCH + 20)
    died = carol("tick", CAROL_NOW="2026-01-01T01:00:00Z", CAROL_FAILPOINT="drain-committed:kill")
    assert died.code == -9
    with store.read() as tx:
        assert [run.job_id for run in tx.live_runs() or tx.runs_by_id([1])] == ["due"]
    assert len(stored(home)) == events.BATCH + 20
    assert len(waiting(home)) == 20
    assert carol("tick", CAROL_NOW="2026-01-01T01:00:30Z").code == 0
    assert (len(stored(home)), waiting(home)) == (events.BATCH + 20, [])


def test_a_dry_run_takes_nothing_in_stops_nothing_and_moves_nothing(
    store: Store, home: Path, carol: Carol
) -> None:
    with _sleeper() as process:
        run = running(store, pid=process.pid)
        say("a", turns="11")
        (home / "spool" / "new" / "event-bad.json").write_text("?")
        (home / "spool" / "new" / "strange").write_text("?")
        before = waiting(home)
        assert carol("tick", "--dry-run", CAROL_NOW=LATER).code == 0
        assert (waiting(home), stored(home), look(store, run)) == (before, {}, run)
        assert process.poll() is None
        process.kill()


def test_a_locked_store_leaves_every_file_where_it_is(store: Store, home: Path) -> None:
    say("a")
    with (
        closing(builders.store(home, deadline_ms=50)) as hasty,
        closing(sqlite3.connect(home / "scheduler.db", isolation_level=None)) as foreign,
    ):
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            drain.drain(session(hasty))
    assert len(waiting(home)) == 1
    assert drain.drain(session(store)).events == 1


# -- afterwards ----


def test_a_run_is_shown_with_its_last_20_events_oldest_first(store: Store, carol: Carol) -> None:
    running(store)
    for number in range(25):
        emit.emit(
            run="1", kind="progress", event_id=f"e{number}", now=T0 + number, data=json.dumps({"n": number})
        )
    take(store)
    shown = carol("show-run", "1", "--json").json()["events"]
    assert [event["data"] for event in shown] == [{"n": number} for number in range(5, 25)]
    assert shown[0] == {
        "event_id": "e5", "kind": "progress", "turns": None, "data": {"n": 5},
        "emitted_at": "2026-01-01T00:00:00.005Z", "received_at": "2026-01-01T00:01:00Z",
    }  # fmt: skip
    assert 'progress {"n":24}' in carol("show-run", "1").out


def test_old_events_are_pruned_by_when_they_were_received(store: Store, home: Path, carol: Carol) -> None:
    for event_id, received in (("old", T0), ("new", T0 + 300 * DAY)):
        say(event_id)
        take(store, now=received)
    gone = carol("prune", "--json", CAROL_NOW="2026-10-28T00:00:00Z").json()["pruned"]
    assert gone["events"] == 1
    assert sorted(stored(home)) == ["new"]
