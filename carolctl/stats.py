"""The figures of jobs, read from the firing metrics; `firing_stats` does the sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from carolctl import firing_stats, job_history, jobs, slot_waits
from carolctl.config import Settings
from carolctl.firing_stats import CapAdvice, JobStats
from carolctl.model import OCCUPYING, Job, Millis
from carolctl.session import Session
from carolctl.slot_waits import Held
from carolctl.store.tx import ReadTx

NEWEST, NEWEST_OF_EACH = 1000, 200
"""How many attempts are looked at: of one job, and of each where all are shown."""

#: A look that comes so much later than it was meant to is one at another firing; ticks come every 30 s.
_APART_MS = 90_000


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
        cap = _cap(tx, settings, chosen, session.now) if job_id is None else None
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


def _cap(tx: ReadTx, settings: Settings, chosen: Sequence[Job], now: Millis) -> CapAdvice:
    week, cap = Millis(now - firing_stats.WEEK_MS), settings.max_concurrent
    firings, waited, p95, peak, strained = tx.week_of_firings(week, waited_ms=firing_stats.WAITED_MS)
    # The common case is that nobody waits, or that the cap was never reached: then there is nothing to weigh.
    for_cap = _waited_for_cap(tx, cap, chosen, week, now) if waited and 0 < cap <= peak else 0
    evidence = firing_stats.CapEvidence(
        since=tx.oldest_metrics(),
        firings=firings,
        waited=for_cap,
        waited_otherwise=waited - for_cap,
        wait_p95_ms=p95,
        peak=peak,
        deferred=tx.firings_put_off(week, apart_ms=_APART_MS),
        strained=strained,
    )
    return firing_stats.advise(evidence, cap, now=now)


def _waited_for_cap(tx: ReadTx, cap: int, chosen: Sequence[Job], week: Millis, now: Millis) -> int:
    ended = [Held(*row) for row in tx.attempts_with_slots(week)]
    live = [
        Held(run.job_id, 0, run.queued_at, run.slot_claimed_at, now)
        for run in tx.live_runs()
        if run.status in OCCUPYING and run.slot_claimed_at is not None
    ]
    late = {one.job_id for one in ended if one.claimed_at - one.queued_at > firing_stats.WAITED_MS}
    return slot_waits.for_cap(
        ended + live,
        cap=cap,
        longer_than_ms=firing_stats.WAITED_MS,
        paused=slot_waits.pauses(tx.pauses_of_all(week), now),
        resting={name: _rests(tx, name, now) for name in late},
        parallel={job.job_id for job in chosen if job.overlap == "allow"},
    )


def _rests(tx: ReadTx, job_id: str, now: Millis) -> list[slot_waits.Span]:
    return [(begin, end) for begin, end, _ in job_history.pauses(tx.schedule_changes(job_id), now)]
