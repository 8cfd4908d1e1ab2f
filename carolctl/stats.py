"""The figures of jobs, read from the firing metrics; `firing_stats` does the sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from carolctl import firing_stats, jobs
from carolctl.config import Settings
from carolctl.firing_stats import CapAdvice, JobStats
from carolctl.model import Job, Millis
from carolctl.session import Session
from carolctl.store.tx import ReadTx

NEWEST, NEWEST_OF_EACH = 1000, 200
"""How many attempts are looked at: of one job, and of each where all are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What was found; the cap is a matter of the whole fleet."""

    jobs: Sequence[JobStats]
    cap: CapAdvice | None

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "jobs": [one.document() for one in self.jobs],
            "warnings": self.warnings(),
            "cap": self.cap.document() if self.cap else None,
        }

    def warnings(self) -> list[str]:
        """The lease-drift warnings."""
        return [told for one in self.jobs if (told := firing_stats.warning(one))]


def stats(session: Session, job_id: str | None, since: Millis | None) -> Stats:
    """The figures of one job, or of all with an advice about the cap. Raises `NotFound`."""
    with session.store.read() as tx:
        settings = session.settings(tx)
        chosen = tx.jobs() if job_id is None else [jobs.find(tx, job_id)]
        limit = NEWEST_OF_EACH if job_id is None else NEWEST
        found = [_of_job(tx, job, settings, since, limit) for job in chosen]
        cap = _cap(tx, settings, session.now) if job_id is None else None
    return Stats(jobs=found, cap=cap)


def _of_job(tx: ReadTx, job: Job, settings: Settings, since: Millis | None, limit: int) -> JobStats:
    rows = tx.recent_metrics(job.job_id, since=since or Millis(0), limit=limit)
    return firing_stats.of_job(
        job.job_id,
        [firing_stats.Attempt(*row) for row in rows],
        tx.recent_skips(job.job_id, since=since or Millis(0), limit=limit),
        lease_sec=job.max_run_duration_sec or settings.max_run_duration_sec,
        drift_streak=job.lease_drift_streak,
    )


def _cap(tx: ReadTx, settings: Settings, now: Millis) -> CapAdvice:
    week = Millis(now - firing_stats.WEEK_MS)
    firings, waited, p95, peak, deferred, strained = tx.week_of_firings(
        week, waited_ms=firing_stats.WAITED_MS
    )
    evidence = firing_stats.CapEvidence(
        since=tx.oldest_metrics(),
        firings=firings,
        waited=waited,
        wait_p95_ms=p95,
        peak=peak,
        deferred=deferred,
        strained=strained,
    )
    return firing_stats.advise(evidence, settings.max_concurrent, now=now)
