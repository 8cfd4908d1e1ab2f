"""The legacy ledger's turn, after a tick or a sweep: what changed is mirrored, and its orphans are ended."""

from __future__ import annotations

from carolctl import places
from carolctl.config import Settings
from carolctl.session import Session


def publish_and_sweep(
    session: Session, settings: Settings, *, paused: bool, dry_run: bool
) -> tuple[dict[str, int], list[int]]:
    """The legacy ledger's turn: how many runs were written and still wait, and the orphans that were ended."""
    planner_db, ended = places.planner_db(), list[int]()
    with session.store.read() as snapshot:
        pending = snapshot.ledger_pending()
    if planner_db is None:
        # It was taken back: to be told of it at every tick helps nobody, and doctor says it.
        return {"written": 0, "pending": pending}, []
    # Most stores mirror nothing, and need none of this.
    from carolctl import ledger, orphans

    published = ledger.publish(session, planner_db, dry_run=dry_run)
    if not paused:
        ended = orphans.sweep_orphans(
            session, planner_db, threshold_min=settings.orphan_threshold_min, dry_run=dry_run
        )
    return {"written": published.written, "pending": published.pending}, ended
