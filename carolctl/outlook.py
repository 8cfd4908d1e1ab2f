"""forecast: the store's jobs and runs, with what their runs took so far, handed to the simulation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from carolctl import global_pause, places, simulation
from carolctl.clock import iso
from carolctl.model import Millis
from carolctl.session import Session
from carolctl.simulation import TICK_MS, Expected, Outlook
from carolctl.store.idle import STAMP_STALE_SEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected, and on what it rests."""

    outlook: Outlook
    #: By job: the median of its latest durations; the others take `default_ms`.
    measured: Mapping[str, int]
    default_ms: int
    #: Until when everything is paused (``forever``); None: it is not.
    paused: str | None
    #: Jobs whose row cannot be understood.
    damaged: Sequence[str] = ()

    def unreadable(self) -> list[str]:
        """The jobs that are left out: their row or their schedule cannot be read."""
        return sorted({*self.damaged, *self.outlook.unreadable})

    def unmeasured(self) -> list[str]:
        """The jobs that run and were never measured."""
        return sorted({one.job_id for one in self.outlook.starts()} - set(self.measured))

    def longest_wait_ms(self) -> int:
        """The longest that anything waits for a slot."""
        return max((one.wait_ms or 0 for one in self.outlook.starts()), default=0)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        outlook = self.outlook
        running, queued = simulation.running_peak(outlook), simulation.queue_peak(outlook)
        left = [one for one in outlook.expected if one.skip_reason is None and one.start is None]
        return {
            "from": iso(outlook.begin),
            "until": iso(outlook.until),
            "cap": outlook.cap,
            "paused": self.paused is not None,
            "starts": [self._start(one) for one in outlook.starts()],
            "waiting": [_slot(one) for one in left],
            "skipped": [
                _slot(one) | {"reason": one.skip_reason} for one in outlook.expected if one.skip_reason
            ],
            "peak": {
                "running": running.count,
                "running_at": iso(running.at),
                "queued": queued.count,
                "queued_at": iso(queued.at),
            },
            "full_sec": simulation.full_ms(outlook) // 1000,
            "longest_wait_sec": self.longest_wait_ms() // 1000,
            "default_duration_sec": self.default_ms // 1000,
            "unmeasured": self.unmeasured(),
            "unreadable": self.unreadable(),
            "cut": outlook.is_cut,
        }

    def _start(self, one: Expected) -> dict[str, Any]:
        assert one.start is not None
        assert one.end is not None
        return _slot(one) | {
            "start": iso(one.start),
            "end": iso(one.end),
            "wait_sec": (one.wait_ms or 0) // 1000,
            "duration_sec": (one.end - one.start) // 1000,
            "measured": one.job_id in self.measured,
        }


def _slot(one: Expected) -> dict[str, Any]:
    return {
        "job_id": one.job_id,
        "run_id": one.run_id,
        "source": one.source,
        "scheduled_for": iso(one.scheduled_for),
        "coalesced": one.coalesced,
    }


def forecast(session: Session, *, hours: int, cap: int | None, default_ms: int) -> Forecast:
    """What the coming `hours` bring; `cap` tries another one."""
    with session.store.read() as tx:
        settings, jobs, live = session.settings(tx), tx.jobs(), tx.live_runs()
        damaged = [broken.job_id for broken in tx.damaged_jobs()]
        paused = tx.meta(global_pause.KEY)
        concerned = {job.job_id for job in jobs if job.next_fire_at is not None} | {
            run.job_id for run in live
        }
        durations = {name: tx.recent_durations_ms(name) for name in sorted(concerned)}
    measured = {name: round(median(found)) for name, found in durations.items() if found}
    own = {job.job_id: job.max_run_duration_sec for job in jobs}
    is_paused = global_pause.in_force(paused, session.now)
    fleet = simulation.Fleet(
        jobs=jobs,
        live=live,
        cap=settings.max_concurrent if cap is None else cap,
        duration_ms=lambda name: measured.get(name, default_ms),
        lease_ms=lambda name: (own.get(name) or settings.max_run_duration_sec) * 1000,
        resumes_at=global_pause.ends_at(paused) if is_paused and paused else Millis(0),
    )
    until = Millis(session.now + hours * 3_600_000)
    outlook = simulation.simulate(fleet, now=session.now, until=until, first_tick=_first_tick(session.now))
    return Forecast(
        outlook=outlook,
        measured=measured,
        default_ms=default_ms,
        paused=paused if is_paused else None,
        damaged=damaged,
    )


def _first_tick(now: Millis) -> Millis:
    """The next tick, in step with the last one where that was a moment ago."""
    try:
        stamped = round(os.stat(places.tick_stamp()).st_mtime * 1000)
    except OSError:
        return now
    if not 0 <= now - stamped <= STAMP_STALE_SEC * 1000:
        return now
    return Millis(stamped + max(1, -(-(now - stamped) // TICK_MS)) * TICK_MS)
