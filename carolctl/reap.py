"""The sweep alone: expired leases, lost processes and the ledger's orphans, without firing anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from carolctl import claims, config, end_facts, finish, launch, publishing, spool, sweep, tick
from carolctl.config import Settings
from carolctl.model import Claimed, Run
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.settle import settle
from carolctl.store.runs import Claimant


@dataclass(slots=True, kw_only=True)
class ReapReport:
    """Run ids whose lease ran out (ended, or asked to stop) and whose process was lost; orphans of the ledger."""

    leases: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)


def reap(session: Session, *, dry_run: bool = False) -> ReapReport:
    """Look at every live run and record what has ended; freed slots go to the next queued runs."""
    launcher = launch.choose_configured()
    with session.store.read() as snapshot:
        picture = tick.take_picture(snapshot, session)
    claimant = finish.claimant_now(session.now, picture.settings)
    swept = sweep.look(picture.live, picture.jobs_of_live, claimant, paused=picture.paused, dry_run=dry_run)
    report = ReapReport()
    if not swept.is_empty() or swept.stops_again:
        changed = _write(session, launcher, picture.settings, swept, claimant, dry_run=dry_run)
        report.leases, report.lost = changed.leases, changed.lost
    _, report.orphans = publishing.publish_and_sweep(
        session, picture.settings, paused=picture.paused, dry_run=dry_run
    )
    return report


def reap_ledger_row(session: Session, ledger_id: int, *, dry_run: bool = False) -> ReapReport:
    """End one foreign row of the legacy ledger by hand; see `orphans.reap_by_hand` for the errors."""
    from carolctl import orphans

    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    ended = orphans.reap_by_hand(
        session,
        ledger_id,
        threshold_min=settings.orphan_threshold_min,
        deadline_ms=config.busy_timeout_ms(os.environ, warn),
        dry_run=dry_run,
    )
    return ReapReport(orphans=[ended])


def _write(
    session: Session,
    launcher: launch.Launcher,
    settings: Settings,
    swept: sweep.Sweep,
    claimant: Claimant,
    *,
    dry_run: bool,
) -> sweep.Swept:
    """Record what has ended; after COMMIT stop what must stop, and launch what got a slot."""
    if not dry_run:
        sweep.bury_the_dead(swept)
    to_launch: list[Claimed] = []
    asked: list[Run] = []
    facts = end_facts.gather(session.store, swept.outcomes())
    with session.store.write(dry_run=dry_run) as tx:
        swept = sweep.unless_paused(tx, swept, claimant)
        outcomes = sweep.outcomes_to_settle(tx, swept)
        settled = settle(tx, outcomes, now=session.now, settings=settings, facts=facts)
        changed = sweep.apply(tx, swept, settled, claimant)
        to_launch = [*changed.relaunched, *finish.refill(tx, claimant, settings)]
        asked = changed.stopped
    if not dry_run:
        sweep.stop_owners(swept, asked)
        claims.launch_all(session.store, to_launch, launcher)
        spool.unlink(swept.spooled)
    return changed
