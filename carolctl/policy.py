"""Decisions, as pure functions: what a due job leaves behind, what becomes of a live run, what an end means.

No transaction, no clock, no I/O: everything is handed in, and what comes back is a value to apply.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from carolctl.model import FailureClass, Firing, Job, Millis, Run, SkipReason, SlotRow, StopReason

MISSED_AFTER_MS = 60_000
"""A slot older than this at the tick was missed."""

COALESCED_LIMIT = 10_000
CATCH_UP_LIMIT = 100
ALLOW_LIMIT = 100
"""How many live scheduled runs a job with overlap ``allow`` may have."""

UNSTARTED_AFTER_MS = 60_000
MAX_LAUNCHES = 3
CLOCK_STEP_MS = 60_000
STOP_GRACE_MS = 15_000
"""How long after a stop was asked for a live owner is killed: TimeoutStopSec and a little more."""

Liveness = Literal["alive", "dead", "unknown"]


class Slots(Protocol):
    """What a plan needs of a schedule; instants are nominal, in Unix milliseconds."""

    def next_after(self, after: Millis) -> Millis | None:
        """The first slot after `after`."""

    def count(self, after: Millis, until: Millis, *, limit: int) -> int:
        """How many slots lie in (after, until], counted to `limit`."""

    def newest(self, after: Millis, until: Millis, *, limit: int) -> list[Millis]:
        """The newest slots in (after, until], ascending."""


# -- firings -----------------------------------------------------------------------------------------------


def slots_counted(coalesced: int) -> str:
    """How many slots a row stands for, in words: nobody counts on beyond the limit."""
    return f"{coalesced} or more" if coalesced >= COALESCED_LIMIT else str(coalesced)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveScheduled:
    """The live scheduled runs of one job: all of them, and how many of those still wait for a slot."""

    total: int = 0
    waiting: int = 0


def count_scheduled(live: Iterable[Run]) -> dict[str, LiveScheduled]:
    """The live scheduled runs by job; manual and event runs make a slot wait, never skip."""
    counts: dict[str, LiveScheduled] = {}
    for run in live:
        if run.source == "scheduled":
            old = counts.get(run.job_id, LiveScheduled())
            counts[run.job_id] = LiveScheduled(
                total=old.total + 1, waiting=old.waiting + (run.status == "queued")
            )
    return counts


class _Gate:
    """The overlap rule of one job, while the rows of one tick are laid out."""

    def __init__(self, job: Job, live: LiveScheduled) -> None:
        self._overlap = job.overlap
        self._total, self._waiting = live.total, live.waiting

    def admit(self, *, always: bool = False) -> bool:
        """Whether one more run may be queued; counts it if so."""
        room = {
            "skip": self._total == 0,
            "queue": self._waiting == 0,
            "allow": self._total < ALLOW_LIMIT,
        }[self._overlap]
        if room or always:
            self._total += 1
            self._waiting += 1
        return room or always


def plan_firing(
    job: Job,
    slots: Slots,
    *,
    now: Millis,
    offset_ms: int,
    live: LiveScheduled,
    taken: Collection[Millis] = frozenset(),
) -> Firing:
    """Lay out the rows for every slot of `job` in (watermark, now], and the job's new watermark and wake-up.

    `offset_ms` is the job's spread: it delays the wake-up, never the nominal instant. `taken`: slots beyond the
    watermark that have their row all the same, because the clock was set back; none of them gets another.
    """
    until = Millis(now - offset_ms)
    misfired_until, missed_until = _thresholds(job, until, offset_ms)
    after = job.last_scheduled_for
    gate = _Gate(job, live)
    rows = _skipped(slots, after, misfired_until, "misfire", taken)
    rows += _caught_up(job, slots, Millis(max(after, misfired_until)), missed_until, gate, taken)
    fresh_after = Millis(max(after, missed_until))
    fresh = slots.newest(fresh_after, until, limit=COALESCED_LIMIT)
    if len(fresh) == COALESCED_LIMIT:
        # Put off for so long that they are too many for a row each.
        rows += _skipped(slots, fresh_after, Millis(fresh[0] - 1), "catch_up_limit", taken)
    rows += _fresh_rows(fresh, gate, taken)
    next_slot = slots.next_after(Millis(max(until, after)))
    return Firing(
        job_id=job.job_id,
        schedule_rev=job.schedule_rev,
        watermark_before=after,
        watermark=Millis(
            max([after, *(row.scheduled_for for row in rows), *(slot for slot in taken if slot <= until)])
        ),
        next_fire_at=None if next_slot is None else Millis(next_slot + offset_ms),
        rows=tuple(rows),
    )


def _thresholds(job: Job, until: Millis, offset_ms: int) -> tuple[Millis, Millis]:
    """Slots up to the first are misfired, up to the second missed; a slot that was put off is neither."""
    missed_until = until - MISSED_AFTER_MS - 1
    misfired_until = -1 if job.misfire_grace_sec is None else until - job.misfire_grace_sec * 1000 - 1
    if job.deferred_at is not None:
        put_off_from = job.deferred_at - offset_ms - MISSED_AFTER_MS - 1
        missed_until = min(missed_until, put_off_from)
        misfired_until = min(misfired_until, put_off_from)
    return Millis(misfired_until), Millis(max(missed_until, misfired_until))


def _caught_up(
    job: Job, slots: Slots, after: Millis, until: Millis, gate: _Gate, taken: Collection[Millis]
) -> list[SlotRow]:
    """The rows for missed slots, by the job's catch-up rule; found by stepping back from the newest."""
    if job.catch_up == "skip":
        return _skipped(slots, after, until, "missed", taken)
    if job.catch_up == "latest":
        return [_gated(row, gate) for row in _one_row(slots, after, until, taken)]
    newest = slots.newest(after, until, limit=CATCH_UP_LIMIT)
    rows = []
    if newest:
        rows = _skipped(slots, after, Millis(newest[0] - 1), "catch_up_limit", taken)
    for slot in (slot for slot in newest if slot not in taken):
        gate.admit(always=True)
        rows.append(SlotRow(scheduled_for=slot, slots_from=slot, coalesced=1))
    return rows


def _fresh_rows(fresh: Iterable[Millis], gate: _Gate, taken: Collection[Millis]) -> list[SlotRow]:
    """A row a slot; neighbours that overlap share one, or a job of every second would leave thirty a tick."""
    rows: list[SlotRow] = []
    may_share = False
    for slot in fresh:
        if slot in taken:
            may_share = False
            continue
        row = _gated(SlotRow(scheduled_for=slot, slots_from=slot, coalesced=1), gate)
        if may_share and row.skip_reason and rows[-1].skip_reason:
            last = rows.pop()
            row = replace(row, slots_from=last.slots_from, coalesced=last.coalesced + 1)
        rows.append(row)
        may_share = True
    return rows


def _gated(row: SlotRow, gate: _Gate) -> SlotRow:
    return row if gate.admit() else replace(row, skip_reason="overlap")


def _skipped(
    slots: Slots, after: Millis, until: Millis, reason: SkipReason, taken: Collection[Millis]
) -> list[SlotRow]:
    return [replace(row, skip_reason=reason) for row in _one_row(slots, after, until, taken)]


def _one_row(slots: Slots, after: Millis, until: Millis, taken: Collection[Millis]) -> list[SlotRow]:
    """One row that stands for every slot in (after, until], on the newest without a row; none where all have one."""
    first = slots.next_after(after)
    latest = _newest_free(slots, after, until, taken)
    if first is None or latest is None:
        return []
    count = slots.count(after, latest, limit=COALESCED_LIMIT)
    return [SlotRow(scheduled_for=latest, slots_from=first, coalesced=count)]


def _newest_free(slots: Slots, after: Millis, until: Millis, taken: Collection[Millis]) -> Millis | None:
    step = 1
    while newest := slots.newest(after, until, limit=step):
        free = next((slot for slot in reversed(newest) if slot not in taken), None)
        if free is not None:
            return free
        until, step = Millis(newest[0] - 1), 1000
    return None


def is_deferred_enough(job: Job, now: Millis, *, longest_ms: int) -> bool:
    """Whether pressure has put the due slot of `job` off for as long as it may in total."""
    return job.deferred_at is not None and now - job.deferred_at >= longest_ms


def put_off_until(job: Job, now: Millis, *, step_ms: int, longest_ms: int) -> Millis:
    """When a due job is looked at again that pressure puts off: a step later, but not after the longest in total."""
    first = now if job.deferred_at is None else job.deferred_at
    return Millis(min(now + step_ms, first + longest_ms))


def skip_elapsed(
    job: Job, slots: Slots, *, now: Millis, reason: SkipReason, taken: Collection[Millis] = frozenset()
) -> list[SlotRow]:
    """The row that an edit, a pause or a resume leaves for the slots in (watermark, now]: none ever fires."""
    return _skipped(slots, job.last_scheduled_for, now, reason, taken)


# -- live runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the live owner to end; the slot stays held until it is gone."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class StopAgain:
    """A stop was asked for already; `kill` once the owner has outlived its grace."""

    kill: bool


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Claimed and never started: launch it again under the next claim number."""


@dataclass(frozen=True, slots=True)
class End:
    """The owner is gone, or there never was one here: record it."""

    failure_reason: FailureClass
    summary: str


Verdict = Leave | Stop | StopAgain | Relaunch | End


def elapsed_ms(run: Run, *, now: Millis, boottime_ms: int | None, boot_id: str) -> int:
    """How long ago the run was claimed. On the same boot a wall clock that was set does not count."""
    assert run.slot_claimed_at is not None
    wall = now - run.slot_claimed_at
    if boottime_ms is None or run.claimed_boottime_ms is None or run.boot_id != boot_id:
        return wall
    boot = boottime_ms - run.claimed_boottime_ms
    return boot if abs(wall - boot) > CLOCK_STEP_MS else wall


def judge(
    run: Run, liveness: Liveness, *, now: Millis, boottime_ms: int | None, boot_id: str, is_http: bool
) -> Verdict:
    """What becomes of a run that holds a slot and has no finish file in the spool.

    Death is proved, not only timed, and a live owner is stopped before its slot is freed. `liveness` is
    ``unknown`` where there is no owner to look at, or none to be seen: not started, accepted by the other side,
    another host, a /proc that hides it. Such a run ends with its lease alone.
    """
    elapsed = elapsed_ms(run, now=now, boottime_ms=boottime_ms, boot_id=boot_id)
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    expired = elapsed >= run.lease_expires_at - run.slot_claimed_at
    if run.status == "claimed":
        return _judge_claimed(run, elapsed, lease_ms=run.lease_expires_at - run.slot_claimed_at)
    if liveness == "alive":
        return _judge_alive(run, now, expired=expired)
    if run.stop_reason == "turn_limit_exceeded" and (expired or _is_ownerless(run)):
        return End("turn_limit_exceeded", "it used more turns than it may, and no owner is alive")
    if expired or (run.stop_reason is not None and _is_ownerless(run)):
        return End("lease_expired", "the lease ran out and no owner is alive")
    if liveness == "unknown":
        return Leave()
    if is_http:
        return End("outcome_unknown", "the runner died while the request was under way")
    return End("process_lost", "the process is gone and left no outcome")


def _is_ownerless(run: Run) -> bool:
    """Accepted by the other side: there is nobody here to stop."""
    return run.pid is None and run.unit is None


def _judge_claimed(run: Run, elapsed: int, *, lease_ms: int) -> Verdict:
    if elapsed >= lease_ms:
        return End("lease_expired", "the lease ran out before the run started")
    # A short lease must not run out before anyone has tried again.
    if elapsed < min(UNSTARTED_AFTER_MS, lease_ms // 2):
        return Leave()
    if run.launches >= MAX_LAUNCHES:
        where = f"; journalctl -u {run.unit} may tell why" if run.unit else ""
        return End("launch_failed", f"launched {run.launches} times and never started{where}")
    return Relaunch()


def _judge_alive(run: Run, now: Millis, *, expired: bool) -> Verdict:
    if run.stop_reason is not None:
        asked = run.stop_requested_at if run.stop_requested_at is not None else now
        return StopAgain(kill=now - asked >= STOP_GRACE_MS)
    return Stop("lease_expired") if expired else Leave()
