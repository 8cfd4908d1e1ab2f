"""Before a command runs in its unit: claimed to running, once for each claim. Light: every launch waits for it."""

from __future__ import annotations

import os
from contextlib import suppress

from carolctl import clock, config, places, policy
from carolctl.errors import Exit
from carolctl.failpoints import failpoint
from carolctl.launch.unit_names import run_unit
from carolctl.model import Run
from carolctl.notices import warn
from carolctl.store.db import Store, open_store

_LONGEST_WAIT_MS = 4000
"""For the database: systemd ends a hook after TimeoutStopSec, and there must be time left for the spool."""


def open_own_store() -> Store:
    """The store, with the patience of a hook."""
    return open_store(
        places.scheduler_db(),
        deadline_ms=min(config.busy_timeout_ms(os.environ, warn), _LONGEST_WAIT_MS),
        mirrored=places.planner_db() is not None,
    )


def left_ms(run: Run) -> int:
    """What is left of the lease of a claimed or running run."""
    elapsed = policy.elapsed_ms(
        run, now=clock.now(), boottime_ms=clock.boottime_ms(), boot_id=clock.boot_id()
    )
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    return run.lease_expires_at - run.slot_claimed_at - elapsed


def result_file(run_id: int, claim_no: int, folder: str) -> str:
    """Where the command was told to leave its result: with us, or in the folder of its own user."""
    if folder == places.data_home():
        return os.path.join(places.results(), f"{run_id}-{claim_no}.json")
    return os.path.join(folder, "result.json")


def start(run_id: int, claim_no: int) -> int:
    """Claimed to running, under the name of the unit; 0 for the one whose command is to run."""
    failpoint("unit-before-start")
    store = open_own_store()
    with store.read() as snapshot:
        run = snapshot.run(run_id)
    if run is None or (run.status, run.claim_no) != ("claimed", claim_no) or left_ms(run) <= 0:
        return Exit.FAILED
    with suppress(OSError):
        os.makedirs(places.results(), mode=0o700, exist_ok=True)
    unit = run_unit(run_id, claim_no)
    with store.write() as tx:
        started = tx.start(run_id, claim_no, now=clock.now(), pid=None, pid_start=None, unit=unit)
    failpoint("unit-after-start")
    return Exit.OK if started else Exit.FAILED
