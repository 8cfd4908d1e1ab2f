"""Retries and slots, with ticks as they come: another try of a run neither runs in the next slot nor displaces it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carolctl.model import FailureClass, Millis, Run
from tests.builders import HOUR, MINUTE, T0, job
from tests.fleet import Fleet

SECOND = 1000


def live_through(fleet: Fleet, until: int, *, every: int, phase: int = 0, takes: int = SECOND) -> list[int]:
    """Ticks `every` so many ms; whatever starts fails `takes` later. The instants at which something started."""
    started: list[int] = []
    now = T0 + phase
    while now <= until:
        fleet.at(now).tick()
        while fleet.running:
            started += [fleet.now] * len(fleet.running)
            fleet.at(min(fleet.now + takes, now + every - 1))
            fleet.end_together(dict.fromkeys(sorted(fleet.running), "exit_nonzero"))
        now += every
    return started


def never_pauses(fleet: Fleet) -> None:
    with fleet.store.write() as tx:
        tx.set_setting("streak.failure_pause", "100000", now=T0)


def ended(run: Run) -> tuple[str, str | None, int]:
    return run.status, run.failure_reason, run.attempt


@pytest.mark.parametrize("phase", [0, 7 * SECOND, 29 * SECOND])
@pytest.mark.parametrize(("cron", "period"), [("* * * * *", MINUTE), ("*/2 * * * *", 2 * MINUTE)])
def test_a_job_that_fails_every_time_still_runs_at_each_slot_with_ticks_every_30_s(
    fleet: Fleet, cron: str, period: int, phase: int
) -> None:
    never_pauses(fleet)
    fleet.add(job("stubborn", cron=cron, max_attempts=5))
    started = live_through(fleet, T0 + 34 * MINUTE, every=30 * SECOND, phase=phase)
    runs = [run for run in fleet.runs() if run.scheduled_for <= T0 + 30 * MINUTE]  # type: ignore[operator]
    assert [run.scheduled_for for run in runs] == list(range(T0 + period, T0 + 30 * MINUTE + 1, period))
    assert {(run.status, run.skip_reason, run.coalesced) for run in runs} == {("failed", None, 1)}
    # A minute leaves time for another try only where a tick comes soon after the slot.
    assert (max(run.attempt for run in runs) > 1) == (period > MINUTE or phase == 0)
    assert len(started) >= sum(run.attempt for run in runs)
    # Each try lies between its slot and the next, but for the tick at which that is noticed.
    for run in runs:
        assert run.started_at is not None
        assert run.scheduled_for is not None
        assert run.started_at < run.scheduled_for + period


def test_with_ticks_every_minute_a_run_is_not_tried_again_for_ever(fleet: Fleet) -> None:
    never_pauses(fleet)
    fleet.add(job("stubborn", cron="* * * * *", max_attempts=5))
    live_through(fleet, T0 + 15 * MINUTE, every=MINUTE, phase=5 * SECOND)
    runs = fleet.runs()
    assert [run.scheduled_for for run in runs] == list(range(T0 + MINUTE, T0 + 15 * MINUTE, MINUTE))
    assert {ended(run) for run in runs[:-1]} == {("failed", "exit_nonzero", 1)}


def waiting(fleet: Fleet, failure: FailureClass = "exit_nonzero", **columns: Any) -> None:
    """A run of an hourly job that waits for its second try behind a cap that is full."""
    fleet.add(
        job("handler", manual=True),
        job("stubborn", max_attempts=5, **{"on_failure": "handler"} | columns),
        job("blocker", cron="1 1 * * *", priority=1),
    )
    with fleet.store.write() as tx:
        tx.set_setting("schedule.max_concurrent", "1", now=T0)
    fleet.at(T0 + HOUR).tick()
    fleet.end(1, failure)
    fleet.at(T0 + HOUR + MINUTE).tick()
    assert [run.job_id for run in fleet.runs() if run.status == "running"] == ["blocker"]


def test_a_retry_that_still_waits_at_the_next_slot_ends_with_its_failure_and_the_slot_runs(
    fleet: Fleet,
) -> None:
    waiting(fleet)
    assert fleet.runs("stubborn")[0].failure_reason == "exit_nonzero"
    fleet.at(T0 + 2 * HOUR).tick()
    old, new = fleet.runs("stubborn")
    assert ended(old) == ("failed", "exit_nonzero", 1)
    assert old.completed_at == T0 + 2 * HOUR
    assert old.result_summary == "not tried again: the next slot fell due"
    assert (new.status, new.scheduled_for) == ("queued", T0 + 2 * HOUR)
    with fleet.store.read() as tx:
        found = tx.job("stubborn")
        [entry, *_] = [one for one in tx.audit_entries() if one["subject"] == "stubborn"] or [None]
    assert found is not None
    assert (found.failure_streak, found.suppression_count, found.last_failure_reason) == (
        1,
        0,
        "exit_nonzero",
    )
    assert entry is None
    assert [run.event_id for run in fleet.runs("handler")] == [f"run:{old.run_id}"]


def test_a_retry_is_not_claimed_between_its_jobs_slot_and_the_tick(fleet: Fleet) -> None:
    waiting(fleet, on_failure=None)
    fleet.at(T0 + 2 * HOUR + 10 * SECOND).end_together({2: None})
    assert fleet.runs("stubborn")[0].status == "queued"
    fleet.at(T0 + 2 * HOUR + 20 * SECOND).tick()
    old, new = fleet.runs("stubborn")
    assert ended(old) == ("failed", "exit_nonzero", 1)
    assert new.status == "running"


def test_the_third_failure_in_a_row_may_be_a_retry_whose_time_is_over_and_pauses_the_job(
    fleet: Fleet,
) -> None:
    waiting(fleet, failure_streak=2)
    fleet.at(T0 + 2 * HOUR).tick()
    with fleet.store.read() as tx:
        found = tx.job("stubborn")
        [entry] = [one for one in tx.audit_entries() if one["command"] == "settle"]
    assert found is not None
    assert (found.status, len(fleet.runs("stubborn"))) == ("paused", 1)
    assert json.loads(entry["after"]) == {"status": "paused", "run_id": 1}


def test_a_slot_that_pressure_puts_off_ends_the_retry_too_and_is_then_run(fleet: Fleet) -> None:
    waiting(fleet, on_failure=None)
    with fleet.store.write() as tx:
        tx.hold_pressure("chat", now=fleet.now, until=Millis(T0 + 2 * HOUR + 5 * MINUTE))
    assert fleet.at(T0 + 2 * HOUR).tick().deferred == ["stubborn"]
    assert [ended(run) for run in fleet.runs("stubborn")] == [("failed", "exit_nonzero", 1)]
    fleet.at(T0 + 2 * HOUR + 6 * MINUTE).tick()
    assert fleet.runs("stubborn")[1].scheduled_for == T0 + 2 * HOUR


def test_a_stale_tick_ends_no_retry_of_a_job_that_is_not_due_any_more(fleet: Fleet) -> None:
    waiting(fleet)
    [retry] = [run for run in fleet.runs("stubborn") if run.status == "queued"]
    with fleet.store.write() as tx:
        assert tx.end_retry(retry.run_id, retry.claim_no, now=Millis(T0 + 2 * HOUR - 1)) is None
        assert tx.end_retry(retry.run_id, retry.claim_no + 1, now=Millis(T0 + 2 * HOUR)) is None
        assert tx.end_retry(retry.run_id, retry.claim_no, now=Millis(T0 + 2 * HOUR)) is not None
        assert tx.end_retry(retry.run_id, retry.claim_no, now=Millis(T0 + 2 * HOUR)) is None
