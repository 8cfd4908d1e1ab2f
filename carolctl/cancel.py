"""Ending runs by hand: what waits is cancelled at once; what runs is stopped first, and its slot freed after."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence

from carolctl import clock, config, end_facts, launch, spool, sweep
from carolctl.errors import Refused
from carolctl.model import LIVE, OCCUPYING, Millis, Outcome, Run
from carolctl.notices import warn
from carolctl.policy import StopAgain
from carolctl.session import actor
from carolctl.settle import settle
from carolctl.store.db import Store
from carolctl.store.records import AuditEntry

_SUMMARY = "cancelled by hand"


def cancel_runs(store: Store, runs: Sequence[Run], *, now: Millis) -> tuple[list[int], list[int]]:
    """Cancel live runs: the ids of those that ended at once, and of those whose owner was asked to stop."""
    with store.read() as snapshot:
        settings = config.resolve(snapshot.settings_table(), os.environ, warn)
        live = snapshot.live_runs()
    probed = launch.probe(runs, host=clock.hostname(), boot_id=clock.boot_id())
    # After the probe: an owner that left its outcome there and died is seen dead, but with its file.
    claims = {(run.run_id, run.claim_no) for run in runs}
    home = [file for file in spool.pending(claims) if (file.outcome.run_id, file.outcome.claim_no) in claims]
    facts = end_facts.gather(store, [file.outcome for file in home])
    gone = [run for run in runs if probed[run.run_id] == "dead"]
    launch.bury(gone)
    dead = {(run.run_id, run.claim_no) for run in gone}
    with store.write() as tx:
        settle(tx, [file.outcome for file in home], now=now, settings=settings, facts=facts)
        # Read again: a run that waited may have been claimed, and a claimed one may have started, since.
        present = tx.runs_by_id([run.run_id for run in runs])
        owned = [run for run in present if _has_owner(run, dead)]
        ended = [run.run_id for run in present if tx.cancel_queued(run.run_id, now=now, summary=_SUMMARY)]
        # Not started yet, or no owner here: nothing to stop. A late start or finish finds a stale claim.
        ownerless = [run for run in present if run.status in OCCUPYING and run not in owned]
        ended += settle(tx, [_cancelled(run, now) for run in ownerless], now=now, settings=settings).ended
        for run in owned:
            tx.set_stop_reason(run.run_id, run.claim_no, "cancelled", now=now)
        for run in present:
            if run.status in LIVE:
                tx.audit(_entry(run, now, ended=run.run_id in ended))
    spool.unlink(home)
    _ask_owners(owned, live)
    return sorted(ended), [run.run_id for run in owned]


def _has_owner(run: Run, dead: Container[tuple[int, int]]) -> bool:
    """Running under a process or unit that is not known to be dead."""
    owner = run.pid is not None or run.unit is not None
    return run.status == "running" and owner and (run.run_id, run.claim_no) not in dead


def _ask_owners(owned: Sequence[Run], live: Sequence[Run]) -> None:
    """Ask the owners to stop; the runs that were asked before count as stopping, for owners they share."""
    before = tuple((run, StopAgain(kill=False)) for run in live if run.stop_reason is not None)
    occupying = tuple(run for run in live if run.status in OCCUPYING)
    sweep.stop_owners(sweep.Sweep(stops_again=before, occupying=occupying), owned)


def _entry(run: Run, now: Millis, *, ended: bool) -> AuditEntry:
    return AuditEntry(
        at=now,
        actor=actor(),
        command="cancel-run",
        subject=run.job_id,
        before={"run_id": run.run_id, "status": run.status},
        after={"run_id": run.run_id, "status": "cancelled" if ended else "stopping"},
    )


def _cancelled(run: Run, now: Millis) -> Outcome:
    return Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="cancelled",
        completed_at=now,
        summary=_SUMMARY,
    )


def refuse_ended(run: Run) -> None:
    """Raise `Refused` for a run that is over."""
    if run.status not in LIVE:
        raise Refused(f"run {run.run_id} has ended already: {run.status}")
