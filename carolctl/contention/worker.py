"""What the children of the contention test do: ``python -I -m carolctl.contention.worker TASK BRIEF``."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import Any

from carolctl import clock
from carolctl.contention.cue import Brief, Cue, Task, perform
from carolctl.contention.site import program
from carolctl.errors import StoreBusy
from carolctl.model import Claimed, Outcome
from carolctl.store.db import Store, open_store
from carolctl.store.records import AuditEntry
from carolctl.store.runs import Claimant
from carolctl.store.scratch import PlainClient

WRITE = "contention-write"


def write(cue: Cue, brief: Brief) -> Brief:
    """One row after another through our own write transaction, with a short rest between two."""
    store = _opened(brief)
    entry = AuditEntry(at=clock.now(), actor="contention-test", command=WRITE, subject=brief["writer"])

    def one_row() -> bool:
        try:
            with store.write() as tx:
                tx.audit(entry)
        except StoreBusy:
            return False
        return True

    cue.wait_for_go()
    while not cue.over:
        cue.attempt(one_row)
        _think(cue, brief)
    return cue.figures() | {"writer": brief["writer"]}


def outside(cue: Cue, brief: Brief) -> Brief:
    """One row after another by a plain client, in turns in several databases."""
    each = {name: Cue() for name in brief["databases"]}
    clients = {
        name: PlainClient(path, patience_ms=brief["patience_ms"]) for name, path in brief["databases"].items()
    }
    cue.wait_for_go()
    while not cue.over:
        for name, client in clients.items():
            each[name].attempt(lambda client=client: client.write("outsider"))  # type: ignore[misc]
            _think(cue, brief)
    return {name: timed.figures() for name, timed in each.items()}


def hold(cue: Cue, brief: Brief) -> Brief:
    """Take the write lock of a database and keep it to the end."""
    client = PlainClient(brief["path"], patience_ms=5000)
    taken = client.take_lock()
    cue.wait_for_go()
    while not cue.over:
        cue.rest(60)
    client.give_lock_back()
    return {"taken": taken}


def hog(cue: Cue, brief: Brief) -> Brief:
    """Hold the write lock for so long, leave it for so long, and so on; the share of the time it was held."""
    client = PlainClient(brief["path"], patience_ms=5000)
    held = 0.0
    cue.wait_for_go()
    began = time.perf_counter()
    while not cue.over:
        if client.take_lock():
            taken = time.perf_counter()
            time.sleep(brief["on_sec"])
            client.give_lock_back()
            held += time.perf_counter() - taken
        time.sleep(brief["off_sec"])
    return {"held_share": held / (time.perf_counter() - began)}


def claim(cue: Cue, brief: Brief) -> Brief:
    """Claim queued runs under the cap, hold each for a moment, end it and queue another; when each was held."""
    store = _opened(brief)
    held: list[tuple[str, float, float]] = []
    cue.wait_for_go()
    while not cue.over:
        won: list[Claimed] = []
        cue.attempt(lambda won=won: _claim(store, brief, won))  # type: ignore[misc]
        began = time.monotonic()
        if won:
            time.sleep(brief["held_sec"])
        ended = time.monotonic()
        held += [(f"{one.run.run_id}", began, ended) for one in won]
        _end(store, brief, won)
        _think(cue, brief)
    return cue.figures() | {"held": held}


def _claim(store: Store, brief: Brief, won: list[Claimed]) -> bool:
    claimant = Claimant(now=clock.now(), boottime_ms=None, host="contention", boot_id="", lease_sec=600)
    try:
        with store.write() as tx:
            won += tx.claim(claimant, cap=brief["cap"])
    except StoreBusy:
        return False
    return True


def _end(store: Store, brief: Brief, won: list[Claimed]) -> None:
    """Free the slots again and leave the queue as long as it was."""
    if not won:
        return
    now = clock.now()
    with store.write() as tx:
        for one in won:
            tx.end_run(
                Outcome(
                    run_id=one.run.run_id, claim_no=one.run.claim_no, status="completed", completed_at=now
                )
            )
            tx.insert_run(one.run.job_id, source="manual", now=now)


def agent(cue: Cue, brief: Brief) -> Brief:
    """Emit events by the program itself; a doomed agent kills each of its emits at a random moment.

    The ids of the events that were acknowledged, and how many emits ended with an error of their own.
    """
    acknowledged: list[str] = []
    killed = 0
    cue.wait_for_go()
    number = 0
    while not cue.over:
        number += 1
        event = f"{brief['agent']}-{number}"
        said: list[int] = []
        cue.attempt(lambda event=event, said=said: _emit(brief, event, said))  # type: ignore[misc]
        if said[0] == 0:
            acknowledged.append(event)
        killed += said[0] < 0
    return cue.figures() | {"acknowledged": acknowledged, "killed": killed}


def _emit(brief: Brief, event: str, said: list[int]) -> bool:
    """Run one emit; its exit code goes to `said`. Success is also to have been killed."""
    argv = program("emit", str(brief["run"]), "--kind", "progress", "--event-id", event)
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if brief["doomed"]:
        try:
            process.wait(random.uniform(0, brief["longest_sec"]))  # noqa: S311 - when to die, no secret
        except subprocess.TimeoutExpired:
            process.kill()
    said.append(process.wait())
    return said[0] <= 0


def _opened(brief: Brief) -> Store:
    return open_store(brief["path"], deadline_ms=brief["deadline_ms"])


def _think(cue: Cue, brief: dict[str, Any]) -> None:
    cue.rest(random.uniform(0, 2 * brief["think_sec"]))  # noqa: S311 - jitter, not a secret


TASKS: dict[str, Task] = {
    "write": write,
    "outside": outside,
    "hold": hold,
    "hog": hog,
    "claim": claim,
    "agent": agent,
}

if __name__ == "__main__":
    perform(TASKS, sys.argv[1:])
