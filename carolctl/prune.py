"""Bounded history: old rows go in small batches, each a short write transaction of its own, and old logs with them."""

from __future__ import annotations

import os
from typing import get_args

from carolctl import places
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.session import Session
from carolctl.store.records import PruneTable

BATCH = 500
_DAY_MS = 24 * 3600 * 1000


def prune(session: Session, *, dry_run: bool = False) -> dict[str, int]:
    """Delete rows older than their retention; how many went, by table. A dry run counts one batch a table.

    The newest completed and the newest failed run of each job stay, however old.
    """
    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    days: dict[PruneTable, int] = {
        "runs": settings.retention_runs_days,
        "schedule_firing_metrics": settings.retention_metrics_days,
        "events": settings.retention_events_days,
        "audit_log": settings.retention_audit_days,
    }
    gone: dict[str, int] = {}
    for table in get_args(PruneTable):
        before = Millis(session.now - days[table] * _DAY_MS)
        gone[table] = 0
        while True:
            with session.store.write(dry_run=dry_run) as tx:
                batch = tx.prune(table, before=before, limit=BATCH)
            gone[table] += batch
            if batch < BATCH or dry_run:
                break
    before = Millis(session.now - days["runs"] * _DAY_MS)
    gone["logs"] = _prune_logs(before, dry_run=dry_run)
    return gone


def _prune_logs(before: Millis, *, dry_run: bool) -> int:
    """Unlink the captured output that nobody has written to since `before`."""
    require_unlocked("removing old logs")
    gone = 0
    try:
        entries = list(os.scandir(places.logs()))
    except FileNotFoundError:
        return 0
    for entry in entries:
        ours = entry.name.startswith("run-") and entry.is_file(follow_symlinks=False)
        if ours and entry.stat(follow_symlinks=False).st_mtime * 1000 < before:
            gone += 1
            if not dry_run:
                os.unlink(entry.path)
    return gone
