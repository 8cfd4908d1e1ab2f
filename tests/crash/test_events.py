"""Events while processes die: whatever was acknowledged is stored, once, and a run past its turns ends for that."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash.harness import TICK_MS, World, hours

AGENTS, EACH = 22, 6
KILLS = 30

_AGENT = """
n=0
while [ $n -lt "$3" ]; do
  "$1" -I -m carolctl emit 1 --kind progress --event-id "agent-$2-$n" >>"$4"
  n=$((n+1))
done
"""


def _stored(world: World) -> list[str]:
    return [event_id for (event_id,) in world.query("SELECT event_id FROM events")]


def test_22_agents_emit_while_half_of_them_are_killed_and_nothing_acknowledged_is_lost(
    world: World, tmp_path: Path
) -> None:
    chance = random.Random(22)
    told = [tmp_path / f"told-{number}" for number in range(AGENTS)]
    agents = [
        subprocess.Popen(
            ["/bin/sh", "-c", _AGENT, "agent", sys.executable, str(number), str(EACH), str(path)],
            env=world.environment(CAROL_NOW=""),
            start_new_session=True,
        )
        for number, path in enumerate(told)
    ]
    for agent in chance.sample(agents, AGENTS // 2):
        time.sleep(chance.uniform(0, 0.1))
        # With whatever it has started, which it leads a session of.
        os.killpg(agent.pid, signal.SIGKILL) if agent.poll() is None else None
        world.run(chance.choice(("drain", "tick")), "--json")
    for agent in agents:
        agent.wait(timeout=60)
    world.emitted = {f"agent-{number}-{n}" for number in range(AGENTS) for n in range(EACH)}
    world.acknowledged = {line for path in told if path.exists() for line in path.read_text().splitlines()}
    assert len(world.acknowledged) >= AGENTS // 2 * EACH
    world.drain()
    assert world.violations() == []


def test_emits_ticks_and_drains_are_killed_at_random_and_nothing_acknowledged_is_lost(world: World) -> None:
    chance = random.Random(7)
    world.add(job("busy", argv=world.work()))
    world.now = Millis(T0 + HOUR)
    killed = 0
    while killed < KILLS:
        victims = [world.spawn_emit(turns=chance.randrange(9)) for _ in range(3)]
        victims.append(world.spawn(chance.choice(("drain", "tick")), "--json"))
        time.sleep(chance.uniform(0, 0.06))
        victim = chance.choice(victims)
        killed += victim.poll() is None and world.send(victim.pid, signal.SIGKILL)
        for command in victims:
            world.finish(command)
    world.drain()
    assert world.violations(slots=hours(1)) == []
    assert len(world.acknowledged) >= 2 * KILLS
    assert set(_stored(world)) >= world.acknowledged


@pytest.mark.parametrize("command", ["tick", "drain"])
@pytest.mark.parametrize(
    "point", ["events-taken", "store-before-commit", "store-after-commit", "events-before-clear"]
)
def test_a_run_past_its_turns_ends_for_that_wherever_the_one_who_noticed_was_killed(
    world: World, point: str, command: str
) -> None:
    world.add(job("greedy", argv=world.work(waits=True), max_turns=5))
    world.now = Millis(T0 + HOUR)
    world.tick()
    world.wait_until(world.marks, what="the command to begin")
    world.emit(turns=6)
    world.run(command, "--json", CAROL_FAILPOINT=f"{point}:kill")
    world.now = Millis(world.now + TICK_MS)
    world.tick()
    world.drain()
    assert world.query("SELECT failure_reason, turn_count FROM runs") == [("turn_limit_exceeded", 6)]
    assert _stored(world) == ["event-0"]
    assert world.violations(slots=hours(1)) == []
