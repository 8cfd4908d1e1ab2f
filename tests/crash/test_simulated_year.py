"""A year in a minute: outages, pauses, edits, clock steps, and afterwards an account of every single slot.

Ticks run in this process, and so do the verbs that edit, pause and resume. One thing stands in for the world
outside: the launcher, at the border of the process (`NoProcesses`), which starts the claims that it is given and
ends them now or later, in place of thousands of real processes. What is due is said by the minute-by-minute oracle.
"""

from __future__ import annotations

import os
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from carolctl import jobs, launch, tick
from carolctl.finish import settle_and_refill
from carolctl.model import Claimed, Job, Millis, Outcome
from carolctl.said import Said
from carolctl.session import Session
from carolctl.store.db import Store
from tests import builders
from tests.builders import DAY, HOUR, MINUTE, T0, job
from tests.crash.harness import World
from tests.unit.cron_oracle import Oracle, ms

YEAR_END = Millis(T0 + 365 * DAY)

#: By job: the lines that edits choose from, and its zone.
LINES = {
    "office": (("*/30 9-11 * * 1-5", "15 8-16/2 * * mon-fri"), "Europe/Berlin"),
    "night": (("30 2 * * *", "15 3 * * *"), "Europe/Berlin"),
    "every-few-hours": (("7 */3 * * *", "11 */4 * * *"), "America/New_York"),
    "twice-a-month": (("0 6 1,15 * *", "0 6 13 * 5"), "Asia/Kathmandu"),
    "graceful": (("0 */6 * * *", "0 5-23/6 * * *"), "UTC"),
}


@dataclass
class NoProcesses:
    """A launcher: what it starts needs no process, and ends when the test says so."""

    store: Store
    session: Session | None = None
    started: list[Claimed] = field(default_factory=list)

    def launch(self, claimed: Sequence[Claimed]) -> list[launch.LaunchFailure]:
        assert self.session is not None
        for one in claimed:
            with self.store.write() as tx:
                begun = tx.start(
                    one.run.run_id,
                    one.run.claim_no,
                    now=self.session.now,
                    pid=None,
                    pid_start=None,
                    unit="no-process",
                )
            if begun:
                self.started.append(begun)
        return []


@dataclass
class Life:
    """What is known of a job beside the store: which line was in force since when, by revision."""

    lines: list[tuple[int, str]]
    zone: str


class Year:
    """The simulation: a clock that jumps, a hand that edits, and runs that end now or later."""

    def __init__(self, store: Store, launcher: NoProcesses, seed: int) -> None:
        self.store, self.launcher = store, launcher
        self.chance = random.Random(seed)
        self.now = self.latest = T0
        self.ticks = 0
        self.done = {"edit": 0, "pause": 0, "resume": 0, "outage": 0, "back": 0}
        self.lives = {name: Life([(T0, lines[0])], zone) for name, (lines, zone) in LINES.items()}

    def session(self) -> Session:
        return Session(store=self.store, now=self.now, actor="tester")

    def jobs(self) -> list[Job]:
        with self.store.read() as tx:
            return tx.jobs()

    def live_through(self) -> None:
        while self.now < YEAR_END:
            self._let_time_pass()
            if self.now >= self.latest and self.chance.random() < 0.03:
                self._meddle()
            self.latest = max(self.latest, self.now)
            self._tick()
        self.now = self.latest = Millis(max(self.latest, self.now))
        for one in self.jobs():
            jobs.resume(self.session(), one.job_id)
        self._tick()

    def _let_time_pass(self) -> None:
        lot = self.chance.random()
        if lot < 0.005:
            self.done["back"] += 1
            self.now = Millis(self.now - self.chance.randrange(MINUTE, 25 * HOUR))
        elif lot < 0.02:
            self.done["outage"] += 1
            self.now = Millis(self.now + self.chance.randrange(DAY, 6 * DAY))
        elif lot < 0.4:
            self.now = Millis(self.now + self.chance.randrange(MINUTE, 10 * HOUR))
        else:
            waking = [one.next_fire_at for one in self.jobs() if one.next_fire_at is not None]
            self.now = Millis(
                max(self.now + 1000, min(waking, default=self.now) + self.chance.randrange(0, 50_000))
            )

    def _meddle(self) -> None:
        resting = [one for one in self.jobs() if one.status == "paused"]
        one = self.chance.choice(resting if resting and self.chance.random() < 0.6 else self.jobs())
        if one.status == "paused":
            self.done["resume"] += 1
            jobs.resume(self.session(), one.job_id)
        elif self.chance.random() < 0.5:
            self.done["pause"] += 1
            jobs.pause(self.session(), one.job_id, "a rest")
        else:
            life = self.lives[one.job_id]
            [line] = set(LINES[one.job_id][0]) - {life.lines[-1][1]}
            jobs.edit(self.session(), one.job_id, Said(cron=line))
            life.lines.append((self.now, line))
            self.done["edit"] += 1

    def _tick(self) -> None:
        self.ticks += 1
        self.launcher.session = self.session()
        tick.tick(self.session())
        ended = [one for one in self.launcher.started if self.chance.random() < 0.9]
        while ended:
            self.launcher.started = [one for one in self.launcher.started if one not in ended]
            outcomes = [self._outcome(one) for one in ended]
            _, refilled = settle_and_refill(self.store, outcomes, now=self.now)
            before = len(self.launcher.started)
            self.launcher.launch(refilled)
            ended = self.launcher.started[before:]

    def _outcome(self, one: Claimed) -> Outcome:
        failed = self.chance.random() < 0.1
        return Outcome(
            run_id=one.run.run_id,
            claim_no=one.run.claim_no,
            status="failed" if failed else "completed",
            completed_at=self.now,
            failure_reason="exit_nonzero" if failed else None,
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_over_a_year_of_outages_pauses_edits_and_clock_steps_every_slot_has_one_row_and_none_fires_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(world.home))
    # Any value will do: the boot clock, which does not take part in this, is not looked at while it is set.
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    world.add(*_jobs())
    store = builders.store(world.home, create=False)
    try:
        launcher = NoProcesses(store)
        monkeypatch.setattr(launch, "choose_configured", lambda: launcher)
        year = Year(store, launcher, int(os.environ.get("CAROL_CRASH_SEED", "1")))
        year.live_through()
    finally:
        store.close()
    print(f"{year.ticks} ticks, {year.done}, {world.query('SELECT count(*) FROM runs')[0][0]} rows")
    assert min(year.done.values()) >= 3
    assert world.query("SELECT what, detail FROM violations") == []
    for name, life in year.lives.items():
        _account_for_every_slot(world, name, life, year.latest)


def _jobs() -> list[Job]:
    more: dict[str, dict[str, Any]] = {
        "every-few-hours": {"catch_up": "all", "overlap": "queue"},
        "twice-a-month": {"catch_up": "skip"},
        "graceful": {"misfire_grace_sec": 7200, "overlap": "allow"},
    }
    return [
        job(name, cron=lines[0], timezone=zone, max_run_duration_sec=2 * DAY // 1000, **more.get(name, {}))
        for name, (lines, zone) in LINES.items()
    ]


def _account_for_every_slot(world: World, job_id: str, life: Life, until: int) -> None:
    """Each slot of the oracle lies in exactly one row, each row counts its slots, and no row stands for none."""
    ends = [begin for begin, _ in life.lines[1:]] + [until]
    for revision, ((begin, line), end) in enumerate(zip(life.lines, ends, strict=True), start=1):
        due = [ms(slot) for slot in Oracle(line).slots(life.zone, _utc(begin), _utc(end))]
        rows = world.query(
            "SELECT slots_from, scheduled_for, coalesced FROM runs WHERE job_id = ? AND schedule_rev = ?"
            " AND source = 'scheduled' ORDER BY scheduled_for",
            job_id,
            revision,
        )
        covered: list[int] = []
        for first, last, count in rows:
            stands_for = due[bisect_left(due, first) : bisect_right(due, last)]
            assert stands_for, f"{job_id}: a row for no slot of {line}: {_utc(first)} to {_utc(last)}"
            assert (stands_for[0], stands_for[-1], len(stands_for)) == (first, last, count), (job_id, line)
            covered += stands_for
        assert covered == due, f"{job_id}: {line} from {_utc(begin)} to {_utc(end)}"


def _utc(instant: int) -> datetime:
    return datetime.fromtimestamp(instant / 1000, UTC)


def test_a_minutely_job_after_a_year_of_outage_costs_one_tick_under_2_s(world: World) -> None:
    world.add(job("minutely", cron="* * * * *", argv=("true",)))
    world.now = YEAR_END
    began = time.monotonic()
    report = world.tick()
    took = time.monotonic() - began
    assert report is not None
    assert len(report["fired"]) == 1
    assert world.query("SELECT slots_from, scheduled_for, coalesced FROM runs") == [
        (T0 + MINUTE, YEAR_END - 2 * MINUTE, 10_000),
        (YEAR_END - MINUTE, YEAR_END, 2),
    ]
    assert took < 2


@pytest.mark.parametrize("catch_up", ["all", "skip"])
def test_a_minutely_job_that_catches_up_otherwise_costs_no_more(world: World, catch_up: str) -> None:
    world.add(job("minutely", cron="* * * * *", catch_up=catch_up, argv=("true",)))
    world.now = YEAR_END
    began = time.monotonic()
    assert world.tick() is not None
    assert time.monotonic() - began < 2
    rows = world.query("SELECT slots_from, scheduled_for FROM runs ORDER BY scheduled_for")
    assert rows[0][0] == T0 + MINUTE
    assert rows[-1][1] == YEAR_END
    assert all(last + MINUTE == first for (_, last), (first, _) in pairwise(rows))


def test_a_clock_set_back_by_days_fires_no_slot_again_and_lets_the_job_go_on(world: World) -> None:
    world.add(job("hourly", argv=world.work()))
    for number in range(1, 4):
        world.now = Millis(T0 + number * HOUR)
        world.tick()
        assert world.wait_idle()
    # Three days ahead by mistake, for one tick.
    world.now = Millis(T0 + 75 * HOUR)
    world.tick()
    assert world.wait_idle()
    fired = world.query("SELECT run_id, scheduled_for FROM runs WHERE status = 'completed'")
    for number in range(3, 8):
        world.now = Millis(T0 + number * HOUR + MINUTE // 2)
        world.tick()
        assert world.wait_idle()
    again = world.query("SELECT run_id, scheduled_for FROM runs WHERE status = 'completed'")
    assert again[: len(fired)] == fired
    assert [slot for _, slot in again[len(fired) :]] == [T0 + number * HOUR for number in range(4, 8)]
    assert len(world.marks()) == 2 * len(again)
