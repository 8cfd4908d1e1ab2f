"""How runs end: one function for every end, whoever saw it, over a real store."""

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

from carolctl import cancel, clock, finish, outlook, run_now, spool, sweep
from carolctl import settle as settling
from carolctl.config import Settings
from carolctl.errors import CapacityFull, JobRunning, NotFound, TryAgainLater
from carolctl.launch import owner
from carolctl.model import Job, Millis, Outcome, Run
from carolctl.session import Session
from carolctl.settle import Settled
from carolctl.store.db import Store
from carolctl.store.records import AuditEntry
from carolctl.store.runs import Claimant, RunFilter
from tests import builders
from tests.builders import HOUR, MINUTE, T0, Carol, job

LEASE_SEC = 1200


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty job store in the data home that the environment names."""
    for name in [name for name in os.environ if name.startswith(("CAROL_", "SCHEDULE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    opened = builders.store(home)
    yield opened
    opened.close()


def add(store: Store, *jobs: Job) -> None:
    with store.write() as tx:
        tx.insert_jobs(jobs)


def running(
    store: Store, job_id: str = "nightly", *, at: int = T0, pid: int | None = None, **columns: Any
) -> Run:
    """A run of that job, claimed and started at `at` on this host."""
    with store.write() as tx:
        run_id = tx.insert_run(job_id, source="manual", now=Millis(at), **columns)
        assert run_id is not None
        who = Claimant(
            now=Millis(at),
            boottime_ms=None,
            host=clock.hostname(),
            boot_id=clock.boot_id(),
            lease_sec=LEASE_SEC,
        )
        [claimed] = tx.claim(who, cap=99, only=run_id)
        started = tx.start(
            run_id,
            claimed.run.claim_no,
            now=Millis(at + 1000),
            pid=pid,
            pid_start=owner.start_time(pid) if pid else None,
            unit=None,
        )
    assert started is not None
    return started.run


def outcome(run: Run, reason: str | None = None, *, after_ms: int = MINUTE, **columns: Any) -> Outcome:
    """A success of `run` a minute after its claim, or a failure of class `reason`."""
    assert run.slot_claimed_at is not None
    values: dict[str, Any] = {
        "run_id": run.run_id, "claim_no": run.claim_no, "status": "failed" if reason else "completed",
        "completed_at": run.slot_claimed_at + after_ms, "failure_reason": reason,
    }  # fmt: skip
    return Outcome(**values | columns)


def settle(store: Store, *outcomes: Outcome, now: int = T0 + MINUTE, **settings: Any) -> Settled:
    with store.write() as tx:
        return settling.settle(tx, outcomes, now=Millis(now), settings=Settings(**settings))


def look(store: Store, run: Run) -> Run:
    with store.read() as tx:
        found = tx.run(run.run_id)
    assert found is not None
    return found


def look_up(store: Store, job_id: str = "nightly") -> Job:
    with store.read() as tx:
        found = tx.job(job_id)
    assert found is not None
    return found


def audited(store: Store) -> list[dict[str, Any]]:
    with store.read() as tx:
        return tx.audit_entries()


def rows(home: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute(question).fetchall()


def tamper(home: Path, statement: str) -> None:
    """Do to the file what a person with another program might."""
    with closing(sqlite3.connect(home / "scheduler.db")) as foreign, foreign:
        foreign.execute(statement)


def fail_in_a_row(store: Store, times: int, reason: str = "exit_nonzero", job_id: str = "nightly") -> None:
    for n in range(times):
        settle(store, outcome(running(store, job_id, at=T0 + n * MINUTE), reason))


# -- an end ----


def test_a_success_ends_the_run_and_is_told_on_its_job(store: Store) -> None:
    add(store, job(failure_streak=2, turn_budget_breach_streak=4, last_failure_reason="timeout"))
    run = running(store)
    settled = settle(store, outcome(run, turns=12, summary="done"))
    assert settled == Settled(ended=[run.run_id])
    ended, its_job = look(store, run), look_up(store)
    assert (ended.status, ended.turn_count, ended.result_summary) == ("completed", 12, "done")
    assert (its_job.last_run_id, its_job.last_status, its_job.last_failure_reason) == (
        run.run_id,
        "completed",
        None,
    )
    assert (its_job.failure_streak, its_job.turn_budget_breach_streak) == (0, 0)
    assert (its_job.last_turn_count, its_job.avg_turns_per_firing) == (12, 12.0)


def test_an_end_is_one_row_of_metrics(store: Store, home: Path) -> None:
    add(store, job())
    run = running(store, max_turns=30)
    settle(store, outcome(run, "timeout", turns=7))
    [row] = rows(
        home,
        "SELECT run_id, attempt, job_id, fired_at, slot_claimed_at, completed_at, slot_wait_ms, duration_ms,"
        " turn_count, max_turns_at_firing, failure_reason FROM schedule_firing_metrics",
    )
    ended_at = T0 + MINUTE
    assert row == (run.run_id, 1, "nightly", T0, T0, ended_at, 0, MINUTE - 1000, 7, 30, "timeout")


def test_an_end_that_is_told_twice_counts_once(store: Store, home: Path) -> None:
    add(store, job())
    run = running(store)
    once = outcome(run, "timeout")
    assert settle(store, once, once) == Settled(ended=[run.run_id], stale=[run.run_id])
    assert settle(store, once, outcome(run)) == Settled(stale=[run.run_id] * 2)
    assert (look(store, run).status, look_up(store).failure_streak) == ("failed", 1)
    assert rows(home, "SELECT count(*) FROM schedule_firing_metrics") == [(1,)]


def test_an_end_of_an_old_claim_or_of_no_run_at_all_changes_nothing(store: Store) -> None:
    add(store, job())
    run = running(store)
    strangers = [outcome(run, claim_no=0), outcome(run, claim_no=2), outcome(run, run_id=999)]
    assert settle(store, *strangers) == Settled(stale=[run.run_id, run.run_id, 999])
    assert look(store, run) == run
    assert look_up(store).last_status is None


def test_a_run_whose_job_was_removed_still_ends(store: Store, home: Path) -> None:
    add(store, job())
    run = running(store)
    with store.write() as tx:
        tx.delete_job("nightly")
    assert settle(store, outcome(run, "timeout")) == Settled(ended=[run.run_id])
    assert look(store, run).status == "failed"
    assert rows(home, "SELECT job_id FROM schedule_firing_metrics") == [("nightly",)]


@pytest.mark.parametrize(
    ("stop_reason", "status", "failure_reason"),
    [
        ("cancelled", "cancelled", None),
        ("lease_expired", "failed", "lease_expired"),
        ("turn_limit_exceeded", "failed", "turn_limit_exceeded"),
    ],
)
def test_a_stop_reason_stands_above_exit_0(
    store: Store, stop_reason: Any, status: str, failure_reason: str | None
) -> None:
    add(store, job(max_attempts=3, idempotent=True))
    run = running(store)
    with store.write() as tx:
        tx.set_stop_reason(run.run_id, run.claim_no, stop_reason, now=T0)
    settle(store, outcome(run, exit_status=0))
    ended = look(store, run)
    assert (ended.status, ended.failure_reason, ended.exit_status) == (status, failure_reason, 0)


def test_turns_that_an_event_reported_count_when_the_end_says_none(store: Store, home: Path) -> None:
    add(store, job())
    run = running(store)
    tamper(home, "UPDATE runs SET turn_count = 9")
    settle(store, outcome(run))
    assert (look(store, run).turn_count, look_up(store).last_turn_count) == (9, 9)


# -- streaks ----


def test_three_failures_in_a_row_pause_the_job_once_with_a_line_in_the_audit_log(store: Store) -> None:
    add(store, job())
    fail_in_a_row(store, 2)
    assert (look_up(store).status, audited(store)) == ("active", [])
    run = running(store, at=T0 + HOUR)
    settle(store, outcome(run, "timeout"), now=T0 + HOUR)
    paused = look_up(store)
    assert (paused.status, paused.failure_streak) == ("paused", 3)
    assert paused.paused_reason == "3 failures in a row, the last one timeout"
    [entry] = audited(store)
    assert (entry["command"], entry["subject"], entry["reason"]) == (
        "settle",
        "nightly",
        paused.paused_reason,
    )
    assert (json.loads(entry["before"]), json.loads(entry["after"])) == (
        {"status": "active"},
        {"status": "paused", "run_id": run.run_id},
    )
    assert entry["at"] == T0 + HOUR
    fail_in_a_row(store, 1)
    assert len(audited(store)) == 1
    assert look_up(store).paused_reason == paused.paused_reason


def test_three_failures_of_one_batch_pause_as_three_of_three_batches_do(store: Store) -> None:
    add(store, job(overlap="allow"))
    runs = [running(store) for _ in range(3)]
    settle(store, *(outcome(run, "killed") for run in runs))
    assert (look_up(store).status, look_up(store).failure_streak) == ("paused", 3)


def test_a_pause_by_hand_keeps_its_reason(store: Store) -> None:
    add(store, job(status="paused", paused_reason="by hand", failure_streak=2))
    fail_in_a_row(store, 1)
    assert (look_up(store).paused_reason, look_up(store).failure_streak) == ("by hand", 3)


def test_five_breaches_pause_and_four_do_not(store: Store) -> None:
    add(store, job())
    fail_in_a_row(store, 4, "turn_limit_exceeded")
    assert look_up(store).status == "active"
    fail_in_a_row(store, 1, "turn_limit_exceeded")
    assert look_up(store).paused_reason == "5 turn-limit breaches in a row"
    assert look_up(store).failure_streak == 0


def test_the_settings_say_how_many_pause(store: Store) -> None:
    add(store, job())
    settle(store, outcome(running(store), "timeout"), failure_pause=1)
    assert look_up(store).status == "paused"


def test_firings_near_the_end_of_their_lease_are_counted_in_a_row(store: Store) -> None:
    add(store, job())
    for after_sec, streak in ((960, 0), (961, 1), (1100, 2), (10, 0)):
        settle(store, outcome(running(store), after_ms=after_sec * 1000))
        assert look_up(store).lease_drift_streak == streak


# -- retries ----


def test_a_failure_with_an_attempt_left_goes_back_to_the_queue_as_the_same_row(
    store: Store, home: Path
) -> None:
    add(store, job(max_attempts=2, next_fire_at=None))
    run = running(store)
    assert settle(store, outcome(run, "timeout")) == Settled(requeued=[run.run_id])
    again = look(store, run)
    assert (again.status, again.attempt, again.completed_at) == ("queued", 2, None)
    assert again.not_before is not None
    assert again.not_before > T0 + MINUTE
    assert look_up(store).failure_streak == 0
    assert rows(home, "SELECT attempt, failure_reason FROM schedule_firing_metrics") == [(1, "timeout")]


def test_the_last_attempt_counts_as_one_failure_and_calls_the_handler(store: Store, home: Path) -> None:
    add(store, job(max_attempts=2, next_fire_at=None, on_failure="mend"), job("mend", manual=True))
    run = running(store)
    settle(store, outcome(run, "timeout"))
    assert rows(home, "SELECT count(*) FROM runs") == [(1,)]
    with store.write() as tx:
        who = Claimant(now=Millis(T0 + HOUR), boottime_ms=None, host="h", boot_id="b", lease_sec=LEASE_SEC)
        [claimed] = tx.claim(who, cap=9)
    assert claimed.run.claim_no == run.claim_no + 1
    settle(store, outcome(claimed.run, "timeout"))
    assert look_up(store).failure_streak == 1
    assert rows(home, "SELECT job_id FROM runs ORDER BY run_id") == [("nightly",), ("mend",)]
    assert rows(home, "SELECT attempt FROM schedule_firing_metrics ORDER BY attempt") == [(1,), (2,)]


def test_a_retry_that_is_told_twice_is_queued_once(store: Store) -> None:
    add(store, job(max_attempts=5, next_fire_at=None))
    run = running(store)
    once = outcome(run, "timeout")
    assert settle(store, once, once) == Settled(requeued=[run.run_id], stale=[run.run_id])
    assert look(store, run).attempt == 2


# -- the job that is run on a failure ----


def test_a_failure_runs_the_handler_once(store: Store) -> None:
    add(store, job(on_failure="mend"), job("mend", manual=True, max_turns=9))
    run = running(store)
    once = outcome(run, "timeout")
    settle(store, once, once)
    with store.read() as tx:
        [handler] = tx.runs(RunFilter(job_id="mend"))
    assert (handler.source, handler.status, handler.max_turns) == ("event", "queued", 9)
    assert (handler.event_id, handler.trigger_kind) == (f"run:{run.run_id}", "on_failure")


@pytest.mark.parametrize("end", ["success", "cancelled"])
def test_neither_a_success_nor_a_cancelled_run_runs_the_handler(store: Store, end: str) -> None:
    add(store, job(on_failure="mend"), job("mend", manual=True))
    run = running(store)
    settle(store, outcome(run, status="cancelled" if end == "cancelled" else "completed"))
    with store.read() as tx:
        assert tx.runs(RunFilter(job_id="mend")) == []


def test_the_failure_of_a_handler_triggers_nothing(store: Store) -> None:
    add(store, job("mend", manual=True, on_failure="mend-the-mender"), job("mend-the-mender", manual=True))
    run = running(store, "mend", event_id="run:7", trigger_kind="on_failure")
    settle(store, outcome(run, "timeout"))
    with store.read() as tx:
        assert tx.runs(RunFilter(job_id="mend-the-mender")) == []
    assert look_up(store, "mend").failure_streak == 1


def test_a_handler_that_was_removed_is_no_trouble(store: Store) -> None:
    add(store, job(on_failure="gone"))
    run = running(store)
    assert settle(store, outcome(run, "timeout")) == Settled(ended=[run.run_id])


# -- rows that cannot be understood ----


def test_a_damaged_job_costs_its_run_the_streaks_and_the_others_nothing(store: Store, home: Path) -> None:
    add(store, job("bad"), job("good"), job("other"))
    runs = [running(store, name) for name in ("good", "bad", "other")]
    tamper(home, "UPDATE scheduled_jobs SET action = '[1]' WHERE job_id = 'bad'")
    settled = settle(store, *(outcome(run, "timeout") for run in runs))
    assert settled.ended == [runs[0].run_id, runs[2].run_id]
    [(damaged, problem)] = settled.damaged
    assert damaged == runs[1].run_id
    assert problem.startswith("TypeError")
    assert [look(store, run).status for run in runs] == ["failed"] * 3
    assert look_up(store, "good").failure_streak == look_up(store, "other").failure_streak == 1
    assert rows(home, "SELECT job_id FROM schedule_firing_metrics ORDER BY run_id") == [("good",), ("other",)]


def test_a_damaged_handler_costs_the_failed_job_neither_streak_nor_metrics(store: Store, home: Path) -> None:
    add(store, job(on_failure="mend"), job("mend", manual=True))
    run = running(store)
    tamper(home, "UPDATE scheduled_jobs SET action = '[1]' WHERE job_id = 'mend'")
    settle(store, outcome(run, "timeout"))
    assert look_up(store).failure_streak == 1
    assert rows(home, "SELECT count(*) FROM schedule_firing_metrics") == [(1,)]


def test_a_run_is_told_under_one_heading(store: Store, home: Path) -> None:
    add(store, job(on_failure="mend"), job("mend", manual=True))
    run = running(store)
    tamper(home, "UPDATE scheduled_jobs SET action = '[1]' WHERE job_id = 'mend'")
    settled = settle(store, outcome(run, "timeout"))
    told = [*settled.ended, *settled.requeued, *settled.stale, *(run_id for run_id, _ in settled.damaged)]
    assert told == [run.run_id]


@pytest.mark.parametrize(
    "columns",
    [{"summary": "\ud83d"}, {"turns": 2**63}, {"completed_at": 2**63}, {"run_id": 2**63}],
    ids=lambda columns: next(iter(columns)),
)
def test_an_outcome_that_the_database_refuses_does_not_stop_the_others(
    store: Store, columns: dict[str, Any]
) -> None:
    add(store, job("bad"), job("good"))
    bad, good = running(store, "bad"), running(store, "good")
    settle(store, outcome(bad, **columns), outcome(good))
    assert look(store, good).status == "completed"


# -- finish: settle and refill, or the spool ----


def session(store: Store, now: int = T0 + MINUTE) -> Session:
    return Session(store=store, now=Millis(now), actor="tester")


def test_the_end_of_one_run_claims_the_next_in_the_same_write(store: Store) -> None:
    add(store, job("a"), job("b"), job("c"), job("d"))
    runs = [running(store, "a"), running(store, "b")]
    with store.write() as tx:
        waiting = [tx.insert_run(name, source="manual", now=T0) for name in ("c", "d")]
    claimed = finish.record_outcomes(store, [outcome(runs[0])], now=Millis(T0 + MINUTE))
    assert [one.run.run_id for one in claimed] == waiting[:1]
    with store.read() as tx:
        assert tx.count_live() == (1, 2)


@pytest.mark.parametrize(
    ("until", "claims"), [("forever", 0), (str(T0 + HOUR), 0), (str(T0 + MINUTE), 1), (None, 1)]
)
def test_while_everything_is_paused_an_end_is_recorded_and_nothing_claimed(
    store: Store, until: str | None, claims: int
) -> None:
    add(store, job("a"), job("b"))
    run = running(store, "a")
    with store.write() as tx:
        tx.insert_run("b", source="manual", now=T0)
        tx.set_meta("paused_until", until)
    claimed = finish.record_outcomes(store, [outcome(run)], now=Millis(T0 + MINUTE))
    assert len(claimed) == claims
    assert look(store, run).status == "completed"


def test_an_end_that_cannot_be_written_waits_in_the_spool_and_counts_once_it_can(
    store: Store, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, job())
    run = running(store)
    with (
        closing(builders.store(home, deadline_ms=50)) as hasty,
        closing(sqlite3.connect(home / "scheduler.db", isolation_level=None)) as foreign,
    ):
        foreign.execute("BEGIN IMMEDIATE")
        assert finish.record_outcomes(hasty, [outcome(run, turns=3)], now=Millis(T0 + MINUTE)) == []
    assert "goes to the spool" in capsys.readouterr().err
    [file] = spool.pending()
    assert look(store, run).status == "running"
    assert settle(store, file.outcome, file.outcome).ended == [run.run_id]
    assert (look(store, run).status, look(store, run).turn_count) == ("completed", 3)


def test_duplicates_in_the_spool_are_one_end(store: Store, home: Path, carol: Carol) -> None:
    add(store, job())
    run = running(store)
    path = Path(spool.leave(outcome(run, "timeout")))
    (path.parent / "copy.json").write_bytes(path.read_bytes())
    assert carol("drain", "--json").json() == {
        "drained": [run.run_id], "launched": [], "events": 0, "bad": 0
    }  # fmt: skip
    assert look_up(store).failure_streak == 1
    assert spool.pending() == []


def test_the_finish_file_of_a_run_beats_its_death(store: Store, carol: Carol) -> None:
    add(store, job())
    run = running(store, pid=dead_pid())
    spool.leave(outcome(run, turns=5))
    done = carol("tick", "--json", CAROL_NOW="2026-01-01T00:01:00Z").json()
    assert done["reaped"] == []
    assert (look(store, run).status, look(store, run).turn_count) == ("completed", 5)


@pytest.mark.parametrize("run_id", [None, 10**30], ids=["no document", "a run id beyond 64 bits"])
def test_a_poisoned_spool_does_not_stop_the_tick(store: Store, carol: Carol, run_id: int | None) -> None:
    add(store, job("late"), job("due"))
    path = Path(spool.leave(outcome(running(store, "late"))))
    document = json.loads(path.read_text()) | {"run_id": run_id}
    path.write_text("5" if run_id is None else json.dumps(document))
    done = carol("tick", CAROL_NOW="2026-01-01T01:00:00Z")
    assert done.code == 0
    with store.read() as tx:
        assert len(tx.runs(RunFilter(job_id="due"))) == 1


def test_an_agent_whose_summary_is_no_text_still_ends_its_run(store: Store, carol: Carol) -> None:
    add(store, job())
    run = running(store)
    told = ("--claim", "1", "--status", "completed", "--summary", "latin \udce9")
    assert carol("finish-run", str(run.run_id), *told).code == 0
    assert look(store, run).status == "completed"


def test_a_pause_until_nobody_knows_when_does_not_end_the_tick_as_a_bug(store: Store, carol: Carol) -> None:
    add(store, job())
    with store.write() as tx:
        tx.set_meta("paused_until", "soon")
    assert carol("tick", CAROL_NOW="2026-01-01T01:00:00Z").code != 70


# -- sweeps: what happens between the look and the write ----


def dead_pid() -> int:
    """The process id of a child that has ended."""
    child = subprocess.Popen([sys.executable, "-I", "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A live process that a run may name as its owner."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def claimant(now: int) -> Claimant:
    return finish.claimant_now(Millis(now), Settings())


def sweep_after(store: Store, meanwhile: Any, *, now: int) -> sweep.Swept:
    """Look at the live runs, let `meanwhile` happen, then write what the look gave."""
    with store.read() as tx:
        live = tx.live_runs()
        jobs = tx.jobs_named({run.job_id for run in live})
    swept = sweep.look(live, jobs, claimant(now), paused=False)
    meanwhile()
    with store.write() as tx:
        settled = settling.settle(
            tx, sweep.outcomes_to_settle(tx, swept), now=Millis(now), settings=Settings()
        )
        return sweep.apply(tx, swept, settled, claimant(now))


def nothing() -> None:
    pass


def live_runs(store: Store) -> list[tuple[int, str]]:
    with store.read() as tx:
        return [(run.run_id, run.status) for run in tx.live_runs()]


def test_a_run_whose_process_is_gone_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:01:00Z")
    add(store, job())
    run = running(store, pid=dead_pid())
    assert sweep_after(store, nothing, now=T0 + MINUTE).lost == [run.run_id]
    assert look(store, run).failure_reason == "process_lost"


def test_a_live_owner_past_its_lease_is_asked_to_stop_and_keeps_its_slot(
    store: Store, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    add(store, job())
    run = running(store, pid=sleeper.pid)
    now = T0 + LEASE_SEC * 1000
    assert sweep_after(store, nothing, now=now - 1).leases == []
    swept = sweep_after(store, nothing, now=now)
    assert (swept.leases, [one.run_id for one in swept.stopped]) == ([run.run_id], [run.run_id])
    assert (look(store, run).status, look(store, run).stop_reason) == ("running", "lease_expired")


def test_a_run_that_starts_between_the_look_and_the_write_keeps_its_slot(
    store: Store, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    add(store, job())
    with store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=T0)
        assert run_id is not None
        tx.claim(claimant(T0), cap=1)
    for minute in (1, 2):
        with store.write() as tx:
            run = tx.run(run_id)
            assert run is not None
            tx.reclaim([run], claimant(T0 + minute * MINUTE))

    def start() -> None:
        pid_start = owner.start_time(sleeper.pid)
        with store.write() as tx:
            assert tx.start(run_id, 3, now=T0, pid=sleeper.pid, pid_start=pid_start, unit=None)

    sweep_after(store, start, now=T0 + 4 * MINUTE)
    assert live_runs(store) == [(run_id, "running")]


def test_a_run_that_is_accepted_between_the_look_and_the_write_lives_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    add(store, job(url="http://localhost:1/"))
    run = running(store, pid=dead_pid())

    def accept() -> None:
        with store.write() as tx:
            assert tx.accept(run.run_id, run.claim_no)

    sweep_after(store, accept, now=T0 + MINUTE)
    assert look(store, run).status == "running"


def test_a_run_that_ends_between_the_look_and_the_write_keeps_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    add(store, job())
    run = running(store, pid=dead_pid())
    swept = sweep_after(store, lambda: settle(store, outcome(run)), now=T0 + MINUTE)
    assert (swept.lost, look(store, run).status) == ([], "completed")


def test_a_claim_that_never_started_is_launched_again_unless_it_starts_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    add(store, job("a"), job("b"))
    with store.write() as tx:
        for name in ("a", "b"):
            tx.insert_run(name, source="manual", now=T0)
        tx.claim(claimant(T0), cap=9)

    def start_one() -> None:
        with store.write() as tx:
            tx.start(1, 1, now=T0, pid=None, pid_start=None, unit=None)

    swept = sweep_after(store, start_one, now=T0 + MINUTE)
    assert [one.run.run_id for one in swept.relaunched] == [2]


# -- cancelling ----


def test_what_waits_is_cancelled_at_once_and_what_runs_is_stopped_first(
    store: Store, sleeper: subprocess.Popen[bytes]
) -> None:
    add(store, job("a"), job("b"))
    live = running(store, "a", pid=sleeper.pid)
    with store.write() as tx:
        tx.insert_run("b", source="manual", now=T0)
    with store.read() as tx:
        runs = tx.live_runs()
    ended, asked = cancel.cancel_runs(store, runs, now=Millis(T0 + MINUTE))
    assert (ended, asked) == ([live.run_id + 1], [live.run_id])
    assert (look(store, live).status, look(store, live).stop_reason) == ("running", "cancelled")
    assert sleeper.wait(timeout=10) == -15


def test_a_run_without_an_owner_here_is_cancelled_at_once(store: Store) -> None:
    add(store, job())
    run = running(store)
    assert cancel.cancel_runs(store, [run], now=Millis(T0 + MINUTE)) == ([run.run_id], [])
    assert look(store, run).status == "cancelled"


def test_a_run_that_is_claimed_while_it_is_being_cancelled_is_cancelled_all_the_same(store: Store) -> None:
    add(store, job())
    with store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=T0)
    with store.read() as tx:
        seen = tx.live_runs()
    with store.write() as tx:
        tx.claim(claimant(T0), cap=1)
    ended, asked = cancel.cancel_runs(store, seen, now=Millis(T0 + MINUTE))
    assert ended + asked == [run_id]


def test_a_run_that_starts_while_it_is_being_cancelled_is_stopped_first(
    store: Store, sleeper: subprocess.Popen[bytes]
) -> None:
    add(store, job())
    with store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=T0)
        assert run_id is not None
        tx.claim(claimant(T0), cap=1)
    with store.read() as tx:
        seen = tx.live_runs()
    pid_start = owner.start_time(sleeper.pid)
    with store.write() as tx:
        assert tx.start(run_id, 1, now=T0, pid=sleeper.pid, pid_start=pid_start, unit=None)
    assert cancel.cancel_runs(store, seen, now=Millis(T0 + MINUTE)) == ([], [run_id])
    with store.read() as tx:
        assert tx.count_live() == (0, 1)


# -- manual runs ----


def by_hand(store: Store, job_id: str = "nightly", *, force: bool = False) -> Run:
    return run_now.run_now(session(store), job_id, force=force, reason="it must be now", requester="ann").run


def test_a_manual_run_takes_a_free_slot_at_once(store: Store) -> None:
    add(store, job(status="paused", max_turns=4))
    run = by_hand(store)
    assert (run.status, run.source, run.requester, run.max_turns) == ("claimed", "manual", "ann", 4)
    assert look_up(store).last_scheduled_for == T0


def test_a_full_fleet_refuses_with_an_eta_and_leaves_no_row(store: Store, home: Path) -> None:
    add(store, job("a"), job("b"), job())
    running(store, "a")
    running(store, "b", at=T0 + 30_000)
    with pytest.raises(CapacityFull) as caught:
        by_hand(store)
    assert caught.value.details == {"slot_eta_sec": LEASE_SEC - 60}
    assert rows(home, "SELECT count(*) FROM runs") == [(2,)]
    assert audited(store) == []


def test_the_eta_follows_what_the_job_usually_takes_and_who_waits_before(store: Store) -> None:
    add(store, job("a"), job("b"), job("c"), job())
    for seconds in (90, 100, 400):
        settle(store, outcome(running(store, "a", at=T0 - HOUR), after_ms=seconds * 1000 + 1000))
    running(store, "a")
    running(store, "b")
    with store.read() as tx:
        assert outlook.slot_eta_sec(tx, Millis(T0 + MINUTE), Settings()) == 41
    with store.write() as tx:
        tx.insert_run("c", source="manual", now=T0)
        assert outlook.slot_eta_sec(tx, Millis(T0 + MINUTE), Settings()) == LEASE_SEC - 60


def test_a_forced_run_passes_the_cap_counts_and_leaves_one_line_in_the_audit_log(store: Store) -> None:
    add(store, job("a"), job("b"), job())
    running(store, "a")
    running(store, "b")
    run = by_hand(store, force=True)
    assert (run.status, run.forced) == ("claimed", True)
    [entry] = audited(store)
    assert (entry["command"], entry["actor"], entry["subject"], entry["reason"]) == (
        "manual_force_bypass",
        "ann",
        "nightly",
        "it must be now",
    )
    assert json.loads(entry["after"]) == {
        "run_id": run.run_id, "by": "tester", "occupied": 3, "max_concurrent": 2
    }  # fmt: skip
    with store.read() as tx:
        assert tx.count_live() == (0, 3)


def test_a_job_that_runs_already_is_refused_with_its_run(store: Store, home: Path) -> None:
    add(store, job())
    run = running(store)
    for force in (False, True):
        with pytest.raises(JobRunning) as caught:
            by_hand(store, force=force)
        assert caught.value.details == {"run_id": run.run_id}
    assert rows(home, "SELECT count(*) FROM runs") == [(1,)]


def test_a_live_job_is_not_run_by_hand_even_where_it_allows_overlap(store: Store) -> None:
    add(store, job(overlap="allow"))
    running(store)
    with pytest.raises(JobRunning):
        by_hand(store)


def test_no_such_job_is_not_found_with_similar_names(store: Store) -> None:
    add(store, job("nightly-backup"))
    with pytest.raises(NotFound) as caught:
        by_hand(store, "backup")
    assert "nightly-backup" in caught.value.hint


def test_while_everything_is_paused_a_manual_run_is_put_off(store: Store, home: Path) -> None:
    add(store, job())
    with store.write() as tx:
        tx.set_meta("paused_until", "forever")
    with pytest.raises(TryAgainLater):
        by_hand(store)
    assert rows(home, "SELECT count(*) FROM runs") == [(0,)]


# -- a tick over damaged rows ----


def tick(carol: Carol, now: str = "2026-01-01T01:00:00Z") -> Any:
    done = carol("tick", "--json", CAROL_NOW=now, SCHEDULE_MAX_CONCURRENT="1")
    assert done.code == 0, done.err
    return done.json()


_BAD_ROWS = {
    "no schedule": "schedule_expr = 'every blue moon', schedule_compiled = NULL",
    "no zone": "timezone = 'Mars/Olympus'",
    "no action": "action = '[1]'",
    "another action": "action = '{\"colour\": 1}'",
    "a legacy document": "legacy = '{\"a\":' || '1}', schedule_expr = ''",
}


@pytest.mark.parametrize("change", _BAD_ROWS.values(), ids=_BAD_ROWS.keys())
def test_a_bad_row_steps_aside_and_never_stops_the_tick_for_the_others(
    store: Store, home: Path, carol: Carol, change: str
) -> None:
    add(store, job("bad"), job("good"))
    tamper(home, f"UPDATE scheduled_jobs SET {change} WHERE job_id = 'bad'")
    assert len(tick(carol)["fired"]) == 1
    assert rows(home, "SELECT job_id FROM runs") == [("good",)]
    [(status, reason)] = rows(home, "SELECT status, paused_reason FROM scheduled_jobs WHERE job_id = 'bad'")
    assert status == "paused"
    assert reason.startswith("set aside: ")
    assert [entry["command"] for entry in audited(store)] == ["set_aside"]


@pytest.mark.parametrize(
    "change", ["last_scheduled_for = -99999999999999999", "anchor_at = -99999999999999999"]
)
def test_a_row_whose_instants_cannot_be_steps_aside(
    store: Store, home: Path, carol: Carol, change: str
) -> None:
    add(store, job("bad", every="1h"), job("good"))
    tamper(home, f"UPDATE scheduled_jobs SET {change} WHERE job_id = 'bad'")
    tick(carol)
    assert ("good",) in rows(home, "SELECT job_id FROM runs")


def test_a_watermark_far_ahead_starts_again_from_now(store: Store, carol: Carol) -> None:
    ahead = Millis(T0 + 27 * HOUR)
    add(store, job("ahead", last_scheduled_for=ahead, next_fire_at=ahead), job("near", last_scheduled_for=T0))
    done = tick(carol, "2026-01-01T00:30:00Z")
    assert done["fired"] == []
    found = look_up(store, "ahead")
    assert (found.last_scheduled_for, found.next_fire_at) == (T0 + HOUR // 2, T0 + HOUR)
    assert [entry["command"] for entry in audited(store)] == ["reanchored"]


def test_entries_of_the_audit_log_take_any_document(store: Store) -> None:
    with store.write() as tx:
        tx.audit(AuditEntry(at=T0, actor="ann", command="x", after={"a": "\ud83d"}))
    assert json.loads(audited(store)[0]["after"]) == {"a": "\ud83d"}


def test_a_tick_is_done_long_before_the_next_one(store: Store, carol: Carol) -> None:
    add(
        store,
        *(job(f"job-{n:03}", cron="* * * * *", last_scheduled_for=T0 - 400 * 24 * HOUR) for n in range(100)),
    )
    began = time.monotonic()
    done = tick(carol)
    assert len(done["fired"]) == 100
    assert time.monotonic() - began < 25
