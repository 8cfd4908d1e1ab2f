"""Those who were thought dead and come back: their claim numbers are old, so they change nothing and run nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from carolctl.finish import settle_and_refill
from carolctl.model import Millis, Outcome
from tests import builders
from tests.builders import HOUR, T0, job
from tests.crash import seeded_bugs
from tests.crash.harness import LEASE_SEC, TICK_MS, World, hours
from tests.crash.seeded_bugs import stop_at, wait_for_stopped
from tests.endpoint import Endpoint, Reply

LEASE_MS = LEASE_SEC * 1000


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture(autouse=True)
def _the_first_slot_is_due(world: World) -> None:
    world.now = Millis(T0 + HOUR)


def _let_it_come_back(world: World, zombie: int) -> None:
    world.send(zombie, signal.SIGCONT)
    world.wait_until(
        lambda: zombie not in {process.pid for process in world.processes()}, what="the zombie to end"
    )


def test_a_runner_that_comes_back_before_its_finish_changes_no_row_of_its_successor(world: World) -> None:
    seeded_bugs.zombie_before_finish(world)
    world.drain()
    assert world.violations(slots=hours(1)) == []
    assert world.query("SELECT status, claim_no, attempt, result_summary FROM runs") == [
        ("completed", 2, 2, "claim 2")
    ]
    assert [(mark.kind, mark.claim_no) for mark in world.marks()] == [
        ("begin", 1),
        ("end", 1),
        ("begin", 2),
        ("end", 2),
    ]


def test_a_runner_that_comes_back_before_its_start_runs_nothing(world: World) -> None:
    seeded_bugs.zombie_before_start(world)
    world.drain()
    assert world.violations(slots=hours(1), undisturbed=True) == []
    assert world.query("SELECT status, claim_no, launches FROM runs") == [("completed", 2, 2)]
    assert [(mark.kind, mark.claim_no) for mark in world.marks()] == [("begin", 2), ("end", 2)]


def test_a_runner_that_comes_back_after_its_run_was_written_off_changes_no_row(world: World) -> None:
    world.add(job("careful", argv=world.work()))
    world.tick(**stop_at("runner-before-finish", world))
    zombie = wait_for_stopped(world)
    seeded_bugs.move_to_another_host(world)
    world.now = Millis(world.now + LEASE_MS)
    report = world.tick()
    assert report is not None
    assert report["reaped"] == [1]
    before = world.query("SELECT * FROM runs")
    _let_it_come_back(world, zombie)
    assert world.query("SELECT * FROM runs") == before
    assert world.query("SELECT status, failure_reason, attempt FROM runs") == [("failed", "lease_expired", 1)]
    assert world.violations(slots=hours(1)) == []


def test_a_runner_here_that_stands_still_past_its_lease_is_stopped_before_its_slot_is_freed(
    world: World,
) -> None:
    world.add(job("careful", argv=world.work()))
    world.tick(**stop_at("runner-before-finish", world))
    zombie = wait_for_stopped(world)
    world.now = Millis(world.now + LEASE_MS)
    world.tick()
    world.wait_until(
        lambda: zombie not in {process.pid for process in world.processes()}, what="the runner to end"
    )
    assert world.query("SELECT status, failure_reason, stop_reason FROM runs") == [
        ("failed", "lease_expired", "lease_expired")
    ]
    assert world.violations(slots=hours(1)) == []


def test_a_tick_that_comes_back_after_its_claims_were_launched_by_another_launches_nothing_that_runs(
    world: World,
) -> None:
    world.add(*(job(f"job-{n}", argv=world.work()) for n in range(2)))
    sleeper = world.spawn("tick", "--json", **stop_at("tick-committed", world))
    wait_for_stopped(world)
    world.now = Millis(world.now + TICK_MS)
    world.tick()
    assert world.wait_idle()
    before = world.query("SELECT * FROM runs")
    world.send(sleeper.pid, signal.SIGCONT)
    world.finish(sleeper)
    assert world.wait_idle()
    assert world.query("SELECT * FROM runs") == before
    assert [(mark.run_id, mark.claim_no) for mark in world.marks() if mark.kind == "begin"] in (
        [(1, 2), (2, 2)],
        [(2, 2), (1, 2)],
    )
    assert world.violations(slots=hours(1), undisturbed=True) == []


def test_a_late_finish_of_work_accepted_elsewhere_names_an_old_claim_and_changes_no_row(
    world: World, endpoint: Endpoint
) -> None:
    url = endpoint.on("/job", Reply(status=202))
    world.add(job("far-away", url=url, idempotent=True, max_attempts=2))
    world.tick()
    world.wait_until(lambda: world.query("SELECT 1 FROM runs WHERE status = 'running' AND pid IS NULL"))
    assert world.wait_idle()
    for step in (TICK_MS, LEASE_MS - TICK_MS, TICK_MS):
        world.now = Millis(world.now + step)
        world.tick()
    world.wait_until(lambda: len(endpoint.seen) == 2)
    assert world.wait_idle()
    assert world.query("SELECT status, claim_no, attempt FROM runs") == [("running", 2, 2)]
    before = world.query("SELECT * FROM runs")
    assert _finish(world, claim_no=1) == ([], [1])
    assert world.query("SELECT * FROM runs") == before
    assert _finish(world, claim_no=2) == ([1], [])
    assert _finish(world, claim_no=2) == ([], [1])
    assert world.query("SELECT status, result_summary FROM runs") == [("completed", "claim 2")]
    assert [seen.json["claim"] for seen in endpoint.seen] == [1, 2]
    assert world.violations(slots=hours(1), endpoint=endpoint) == []


def _finish(world: World, *, claim_no: int) -> tuple[list[int], list[int]]:
    """The other side says that the work is done: which runs that ended, and which it found stale."""
    store = builders.store(world.home, create=False)
    try:
        outcome = Outcome(
            run_id=1,
            claim_no=claim_no,
            status="completed",
            completed_at=world.now,
            summary=f"claim {claim_no}",
        )
        settled, _ = settle_and_refill(store, [outcome], now=world.now)
    finally:
        store.close()
    return settled.ended, settled.stale
