"""The sweep alone: expired leases and lost processes, without firing anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from carolctl import claims, finish, launch, spool, sweep, tick
from carolctl.model import Claimed, Run
from carolctl.session import Session
from carolctl.settle import settle


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
    swept = sweep.look(picture.live, picture.jobs_of_live, claimant, paused=picture.paused)
    if swept.is_empty() and not swept.stops_again:
        return ReapReport()
    if not dry_run:
        sweep.bury_the_dead(swept)
    to_launch: list[Claimed] = []
    asked: list[Run] = []
    with session.store.write(dry_run=dry_run) as tx:
        swept = sweep.unless_paused(tx, swept, claimant)
        settled = settle(tx, sweep.outcomes_to_settle(tx, swept), now=session.now, settings=picture.settings)
        changed = sweep.apply(tx, swept, settled, claimant)
        to_launch = [*changed.relaunched, *finish.refill(tx, claimant, picture.settings)]
        asked = changed.stopped
    if not dry_run:
        sweep.stop_owners(swept, asked)
        claims.launch_all(session.store, to_launch, launcher)
        spool.unlink(swept.spooled)
    return ReapReport(leases=changed.leases, lost=changed.lost)


def drain(session: Session) -> tuple[list[int], list[int]]:
    """Bring the spool in: the run ids that it ended, and those of the runs launched into the freed slots."""
    files = spool.pending()
    if not files:
        return [], []
    settled, claimed = finish.settle_and_refill(
        session.store, [file.outcome for file in files], now=session.now
    )
    spool.unlink(files)
    return sorted(settled.ended + settled.requeued), claims.launch_all(session.store, claimed)
