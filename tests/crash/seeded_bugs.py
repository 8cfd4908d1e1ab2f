"""Bugs planted in a copy of the package, each with the situation in which the harness must see it.

A list of what a scheduler of this kind gets wrong. A harness that misses one of these proves nothing by passing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from carolctl.model import Millis
from tests.builders import HOUR, T0, job
from tests.crash import scenarios
from tests.crash.harness import LEASE_SEC, TICK_MS, Patch, Program, Violation, World, hours
from tests.crash.scenarios import SCENARIOS, Action, Aim, Scenario

LEASE_MS = LEASE_SEC * 1000

Hunt = Callable[[Program, Path], list[Violation]]


class SeededBug(NamedTuple):
    """What is wrong, how it is planted, where it shows, and what the harness has to call it."""

    name: str
    patches: tuple[Patch, ...]
    hunt: Hunt
    seen_as: str


# -- situations ------------------------------------------------------------------------------------------------


def _in_world(act: Callable[[World], None], *, cap: int, slots: int = 1, undisturbed: bool = False) -> Hunt:
    """A hunt: `act` in a fresh world, then rest, then what does not hold."""

    def hunt(program: Program, folder: Path) -> list[Violation]:
        world = World(folder / "world", program, cap=cap)
        try:
            world.now = Millis(T0 + HOUR)
            act(world)
            world.drain()
            return world.violations(slots=hours(slots), undisturbed=undisturbed)
        finally:
            world.close()

    return hunt


def _at_failpoint(point: str, action: Action, scenario: Scenario) -> Hunt:
    def hunt(program: Program, folder: Path) -> list[Violation]:
        return scenarios.attempt(Aim(point, 1, scenario), action, folder, program)[1]

    return hunt


def _scenario(name: str) -> Scenario:
    [found] = [scenario for scenario in SCENARIOS if scenario.name == name]
    return found


def stop_at(point: str, world: World) -> dict[str, str]:
    """Arms a command so that the first process that gets to `point` stands still."""
    return {"CAROL_FAILPOINT": f"{point}:stop", "CAROL_FAILPOINT_ONCE": str(world.home / f"stopped-{point}")}


def wait_for_stopped(world: World) -> int:
    """The process that stands still, once it does."""

    def stopped() -> list[int]:
        return [process.pid for process in world.processes() if process.is_stopped]

    world.wait_until(stopped, what="somebody to stop")
    return stopped()[0]


def move_to_another_host(world: World) -> None:
    """From here nobody can say whether the owners of the live runs are alive: only their leases count."""
    world.change("UPDATE runs SET host = 'elsewhere' WHERE status IN ('claimed', 'running')")


def zombie_before_finish(world: World) -> None:
    """A runner stands still before its finish, its lease runs out, its successor is at work when it goes on."""
    world.add(job("hardy", argv=world.work(waits=True), idempotent=True, max_attempts=2))
    world.go.touch()
    world.tick(**stop_at("runner-before-finish", world))
    zombie = wait_for_stopped(world)
    world.go.unlink()
    move_to_another_host(world)
    for step in (LEASE_MS + 1000, TICK_MS):
        world.now = Millis(world.now + step)
        world.tick()
    world.wait_until(lambda: len(world.marks()) == 3, what="the successor to begin")
    before = world.query("SELECT * FROM runs")
    world.send(zombie, signal.SIGCONT)
    world.wait_until(
        lambda: zombie not in {process.pid for process in world.processes()}, what="the zombie to end"
    )
    if world.query("SELECT * FROM runs") != before:
        world.note("a zombie changed a row", f"{before} {world.query('SELECT * FROM runs')}")
    world.go.touch()


def zombie_before_start(world: World) -> None:
    """A runner stands still before its start; its claim is launched again; then it goes on."""
    world.add(job("careful", argv=world.work(seconds=0.3)))
    world.tick(**stop_at("runner-before-start", world))
    zombie = wait_for_stopped(world)
    world.now = Millis(world.now + TICK_MS)
    world.tick(CAROL_FAILPOINT="runner-before-start:stop", CAROL_FAILPOINT_ONCE=str(world.home / "second"))
    world.wait_until(
        lambda: sum(process.is_stopped for process in world.processes()) == 2, what="the successor"
    )
    # The stale one first: its claim is the run's no more, though the run has not started yet.
    world.send(zombie, signal.SIGCONT)
    world.wait_until(
        lambda: zombie not in {process.pid for process in world.processes()}, what="the zombie to end"
    )
    if world.marks() or world.statuses() != ["claimed"]:
        world.note("a zombie started a run", world.state())


def late_claimer(world: World) -> None:
    """A tick stands still after its snapshot, another gives out all slots, then the first goes on."""
    world.add(*(job(f"job-{n}", argv=world.work(seconds=0.3)) for n in range(5)))
    sleeper = world.spawn("tick", "--json", **stop_at("tick-read", world))
    wait_for_stopped(world)
    world.tick()
    world.send(sleeper.pid, signal.SIGCONT)
    world.finish(sleeper)


def accepted_elsewhere(world: World) -> None:
    """A running run whose owner nobody here can see, and nobody ever ends."""
    world.add(job("gone", argv=world.work(waits=True)))
    world.tick()
    world.wait_until(world.marks, what="the command to begin")
    move_to_another_host(world)
    world.kill_all()


def spools_between_the_looks(world: World) -> None:
    """A runner spools its outcome and ends while a tick stands still between its two looks."""
    world.add(job("careful", argv=world.work(waits=True)))
    world.tick(CAROL_BUSY_TIMEOUT_MS="150")
    world.wait_until(world.marks, what="the command to begin")
    sleeper = world.spawn("tick", "--json", **stop_at("sweep-probed", world))
    wait_for_stopped(world)
    with world.locked():
        world.go.touch()
        world.wait_until(world.spooled, what="a finish file")
        world.wait_idle()
    world.send(sleeper.pid, signal.SIGCONT)
    world.finish(sleeper)


def outlives_its_lease(world: World) -> None:
    """A command works on past its lease while another job waits for the only slot."""
    world.add(
        job("slow", argv=world.work(waits=True), priority=1), job("waiting", argv=world.work(seconds=0.3))
    )
    world.tick()
    world.wait_until(world.marks, what="the command to begin")
    world.now = Millis(world.now + LEASE_MS + 1000)
    world.tick()
    world.wait_until(lambda: len(world.marks()) >= 2, what="the next command to begin")
    world.go.touch()


def leaves_its_command_behind(world: World) -> None:
    """Only the runner dies; its command works on, while the run is tried again."""
    world.add(job("hardy", argv=world.work(waits=True, seconds=0.3), idempotent=True, max_attempts=2))
    world.tick()
    world.wait_until(world.marks, what="the command to begin")
    world.kill_role("runner")
    for _ in range(2):
        world.now = Millis(world.now + TICK_MS)
        world.tick()
    world.wait_until(lambda: len(world.marks()) == 2, what="the second attempt to begin")
    world.go.touch()


# -- the bugs --------------------------------------------------------------------------------------------------

_TICK, _RUNNERS = _scenario("a tick over a full spool"), _scenario("runners of commands")

BUGS = (
    SeededBug(
        "the success is recorded before the command is run",
        (
            Patch(
                "runner.py",
                "        launch_all(session.store, finish(session.store, [_carry_out(session, signals, started)]))\n",
                "        when = clock.now()\n"
                "        done = Outcome(run_id=run_id, claim_no=claim_no, status='completed', completed_at=when)\n"
                "        claimed = finish(session.store, [done])\n"
                "        _carry_out(session, signals, started)\n"
                "        launch_all(session.store, claimed)\n",
            ),
        ),
        _at_failpoint("runner-after-finish", "kill", _RUNNERS),
        "completed, but the work was not done",
    ),
    SeededBug(
        "a finish does not name its claim",
        (
            Patch(
                "store/runs.py",
                "            _outcome_parameters(outcome),\n"
                "        )\n        return cursor.rowcount == 1 and self._mark(outcome.run_id)\n\n    def requeue_run",
                "            _outcome_parameters(outcome) | {'claim_no': self.run(outcome.run_id).claim_no},\n"
                "        )\n        return cursor.rowcount == 1 and self._mark(outcome.run_id)\n\n    def requeue_run",
            ),
        ),
        _in_world(zombie_before_finish, cap=2),
        "the outcome is of another claim",
    ),
    SeededBug(
        "a start does not name its claim",
        (
            Patch(
                "store/runs.py",
                "AND runs.claim_no = plan.claim_no AND runs.status = 'claimed'\n            RETURNING {column_list(RUN_COLUMNS)}\n"
                '            """,  # noqa: S608\n            {"now": now, "pid": pid',
                "AND runs.claim_no >= plan.claim_no AND runs.status = 'claimed'\n            RETURNING {column_list(RUN_COLUMNS)}\n"
                '            """,  # noqa: S608\n            {"now": now, "pid": pid',
            ),
        ),
        _in_world(zombie_before_start, cap=2),
        "a zombie started a run",
    ),
    SeededBug(
        "the free slots are counted before the transaction",
        (
            Patch(
                "tick.py",
                "claimed = finish.refill(tx, claimant, settings, is_tick=True)",
                "seen = _count(picture.live)[1]\n"
                "    claimed = tx.claim(claimant, cap=settings.max_concurrent - seen + tx.count_live()[1])",
            ),
        ),
        _in_world(late_claimer, cap=2, undisturbed=True),
        "the cap was exceeded",
    ),
    SeededBug(
        "a lease that ran out is never noticed",
        (
            Patch(
                "policy.py",
                "expired = elapsed >= run.lease_expires_at - run.slot_claimed_at",
                "expired = False",
            ),
        ),
        _in_world(accepted_elsewhere, cap=2),
        "a run outlived its lease and two ticks",
    ),
    SeededBug(
        "a claim that nobody started is never launched again",
        (Patch("policy.py", "    return Relaunch()\n", "    return Leave()\n"),),
        _at_failpoint("tick-committed", "kill", _TICK),
        "a success was not recorded",
    ),
    SeededBug(
        "the spool is emptied before the commit",
        (
            Patch(
                "tick.py",
                "    plan = make_plan(picture, swept, session.now)\n",
                "    spool.unlink(swept.spooled)\n    plan = make_plan(picture, swept, session.now)\n",
            ),
        ),
        _at_failpoint("tick-fired", "kill", _TICK),
        "a success was not recorded",
    ),
    SeededBug(
        "the spool is listed before the owners are looked at",
        (
            Patch(
                "sweep.py",
                "    liveness = launch.probe(occupying, host=claimant.host, boot_id=claimant.boot_id)\n"
                '    failpoint("sweep-probed")\n'
                "    claims = [(run.run_id, run.claim_no) for run in occupying]\n"
                "    spooled = tuple(spool.pending(claims, dry_run=dry_run))\n",
                "    claims = [(run.run_id, run.claim_no) for run in occupying]\n"
                "    spooled = tuple(spool.pending(claims, dry_run=dry_run))\n"
                '    failpoint("sweep-probed")\n'
                "    liveness = launch.probe(occupying, host=claimant.host, boot_id=claimant.boot_id)\n",
            ),
        ),
        _in_world(spools_between_the_looks, cap=2, undisturbed=True),
        "a success was not recorded",
    ),
    SeededBug(
        "a slot is freed while its owner is alive",
        (
            Patch(
                "policy.py",
                'return Stop("lease_expired") if expired else Leave()',
                'return End("lease_expired", "") if expired else Leave()',
            ),
        ),
        _in_world(outlives_its_lease, cap=1),
        "more ran at once than the cap allows",
    ),
    SeededBug(
        "what a dead runner left behind works on",
        (
            Patch(
                "sweep.py",
                "    if dead:\n        launch.bury(dead)\n",
                "    if not dead:\n        launch.bury(dead)\n",
            ),
        ),
        _in_world(leaves_its_command_behind, cap=1),
        "more ran at once than the cap allows",
    ),
)
