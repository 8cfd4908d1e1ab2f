"""Processes killed at random moments: a world of mixed jobs, round after round, and a hand that strikes blindly.

A round is one due slot of every job. While two ticks and their runs are at work, a process of ours is chosen (a role
first, then one of that role) and killed, or stopped for a while; meanwhile the clock moves, more ticks start, and
now and then a foreign writer holds the lock for longer than anybody here waits. Then the world comes to rest, and
everything must hold.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash.harness import INSTALLED, TICK_MS, Coverage, Process, Program, Violation, World, hours, send
from tests.endpoint import Endpoint, Reply

CAP = 3
ROUNDS = 3
KILLS_A_ROUND = 7
_LONGEST_PAUSE_SEC = 0.12
_STOP_SHARE = 0.2
_LOCK_SHARE = 0.04
_IMPATIENT = {"CAROL_BUSY_TIMEOUT_MS": "250"}
_IDLE_TRIES = 6


@dataclass(slots=True)
class Verdict:
    """What a number of worlds went through, and what did not hold, with the seed of the world."""

    coverage: Coverage = field(default_factory=Coverage)
    violations: list[tuple[int, Violation]] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Without those that were only stopped."""
        return sum(count for role, count in self.coverage.kills.items() if not role.startswith("stopped"))


def rage(kills: int, seed: int, folder: Path, *, workers: int = 2, program: Program = INSTALLED) -> Verdict:
    """Kill at least `kills` processes, world after world, a few worlds side by side."""
    verdict = Verdict()
    with ThreadPoolExecutor(workers) as pool:
        number = 0
        while verdict.kills < kills:
            batch = range(number, number + workers)
            number += workers
            worlds = pool.map(lambda n: one_world(seed + n, folder / f"world-{n}", program), batch)
            for n, (coverage, violations) in zip(batch, worlds, strict=True):
                verdict.coverage.add(coverage)
                verdict.violations += [(seed + n, violation) for violation in violations]
            if verdict.violations:
                break
    return verdict


def one_world(seed: int, folder: Path, program: Program = INSTALLED) -> tuple[Coverage, list[Violation]]:
    """One world, `ROUNDS` rounds; its coverage and what did not hold in it."""
    chance = random.Random(seed)
    world = World(folder, program, cap=CAP)
    try:
        with Endpoint() as endpoint:
            _populate(world, endpoint)
            try:
                for number in range(1, ROUNDS + 1):
                    world.now = Millis(T0 + number * HOUR)
                    _one_round(world, chance)
                    world.drain()
                    assert world.now < T0 + (number + 1) * HOUR
            finally:
                world.kill_all()
            return world.coverage, world.violations(slots=hours(ROUNDS), endpoint=endpoint)
    finally:
        world.close()


def _populate(world: World, endpoint: Endpoint) -> None:
    url = endpoint.on("/job", Reply(json={"summary": "done"}, delay=0.05))
    again: dict[str, Any] = {"idempotent": True, "max_attempts": 3}
    world.add(
        job("careful-1", argv=world.work(seconds=0.1)),
        job("careful-2", argv=world.work(seconds=0.2), max_attempts=2),
        job("careful-3", argv=world.work(seconds=0.3), priority=5),
        job("hardy-1", argv=world.work(seconds=0.1), **again),
        job("hardy-2", argv=world.work(seconds=0.25), overlap="queue", **again),
        job("free", argv=world.work(seconds=0.05), overlap="allow"),
        job("http-careful", url=url),
        job("http-hardy", url=url, **again),
    )


def _one_round(world: World, chance: random.Random) -> None:
    killed = idle = 0
    for _ in range(2):
        world.spawn("tick", "--json", **_IMPATIENT)
    while killed < KILLS_A_ROUND and idle < _IDLE_TRIES:
        time.sleep(chance.uniform(0, _LONGEST_PAUSE_SEC))
        anybody, victim = _choose(world, chance)
        if not anybody:
            idle += 1
            _next_tick(world, chance)
        elif chance.random() < _LOCK_SHARE:
            _lock_for(world, chance.uniform(0, 0.6))
        elif victim is not None and chance.random() < _STOP_SHARE:
            if world.stop(victim):
                _go_on_after(victim.pid, chance.uniform(0, 0.5))
        elif victim is not None:
            killed += world.kill(victim)


def _next_tick(world: World, chance: random.Random) -> None:
    """The timer strikes, sometimes so late that claims are launched again; somebody may sweep or drain by hand."""
    world.now = Millis(world.now + chance.choice((1_000, 30_000, TICK_MS)))
    for _ in range(chance.choice((1, 1, 2))):
        world.spawn(chance.choice(("tick", "tick", "tick", "reap", "drain")), "--json", **_IMPATIENT)


def _lock_for(world: World, seconds: float) -> None:
    """A foreign writer, in a thread of its own, while the killing goes on."""

    def hold() -> None:
        # A process that stands still may hold the lock already: then it does what was wanted here.
        with suppress(sqlite3.OperationalError), world.locked(patience_sec=0.5):
            time.sleep(seconds)

    threading.Thread(target=hold, daemon=True).start()


def _choose(world: World, chance: random.Random) -> tuple[bool, Process | None]:
    """Whether anybody is there, and whom to strike: a role by lot, and nobody if that role is not there."""
    living = [process for process in world.processes() if not process.is_stopped]
    [role] = chance.choices(("tick", "runner", "job"), (2, 4, 3))
    chosen = [process for process in living if process.role == role]
    return bool(living), chance.choice(chosen) if chosen else None


def _go_on_after(pid: int, seconds: float) -> None:
    """By a timer of its own: the stopped one may stand in the way of us all, in the midst of a recovery."""
    timer = threading.Timer(seconds, send, (pid, signal.SIGCONT))
    timer.daemon = True
    timer.start()
