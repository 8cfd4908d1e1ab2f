"""Bounded history: old rows go in small batches, each a short write transaction of its own, and old files with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import get_args

from carolctl import places
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.session import Session
from carolctl.store.records import PruneTable

FIRST_BATCH, LARGEST_BATCH = 100, 1000
_CALM_MS, _LONG_MS = 6.0, 12.0
"""A write shorter than the first lets the next batch grow, one longer than the second halves it: none comes to 50."""

_CHECKPOINT_ROWS = 5000
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
    with session.store.checkpoints_apart() as checkpoint:
        gone: dict[str, int] = {
            table: _prune_table(
                session,
                table,
                Millis(session.now - days[table] * _DAY_MS),
                checkpoint,
                dry_run=dry_run,
            )
            for table in get_args(PruneTable)
        }
    gone["files"] = _prune_files(session, days["runs"], dry_run=dry_run)
    return gone


def _prune_table(
    session: Session, table: PruneTable, before: Millis, checkpoint: Callable[[], None], *, dry_run: bool
) -> int:
    """Batch after batch, each as large as the last write shows that it may be."""
    gone, size, since = 0, FIRST_BATCH, 0
    while True:
        with session.store.write(dry_run=dry_run) as tx:
            batch = tx.prune(table, before=before, limit=size)
        gone, since = gone + batch, since + batch
        if batch < size or dry_run or since >= _CHECKPOINT_ROWS:
            # Between the writes: within one it would hold up all who stand in line.
            checkpoint()
            since = 0
        if batch < size or dry_run:
            return gone
        size = next_batch(size, session.store.write_lock_ms)


def next_batch(size: int, took_ms: float) -> int:
    """How many rows to delete next, when `size` took so long."""
    if took_ms > _LONG_MS:
        return max(1, size // 2)
    return min(LARGEST_BATCH, size * 2) if took_ms < _CALM_MS else size


def _prune_files(session: Session, days: int, *, dry_run: bool) -> int:
    """Unlink captured output as old as the runs that go, and what was left half-written a day ago."""
    require_unlocked("removing old files")
    kept_days = {
        places.logs(): days,
        places.results(): days,
        os.path.join(places.spool(), "tmp"): 1,
    }
    gone = 0
    for folder, kept in kept_days.items():
        for entry in _entries(folder):
            # Somebody else may remove it first.
            with suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(facts.st_mode) and facts.st_mtime * 1000 < session.now - kept * _DAY_MS:
                    gone += 1
                    if not dry_run:
                        os.unlink(entry.path)
    return gone


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except FileNotFoundError:
        return []
