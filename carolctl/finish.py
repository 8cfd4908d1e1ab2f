"""How a run ends from the inside: one write that settles it and claims the next, or a file in the spool.

The refill is why five due jobs under a cap of two all end without another tick.

Incident: a run that had been launched from a shell ended, its end launched the next HTTP run, and that one failed for
want of a token which only the tick had. Decision: whoever is no tick gives back what refers to a variable that it
does not have. Consequence: the run stays in its place in the queue, and the next tick launches it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from carolctl import clock, config, end_facts, global_pause, spool
from carolctl.errors import BadData, DiskFull, NotFound, NotPermitted, StoreBusy
from carolctl.failpoints import failpoint
from carolctl.model import Action, Claimed, HttpAction, Millis, Outcome
from carolctl.notices import warn
from carolctl.references import variables
from carolctl.settle import Settled, settle
from carolctl.store.db import Store
from carolctl.store.runs import Claimant
from carolctl.store.tx import ReadTx, WriteTx


def record_outcomes(
    store: Store, outcomes: Sequence[Outcome], *, now: Millis, refilling: bool = True
) -> list[Claimed]:
    """Settle `outcomes` and claim the next queued runs, in one write; the caller launches what it returns.

    Without `refilling` nothing is claimed, as at a shutdown. A store that cannot be written leaves each outcome in
    the spool, and nothing is claimed either.
    """
    return settle_or_spool(store, outcomes, now=now, refilling=refilling)[1]


def settle_or_spool(
    store: Store, outcomes: Sequence[Outcome], *, now: Millis, refilling: bool = True
) -> tuple[Settled, list[Claimed], bool]:
    """What was settled, what was claimed, and whether the outcomes went to the spool instead."""
    try:
        settled, claimed = settle_and_refill(store, outcomes, now=now, refilling=refilling)
    except (StoreBusy, DiskFull, NotPermitted, BadData, NotFound) as trouble:
        warn(f"{trouble.message}; the outcome goes to the spool")
        for outcome in outcomes:
            spool.leave(outcome)
        return Settled(), [], True
    return settled, claimed, False


def settle_and_refill(
    store: Store, outcomes: Sequence[Outcome], *, now: Millis, refilling: bool = True
) -> tuple[Settled, list[Claimed]]:
    """The one write of `record_outcomes`; raises what the store raises."""
    with store.read() as snapshot:
        settings = config.resolve(snapshot.settings_table(), os.environ, warn)
    claimant, facts = claimant_now(now, settings), end_facts.gather(store, outcomes)
    with store.write() as tx:
        settled = settle(tx, outcomes, now=now, settings=settings, facts=facts)
        failpoint("finish-settled")
        claimed = refill(tx, claimant, settings) if refilling else []
    return settled, claimed


def refill(
    tx: WriteTx, claimant: Claimant, settings: config.Settings, *, is_tick: bool = False
) -> list[Claimed]:
    """Claim queued runs up to the cap, unless everything is paused; what only a tick can launch is given back."""
    if globally_paused(tx, claimant.now):
        return []
    claimed = tx.claim(claimant, cap=settings.max_concurrent)
    for_tick = [] if is_tick else [one for one in claimed if _lacks_variables(one.action)]
    if for_tick:
        tx.hand_back([one.run for one in for_tick])
    return [one for one in claimed if one not in for_tick]


def _lacks_variables(action: Action | None) -> bool:
    """Whether a call refers to a variable that this process does not have."""
    if not isinstance(action, HttpAction):
        return False
    named = variables([action.url, action.headers, action.payload])
    return any(name not in os.environ for name in named)


def claimant_now(now: Millis, settings: config.Settings) -> Claimant:
    """Who claims: this host and this boot, at `now`."""
    return Claimant(
        now=now,
        boottime_ms=clock.boottime_ms(),
        host=clock.hostname(),
        boot_id=clock.boot_id(),
        lease_sec=settings.max_run_duration_sec,
    )


def globally_paused(tx: ReadTx, now: Millis) -> bool:
    """Whether ``carolctl pause`` is in force at `now`."""
    return global_pause.in_force(tx.meta(global_pause.KEY), now)
