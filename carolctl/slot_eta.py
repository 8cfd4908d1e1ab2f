"""When a slot will be free for a manual run: the fleet played forward from its live rows, its metrics and schedules.

A run is expected to take the median of what its job took of late, of those that took longer than it has taken so far;
and its lease where none did. Whoever waits goes first, and so does what falls due meanwhile.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cache
from statistics import median

from carolctl import timing
from carolctl.config import Settings
from carolctl.errors import BadSchedule
from carolctl.model import OCCUPYING, Job, Millis, Run
from carolctl.store.tx import ReadTx

_MOST_EVENTS = 20_000


def slot_eta_sec(tx: ReadTx, now: Millis, settings: Settings) -> int | None:
    """Seconds until a slot is free and nobody waits for it; None when there is no telling."""
    free_at = _Fleet(tx, now, settings).play()
    return None if free_at is None else max(0, round((free_at - now) / 1000))


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    """A run that waits, in the order of the claim: by priority, then age."""

    rank: int
    since: int
    job_id: str = field(compare=False)
    not_before: int = field(compare=False)


class _Fleet:
    """The fleet while it is played forward."""

    def __init__(self, tx: ReadTx, now: Millis, settings: Settings) -> None:
        self._tx, self._settings = tx, settings
        self._jobs = {job.job_id: job for job in tx.jobs()}
        self._durations = cache(tx.recent_durations_ms)
        live = tx.live_runs()
        self._running = [(self._end_of(run, now), run.job_id) for run in live if run.status in OCCUPYING]
        heapq.heapify(self._running)
        queued = (run for run in live if run.status == "queued" and self._is_claimed_ever(run))
        self._queue = sorted(self._as_waiting(run) for run in queued)
        held_until = max((until for _, until in tx.held_pressure(now)), default=0)
        self._arrivals = [
            (max(job.next_fire_at, held_until), job.job_id, Millis(job.next_fire_at))
            for job in self._jobs.values()
            if job.next_fire_at is not None and job.status == "active"
        ]
        heapq.heapify(self._arrivals)

    def play(self) -> int | None:
        """From end to end, until one leaves a slot that nobody takes."""
        cap = self._settings.max_concurrent
        for _ in range(_MOST_EVENTS if cap else 0):
            if not self._running:
                return None
            at, _ = heapq.heappop(self._running)
            self._arrive(at)
            while len(self._running) < cap and (first := self._first_eligible(at)):
                self._queue.remove(first)
                heapq.heappush(self._running, (at + self._expected_ms(first.job_id), first.job_id))
            if len(self._running) < cap:
                return at
        return None

    # -- who comes ----

    def _arrive(self, until: int) -> None:
        """What falls due up to then waits from then on; where a run of the job lives it is skipped."""
        for _ in range(_MOST_EVENTS):
            if not self._arrivals or self._arrivals[0][0] > until:
                return
            at, job_id, wake_up = heapq.heappop(self._arrivals)
            job = self._jobs[job_id]
            if job.overlap != "skip" or not self._is_live(job_id):
                self._queue.append(_Waiting(-job.priority, at, job_id, 0))
                self._queue.sort()
            following = _wake_up_after(job, wake_up)
            if following is not None:
                heapq.heappush(self._arrivals, (max(following, at), job_id, following))

    def _is_live(self, job_id: str) -> bool:
        return self._runs(job_id) or any(one.job_id == job_id for one in self._queue)

    def _runs(self, job_id: str) -> bool:
        return any(running == job_id for _, running in self._running)

    # -- who goes first ----

    def _is_claimed_ever(self, run: Run) -> bool:
        job = self._jobs.get(run.job_id)
        return job is not None and (run.source != "scheduled" or job.status == "active")

    def _as_waiting(self, run: Run) -> _Waiting:
        return _Waiting(-self._jobs[run.job_id].priority, run.queued_at, run.job_id, run.not_before or 0)

    def _first_eligible(self, at: int) -> _Waiting | None:
        return next(
            (
                one
                for one in self._queue
                if one.not_before <= at
                and (self._jobs[one.job_id].overlap == "allow" or not self._runs(one.job_id))
            ),
            None,
        )

    # -- how long it takes ----

    def _lease_ms(self, job_id: str) -> int:
        job = self._jobs.get(job_id)
        own = job.max_run_duration_sec if job else None
        return 1000 * (own or self._settings.max_run_duration_sec)

    def _expected_ms(self, job_id: str, *, beyond: int = 0) -> int:
        lease = self._lease_ms(job_id)
        longer = [duration for duration in self._durations(job_id) if duration > beyond]
        return min(lease, round(median(longer))) if longer else lease

    def _end_of(self, run: Run, now: Millis) -> int:
        assert run.lease_expires_at is not None
        started = run.started_at or now
        expected = started + self._expected_ms(run.job_id, beyond=now - started)
        return max(now, min(expected, run.lease_expires_at))


def _wake_up_after(job: Job, wake_up: Millis) -> Millis | None:
    offset = timing.spread_ms(job)
    try:
        slot = timing.schedule_of(job).next_after(Millis(wake_up - offset))
    except BadSchedule:
        return None
    return None if slot is None else Millis(slot + offset)
