"""Situations in which every failpoint is passed, and what is done to whoever passes it.

A scenario leads a fresh world to the moment before, and then starts one command or runner that is armed. `survey`
finds out which failpoints each of them passes, in which role and how often, so that `plan` can aim at every one.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash.harness import INSTALLED, LEASE_SEC, TICK_MS, Patch, Program, Violation, World, copied, hours
from tests.endpoint import Endpoint, Reply
from tests.planner import insert, planner

Arm = dict[str, str]
Action = Literal["kill", "stop"]
_IMPATIENT = {"CAROL_BUSY_TIMEOUT_MS": "200"}
_MOST_HITS = 2


class Scenario(NamedTuple):
    """`act` starts what is armed; `slots` fall due in it; `role` is that of the armed process."""

    name: str
    role: str
    act: Callable[[World, Endpoint, Arm], None]
    slots: int


class Aim(NamedTuple):
    """The `hit`-th passage of a failpoint by a process of some role, in a scenario where that happens."""

    point: str
    hit: int
    scenario: Scenario

    def __str__(self) -> str:
        return f"{self.point}:{self.hit} of {self.scenario.name}"


# -- scenarios -------------------------------------------------------------------------------------------------


def _claim_without_launching(world: World, kind: str) -> list[str]:
    """A tick dies between its COMMIT and its launches; the claims as a runner takes them."""
    world.tick(CAROL_FAILPOINT="tick-committed:kill")
    rows = world.query("SELECT run_id, claim_no FROM runs WHERE status = 'claimed' ORDER BY run_id")
    assert len(rows) == world.cap, rows
    return [f"{run_id}:{claim_no}" if kind == "http" else f"{run_id} {claim_no}" for run_id, claim_no in rows]


def _three_commands(world: World, *, waits: bool = False) -> None:
    world.add(
        job("careful", argv=world.work(waits=waits)),
        job("hardy", argv=world.work(waits=waits), idempotent=True, max_attempts=3),
        job("third", argv=world.work(waits=waits)),
    )
    world.now = Millis(T0 + HOUR)


def _runners(world: World, _endpoint: Endpoint, arm: Arm) -> None:
    _three_commands(world)
    for claim in _claim_without_launching(world, "command"):
        world.spawn_runner("command", *claim.split(), **(_IMPATIENT | arm))


def _http_runner(world: World, endpoint: Endpoint, arm: Arm) -> None:
    url = endpoint.on("/job", Reply(json={"summary": "done"}, delay=0.03))
    world.add(
        job("careful", url=url),
        job("hardy", url=url, idempotent=True, max_attempts=3),
        job("third", url=url),
    )
    world.now = Millis(T0 + HOUR)
    world.spawn_runner("http", *_claim_without_launching(world, "http"), **arm)


def _begun(world: World) -> bool:
    return sum(mark.kind == "begin" for mark in world.marks()) >= world.cap


def _finish_under_a_foreign_lock(world: World) -> None:
    """The commands end while somebody else holds the write lock: their runners can only write to the spool."""
    world.wait_until(lambda: _begun(world) or not _busy(world), what="the commands to begin")
    with world.locked():
        world.go.touch()
        assert world.wait_idle()


def _busy(world: World) -> bool:
    return any(not process.is_stopped for process in world.processes())


def _runners_into_spool(world: World, _endpoint: Endpoint, arm: Arm) -> None:
    _three_commands(world, waits=True)
    for claim in _claim_without_launching(world, "command"):
        world.spawn_runner("command", *claim.split(), **(_IMPATIENT | arm))
    _finish_under_a_foreign_lock(world)


def _over_spool(*command: str) -> Callable[[World, Endpoint, Arm], None]:
    def act(world: World, _endpoint: Endpoint, arm: Arm) -> None:
        """Two finish files and two events wait, a third run is queued, and the next slots are due."""
        _three_commands(world, waits=True)
        world.tick(**_IMPATIENT)
        _finish_under_a_foreign_lock(world)
        assert len(world.spooled()) == world.cap, world.state()
        world.emit(turns=1)
        world.emit(run=3)
        world.now = Millis(T0 + 2 * HOUR)
        world.spawn(*command, **arm)

    return act


def _emits(world: World, _endpoint: Endpoint, arm: Arm) -> None:
    """Events of agents, one after the other, so that each has its own moment."""
    for _ in range(2):
        world.spawn_emit(arm=arm)


def _mirroring(world: World, _endpoint: Endpoint, arm: Arm) -> None:
    """Three ended runs wait to be mirrored, and a foreign row has run for a day."""
    world.planner = planner(world.home.parent / "planner.db")
    _three_commands(world)
    world.tick()
    assert world.wait_idle()
    with closing(sqlite3.connect(world.planner)) as connection, connection:
        orphan = {"droid_name": "x", "status": "running", "started_at": "2025-12-31 00:00:00"}
        insert(connection, orphan, "droid_runs")
    world.now = Millis(world.now + TICK_MS)
    world.spawn("tick", "--json", **arm)


#: The richer a scenario, the earlier: a failpoint is aimed at in the first one that passes it in some role.
SCENARIOS = (
    Scenario("runners of commands", "command", _runners, 1),
    Scenario("a runner of HTTP calls", "http", _http_runner, 1),
    Scenario("a tick over a full spool", "tick", _over_spool("tick", "--json"), 2),
    Scenario("a drain of a full spool", "drain", _over_spool("drain", "--json"), 1),
    Scenario("a reap over a full spool", "reap", _over_spool("reap", "--json"), 1),
    Scenario("runners that must spool", "command", _runners_into_spool, 1),
    Scenario("a tick that mirrors", "tick", _mirroring, 1),
    Scenario("emits of agents", "emit", _emits, 0),
)


# -- finding the points ----------------------------------------------------------------------------------------

_LOGGED = Patch(
    "failpoints.py",
    '    armed = os.environ.get("CAROL_FAILPOINT")\n',
    '    if "CAROL_SURVEY" in os.environ:\n'
    "        import sys\n"
    '        with open(os.environ["CAROL_SURVEY"], "a") as file:\n'
    '            file.write(f"{name} {sys.argv[1]} {os.getpid()}\\n")\n'
    '    armed = os.environ.get("CAROL_FAILPOINT")\n',
)


def survey(folder: Path) -> list[Aim]:
    """Run every scenario once in a copy that writes down each failpoint it passes; what to aim at."""
    program = copied(folder / "surveyed", _LOGGED)
    aims: dict[tuple[str, str, int], Aim] = {}
    for number, scenario in enumerate(SCENARIOS):
        log = folder / f"survey-{number}"
        with _world(folder / f"world-{number}", program) as (world, endpoint):
            scenario.act(world, endpoint, {"CAROL_SURVEY": str(log)})
            world.drain()
        for point, role, hits in _passages(log):
            for hit in range(1, min(hits, _MOST_HITS) + 1):
                if role == scenario.role:
                    aims.setdefault((point, role, hit), Aim(point, hit, scenario))
    return list(aims.values())


def _passages(log: Path) -> list[tuple[str, str, int]]:
    """Point, role and how often at most one process of that role passed it."""
    lines = log.read_text("utf-8").splitlines()
    most: dict[tuple[str, str], int] = {}
    for line in dict.fromkeys(lines):
        point, role, _ = line.split()
        most[point, role] = max(most.get((point, role), 0), lines.count(line))
    return [(point, role, hits) for (point, role), hits in most.items()]


# -- trials ----------------------------------------------------------------------------------------------------


@contextmanager
def _world(folder: Path, program: Program) -> Iterator[tuple[World, Endpoint]]:
    world = World(folder, program)
    try:
        with Endpoint() as endpoint:
            try:
                yield world, endpoint
            finally:
                world.kill_all()
    finally:
        world.close()


def attempt(
    aim: Aim, action: Action, folder: Path, program: Program = INSTALLED
) -> tuple[World, list[Violation]]:
    """Kill or stop whoever gets there first, let everything come to rest, and say what does not hold."""
    once = folder / "fired"
    with _world(folder / "world", program) as (world, endpoint):
        aim.scenario.act(
            world,
            endpoint,
            {"CAROL_FAILPOINT": f"{aim.point}:{action}:{aim.hit}", "CAROL_FAILPOINT_ONCE": str(once)},
        )
        if action == "stop":
            _play_zombie(world, once)
        else:
            assert world.wait_idle()
        if once.exists():
            world.coverage.fired.add(aim.point)
            world.coverage.kills[f"{action} of {aim.scenario.role} at a failpoint"] += 1
            world.coverage.states[world.state()] += 1
        else:
            # How many ends one write takes in depends on the moment: only the first passage is certain.
            assert aim.hit > 1, f"nobody came to {aim}"
        world.drain()
        found = world.violations(
            slots=hours(aim.scenario.slots),
            undisturbed=aim.scenario.role in ("tick", "drain", "reap"),
            endpoint=endpoint,
        )
        return world, found


def _play_zombie(world: World, once: Path) -> None:
    """Whoever stopped stands still while ticks pass until past every lease; then it goes on."""
    world.wait_until(
        lambda: (
            (once.exists() and any(process.is_stopped for process in world.processes())) or not _busy(world)
        ),
        what="somebody to stop",
    )
    world.coverage.states[world.state()] += 1
    # The stopped one may hold the write lock: the others give up soon, with an exit code that says so.
    for step in (TICK_MS, LEASE_SEC * 1000, TICK_MS):
        world.wait_idle()
        world.now = Millis(world.now + step)
        world.tick(**_IMPATIENT)
    world.wait_idle()


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
