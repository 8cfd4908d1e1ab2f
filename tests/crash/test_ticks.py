"""Whole ticks over a quiet world: the cap, the queue that empties itself, overlap, the global pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash.harness import World, hours


@pytest.fixture(autouse=True)
def _the_first_slot_is_due(world: World) -> None:
    world.now = Millis(T0 + HOUR)


def _tick(world: World, **env: str) -> dict[str, Any]:
    report = world.tick(**env)
    assert report is not None
    return report


def test_of_five_due_at_once_under_a_cap_of_two_2_run_3_queue_and_all_5_end_without_another_tick(
    world: World,
) -> None:
    world.add(*(job(f"job-{n}", argv=world.work(seconds=0.2)) for n in range(5)))
    report = _tick(world)
    assert len(report["fired"]) == 5
    assert report["claimed"] == report["launched"] == report["fired"][:2]
    assert (report["running"], report["queued"]) == (2, 3)
    assert world.wait_idle()
    assert world.statuses() == ["completed"] * 5
    assert world.violations(slots=hours(1), undisturbed=True) == []


def test_the_queue_moves_by_priority_then_age(new_world: Callable[..., World]) -> None:
    world = new_world(cap=1)
    world.now = Millis(T0 + HOUR)
    world.add(
        *(job(name, argv=world.work(), priority=p) for name, p in (("a", 0), ("b", 9), ("c", 5), ("d", 5)))
    )
    _tick(world)
    assert world.wait_idle()
    order = [mark.run_id for mark in world.marks() if mark.kind == "begin"]
    names = dict(world.query("SELECT run_id, job_id FROM runs"))
    assert [names[run_id] for run_id in order] == ["b", "c", "d", "a"]


def test_a_cap_of_0_fires_nothing_and_the_slots_wait(world: World) -> None:
    world.add(*(job(f"job-{n}", argv=world.work()) for n in range(3)))
    report = _tick(world, SCHEDULE_MAX_CONCURRENT="0")
    assert report["fired"] == report["claimed"] == report["skipped"] == []
    assert world.statuses() == []
    _tick(world)
    assert world.wait_idle()
    assert world.violations(slots=hours(1), undisturbed=True) == []
    assert world.statuses() == ["completed"] * 3


def test_a_global_pause_fires_claims_and_sweeps_nothing_and_says_so(world: World) -> None:
    world.add(job("doomed", argv=world.work(waits=True)), job("other", argv=world.work()))
    _tick(world)
    world.wait_until(lambda: world.statuses() == ["running", "completed"])
    world.kill_role("runner")
    world.change("INSERT INTO meta VALUES ('paused_until', 'forever')")
    world.now = Millis(T0 + 2 * HOUR)
    report = _tick(world)
    assert report["paused"] is True
    assert report["fired"] == report["claimed"] == report["reaped"] == report["skipped"] == []
    assert world.statuses() == ["running", "completed"]
    world.change("DELETE FROM meta WHERE key = 'paused_until'")
    report = _tick(world)
    assert report["reaped"] == [1]
    assert len(report["fired"]) == 2
    world.go.touch()
    assert world.wait_idle()
    assert world.violations(slots=hours(2)) == []


def _slots_while_the_first_runs(world: World, overlap: str) -> list[tuple[Any, ...]]:
    """Four slots come while the run of the first works on; what became of each, in the moment of the last."""
    world.add(job("busy", argv=world.work(waits=True), overlap=overlap, max_run_duration_sec=86_400))
    for number in range(1, 5):
        world.now = Millis(T0 + number * HOUR)
        _tick(world)
    rows = world.query("SELECT status, skip_reason FROM runs ORDER BY scheduled_for")
    world.go.touch()
    assert world.wait_idle()
    assert world.violations(slots=hours(4), undisturbed=True) == []
    return rows


def test_overlap_skip_skips_every_slot_while_a_run_lives_and_counts_them(world: World) -> None:
    rows = _slots_while_the_first_runs(world, "skip")
    assert [reason for _, reason in rows] == [None, "overlap", "overlap", "overlap"]
    assert world.query("SELECT firing_count, suppression_count FROM scheduled_jobs") == [(1, 3)]
    assert world.statuses() == ["completed", "skipped", "skipped", "skipped"]


def test_overlap_queue_lets_one_slot_wait_and_no_more(world: World) -> None:
    rows = _slots_while_the_first_runs(world, "queue")
    assert [reason for _, reason in rows] == [None, None, "overlap", "overlap"]
    assert rows[1][0] == "queued"
    assert world.statuses() == ["completed", "completed", "skipped", "skipped"]


def test_overlap_allow_runs_them_side_by_side_under_the_cap(world: World) -> None:
    rows = _slots_while_the_first_runs(world, "allow")
    assert [reason for _, reason in rows] == [None, None, None, None]
    assert [status in ("claimed", "running") for status, _ in rows] == [True, True, False, False]
    assert world.statuses() == ["completed"] * 4


def test_a_manual_run_makes_a_slot_wait_and_never_skip(world: World) -> None:
    world.add(job("busy", argv=world.work(waits=True)))
    world.change(
        "INSERT INTO runs (job_id, source, status, queued_at) VALUES ('busy', 'manual', 'queued', ?)", T0
    )
    _tick(world)
    assert world.query("SELECT source, status FROM runs ORDER BY run_id") in (
        [("manual", "claimed"), ("scheduled", "queued")],
        [("manual", "running"), ("scheduled", "queued")],
    )
    world.go.touch()
    assert world.wait_idle()
    assert world.violations(slots=hours(1), undisturbed=True) == []
    assert world.statuses() == ["completed", "completed"]


def test_a_dry_run_changes_nothing_and_starts_nothing(world: World) -> None:
    world.add(*(job(f"job-{n}", argv=world.work()) for n in range(3)))
    report = _tick_dry(world)
    assert len(report["fired"]) == 3
    assert len(report["claimed"]) == 2
    assert report["launched"] == []
    assert world.statuses() == []
    assert world.processes() == []


def _tick_dry(world: World) -> dict[str, Any]:
    report = world.run("tick", "--dry-run", "--json")
    assert report is not None
    return report
