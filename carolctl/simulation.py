"""The fleet's ticks played forward: when each slot will fire, wait, start and end under the cap. Pure.

The rows of a slot are laid out by the policy that the tick itself uses, and the slots are given away by the rules
of the claim: priority, then age, one slot a job unless its overlap is ``allow``. What cannot be known is taken as
expected: each run takes as long as its job's runs do, nothing fails, and pressure is not prolonged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from carolctl import policy, timing
from carolctl.errors import BadSchedule
from carolctl.model import OCCUPYING, Job, Millis, Run, SlotRow
from carolctl.policy import LiveScheduled, Slots

TICK_MS = 30_000
MOST_ROWS = 300_000
"""Where a simulation ends at the latest: as many rows of runs and skips take a quarter of a minute."""


@dataclass(slots=True, kw_only=True, eq=False)
class Expected:
    """A run, or a skip, that is expected; one that runs or waits already has its `run_id`."""

    number: int
    job_id: str
    scheduled_for: Millis | None
    queued_at: Millis
    coalesced: int = 1
    #: Of a skip: the first of its slots, and when the last of them is skipped; neighbours share one.
    slots_from: Millis | None = None
    skips_until: Millis | None = None
    skip_reason: str | None = None
    run_id: int | None = None
    source: str = "scheduled"
    not_before: Millis | None = None
    start: Millis | None = None
    end: Millis | None = None

    @property
    def wait_ms(self) -> int | None:
        """How long it waits for a slot."""
        return None if self.start is None else max(0, self.start - self.queued_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Until when due jobs are put off, for how long at a time, and at most."""

    until: Millis = Millis(0)  # noqa: RUF009 - a plain integer
    step_ms: int = 0
    longest_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated."""

    jobs: Sequence[Job]
    live: Sequence[Run]
    cap: int
    #: How long a run of a job takes that has taken so many milliseconds already; its lease bounds it.
    duration_ms: Callable[[str, int], int]
    lease_ms: Callable[[str], int]
    pressure: Pressure = Pressure()
    #: Nothing is fired or claimed before; None: nothing ever.
    resumes_at: Millis | None = Millis(0)  # noqa: RUF009 - a plain integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected in [begin, until): of the time from `until` on nothing is known."""

    begin: Millis
    until: Millis
    #: How far it should have gone; it goes less far where there were too many rows.
    asked_until: Millis
    cap: int
    expected: Sequence[Expected]
    #: Jobs whose schedule cannot be read.
    unreadable: Sequence[str]

    @property
    def is_cut(self) -> bool:
        """Whether it ended early."""
        return self.until < self.asked_until

    def starts(self) -> list[Expected]:
        """What runs, by start."""
        begun = [one for one in self.expected if one.start is not None and one.start < self.until]
        return sorted(begun, key=lambda one: (one.start or 0, one.number))


@dataclass(slots=True)
class _World:
    """The state between two moments."""

    fleet: Fleet
    jobs: dict[str, Job]
    slots: dict[str, Slots]
    #: (wake-up, job id): the order in which a tick looks at due jobs.
    wakes: list[tuple[Millis, str]] = field(default_factory=list)
    running: list[tuple[Millis, int, Expected]] = field(default_factory=list)
    queued: list[Expected] = field(default_factory=list)
    everything: list[Expected] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    #: By job: its last row, where that is a skip.
    skips: dict[str, Expected] = field(default_factory=dict)
    #: How many rows were laid out, merged ones counted one by one: what the time that it takes grows with.
    laid: int = 0
    #: The first moment that was not played, because there were too many rows.
    cut_at: Millis | None = None


def simulate(fleet: Fleet, *, now: Millis, until: Millis, first_tick: Millis) -> Outlook:
    """Play the ticks from `first_tick` on, every 30 s, and the ends of runs between them."""
    world = _begin(fleet, now)
    for _ in _moments(world, first_tick, until, MOST_ROWS):
        pass
    return Outlook(
        begin=now,
        until=until if world.cut_at is None else Millis(max(world.cut_at, now + 1)),
        asked_until=until,
        cap=fleet.cap,
        expected=world.everything,
        unreadable=world.unreadable,
    )


def first_free(fleet: Fleet, *, now: Millis, first_tick: Millis, until: Millis, most: int) -> Millis | None:
    """When a slot is free for the first time that nobody waits for; None where it is not, after `most` rows or so."""
    world = _begin(fleet, now)
    for at in _moments(world, first_tick, until, most):
        if len(world.running) < fleet.cap:
            return at
    return None


def _moments(world: _World, first_tick: Millis, until: Millis, most: int) -> Iterator[Millis]:
    """Each moment at which a tick finds something to do or a run ends, after what it brought; at most `most` rows."""
    resumes_at = world.fleet.resumes_at
    grid = _Grid(first_tick, resumes_at)
    while True:
        tick_at = None if resumes_at is None or not world.fleet.cap else _next_tick(world, grid)
        end_at = world.running[0][0] if world.running else None
        at = min((moment for moment in (tick_at, end_at) if moment is not None), default=until)
        if at >= until:
            return
        if world.laid >= most:
            world.cut_at = at
            return
        while world.running and world.running[0][0] <= at:
            heappop(world.running)
        if at == tick_at:
            grid.passed(at)
            _fire(world, at)
        if resumes_at is not None and at >= resumes_at:
            _claim(world, at)
        yield at


class _Grid:
    """When ticks come: the first one not before the pause ends, then every 30 s; none twice."""

    def __init__(self, first: Millis, resumes_at: Millis | None) -> None:
        self._first = first
        self._least = max(first, resumes_at or 0)

    def at_or_after(self, instant: int) -> Millis:
        steps = -(-(max(instant, self._least) - self._first) // TICK_MS)
        return Millis(self._first + steps * TICK_MS)

    def passed(self, at: Millis) -> None:
        self._least = at + 1


def _begin(fleet: Fleet, now: Millis) -> _World:
    world = _World(fleet=fleet, jobs={job.job_id: job for job in fleet.jobs}, slots={})
    for job in fleet.jobs:
        if job.status != "active" or job.next_fire_at is None:
            continue
        try:
            world.slots[job.job_id] = timing.schedule_of(job)
        except BadSchedule:
            world.unreadable.append(job.job_id)
        else:
            heappush(world.wakes, (job.next_fire_at, job.job_id))
    for run in fleet.live:
        _take_in(world, run, now)
    return world


def _take_in(world: _World, run: Run, now: Millis) -> None:
    one = Expected(
        number=run.run_id - (1 << 60),
        job_id=run.job_id,
        scheduled_for=run.scheduled_for,
        queued_at=run.queued_at,
        coalesced=run.coalesced,
        run_id=run.run_id,
        source=run.source,
        not_before=run.not_before,
    )
    world.everything.append(one)
    world.laid += 1
    if run.status not in OCCUPYING:
        world.queued.append(one)
        return
    one.start = run.started_at or run.slot_claimed_at or now
    lease = run.lease_expires_at or one.start
    expected = one.start + world.fleet.duration_ms(run.job_id, now - one.start)
    one.end = Millis(max(now, min(expected, lease)))
    heappush(world.running, (one.end, one.number, one))


def _next_tick(world: _World, grid: _Grid) -> Millis | None:
    """The next tick that finds something to do."""
    moments: list[int] = [world.wakes[0][0]] if world.wakes else []
    if world.queued and len(world.running) < world.fleet.cap:
        ready = [one.not_before or 0 for one in world.queued if _may_ever_run(world, one)]
        moments += [min(ready)] if ready else []
    return grid.at_or_after(min(moments)) if moments else None


def _may_ever_run(world: _World, one: Expected) -> bool:
    job = world.jobs.get(one.job_id)
    if job is None or (one.source == "scheduled" and job.status != "active"):
        return False
    # Behind a run of its own job it waits for that run's end, not for a tick.
    return job.overlap == "allow" or not any(other.job_id == one.job_id for _, _, other in world.running)


def _fire(world: _World, at: Millis) -> None:
    """What a tick does with the jobs that are due."""
    due = []
    while world.wakes and world.wakes[0][0] <= at:
        due.append(heappop(world.wakes)[1])
    live = _count_scheduled(world) if due else {}
    for job_id in due:
        if not _put_off(world, world.jobs[job_id], at):
            _fire_one(world, world.jobs[job_id], live.get(job_id, LiveScheduled()), at)
        wake_up = world.jobs[job_id].next_fire_at
        if wake_up is not None:
            heappush(world.wakes, (wake_up, job_id))


def _put_off(world: _World, job: Job, at: Millis) -> bool:
    """Put a due job off, where pressure is held and it was not put off for as long as may be."""
    pressure = world.fleet.pressure
    if at >= pressure.until or policy.is_deferred_enough(job, at, longest_ms=pressure.longest_ms):
        return False
    later = policy.put_off_until(job, at, step_ms=pressure.step_ms, longest_ms=pressure.longest_ms)
    first = at if job.deferred_at is None else job.deferred_at
    world.jobs[job.job_id] = replace(job, next_fire_at=later, deferred_at=first)
    return True


def _fire_one(world: _World, job: Job, live: LiveScheduled, at: Millis) -> None:
    offset = timing.spread_ms(job)
    firing = policy.plan_firing(job, world.slots[job.job_id], now=at, offset_ms=offset, live=live)
    world.jobs[job.job_id] = replace(
        job, last_scheduled_for=firing.watermark, next_fire_at=firing.next_fire_at, deferred_at=None
    )
    for row in firing.rows:
        _lay(world, job.job_id, row, at)


def _lay(world: _World, job_id: str, row: SlotRow, at: Millis) -> None:
    """One row; skips that follow each other are one, or they would be most of what is foreseen."""
    world.laid += 1
    last = world.skips.get(job_id)
    if last is not None and last.skip_reason == row.skip_reason:
        last.scheduled_for, last.skips_until = row.scheduled_for, at
        last.coalesced += row.coalesced
        return
    one = Expected(
        number=len(world.everything),
        job_id=job_id,
        scheduled_for=row.scheduled_for,
        queued_at=at,
        coalesced=row.coalesced,
        slots_from=row.slots_from,
        skips_until=at if row.skip_reason else None,
        skip_reason=row.skip_reason,
    )
    world.everything.append(one)
    if row.skip_reason is None:
        world.queued.append(one)
        world.skips.pop(job_id, None)
    else:
        world.skips[job_id] = one


def _count_scheduled(world: _World) -> dict[str, LiveScheduled]:
    counts: dict[str, LiveScheduled] = {}
    waiting = [(one, 1) for one in world.queued]
    for one, waits in [*waiting, *((one, 0) for _, _, one in world.running)]:
        if one.source == "scheduled":
            old = counts.get(one.job_id, LiveScheduled())
            counts[one.job_id] = LiveScheduled(total=old.total + 1, waiting=old.waiting + waits)
    return counts


def _claim(world: _World, at: Millis) -> None:
    """Free slots go to those who wait, by priority, then age; one a job, unless its overlap is ``allow``."""
    free = world.fleet.cap - len(world.running)
    if free <= 0 or not world.queued:
        return
    busy = {one.job_id for _, _, one in world.running}
    candidates = []
    for one in sorted(world.queued, key=lambda one: (one.queued_at, one.number)):
        job = world.jobs.get(one.job_id)
        ready = one.not_before is None or one.not_before <= at
        if job is None or not ready or (one.source == "scheduled" and job.status != "active"):
            continue
        if job.overlap != "allow" and one.job_id in busy:
            continue
        busy.add(one.job_id)
        candidates.append((-job.priority, one.queued_at, one.number, one))
    for _, _, number, one in sorted(candidates)[:free]:
        world.queued.remove(one)
        taken = min(world.fleet.duration_ms(one.job_id, 0), world.fleet.lease_ms(one.job_id))
        one.start, one.end = at, Millis(at + max(1, taken))
        heappush(world.running, (one.end, number, one))


# -- what stands out ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most at once, and when first."""

    count: int
    at: Millis | None


def peak_of(spans: Iterable[tuple[Millis, Millis]]) -> Peak:
    """The most of these [from, until) at the same time."""
    changes = sorted(change for begin, end in spans if begin < end for change in ((begin, 1), (end, -1)))
    level, best = 0, Peak(count=0, at=None)
    for at, step in changes:
        level += step
        if level > best.count:
            best = Peak(count=level, at=at)
    return best


def running_peak(outlook: Outlook) -> Peak:
    """The most runs at once."""
    return peak_of((max(one.start, outlook.begin), one.end) for one in _whole(outlook))


def queue_peak(outlook: Outlook) -> Peak:
    """The most that wait for a slot at once."""
    waits = [
        (max(one.queued_at, outlook.begin), one.start or outlook.until)
        for one in outlook.expected
        if one.skip_reason is None
    ]
    return peak_of((Millis(begin), Millis(min(end, outlook.until))) for begin, end in waits)


def full_ms(outlook: Outlook) -> int:
    """How long all slots are taken."""
    changes: list[tuple[Millis, int]] = []
    for one in _whole(outlook):
        begin, end = max(one.start, outlook.begin), min(one.end, outlook.until)
        changes += [(begin, 1), (end, -1)] if begin < end else []
    level, total, since = 0, 0, outlook.begin
    for at, step in sorted(changes):
        total += at - since if level >= outlook.cap else 0
        level, since = level + step, at
    return total


@dataclass(frozen=True, slots=True)
class _Whole:
    start: Millis
    end: Millis


def _whole(outlook: Outlook) -> list[_Whole]:
    return [
        _Whole(one.start, one.end)
        for one in outlook.starts()
        if one.start is not None and one.end is not None
    ]


def by_job(outlook: Outlook) -> Mapping[str, list[Expected]]:
    """What is expected of each job, the first to start first."""
    found: dict[str, list[Expected]] = {}
    for one in sorted(outlook.expected, key=lambda one: (one.start or one.queued_at, one.number)):
        found.setdefault(one.job_id, []).append(one)
    return found
