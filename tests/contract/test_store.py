"""What every job store promises, verb by verb; a second backend is one more parameter of the fixture `store`."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carolctl.model import Claimed, Firing, HttpAction, Job, Millis, Outcome, Run, SlotRow
from carolctl.store.db import Store
from carolctl.store.records import AuditEntry, FiringMetrics, PruneTable
from carolctl.store.runs import Claimant, RunFilter
from tests import builders
from tests.builders import DAY, HOUR, MINUTE, T0, job


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, home: Path) -> Iterator[Store]:
    """An empty job store of each backend."""
    assert request.param == "sqlite"
    opened = builders.store(home)
    yield opened
    opened.close()


def claimant(now: int = T0, *, lease_sec: int = 1200) -> Claimant:
    return Claimant(now=Millis(now), boottime_ms=5_000, host="here", boot_id="this-boot", lease_sec=lease_sec)


def add(store: Store, *jobs: Job) -> None:
    with store.write() as tx:
        tx.insert_jobs(jobs)


def queue(store: Store, job_id: str = "nightly", *, now: int = T0, **columns: Any) -> int:
    """Queue a manual run of a job."""
    with store.write() as tx:
        run_id = tx.insert_run(job_id, source="manual", now=Millis(now), **columns)
    assert run_id is not None
    return run_id


def slot(job_id: str, scheduled_for: int, *, reason: Any = None, slots_from: int | None = None) -> Firing:
    """A firing of one row that moves the watermark from T0 to that slot."""
    since = Millis(scheduled_for if slots_from is None else slots_from)
    row = SlotRow(scheduled_for=Millis(scheduled_for), slots_from=since, coalesced=1, skip_reason=reason)
    return Firing(
        job_id=job_id,
        schedule_rev=1,
        watermark_before=T0,
        watermark=Millis(scheduled_for),
        next_fire_at=Millis(scheduled_for + HOUR),
        rows=(row,),
    )


def fire(store: Store, *firings: Firing, now: int = T0 + HOUR, **max_turns: int | None) -> list[int]:
    """Write the rows of firings; the new run ids."""
    with store.write() as tx:
        rows = tx.insert_slot_rows(firings, now=Millis(now), max_turns=max_turns)
    return [run_id for run_id, *_ in rows]


def claim(store: Store, *, cap: int = 2, now: int = T0, only: int | None = None, **who: Any) -> list[Claimed]:
    with store.write() as tx:
        return tx.claim(claimant(now, **who), cap=cap, only=only)


def start(store: Store, run_id: int, claim_no: int = 1, *, now: int = T0 + 1000) -> Claimed | None:
    with store.write() as tx:
        return tx.start(run_id, claim_no, now=Millis(now), pid=4242, pid_start=99, unit=None)


def outcome(run_id: int, claim_no: int = 1, **columns: Any) -> Outcome:
    values: dict[str, Any] = {"status": "completed", "completed_at": Millis(T0 + 2 * MINUTE)}
    return Outcome(run_id=run_id, claim_no=claim_no, **values | columns)


def end(store: Store, run_id: int, claim_no: int = 1, **columns: Any) -> bool:
    with store.write() as tx:
        return tx.end_run(outcome(run_id, claim_no, **columns))


def look(store: Store, run_id: int) -> Run:
    with store.read() as tx:
        run = tx.run(run_id)
    assert run is not None
    return run


def look_up(store: Store, job_id: str) -> Job:
    with store.read() as tx:
        found = tx.job(job_id)
    assert found is not None
    return found


def ids(claimed: list[Claimed]) -> list[int]:
    return [one.run.run_id for one in claimed]


# -- jobs ----


def test_a_job_comes_back_as_it_was_written(store: Store) -> None:
    full = job(
        "full", url="https://example.org/x?a=1", project="p", description="gr\u00fcn \U0001f600",
        timezone="Europe/Berlin", dst_rule="literal", spread_sec=60,
        status="paused", paused_reason="by hand", priority=-3, overlap="queue",
        catch_up="all", misfire_grace_sec=0, max_run_duration_sec=5, max_turns=7, max_turns_set_at=T0,
        max_attempts=3, idempotent=True, agent_profile="a", on_failure="nightly", schedule_rev=4, deferred_at=T0,
        avg_turns_per_firing=2.5, legacy={"odd": [1, None, "x"], "half": "\ud83d"},
    )  # fmt: skip
    plain = job("plain", argv=("sh", "-c", "echo $HOME \u00e9"), manual=True)
    add(store, full, plain)
    assert (look_up(store, "full"), look_up(store, "plain")) == (full, plain)


def test_an_http_action_keeps_its_headers_and_its_payload(store: Store) -> None:
    action = HttpAction(
        url="http://localhost/", method="PUT", headers={"X": "${env:T}"}, payload={"a": [1, {}]}
    )
    add(store, job(action=action))
    assert look_up(store, "nightly").action == action


def test_no_such_job_is_none(store: Store) -> None:
    with store.read() as tx:
        assert tx.job("nobody") is None
        assert tx.jobs() == []
        assert tx.jobs_named(["nobody"]) == {}


def test_jobs_are_listed_by_id_and_found_by_name_and_handler(store: Store) -> None:
    add(store, job("b"), job("a-Backup", on_failure="b"), job("c", on_failure="b"))
    with store.read() as tx:
        assert [one.job_id for one in tx.jobs()] == ["a-Backup", "b", "c"]
        assert set(tx.jobs_named(["c", "b", "nobody"])) == {"b", "c"}
        assert tx.job_ids_like("backup") == ["a-Backup"]
        assert tx.jobs_with_handler("b") == ["a-Backup", "c"]


@pytest.mark.parametrize("job_id", ["", "-a", ".a", "a b", "a/b", "é", "a" * 65, "a\n", "a;b"])
def test_a_bad_id_is_refused_by_the_store_itself(store: Store, job_id: str) -> None:
    with pytest.raises(Exception, match="CHECK"), store.write() as tx:
        tx.insert_jobs([replace(job(), job_id=job_id)])
    with store.read() as tx:
        assert tx.jobs() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", "asleep"), ("overlap", "maybe"), ("max_attempts", 0), ("max_turns", 0), ("spread_sec", -1),
     ("schedule_kind", "lunar"), ("dst_rule", "twice"), ("catch_up", "some"), ("priority", "high")],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_the_store_itself(store: Store, column: str, value: Any) -> None:
    with pytest.raises(Exception, match=r"CHECK|INTEGER"), store.write() as tx:
        tx.insert_jobs([replace(job(), **{column: value})])


def test_a_taken_id_is_refused_and_the_other_jobs_of_the_batch_with_it(store: Store) -> None:
    add(store, job("a"))
    with pytest.raises(Exception, match="UNIQUE"):
        add(store, job("b"), job("a"))
    with store.read() as tx:
        assert [one.job_id for one in tx.jobs()] == ["a"]


def test_due_jobs_are_active_and_earliest_first(store: Store) -> None:
    add(
        store,
        job("late", next_fire_at=T0 + 2),
        job("early", next_fire_at=T0 + 1),
        job("later", next_fire_at=T0 + 3),
        job("paused", next_fire_at=T0, status="paused"),
        job("never", next_fire_at=None),
    )
    with store.read() as tx:
        due, damaged = tx.due_jobs(Millis(T0 + 2))
        assert ([one.job_id for one in due], damaged) == (["early", "late"], [])
        assert [one.job_id for one in tx.due_jobs(Millis(T0 + 3), limit=1)[0]] == ["early"]


def test_watermarks_ahead_of_an_instant_are_found_for_active_jobs(store: Store) -> None:
    add(
        store,
        job("a", last_scheduled_for=T0 + 1),
        job("b"),
        job("c", last_scheduled_for=T0 + 1, status="paused"),
    )
    with store.read() as tx:
        assert [one.job_id for one in tx.jobs_with_watermark_after(T0)] == ["a"]


def test_an_edit_is_written_when_nothing_it_rests_on_has_changed(store: Store) -> None:
    before = job()
    add(store, before)
    after = replace(before, description="new", timezone="Asia/Tokyo", schedule_rev=2)
    with store.write() as tx:
        assert tx.replace_job(before, after)
    assert look_up(store, "nightly") == after


@pytest.mark.parametrize(
    "since",
    [{"schedule_rev": 2}, {"status": "paused"}, {"last_scheduled_for": T0 + HOUR}, {"timezone": "Asia/Tokyo"},
     {"schedule_expr": "1 * * * *"}, {"argv": ("false",)}],
    ids=lambda since: next(iter(since)),
)  # fmt: skip
def test_an_edit_of_a_job_that_somebody_changed_meanwhile_changes_nothing(
    store: Store, since: dict[str, Any]
) -> None:
    add(store, job(**since))
    with store.write() as tx:
        assert not tx.replace_job(job(), job(description="mine"))
    assert look_up(store, "nightly").description is None


def test_an_edit_keeps_the_counters_that_a_run_changed_meanwhile(store: Store) -> None:
    before = job()
    add(store, before)
    with store.write() as tx:
        tx.set_job_columns("nightly", {"failure_streak": 2, "last_status": "failed"})
        assert tx.replace_job(before, replace(before, description="new"))
    found = look_up(store, "nightly")
    assert (found.failure_streak, found.last_status, found.description) == (2, "failed", "new")


def test_removing_a_job_leaves_its_runs(store: Store) -> None:
    add(store, job())
    run_id = queue(store)
    with store.write() as tx:
        assert tx.delete_job("nightly")
        assert not tx.delete_job("nightly")
    assert look(store, run_id).job_id == "nightly"


def test_a_watermark_moves_by_compare_and_swap(store: Store) -> None:
    add(store, job("a", deferred_at=T0), job("b"))
    with store.write() as tx:
        moved = tx.advance_jobs([slot("a", T0 + HOUR), slot("b", T0 + HOUR)], now=Millis(T0 + HOUR))
    assert moved == {"a", "b"}
    found = look_up(store, "a")
    assert (found.last_scheduled_for, found.next_fire_at, found.deferred_at) == (
        T0 + HOUR,
        T0 + 2 * HOUR,
        None,
    )
    with store.write() as tx:
        assert tx.advance_jobs([slot("a", T0 + 3 * HOUR)], now=Millis(T0 + 3 * HOUR)) == set()
    assert look_up(store, "a") == found


@pytest.mark.parametrize("since", [{"schedule_rev": 2}, {"status": "paused"}, {"last_scheduled_for": T0 + 1}])
def test_a_job_that_was_edited_or_paused_since_the_snapshot_is_not_advanced(
    store: Store, since: dict[str, Any]
) -> None:
    add(store, job("a", **since), job("b"))
    with store.write() as tx:
        assert tx.advance_jobs([slot("a", T0 + HOUR), slot("b", T0 + HOUR)], now=T0) == {"b"}
    assert look_up(store, "a") == job("a", **since)


def test_a_deferral_puts_off_the_wake_up_and_leaves_the_watermark(store: Store) -> None:
    a_job = job()
    add(store, a_job)
    with store.write() as tx:
        assert tx.defer_jobs([a_job], now=Millis(T0 + HOUR), until=Millis(T0 + HOUR + 30_000)) == ["nightly"]
        assert tx.defer_jobs([a_job], now=Millis(T0 + HOUR + 30_000), until=Millis(T0 + HOUR + 60_000))
    found = look_up(store, "nightly")
    assert (found.next_fire_at, found.last_scheduled_for) == (T0 + HOUR + 60_000, T0)
    assert found.deferred_at == T0 + HOUR


def test_a_deferral_of_a_job_that_moved_meanwhile_changes_nothing(store: Store) -> None:
    add(store, job(last_scheduled_for=T0 + HOUR))
    with store.write() as tx:
        assert tx.defer_jobs([job()], now=T0, until=Millis(T0 + DAY)) == []
    assert look_up(store, "nightly") == job(last_scheduled_for=T0 + HOUR)


def test_counters_are_added_to(store: Store) -> None:
    add(store, job("a"), job("b"))
    with store.write() as tx:
        tx.count_firings([("a", 2, 3), ("b", 0, 5)], now=Millis(T0 + HOUR))
        tx.count_firings([("a", 1, 1)], now=Millis(T0 + 2 * HOUR))
    a_job, other = look_up(store, "a"), look_up(store, "b")
    assert (a_job.firing_count, a_job.suppression_count) == (3, 4)
    assert a_job.last_fired_at == T0 + 2 * HOUR
    assert (other.firing_count, other.suppression_count, other.last_fired_at) == (0, 5, None)


def test_a_damaged_job_is_paused_once_and_keeps_the_rest(store: Store) -> None:
    add(store, job())
    with store.write() as tx:
        assert tx.pause_damaged_job("nightly", "set aside", now=Millis(T0 + 1))
        assert not tx.pause_damaged_job("nightly", "again", now=Millis(T0 + 2))
    assert look_up(store, "nightly") == replace(
        job(), status="paused", paused_reason="set aside", updated_at=Millis(T0 + 1)
    )


# -- firing ----


def test_a_slot_fires_once_however_often_it_is_planned(store: Store) -> None:
    add(store, job("a"), job("b"))
    [first] = fire(store, slot("a", T0 + HOUR))
    second = fire(store, slot("a", T0 + HOUR), slot("b", T0 + HOUR), slot("a", T0 + 2 * HOUR))
    with store.read() as tx:
        rows = {(run.job_id, run.scheduled_for, run.status) for run in tx.runs(RunFilter())}
    assert len(second) == 2
    assert first not in second
    assert rows == {
        ("a", T0 + HOUR, "queued"),
        ("b", T0 + HOUR, "queued"),
        ("a", T0 + 2 * HOUR, "queued"),
    }


def test_a_skipped_slot_never_becomes_a_run_and_a_run_never_a_skip(store: Store) -> None:
    [skipped, queued] = fire(
        store, slot("a", T0 + HOUR, reason="paused", slots_from=T0 + 1), slot("b", T0 + HOUR)
    )
    assert fire(store, slot("a", T0 + HOUR), slot("b", T0 + HOUR, reason="edited")) == []
    run = look(store, skipped)
    assert (run.status, run.skip_reason, run.slots_from, run.completed_at) == (
        "skipped",
        "paused",
        T0 + 1,
        T0 + HOUR,
    )
    assert look(store, queued).status == "queued"


def test_a_fired_run_carries_its_slot_its_revision_and_its_turn_budget(store: Store) -> None:
    [run_id] = fire(store, slot("nightly", T0 + HOUR), now=T0 + HOUR + 7, nightly=25)
    run = look(store, run_id)
    assert (run.source, run.scheduled_for, run.slots_from, run.coalesced) == (
        "scheduled",
        T0 + HOUR,
        T0 + HOUR,
        1,
    )
    assert (run.schedule_rev, run.max_turns, run.queued_at, run.attempt, run.claim_no) == (
        1,
        25,
        T0 + HOUR + 7,
        1,
        0,
    )


def test_an_event_runs_a_job_once_whoever_says_it_again(store: Store) -> None:
    def trigger(job_id: str, event: str, kind: str) -> int | None:
        with store.write() as tx:
            return tx.insert_run(job_id, source="event", now=T0, event_id=event, trigger_kind=kind)

    assert trigger("a", "e1", "k") is not None
    assert trigger("a", "e1", "k") is None
    assert None not in (trigger("a", "e2", "k"), trigger("a", "e1", "other"), trigger("b", "e1", "k"))


def test_run_ids_are_never_used_again(store: Store) -> None:
    first = queue(store)
    with store.write() as tx:
        tx.cancel_queued(first, now=T0, summary="x")
        assert tx.prune("runs", before=Millis(T0 + DAY), limit=10) == 1
    assert queue(store) == first + 1


# -- claiming ----


def test_the_cap_bounds_what_is_claimed_and_counts_what_holds_a_slot(store: Store) -> None:
    add(store, *(job(f"j{n}") for n in range(5)))
    runs = [queue(store, f"j{n}", now=T0 + n) for n in range(5)]
    assert ids(claim(store)) == runs[:2]
    assert claim(store) == []
    start(store, runs[0])
    assert claim(store) == []
    assert ids(claim(store, cap=3)) == runs[2:3]
    end(store, runs[0])
    assert ids(claim(store, cap=3)) == runs[3:4]
    with store.read() as tx:
        assert tx.count_live() == (1, 3)


def test_priority_goes_before_age_and_age_before_nothing(store: Store) -> None:
    add(store, job("low", priority=-1), job("old"), job("young"), job("high", priority=5))
    low, young, old, high = (
        queue(store, name, now=T0 + at) for name, at in (("low", 0), ("young", 9), ("old", 1), ("high", 20))
    )
    order = [ids(claim(store, cap=cap))[0] for cap in (1, 2, 3, 4)]
    assert order == [high, old, young, low]


def test_a_cap_of_nothing_claims_nothing(store: Store) -> None:
    add(store, job())
    queue(store)
    assert claim(store, cap=0) == []


def test_a_cap_that_was_lowered_under_the_occupancy_claims_nothing(store: Store) -> None:
    add(store, *(job(f"j{n}") for n in range(4)))
    for n in range(4):
        queue(store, f"j{n}")
    assert len(claim(store, cap=3)) == 3
    assert claim(store, cap=1) == []


def test_a_job_holds_one_slot_at_a_time(store: Store) -> None:
    add(store, job("a"), job("b"))
    first, second, other = queue(store, "a"), queue(store, "a"), queue(store, "b")
    assert ids(claim(store, cap=9)) == [first, other]
    assert claim(store, cap=9) == []
    end(store, first)
    assert ids(claim(store, cap=9)) == [second]


def test_a_job_that_allows_overlap_holds_as_many_as_there_are(store: Store) -> None:
    add(store, job("a", overlap="allow"))
    runs = [queue(store, "a") for _ in range(4)]
    assert ids(claim(store, cap=3)) == runs[:3]
    assert ids(claim(store, cap=9)) == runs[3:]


def test_a_run_with_a_time_of_its_own_waits_for_it(store: Store) -> None:
    add(store, job(manual=True))
    run_id = queue(store)
    claim(store)
    with store.write() as tx:
        assert tx.requeue_run(outcome(run_id, status="failed", failure_reason="timeout"), not_before=T0)
        tx.claim(claimant(T0), cap=1)
        assert tx.requeue_run(
            outcome(run_id, 2, status="failed", failure_reason="timeout"), not_before=Millis(T0 + HOUR)
        )
    assert claim(store, now=T0 + HOUR - 1) == []
    assert ids(claim(store, now=T0 + HOUR)) == [run_id]


def test_a_retry_is_not_claimed_once_the_next_slot_of_its_job_is_due(store: Store) -> None:
    add(store, job(next_fire_at=T0 + HOUR))
    run_id = queue(store)
    claim(store)
    with store.write() as tx:
        assert tx.requeue_run(outcome(run_id, status="failed", failure_reason="timeout"), not_before=T0)
    assert claim(store, now=T0 + HOUR) == []
    assert ids(claim(store, now=T0 + HOUR - 1)) == [run_id]


def test_a_run_that_must_wait_does_not_hold_up_the_next_of_its_job(store: Store) -> None:
    add(store, job())
    waiting = queue(store)
    claim(store)
    with store.write() as tx:
        tx.requeue_run(
            outcome(waiting, status="failed", failure_reason="timeout"), not_before=Millis(T0 + DAY)
        )
    ready = queue(store, now=T0 + 5)
    assert ids(claim(store)) == [ready]


def test_scheduled_runs_of_a_paused_job_wait_and_manual_ones_do_not(store: Store) -> None:
    add(store, job("a", status="paused"), job("b", status="paused"))
    [scheduled] = fire(store, slot("a", T0 + HOUR))
    manual = queue(store, "b")
    assert ids(claim(store)) == [manual]
    with store.write() as tx:
        tx.set_job_columns("a", {"status": "active"})
    assert ids(claim(store)) == [scheduled]


def test_one_run_alone_may_be_claimed(store: Store) -> None:
    add(store, job("a"), job("b"))
    older, newer = queue(store, "a", now=T0), queue(store, "b", now=T0 + 1)
    assert ids(claim(store, cap=1, only=newer)) == [newer]
    assert claim(store, cap=1, only=older) == []


def test_a_claim_writes_who_claimed_when_and_for_how_long(store: Store) -> None:
    add(store, job("a"), job("b", max_run_duration_sec=5))
    runs = [queue(store, "a"), queue(store, "b")]
    claimed = claim(store, now=T0 + MINUTE, lease_sec=600)
    assert [one.run for one in claimed] == [look(store, run_id) for run_id in runs]
    assert [one.action for one in claimed] == [job().action] * 2
    first, second = (one.run for one in claimed)
    assert (first.status, first.claim_no, first.launches) == ("claimed", 1, 1)
    assert (first.slot_claimed_at, first.lease_expires_at) == (T0 + MINUTE, T0 + MINUTE + 600_000)
    assert (first.claimed_boottime_ms, first.host, first.boot_id) == (5_000, "here", "this-boot")
    assert second.lease_expires_at == T0 + MINUTE + 5_000


def test_a_claim_of_a_job_whose_action_is_damaged_has_none_to_launch(store: Store, home: Path) -> None:
    add(store, job())
    queue(store)
    tamper(home, "UPDATE scheduled_jobs SET action = '{}'")
    [claimed] = claim(store)
    assert claimed.action is None


def test_a_run_without_its_job_is_not_claimed(store: Store) -> None:
    queue(store, "removed")
    assert claim(store) == []


def tamper(home: Path, statement: str) -> None:
    """Do to the file what a person with another program might."""
    foreign = sqlite3.connect(home / "scheduler.db")
    try:
        with foreign:
            foreign.execute(statement)
    finally:
        foreign.close()


def test_a_row_that_is_no_job_any_more_is_told_apart(store: Store, home: Path) -> None:
    add(store, job("bad"), job("good"))
    tamper(home, "UPDATE scheduled_jobs SET action = '[1]', next_fire_at = 0 WHERE job_id = 'bad'")
    with store.read() as tx:
        due, damaged = tx.due_jobs(Millis(T0 + HOUR))
        assert [one.job_id for one in due] == ["good"]
        assert [one.job_id for one in damaged] == ["bad"]
        assert [one.job_id for one in tx.jobs()] == ["good"]
        assert [one.job_id for one in tx.damaged_jobs()] == ["bad"]


_CLAIMANT = """
import sys
from carolctl.model import Millis
from carolctl.store.db import open_store
from carolctl.store.runs import Claimant
store = open_store(sys.argv[1], deadline_ms=20000)
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
who = Claimant(now=Millis(0), boottime_ms=None, host="h", boot_id="b", lease_sec=60)
won = []
for _ in range(int(sys.argv[2])):
    with store.write() as tx:
        won += [one.run.run_id for one in tx.claim(who, cap=int(sys.argv[3]))]
print(*won)
"""


def race(store: Store, *, processes: int, tries: int, cap: int) -> list[list[int]]:
    """Let real processes claim at once; the run ids that each of them won."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", _CLAIMANT, store.path, str(tries), str(cap)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        answers.append([int(word) for word in out.split()])
    return answers


def test_two_claimants_of_one_run_have_one_winner(store: Store) -> None:
    add(store, job())
    run_id = queue(store)
    answers = race(store, processes=4, tries=5, cap=100)
    assert sorted(answers) == [[], [], [], [run_id]]
    assert look(store, run_id).claim_no == 1


def test_many_claimants_of_many_runs_keep_the_cap(store: Store) -> None:
    add(store, *(job(f"j{n}", overlap="allow") for n in range(4)))
    with store.write() as tx:
        for n in range(40):
            tx.insert_run(f"j{n % 4}", source="manual", now=T0)
    won = [run_id for answer in race(store, processes=3, tries=20, cap=7) for run_id in answer]
    assert len(won) == len(set(won)) == 7
    with store.read() as tx:
        assert tx.count_live() == (33, 7)


# -- a run's life, by compare-and-swap ----


@pytest.fixture
def claimed(store: Store) -> int:
    """A run that was claimed under the number 1."""
    add(store, job())
    run_id = queue(store)
    claim(store)
    return run_id


def reclaim(store: Store, run_id: int, *, lease_sec: int = 1200) -> list[Claimed]:
    """Launch again, an hour later, what was never started."""
    run = look(store, run_id)
    with store.write() as tx:
        return tx.reclaim([run], claimant(T0 + HOUR, lease_sec=lease_sec))


def test_a_start_writes_the_owner_and_hands_out_the_action(store: Store, claimed: int) -> None:
    started = start(store, claimed)
    assert started is not None
    assert started == Claimed(run=look(store, claimed), action=job().action)
    run = started.run
    assert (run.status, run.started_at, run.pid, run.pid_start) == ("running", T0 + 1000, 4242, 99)


def test_only_the_first_start_of_a_claim_starts(store: Store, claimed: int) -> None:
    assert start(store, claimed) is not None
    assert start(store, claimed) is None


def test_a_run_that_was_never_started_is_claimed_again_under_the_next_number(
    store: Store, claimed: int
) -> None:
    [again] = reclaim(store, claimed, lease_sec=60)
    assert again.run == look(store, claimed)
    assert (again.run.claim_no, again.run.launches, again.run.status) == (2, 2, "claimed")
    assert (again.run.slot_claimed_at, again.run.lease_expires_at) == (T0 + HOUR, T0 + HOUR + 60_000)
    assert start(store, claimed, 1) is None
    assert start(store, claimed, 2) is not None


def test_a_run_that_started_meanwhile_is_not_claimed_again(store: Store, claimed: int) -> None:
    before = look(store, claimed)
    start(store, claimed)
    with store.write() as tx:
        assert tx.reclaim([before], claimant(T0 + HOUR)) == []
    assert look(store, claimed).claim_no == 1


def test_a_reclaim_of_an_old_number_changes_nothing(store: Store, claimed: int) -> None:
    old = look(store, claimed)
    with store.write() as tx:
        tx.reclaim([old], claimant(T0 + HOUR))
        assert tx.reclaim([old], claimant(T0 + 2 * HOUR)) == []
    assert look(store, claimed).claim_no == 2


_ZOMBIE_ACTS: dict[str, Callable[[Any, int], object]] = {
    "start": lambda tx, run_id: tx.start(run_id, 1, now=T0, pid=1, pid_start=1, unit=None),
    "accept": lambda tx, run_id: tx.accept(run_id, 1),
    "stop": lambda tx, run_id: tx.set_stop_reason(run_id, 1, "cancelled", now=T0),
    "end": lambda tx, run_id: tx.end_run(outcome(run_id)),
    "fail": lambda tx, run_id: tx.end_run(outcome(run_id, status="failed", failure_reason="killed")),
    "requeue": lambda tx, run_id: tx.requeue_run(outcome(run_id), not_before=T0),
    "cancel": lambda tx, run_id: tx.cancel_queued(run_id, now=T0, summary="x"),
}


@pytest.mark.parametrize("act", _ZOMBIE_ACTS.values(), ids=_ZOMBIE_ACTS.keys())
@pytest.mark.parametrize("then", ["claimed", "running", "completed"])
def test_a_zombie_with_an_old_claim_number_changes_nothing(
    store: Store, claimed: int, act: Callable[[Any, int], object], then: str
) -> None:
    reclaim(store, claimed)
    if then != "claimed":
        start(store, claimed, 2)
    if then == "completed":
        end(store, claimed, 2)
    before = look(store, claimed)
    with store.write() as tx:
        assert not act(tx, claimed)
    assert look(store, claimed) == before
    assert before.status == then


_ENDS: dict[str, Callable[[Store, int], object]] = {
    "completed": lambda store, run_id: end(store, run_id),
    "failed": lambda store, run_id: end(store, run_id, status="failed", failure_reason="timeout"),
    "cancelled": lambda store, run_id: end(store, run_id, status="cancelled"),
}


@pytest.mark.parametrize("act", _ZOMBIE_ACTS.values(), ids=_ZOMBIE_ACTS.keys())
@pytest.mark.parametrize("status", _ENDS.keys())
def test_a_terminal_state_never_changes(
    store: Store, claimed: int, act: Callable[[Any, int], object], status: str
) -> None:
    _ENDS[status](store, claimed)
    before = look(store, claimed)
    assert before.status == status
    with store.write() as tx:
        assert not act(tx, claimed)
        assert tx.reclaim([before], claimant(T0 + HOUR)) == []
        assert tx.claim(claimant(T0 + HOUR), cap=9) == []
    assert look(store, claimed) == before


def test_a_skipped_row_is_never_claimed_cancelled_or_ended(store: Store) -> None:
    add(store, job())
    [run_id] = fire(store, slot("nightly", T0 + HOUR, reason="overlap"))
    before = look(store, run_id)
    assert claim(store, now=T0 + DAY) == []
    with store.write() as tx:
        assert not tx.cancel_queued(run_id, now=T0, summary="x")
        assert not tx.end_run(outcome(run_id, 0))
    assert look(store, run_id) == before


def test_an_end_writes_what_the_outcome_says(store: Store, claimed: int) -> None:
    start(store, claimed)
    assert end(
        store, claimed, status="failed", failure_reason="http_error", turns=9, summary="no", exit_status=3,
        http_status=503,
    )  # fmt: skip
    run = look(store, claimed)
    assert (run.status, run.failure_reason, run.completed_at) == ("failed", "http_error", T0 + 2 * MINUTE)
    assert (run.turn_count, run.result_summary, run.exit_status, run.http_status) == (9, "no", 3, 503)


def test_a_queued_run_cannot_end_but_may_be_cancelled_once(store: Store) -> None:
    run_id = queue(store)
    assert not end(store, run_id, 0)
    with store.write() as tx:
        assert tx.cancel_queued(run_id, now=Millis(T0 + 5), summary="by hand")
        assert not tx.cancel_queued(run_id, now=Millis(T0 + 6), summary="again")
    run = look(store, run_id)
    assert (run.status, run.completed_at, run.result_summary) == ("cancelled", T0 + 5, "by hand")


def test_a_stop_is_decided_once_and_holds_the_slot(store: Store, claimed: int) -> None:
    with store.write() as tx:
        assert not tx.set_stop_reason(claimed, 1, "cancelled", now=T0)
    start(store, claimed)
    with store.write() as tx:
        assert tx.set_stop_reason(claimed, 1, "lease_expired", now=Millis(T0 + 7))
        assert not tx.set_stop_reason(claimed, 1, "cancelled", now=Millis(T0 + 8))
        assert tx.count_live() == (0, 1)
    run = look(store, claimed)
    assert (run.status, run.stop_reason, run.stop_requested_at) == ("running", "lease_expired", T0 + 7)


def test_an_accepted_run_has_no_owner_here_any_more(store: Store, claimed: int) -> None:
    with store.write() as tx:
        assert not tx.accept(claimed, 1)
    start(store, claimed)
    with store.write() as tx:
        assert tx.accept(claimed, 1)
    run = look(store, claimed)
    assert (run.status, run.pid, run.pid_start, run.unit) == ("running", None, None, None)
    assert end(store, claimed)


def test_a_requeued_run_keeps_its_row_and_gets_the_next_number(store: Store, claimed: int) -> None:
    start(store, claimed)
    with store.write() as tx:
        tx.set_stop_reason(claimed, 1, "cancelled", now=T0)
        failure = outcome(claimed, status="failed", failure_reason="timeout", turns=3, summary="slow")
        assert tx.requeue_run(failure, not_before=Millis(T0 + MINUTE))
        assert not tx.requeue_run(failure, not_before=Millis(T0 + MINUTE))
    run = look(store, claimed)
    assert (run.run_id, run.status, run.attempt, run.not_before) == (claimed, "queued", 2, T0 + MINUTE)
    # Of what it failed stays to be seen until it is tried again.
    assert (run.completed_at, run.failure_reason, run.stop_reason, run.pid) == (None, "timeout", None, None)
    [again] = claim(store, now=T0 + MINUTE)
    assert (again.run.failure_reason, again.run.turn_count) == (None, None)
    assert (again.run.claim_no, again.run.launches, again.run.attempt) == (2, 1, 2)
    assert (again.run.stop_requested_at, again.run.started_at) == (None, None)


def test_runs_are_listed_newest_first_and_as_asked(store: Store) -> None:
    add(store, job("a"), job("b"))
    first, second, third = queue(store, "a"), queue(store, "b", now=T0 + HOUR), queue(store, "a")
    [slot_run] = fire(store, slot("b", T0 + HOUR))
    claim(store, cap=1)

    def listed(**wanted: Any) -> list[int]:
        with store.read() as tx:
            return [run.run_id for run in tx.runs(RunFilter(**wanted))]

    assert listed() == [slot_run, third, second, first]
    assert listed(job_id="a") == [third, first]
    assert listed(statuses=("claimed", "failed")) == [first]
    assert listed(source="scheduled") == [slot_run]
    assert listed(since=Millis(T0 + 1)) == [slot_run, second]
    assert listed(limit=1) == [slot_run]
    assert listed(job_id="b", limit=None, statuses=("queued",)) == [slot_run, second]
    with store.read() as tx:
        assert [run.run_id for run in tx.live_runs()] == [first, second, third, slot_run]
        assert [run.run_id for run in tx.live_runs_of("b")] == [second, slot_run]


# -- savepoints ----


def test_a_savepoint_undoes_its_block_and_nothing_else(store: Store) -> None:
    add(store, job())
    with store.write() as tx:
        kept = tx.insert_run("nightly", source="manual", now=T0)
        with pytest.raises(Exception, match="UNIQUE"), tx.savepoint:
            tx.insert_jobs([job("undone"), job()])
        with tx.savepoint:
            also = tx.insert_run("nightly", source="manual", now=T0)
    with store.read() as tx:
        assert [run.run_id for run in tx.live_runs()] == [kept, also]
        assert [one.job_id for one in tx.jobs()] == ["nightly"]


# -- the small tables ----


def test_a_store_has_an_identity_of_its_own(store: Store, tmp_path: Path) -> None:
    other = builders.store(tmp_path / "other")
    try:
        with store.read() as tx, other.read() as other_tx:
            assert len(tx.store_uuid()) == 32
            assert tx.store_uuid() != other_tx.store_uuid()
    finally:
        other.close()


def test_meta_and_settings_are_set_replaced_and_removed(store: Store) -> None:
    with store.write() as tx:
        tx.set_meta("paused_until", "1")
        tx.set_meta("paused_until", "forever")
        tx.set_setting("schedule.max_concurrent", "4", now=T0)
        tx.set_setting("schedule.max_concurrent", "5", now=T0)
        assert tx.meta("paused_until") == "forever"
        assert tx.settings_table() == {"schedule.max_concurrent": "5"}
        tx.set_meta("paused_until", None)
        assert tx.unset_setting("schedule.max_concurrent")
        assert not tx.unset_setting("schedule.max_concurrent")
    with store.read() as tx:
        assert (tx.meta("paused_until"), tx.settings_table()) == (None, {})


def test_the_audit_log_is_read_newest_first_and_by_subject(store: Store) -> None:
    with store.write() as tx:
        tx.audit(AuditEntry(at=T0, actor="ann", command="edit", subject="a", before={"x": 1}, after=[2]))
        tx.audit(AuditEntry(at=Millis(T0 + 1), actor="bob", command="pause", subject="b", reason="noise"))
        tx.audit(AuditEntry(at=Millis(T0 + 2), actor="bob", command="tick_gap"))
    with store.read() as tx:
        entries = tx.audit_entries()
        assert [entry["command"] for entry in entries] == ["tick_gap", "pause", "edit"]
        assert [entry["command"] for entry in tx.audit_entries(limit=1)] == ["tick_gap"]
        [edit] = tx.audit_entries(subject="a")
    assert (edit["actor"], edit["before"], edit["after"], edit["reason"]) == ("ann", '{"x":1}', "[2]", None)


def metrics(run_id: int, **columns: Any) -> FiringMetrics:
    values: dict[str, Any] = dict.fromkeys(FiringMetrics.__slots__)
    values |= {"run_id": run_id, "attempt": 1, "job_id": "a", "fired_at": T0, "completed_at": T0}
    return FiringMetrics(**values | columns)


def test_durations_and_turns_come_from_the_latest_attempts(store: Store) -> None:
    with store.write() as tx:
        for n in range(1, 61):
            tx.record_metrics(metrics(n, completed_at=T0 + n, duration_ms=n * 100, turn_count=n))
        tx.record_metrics(metrics(61, completed_at=T0 + 61))
        tx.record_metrics(metrics(62, job_id="b", completed_at=T0 + 62, duration_ms=5, turn_count=5))
        assert tx.recent_durations_ms("a", limit=3) == [6000, 5900, 5800]
        assert len(tx.recent_durations_ms("a")) == 20
        assert tx.average_turns("a") == pytest.approx(sum(range(11, 61)) / 50)
        assert tx.average_turns("nobody") is None


def test_how_long_a_job_takes_is_told_by_the_attempts_that_ended_well_if_there_are_any(store: Store) -> None:
    with store.write() as tx:
        for n in range(1, 11):
            tx.record_metrics(metrics(n, completed_at=T0 + n, duration_ms=n, failure_reason="exit_nonzero"))
        assert len(tx.recent_durations_ms("a")) == 10
        tx.record_metrics(metrics(11, completed_at=T0 + 11, duration_ms=600_000))
        assert tx.recent_durations_ms("a") == [600_000]


def test_an_attempt_has_one_row_of_metrics(store: Store) -> None:
    with store.write() as tx:
        tx.record_metrics(metrics(1, duration_ms=1))
        tx.record_metrics(metrics(1, duration_ms=2))
        tx.record_metrics(metrics(1, attempt=2, duration_ms=3))
        assert sorted(tx.recent_durations_ms("a")) == [2, 3]


# -- pruning ----


def ended(store: Store, job_id: str, day: int, status: str = "completed") -> int:
    """A run that ended on that day."""
    at = Millis(T0 + day * DAY)
    reason = "timeout" if status == "failed" else None
    with store.write() as tx:
        run_id = tx.insert_run(job_id, source="manual", now=at)
        assert run_id is not None
        tx.claim(claimant(at), cap=99, only=run_id)
        assert tx.end_run(outcome(run_id, status=status, completed_at=at, failure_reason=reason))
    return run_id


def prune(store: Store, before_day: int, *, table: PruneTable = "runs", limit: int = 500) -> int:
    with store.write() as tx:
        return tx.prune(table, before=Millis(T0 + before_day * DAY), limit=limit)


def left(store: Store) -> list[int]:
    with store.read() as tx:
        return sorted(run.run_id for run in tx.runs(RunFilter(limit=None)))


def test_old_runs_go_and_the_newest_success_and_failure_of_each_job_stay(store: Store) -> None:
    add(store, job("a"), job("b"))
    ended(store, "a", 1)
    good, bad = ended(store, "a", 2), ended(store, "a", 3, "failed")
    ended(store, "a", 4, "cancelled")
    only = ended(store, "b", 1, "failed")
    fire(store, slot("a", T0 + HOUR, reason="overlap"))
    young = ended(store, "a", 60, "cancelled")
    live = queue(store, "a", now=T0)
    assert prune(store, 50) == 3
    assert left(store) == [good, bad, only, young, live]
    assert prune(store, 50) == 0


def test_an_old_success_goes_once_there_is_a_newer_one(store: Store) -> None:
    add(store, job("a"))
    ended(store, "a", 1)
    newer = ended(store, "a", 60)
    assert prune(store, 50) == 1
    assert left(store) == [newer]


def test_a_batch_is_bounded(store: Store) -> None:
    with store.write() as tx:
        for n in range(5):
            tx.audit(AuditEntry(at=Millis(T0 + n), actor="x", command="y"))
    assert [prune(store, 1, table="audit_log", limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_checkpoint_apart_comes_when_it_is_called_for_and_not_with_a_write(store: Store) -> None:
    def settled() -> bool:
        """Whether all of the WAL is in the database file: then the next write begins it anew."""
        before = os.path.getsize(f"{store.path}-wal")
        with store.write() as tx:
            tx.set_meta("word", "x")
        return os.path.getsize(f"{store.path}-wal") == before

    with store.checkpoints_apart() as checkpoint:
        with store.write() as tx:
            for number in range(300):
                tx.set_meta(f"much-{number}", "x" * 20_000)
        assert not settled()
        checkpoint()
        assert settled()
    assert store._connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)


def test_metrics_are_pruned_by_their_own_age_attempt_by_attempt(store: Store) -> None:
    with store.write() as tx:
        tx.record_metrics(metrics(1, duration_ms=1, completed_at=T0))
        tx.record_metrics(metrics(2, duration_ms=2, completed_at=T0 + 9 * DAY))
    assert prune(store, 5, table="schedule_firing_metrics") == 1
    with store.read() as tx:
        assert tx.recent_durations_ms("a") == [2]


def test_a_young_attempt_of_an_old_run_keeps_its_metrics(store: Store) -> None:
    with store.write() as tx:
        tx.record_metrics(metrics(1, attempt=1, duration_ms=1, completed_at=T0))
        tx.record_metrics(metrics(1, attempt=2, duration_ms=2, completed_at=T0 + 9 * DAY))
    assert prune(store, 5, table="schedule_firing_metrics") == 1
    with store.read() as tx:
        assert tx.recent_durations_ms("a") == [2]


def back_to_the_second_schema(store: sqlite3.Connection) -> None:
    store.execute("ALTER TABLE scheduled_jobs DROP COLUMN breaches_before_success")
    store.execute("DROP TABLE pressure_sources")
    store.execute(
        "CREATE TABLE pressure_sources (name TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) STRICT, WITHOUT ROWID"
    )
    store.execute("PRAGMA user_version = 2")


def test_a_store_of_the_second_schema_keeps_its_holds_as_plain_ones(home: Path) -> None:
    builders.add_jobs(home, job())
    with closing(sqlite3.connect(home / "scheduler.db")) as old, old:
        back_to_the_second_schema(old)
        old.execute("INSERT INTO pressure_sources VALUES ('chat', ?)", (T0 + HOUR,))
    with closing(builders.store(home, create=False)) as opened, opened.write() as tx:
        assert tx.held_pressure(T0) == [("chat", T0 + HOUR)]
        tx.hold_pressure("chat", now=T0, until=Millis(T0 + 2 * HOUR))
        assert tx.pressure_holders(T0) == [("chat", T0 + 2 * HOUR, 1)]


def test_a_store_of_the_first_schema_is_upgraded_with_its_jobs(home: Path) -> None:
    builders.add_jobs(home, job())
    with closing(sqlite3.connect(home / "scheduler.db")) as old, old:
        back_to_the_second_schema(old)
        old.execute("ALTER TABLE scheduled_jobs DROP COLUMN may_schedule")
        old.execute("PRAGMA user_version = 1")
    with closing(builders.store(home, create=False)) as opened, opened.read() as tx:
        found = tx.job("nightly")
    assert found is not None
    assert found.may_schedule is False
