"""forecast, and when a slot will be free: the store's jobs and runs handed to the simulation.

A run is expected to take the median of what its job's latest attempts took, of those that took longer than it has
taken so far; where none did, the default, and where it has taken longer than that its lease.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from carolctl import global_pause, places, simulation
from carolctl.clock import iso
from carolctl.config import Settings
from carolctl.model import Millis
from carolctl.session import Session
from carolctl.simulation import TICK_MS, Expected, Fleet, Outlook, Pressure
from carolctl.store.idle import STAMP_STALE_SEC
from carolctl.store.tx import ReadTx

_FARTHEST_MS = 86_400_000
_MOST_ROWS = 10_000


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

    def cut(self) -> str | None:
        """That it ends early, and when; None where it does not."""
        outlook = self.outlook
        if not outlook.is_cut:
            return None
        return (
            f"cut off at {iso(outlook.until)}: there is too much to foresee until {iso(outlook.asked_until)}, and"
            " every figure is of the time before the cut"
        )

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
                _slot(one) | {"slots_from": iso(one.slots_from), "reason": one.skip_reason}
                for one in outlook.expected
                if one.skip_reason
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
            "asked_until": iso(outlook.asked_until),
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
        settings = session.settings(tx)
        found = present(tx, settings, session.now, default_ms=default_ms)
        damaged = [broken.job_id for broken in tx.damaged_jobs()]
        paused = tx.meta(global_pause.KEY)
    until = Millis(session.now + hours * 3_600_000)
    # Nominal times: what is held now says little of the hours to come.
    fleet = replace(found.fleet, pressure=Pressure(), cap=settings.max_concurrent if cap is None else cap)
    first = _first_tick(session.now)
    return Forecast(
        outlook=simulation.simulate(fleet, now=session.now, until=until, first_tick=first),
        measured=found.measured,
        default_ms=default_ms,
        paused=paused if global_pause.in_force(paused, session.now) else None,
        damaged=damaged,
    )


def slot_eta_sec(tx: ReadTx, now: Millis, settings: Settings) -> int | None:
    """Seconds until a slot is free and nobody waits for it; None when there is no telling."""
    free_at = simulation.first_free(
        present(tx, settings, now).fleet,
        now=now,
        first_tick=_first_tick(now),
        until=Millis(now + _FARTHEST_MS),
        most=_MOST_ROWS,
    )
    return None if free_at is None else max(0, round((free_at - now) / 1000))


@dataclass(frozen=True, slots=True)
class Present:
    """The fleet as it is now."""

    fleet: Fleet
    #: By job: the median of its latest durations.
    measured: Mapping[str, int]


def present(tx: ReadTx, settings: Settings, now: Millis, *, default_ms: int = 0) -> Present:
    """The fleet as it is: its jobs, its live runs, the pressure and the pause that are in force."""
    jobs, live, paused = tx.jobs(), tx.live_runs(), tx.meta(global_pause.KEY)
    concerned = {job.job_id for job in jobs if job.next_fire_at is not None} | {run.job_id for run in live}
    durations = {name: tx.recent_durations_ms(name) for name in sorted(concerned)}
    own = {job.job_id: job.max_run_duration_sec for job in jobs}

    def lease_ms(name: str) -> int:
        return (own.get(name) or settings.max_run_duration_sec) * 1000

    def duration_ms(name: str, elapsed: int) -> int:
        # One that has already taken longer than most is one of the long ones.
        longer = [taken for taken in durations.get(name, ()) if taken > elapsed]
        return round(median(longer)) if longer else default_ms if default_ms > elapsed else lease_ms(name)

    is_paused = global_pause.in_force(paused, now)
    fleet = Fleet(
        jobs=jobs,
        live=live,
        cap=settings.max_concurrent,
        duration_ms=duration_ms,
        lease_ms=lease_ms,
        pressure=Pressure(
            until=max((until for _, until in tx.held_pressure(now)), default=Millis(0)),
            step_ms=settings.chat_pressure_delay_sec * 1000,
            longest_ms=settings.max_deferral_sec * 1000,
        ),
        resumes_at=global_pause.ends_at(paused) if is_paused and paused else Millis(0),
    )
    return Present(fleet, {name: round(median(found)) for name, found in durations.items() if found})


def _first_tick(now: Millis) -> Millis:
    """The next tick, in step with the last one where that was a moment ago."""
    try:
        stamped = round(os.stat(places.tick_stamp()).st_mtime * 1000)
    except OSError:
        return now
    if not 0 <= now - stamped <= STAMP_STALE_SEC * 1000:
        return now
    return Millis(stamped + max(1, -(-(now - stamped) // TICK_MS)) * TICK_MS)
