"""Ending runs by hand: what waits is cancelled at once; what runs is stopped first, and its slot freed after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from carolctl import clock, config, launch, sweep
from carolctl.errors import Refused
from carolctl.model import LIVE, OCCUPYING, Millis, Outcome, Run
from carolctl.notices import warn
from carolctl.policy import StopAgain
from carolctl.settle import settle
from carolctl.store.db import Store


def cancel_runs(store: Store, runs: Sequence[Run], *, now: Millis) -> tuple[list[int], list[int]]:
    """Cancel live runs: the ids of those that ended at once, and of those whose owner was asked to stop."""
    with store.read() as snapshot:
        settings = config.resolve(snapshot.settings_table(), os.environ, warn)
        live = snapshot.live_runs()
    liveness = launch.probe(runs, host=clock.hostname(), boot_id=clock.boot_id())
    ended: list[int] = []
    asked: list[Run] = []
    with store.write() as tx:
        for run in runs:
            if run.status == "queued" and tx.cancel_queued(run.run_id, now=now, summary="cancelled by hand"):
                ended.append(run.run_id)
            elif run.status == "running" and liveness.get(run.run_id) == "alive":
                tx.set_stop_reason(run.run_id, run.claim_no, "cancelled", now=now)
                asked.append(replace(run, stop_reason="cancelled"))
        # Not started yet, or no owner on this host: nothing to stop. A late start or finish finds a stale claim.
        ownerless = [
            run for run in runs if run.status in LIVE and run not in asked and run.run_id not in ended
        ]
        outcomes = [_cancelled(run, now) for run in ownerless if run.status != "queued"]
        ended += settle(tx, outcomes, now=now, settings=settings).ended
    stops = sweep.Sweep(
        stops_again=tuple((run, StopAgain(kill=False)) for run in live if run.stop_reason is not None),
        occupying=tuple(run for run in live if run.status in OCCUPYING),
    )
    sweep.stop_owners(stops, asked)
    return sorted(ended), sorted(run.run_id for run in asked)


def _cancelled(run: Run, now: Millis) -> Outcome:
    return Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="cancelled",
        completed_at=now,
        summary="cancelled by hand",
    )


def refuse_ended(run: Run) -> None:
    """Raise `Refused` for a run that is over."""
    if run.status not in LIVE:
        raise Refused(f"run {run.run_id} has ended already: {run.status}")
