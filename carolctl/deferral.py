"""Due firings under pressure: put off with their watermark unchanged, again and again, up to a maximum in total."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from carolctl import policy
from carolctl.config import Settings
from carolctl.model import Firing, Job, Millis
from carolctl.store.records import AuditEntry
from carolctl.store.tx import WriteTx


def split(
    due: Sequence[Job], pressure: Sequence[str], settings: Settings, now: Millis
) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
    """Of the due jobs those to put off, and those that were put off for as long as may be: they fire under it."""
    if not pressure:
        return (), ()
    longest_ms = settings.max_deferral_sec * 1000
    overdue = tuple(job for job in due if policy.is_deferred_enough(job, now, longest_ms=longest_ms))
    return tuple(job for job in due if job not in overdue), overdue


def without(firings: Sequence[Firing], deferred: Sequence[Job]) -> tuple[Firing, ...]:
    """The firings of all other jobs."""
    put_off = {job.job_id for job in deferred}
    return tuple(firing for firing in firings if firing.job_id not in put_off)


def put_off(
    tx: WriteTx, jobs: Sequence[Job], pressure: Sequence[str], settings: Settings, now: Millis
) -> list[str]:
    """Move the wake-ups, each with a line in the audit log; the ids of the jobs that had not moved meanwhile."""
    by_wake_up: dict[Millis, list[Job]] = defaultdict(list)
    for job in jobs:
        until = policy.put_off_until(
            job,
            now,
            step_ms=settings.chat_pressure_delay_sec * 1000,
            longest_ms=settings.max_deferral_sec * 1000,
        )
        by_wake_up[until].append(job)
    deferred: list[str] = []
    for until, together in by_wake_up.items():
        for job_id in tx.defer_jobs(together, now=now, until=until):
            deferred.append(job_id)
            tx.audit(_entry(now, "deferred", job_id, {"until": until, "pressure": list(pressure)}))
    return sorted(deferred)


def record_overdue(tx: WriteTx, jobs: Sequence[Job], pressure: Sequence[str], now: Millis) -> None:
    """A line in the audit log for each job that fires although a source is held."""
    for job in jobs:
        after: dict[str, object] = {"deferred_at": job.deferred_at, "pressure": list(pressure)}
        tx.audit(_entry(now, "deferral_limit", job.job_id, after))


def _entry(now: Millis, command: str, job_id: str, after: dict[str, object]) -> AuditEntry:
    return AuditEntry(at=now, actor="carolctl", command=command, subject=job_id, after=after)
