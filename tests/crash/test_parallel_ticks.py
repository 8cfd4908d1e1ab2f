"""Ticks side by side: whoever is first fires a slot, and the cap holds in every single statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash.harness import World, hours
from tests.endpoint import Endpoint, Reply

JOBS, TICKS, ROUNDS, CAP = 200, 8, 20, 20
#: Every fifth round runs all of its jobs to their ends; the others only look at the moment of firing.
DRAINED = range(0, ROUNDS, 5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_8_ticks_at_once_over_200_due_jobs_20_times_fire_every_slot_exactly_once_and_never_exceed_the_cap(
    tmp_path: Path,
) -> None:
    for number in range(ROUNDS):
        world = World(tmp_path / f"world-{number}", cap=CAP)
        try:
            with Endpoint() as endpoint:
                try:
                    _one_round(world, endpoint, drained=number in DRAINED)
                finally:
                    world.kill_all()
        finally:
            world.close()


def _one_round(world: World, endpoint: Endpoint, *, drained: bool) -> None:
    url = endpoint.on("/job", Reply(json={}))
    world.add(*(job(f"job-{n:03d}", url=url) for n in range(JOBS)))
    world.now = Millis(T0 + HOUR)
    ticking = [world.spawn("tick", "--json") for _ in range(TICKS)]
    reports = [world.finish(command) for command in ticking]
    fired = [run_id for report in reports if report for run_id in report["fired"]]
    claimed = [run_id for report in reports if report for run_id in report["claimed"]]
    assert all(reports), "a tick was refused the lock for longer than its deadline"
    assert Counter(fired) == Counter(range(1, JOBS + 1))
    assert max(Counter(claimed).values()) == 1
    if drained:
        world.drain()
        assert world.violations(slots=hours(1), undisturbed=True, endpoint=endpoint) == []
        assert sorted(seen.json["run_id"] for seen in endpoint.seen) == list(range(1, JOBS + 1))
    else:
        world.kill_all()
        assert world.query("SELECT what, detail FROM violations") == []
        assert world.query("SELECT count(*), count(DISTINCT job_id) FROM runs") == [(JOBS, JOBS)]


@pytest.mark.slow
def test_8_ticks_at_once_run_40_commands_once_each_and_never_more_at_a_time_than_the_cap_allows(
    new_world: Callable[..., World],
) -> None:
    world = new_world(cap=4)
    world.add(*(job(f"job-{n:03d}", argv=world.work(seconds=0.01)) for n in range(40)))
    world.now = Millis(T0 + HOUR)
    for command in [world.spawn("tick", "--json") for _ in range(TICKS)]:
        world.finish(command)
    assert world.drain() == 0, "the queue empties itself without another tick"
    assert world.violations(slots=hours(1), undisturbed=True) == []
    assert len(world.marks()) == 80


def test_ticks_at_once_over_one_dead_runner_record_its_loss_once(world: World) -> None:
    world.add(job("doomed", argv=world.work(seconds=30)))
    world.now = Millis(T0 + HOUR)
    world.tick()
    world.wait_until(world.marks, what="the command to begin")
    world.kill_role("runner")
    reports = [world.finish(command) for command in [world.spawn("tick", "--json") for _ in range(4)]]
    assert sorted(run_id for report in reports if report for run_id in report["reaped"]) == [1]
    world.drain()
    assert world.violations(slots=hours(1)) == []
    assert world.query("SELECT status, failure_reason, claim_no FROM runs") == [("failed", "process_lost", 1)]
    assert world.query("SELECT failure_streak FROM scheduled_jobs") == [(1,)]
