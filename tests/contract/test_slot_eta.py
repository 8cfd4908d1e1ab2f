"""run-job on a full fleet: its ETA against what the fleet then does, in a simulation on real ticks and a real store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from carolctl import launch, run_now, tick
from carolctl.errors import CapacityFull
from carolctl.finish import settle_and_refill
from carolctl.model import Millis, Outcome
from carolctl.session import Session
from carolctl.store.db import Store
from carolctl.store.records import FiringMetrics
from tests import builders
from tests.builders import MINUTE, T0, job
from tests.crash.test_simulated_year import NoProcesses

TICK_MS = 30_000
JOBS = {
    "short": ("*/7 * * * *", 95),
    "middle": ("*/11 * * * *", 250),
    "long": ("*/23 * * * *", 610),
    "urgent": ("*/13 * * * *", 140),
    "often": ("*/3 * * * *", 60),
}


class Fleet:
    """Jobs that take just as long as they always did, ticked every half a minute."""

    def __init__(self, store: Store, launcher: NoProcesses) -> None:
        self.store, self.launcher, self.now = store, launcher, T0

    def session(self) -> Session:
        return Session(store=self.store, now=self.now, actor="tester")

    def play(self, until: int) -> None:
        """Ticks and ends in the order of time, to `until`."""
        while (at := min(self._next_tick(), self._next_end())) <= until:
            self.now = Millis(at)
            self.launcher.session = self.session()
            if at == self._next_end():
                self._end()
            else:
                tick.tick(self.session())
                self.ticked = at
        self.now = Millis(until)

    ticked = T0 - TICK_MS

    def _next_tick(self) -> int:
        return self.ticked + TICK_MS

    def _next_end(self) -> int:
        return min((self._end_of(one) for one in self.launcher.started), default=2**62)

    def _end_of(self, one: object) -> int:
        run = one.run  # type: ignore[attr-defined]
        return int(run.started_at + 1000 * JOBS.get(run.job_id, ("", 60))[1])

    def _end(self) -> None:
        over = min(self.launcher.started, key=self._end_of)
        self.launcher.started.remove(over)
        outcome = Outcome(
            run_id=over.run.run_id, claim_no=over.run.claim_no, status="completed", completed_at=self.now
        )
        _, refilled = settle_and_refill(self.store, [outcome], now=self.now)
        self.launcher.launch(refilled)

    def is_free(self) -> bool:
        """Whether run-job would get a slot now."""
        with self.store.read() as tx:
            occupied = tx.count_live()[1]
        return occupied < 2

    def eta_sec(self) -> int:
        with pytest.raises(CapacityFull) as caught:
            run_now.run_now(self.session(), "by-hand", force=False, reason=None, requester=None)
        eta = caught.value.details["slot_eta_sec"]
        assert isinstance(eta, int)
        return eta


@pytest.fixture
def fleet(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    for name in ("SCHEDULE_MAX_CONCURRENT", "CAROL_SCHEDULER_DB", "CAROL_PLANNER_DB"):
        monkeypatch.delenv(name, raising=False)
    with closing(builders.store(home)) as store:
        with store.write() as tx:
            tx.insert_jobs(
                [job("by-hand", manual=True)]
                + [
                    job(name, cron=cron, priority=5 if name == "urgent" else 0)
                    for name, (cron, _) in JOBS.items()
                ]
            )
            for run_id, (name, (_, seconds)) in enumerate(JOBS.items()):
                tx.record_metrics(metrics(run_id + 1_000_000, name, seconds))
        launcher = NoProcesses(store)
        monkeypatch.setattr(launch, "choose_configured", lambda: launcher)
        monkeypatch.setattr(launch, "probe", lambda runs, **_: {run.run_id: "alive" for run in runs})
        yield Fleet(store, launcher)


def metrics(run_id: int, job_id: str, seconds: int) -> FiringMetrics:
    return FiringMetrics(
        run_id=run_id, attempt=1, job_id=job_id, fired_at=T0, slot_claimed_at=T0, completed_at=T0,
        slot_wait_ms=0, duration_ms=seconds * 1000, lateness_ms=0, turn_count=None, max_turns_at_firing=None,
        concurrent_schedules=1, pressure_sources=None, psi_cpu_avg10=None, failure_reason=None,
    )  # fmt: skip


def test_run_job_when_full_has_an_eta_within_one_tick_of_the_truth_in_a_simulated_fleet(fleet: Fleet) -> None:
    chance, errors, asked = random.Random(7), [], 0
    while asked < 12:
        fleet.play(fleet.now + chance.randrange(MINUTE, 20 * MINUTE))
        if fleet.is_free():
            continue
        asked += 1
        at, eta = fleet.now, fleet.eta_sec()
        while not fleet.is_free():
            fleet.play(fleet.now + 1000)
        errors.append((fleet.now - at) / 1000 - eta)
    assert max(map(abs, errors)) <= TICK_MS / 1000


def test_a_fleet_that_will_never_have_a_free_slot_has_no_eta(fleet: Fleet) -> None:
    with fleet.store.write() as tx:
        tx.insert_jobs([job(f"crowd-{number}", cron="* * * * *") for number in range(300)])
    fleet.play(T0 + 2 * MINUTE)
    with pytest.raises(CapacityFull) as caught:
        run_now.run_now(fleet.session(), "by-hand", force=False, reason=None, requester=None)
    assert caught.value.details == {"slot_eta_sec": None}
    assert "at an unknown time" in caught.value.message
