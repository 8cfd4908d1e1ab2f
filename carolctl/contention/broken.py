"""DELIBERATELY WRONG. The incidents' own designs, each put through the scenario that must find it out.

``contention-test --broken`` alone comes here, and starts this file's children. A test that cannot fail proves
nothing: every design below has to come out as a failure, by the very judges that let the real ones pass.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import sys
import time
from urllib.parse import urlsplit

from carolctl.contention import verdicts
from carolctl.contention.crew import Crew
from carolctl.contention.cue import Brief, Cue, Task, perform
from carolctl.contention.endpoint import SlowEndpoint
from carolctl.contention.figures import Result, measured, together
from carolctl.contention.scenarios import (
    AGENTS,
    QUEUED,
    THINK_SEC,
    Scenario,
    Trial,
    beside_dispatch,
    compete,
    judged_writers,
)
from carolctl.contention.site import Site
from carolctl.store.broken import (
    DeferredWriter,
    TwoStepClaimer,
    counted,
    locked_across,
    prepare_claims,
    prepare_counter,
    store_events,
)
from carolctl.store.scratch import stored_events

MODULE = "carolctl.contention.broken"
_BATCH = 50

# -- incident 1: the lock held across the HTTP call ------------------------------------------------------------


def lock_held_across_dispatch(trial: Trial) -> Result:
    """WRONG: one transaction round every dispatch."""
    return beside_dispatch(trial, _dispatch_under_lock, runs=0)


def _dispatch_under_lock(site: Site, crew: Crew, endpoint: SlowEndpoint) -> int:
    crew.add("dispatch", module=MODULE, path=site.planner_db, url=endpoint.url)
    crew.start()
    # One after the other: no more than one request is ever in flight.
    return 1


def dispatch(cue: Cue, brief: Brief) -> Brief:
    """WRONG: calls every agent with the write lock of the planner database in hand."""
    address = urlsplit(brief["url"])
    cue.wait_for_go()
    with locked_across(brief["path"], patience_ms=5000):
        for _ in range(AGENTS):
            connection = http.client.HTTPConnection(f"{address.hostname}", address.port, timeout=60)
            connection.request("POST", "/", b"{}")
            connection.getresponse().read()
            connection.close()
    return {}


# -- incident 3: transactions that begin as readers ------------------------------------------------------------


def deferred_transactions(trial: Trial) -> Result:
    """WRONG: read, then upgrade to a write."""
    site = trial.site()
    prepare_counter(site.scheduler_db)
    with Crew(site.environment) as crew:
        for number in range(trial.writers):
            crew.add(
                "write_deferred",
                module=MODULE,
                path=site.scheduler_db,
                deadline_ms=trial.deadline_ms,
                writer=f"writer-{number}",
            )
        crew.start()
        time.sleep(trial.seconds)
        reports = crew.stop()
    return judged_writers(trial, reports, counted(site.scheduler_db), least_share=0)


def write_deferred(cue: Cue, brief: Brief) -> Brief:
    """WRONG: the read comes first, and takes long enough for another to write meanwhile."""
    writer = DeferredWriter(brief["path"], brief["writer"], patience_ms=brief["deadline_ms"])
    cue.wait_for_go()
    while not cue.over:
        cue.attempt(lambda: writer.add_one(lambda: time.sleep(0.002)))
        cue.rest(random.uniform(0, 2 * THINK_SEC))  # noqa: S311 - jitter, not a secret
    return cue.figures() | {"writer": brief["writer"]}


# -- incident 3, its first cure: acknowledged before it is durable ---------------------------------------------


def acknowledged_before_durable(trial: Trial) -> Result:
    """WRONG: events are acknowledged when they are in memory, and half of the agents are killed."""
    site = trial.site()
    notes = [os.path.join(site.folder, f"agent-{number}.acknowledged") for number in range(trial.writers)]
    with Crew(site.environment) as crew:
        for number, note in enumerate(notes):
            crew.add(
                "buffer",
                module=MODULE,
                agent=f"agent-{number}",
                path=site.scheduler_db,
                deadline_ms=trial.deadline_ms,
                note=note,
                dies_after_sec=trial.seconds * random.uniform(0.5, 0.9) if number % 2 else None,  # noqa: S311
            )
        crew.start()
        time.sleep(trial.seconds)
        reports = crew.stop(dead_are_expected=True)
    killed = trial.writers - len(reports)
    acknowledged = [event for note in notes for event in _lines(note)]
    return verdicts.of_events(
        trial.name,
        together(measured(report) for report in reports),
        acknowledged,
        stored_events(site.scheduler_db),
        killed=killed,
    )


def buffer(cue: Cue, brief: Brief) -> Brief:
    """WRONG: says "stored" of what is in memory, and stores it by the batch."""
    buffered: list[str] = []
    with open(brief["note"], "a", encoding="utf-8", buffering=1) as note:

        def acknowledge(event: str) -> bool:
            buffered.append(event)
            note.write(f"{event}\n")
            return True

        cue.wait_for_go()
        dies_at = time.monotonic() + (brief["dies_after_sec"] or 1e9)
        number = 0
        # Whoever is to die goes on until then, however late a busy machine let it begin.
        while brief["dies_after_sec"] or not cue.over:
            number += 1
            cue.attempt(lambda: acknowledge(f"{brief['agent']}-{number}"))  # noqa: B023 - called at once
            if number % _BATCH == 0:
                store_events(brief["path"], buffered, patience_ms=brief["deadline_ms"])
                buffered.clear()
            cue.rest(random.uniform(0, 0.01))  # noqa: S311 - jitter, not a secret
            if buffered and time.monotonic() > dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
    store_events(brief["path"], buffered, patience_ms=brief["deadline_ms"])
    return cue.figures()


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.read().split()


# -- incident 4: look, then claim ------------------------------------------------------------------------------


def check_then_act_claim(trial: Trial) -> Result:
    """WRONG: a look at the free slots, and a claim after it."""
    site = trial.site()
    prepare_claims(site.scheduler_db, queued=QUEUED)
    return compete(trial, site, MODULE)


def claim_in_two_steps(cue: Cue, brief: Brief) -> Brief:
    """WRONG: others look as well before this one acts."""
    claimer = TwoStepClaimer(brief["path"], patience_ms=brief["deadline_ms"])
    held: list[tuple[str, float, float]] = []
    cue.wait_for_go()
    while not cue.over:
        won: list[int | None] = []
        cue.attempt(lambda: not won.append(claimer.claim(brief["cap"], lambda: time.sleep(0.001))))  # type: ignore[func-returns-value]  # noqa: B023
        if won[0] is not None:
            began = time.monotonic()
            time.sleep(brief["held_sec"])
            held.append((f"{won[0]}", began, time.monotonic()))
            claimer.end(won[0])
        cue.rest(random.uniform(0, 2 * brief["think_sec"]))  # noqa: S311 - jitter, not a secret
    return cue.figures() | {"held": held}


#: The designs by name; each is to fail.
BROKEN: dict[str, Scenario] = {
    "lock-held-across-dispatch": lock_held_across_dispatch,
    "deferred-transactions": deferred_transactions,
    "acknowledged-before-durable": acknowledged_before_durable,
    "check-then-act-claim": check_then_act_claim,
}

_TASKS: dict[str, Task] = {
    "dispatch": dispatch,
    "write_deferred": write_deferred,
    "buffer": buffer,
    "claim": claim_in_two_steps,
}

if __name__ == "__main__":
    perform(_TASKS, sys.argv[1:])
