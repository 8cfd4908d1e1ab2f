"""One tick: read a snapshot, probe without a lock, decide purely, write once, and act after COMMIT.

Incident: five schedules fired at once, used 12,600 agent turns and starved the interactive chat. Decision: due
jobs only queue runs; slots are given out by one atomic claim under a global cap, in the same transaction.
Consequence: however many ticks run at once, each slot fires once and the cap holds.

Everything may be killed between any two instructions: before COMMIT nothing has happened, and after it a claim
that was never started is claimed again by a later tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from carolctl import (
    claims,
    deferral,
    drain,
    end_facts,
    endings,
    events,
    finish,
    launch,
    places,
    policy,
    publishing,
    spool,
    sweep,
    timing,
)
from carolctl.config import Settings
from carolctl.errors import CarolError
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.model import Claimed, Firing, Job, Millis, Run
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.settle import end_retries, settle
from carolctl.store.idle import STAMP_STALE_SEC, WATERMARK_AHEAD_MS
from carolctl.store.jobs import DamagedJob
from carolctl.store.records import AuditEntry
from carolctl.store.runs import Claimant
from carolctl.store.tx import ReadTx, WriteTx

_FLOOD_SEC = 5.0
"""How long a tick goes on taking events in when one batch was not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The snapshot that a tick decides on."""

    settings: Settings
    paused: bool
    due: list[Job]
    damaged: list[DamagedJob]
    ahead: list[Job]
    #: By job: slots beyond its watermark that have their row, because the clock was set back.
    taken: dict[str, frozenset[Millis]]
    live: list[Run]
    jobs_of_live: dict[str, Job]
    pressure: list[str]
    #: A planner database is given, and the store does not know yet that runs are mirrored.
    mirroring_begins: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to write; made without a lock."""

    sweep: sweep.Sweep
    facts: end_facts.EndFacts = end_facts.NOTHING_KNOWN
    firings: tuple[Firing, ...] = ()
    #: Runs that wait for another try while the next slot of their job is due.
    displaced: tuple[Run, ...] = ()
    deferred: tuple[Job, ...] = ()
    overdue: tuple[Job, ...] = ()
    pressure: Sequence[str] = ()
    set_aside: tuple[DamagedJob, ...] = ()
    reanchored: tuple[tuple[Job, Job], ...] = ()
    tick_gap: tuple[Millis, Millis] | None = None
    max_turns: dict[str, int | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class TickReport:
    """What a tick did: run ids, except `deferred` (job ids) and `orphans` (ids of the legacy ledger)."""

    paused: bool
    reaped: list[int] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    fired: list[int] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)
    queued: int = 0
    running: int = 0
    ledger: dict[str, int] = field(default_factory=lambda: {"written": 0, "pending": 0})
    write_lock_ms: float = 0.0
    elapsed_ms: float = 0.0


def tick(session: Session, *, dry_run: bool = False) -> TickReport:
    """Run one tick. With `dry_run` the same code runs in a transaction that is rolled back, and nothing is acted on."""
    began = time.perf_counter()
    launcher = launch.choose_configured()
    with session.store.read() as snapshot:
        picture = take_picture(snapshot, session)
    failpoint("tick-read")
    claimant = finish.claimant_now(session.now, picture.settings)
    swept = sweep.look(picture.live, picture.jobs_of_live, claimant, paused=picture.paused, dry_run=dry_run)
    batch = events.pending(dry_run=dry_run)
    if not dry_run:
        sweep.bury_the_dead(swept)
    plan = make_plan(picture, swept, session.now)
    reported = events.turns_reported(batch)
    plan = replace(plan, facts=end_facts.gather(session.store, swept.outcomes(), reported=reported))
    report = TickReport(paused=picture.paused)
    to_launch: list[Claimed] = []
    asked: list[Run] = []
    taken = events.Taken()
    if _has_work(plan, picture) or batch.files:
        with session.store.write(dry_run=dry_run) as tx:
            to_launch, asked = _write(tx, plan, picture, claimant, report)
            taken = events.take_in(
                tx, batch.files, now=session.now, settings=picture.settings, facts=plan.facts
            )
        report.write_lock_ms = round(session.store.write_lock_ms, 3)
    else:
        report.queued, report.running = _count(picture.live)
    if not dry_run:
        waiting = len(picture.due) if picture.settings.max_concurrent == 0 else 0
        _act(session, launcher, plan, to_launch, [*asked, *taken.stops], report, waiting=waiting)
        _end_batch(session, batch, taken, report)
    report.ledger, report.orphans = publishing.publish_and_sweep(
        session, picture.settings, paused=report.paused, dry_run=dry_run
    )
    report.elapsed_ms = round((time.perf_counter() - began) * 1000, 3)
    return report


# -- read --------------------------------------------------------------------------------------------------


def take_picture(tx: ReadTx, session: Session) -> Picture:
    """Everything that a tick decides on, from one snapshot."""
    now = session.now
    settings = session.settings(tx)
    due, damaged = tx.due_jobs(now)
    live = tx.live_runs()
    return Picture(
        settings=settings,
        paused=finish.globally_paused(tx, now),
        due=due,
        damaged=damaged,
        ahead=tx.jobs_with_watermark_after(Millis(now + WATERMARK_AHEAD_MS)),
        taken=tx.slots_beyond(((job.job_id, job.last_scheduled_for) for job in due), until=now),
        live=live,
        jobs_of_live=tx.jobs_named({run.job_id for run in live}),
        pressure=tx.pressure_sources(now),
        mirroring_begins=places.planner_db() is not None and not tx.ledger_is_mirrored(),
    )


def _count(live: Sequence[Run]) -> tuple[int, int]:
    queued = sum(run.status == "queued" for run in live)
    return queued, len(live) - queued


# -- plan --------------------------------------------------------------------------------------------------


def make_plan(picture: Picture, swept: sweep.Sweep, now: Millis) -> Plan:
    """Decide about every due job. While paused, or under a cap of 0, nothing fires and due slots wait."""
    gap = _tick_gap(now)
    if picture.paused or picture.settings.max_concurrent == 0:
        return Plan(sweep=swept, tick_gap=gap)
    displaced = endings.displaced_retries(picture.live, {job.job_id for job in picture.due})
    firings, broken = _plan_firings(picture, swept, displaced, now)
    reanchored, broken_ahead = _plan_reanchoring(picture.ahead, now)
    plan = Plan(
        sweep=swept,
        firings=firings,
        displaced=tuple(displaced),
        set_aside=(*picture.damaged, *broken, *broken_ahead),
        reanchored=reanchored,
        tick_gap=gap,
        max_turns={job.job_id: job.max_turns or picture.settings.max_turns for job in picture.due},
    )
    return _under_pressure(plan, picture, picture.pressure, now)


def _under_pressure(plan: Plan, picture: Picture, pressure: list[str], now: Millis) -> Plan:
    """The plan without the firings that these sources put off. Once a hold is acknowledged, nothing due fires."""
    deferred, overdue = deferral.split(picture.due, pressure, picture.settings, now)
    firings = deferral.without(plan.firings, deferred)
    return replace(plan, firings=firings, deferred=deferred, overdue=overdue, pressure=pressure)


def _plan_firings(
    picture: Picture, swept: sweep.Sweep, displaced: Sequence[Run], now: Millis
) -> tuple[tuple[Firing, ...], list[DamagedJob]]:
    ending = {run.run_id for run in displaced}
    counts = policy.count_scheduled(
        run for run in picture.live if run.run_id not in ending and not swept.ends_run(run)
    )
    firings, broken = [], []
    for job in picture.due:
        try:
            firing = policy.plan_firing(
                job,
                timing.schedule_of(job),
                now=now,
                offset_ms=timing.spread_ms(job),
                live=counts.get(job.job_id, policy.LiveScheduled()),
                taken=picture.taken.get(job.job_id, frozenset()),
            )
        except Exception as problem:  # noqa: BLE001 - a bad row steps aside and never stops the others
            broken.append(DamagedJob(job.job_id, f"schedule: {problem}"))
        else:
            firings.append(firing)
    return tuple(firings), broken


def _plan_reanchoring(
    ahead: Sequence[Job], now: Millis
) -> tuple[tuple[tuple[Job, Job], ...], list[DamagedJob]]:
    """Jobs whose watermark lies far ahead, because the clock was set back, start again from now."""
    pairs, broken = [], []
    for job in ahead:
        try:
            pairs.append((job, replace(timing.reanchored(job, now), updated_at=now)))
        except Exception as problem:  # noqa: BLE001 - as above
            broken.append(DamagedJob(job.job_id, f"schedule: {problem}"))
    return tuple(pairs), broken


def _tick_gap(now: Millis) -> tuple[Millis, Millis] | None:
    """From and to, when the last tick was too long ago."""
    try:
        stamped = Millis(round(os.stat(places.tick_stamp()).st_mtime * 1000))
    except OSError:
        return None
    return (stamped, now) if now - stamped > STAMP_STALE_SEC * 1000 else None


def _has_work(plan: Plan, picture: Picture) -> bool:
    queued, occupied = _count(picture.live)
    refill = queued and occupied < picture.settings.max_concurrent and not picture.paused
    decided = plan.firings or plan.deferred or plan.set_aside or plan.reanchored or plan.tick_gap
    return bool(decided or refill or picture.mirroring_begins or not plan.sweep.is_empty())


# -- write -------------------------------------------------------------------------------------------------


def _write(
    tx: WriteTx, plan: Plan, picture: Picture, claimant: Claimant, report: TickReport
) -> tuple[list[Claimed], list[Run]]:
    """The one transaction: spooled outcomes first, then verdicts, firings, the slot claim, audit."""
    now, settings = claimant.now, picture.settings
    if picture.mirroring_begins:
        tx.mirror_runs()
    if finish.globally_paused(tx, now):
        # The pause came after the look.
        left = sweep.unless_paused(tx, plan.sweep, claimant)
        plan = Plan(sweep=left, facts=plan.facts, tick_gap=plan.tick_gap)
        report.paused = True
    if plan.firings and not plan.pressure:
        plan = _under_pressure(plan, picture, tx.pressure_sources(now), now)
    outcomes = sweep.outcomes_to_settle(tx, plan.sweep)
    settled = settle(tx, outcomes, now=now, settings=settings, facts=plan.facts)
    swept = sweep.apply(tx, plan.sweep, settled, claimant)
    report.reaped = sorted(swept.leases + swept.lost)
    failpoint("tick-swept")
    _set_aside(tx, plan, now)
    _reanchor(tx, plan, now)
    # Before the slots that they would stand in the way of.
    end_retries(tx, plan.displaced, now=now, settings=settings)
    _fire(tx, plan, now, report)
    report.deferred = deferral.put_off(tx, plan.deferred, plan.pressure, settings, now)
    failpoint("tick-fired")
    claimed = finish.refill(tx, claimant, settings, is_tick=True)
    to_launch = [*swept.relaunched, *claimed]
    report.claimed = sorted(item.run.run_id for item in to_launch)
    if plan.tick_gap:
        tx.audit(_entry(now, "tick_gap", None, after={"from": plan.tick_gap[0], "to": plan.tick_gap[1]}))
    report.queued, report.running = tx.count_live()
    return to_launch, swept.stopped


def _fire(tx: WriteTx, plan: Plan, now: Millis, report: TickReport) -> None:
    """Advance the jobs by compare-and-swap, then write the rows of those that moved: set-based, one firing a slot."""
    if not plan.firings:
        return
    moved = tx.advance_jobs(plan.firings, now=now)
    won = [firing for firing in plan.firings if firing.job_id in moved]
    rows = tx.insert_slot_rows(won, now=now, max_turns=plan.max_turns)
    report.fired = [run_id for run_id, _, status, _ in rows if status == "queued"]
    report.skipped = [run_id for run_id, _, status, _ in rows if status == "skipped"]
    deferral.record_overdue(tx, [job for job in plan.overdue if job.job_id in moved], plan.pressure, now)
    if len(rows) < sum(len(firing.rows) for firing in won):
        tx.count_firings(_surplus(won, rows), now=now)


def _surplus(
    won: Sequence[Firing], rows: Sequence[tuple[int, str, str, int]]
) -> Iterator[tuple[str, int, int]]:
    """What was counted for slots that had their rows already, after the clock was set back: to be taken back."""
    for firing in won:
        new = [row for row in rows if row[1] == firing.job_id]
        fired = sum(status == "queued" for _, _, status, _ in new)
        suppressed = sum(row[3] for row in new)
        if (fired, suppressed) != (firing.fired, firing.suppressed):
            yield firing.job_id, fired - firing.fired, suppressed - firing.suppressed


def _set_aside(tx: WriteTx, plan: Plan, now: Millis) -> None:
    for damaged in plan.set_aside:
        reason = f"set aside: {damaged.problem}"
        if tx.pause_damaged_job(damaged.job_id, reason, now=now):
            tx.audit(_entry(now, "set_aside", damaged.job_id, reason=reason))


def _reanchor(tx: WriteTx, plan: Plan, now: Millis) -> None:
    for before, after in plan.reanchored:
        if tx.replace_job(before, after):
            tx.audit(
                _entry(
                    now,
                    "reanchored",
                    before.job_id,
                    before={name: getattr(before, name) for name in ("last_scheduled_for", "anchor_at")},
                    after={name: getattr(after, name) for name in ("last_scheduled_for", "anchor_at")},
                    reason="the watermark lay more than 26 h ahead of the clock",
                )
            )


def _entry(now: Millis, command: str, subject: str | None, **content: object) -> AuditEntry:
    return AuditEntry(at=now, actor="carolctl", command=command, subject=subject, **content)  # type: ignore[arg-type]


# -- act ---------------------------------------------------------------------------------------------------


def _act(
    session: Session,
    launcher: launch.Launcher,
    plan: Plan,
    to_launch: list[Claimed],
    asked: list[Run],
    report: TickReport,
    *,
    waiting: int,
) -> None:
    """After COMMIT: stop, launch, empty the spool, leave the stamp."""
    require_unlocked("acting on a tick")
    failpoint("tick-committed")
    sweep.stop_owners(plan.sweep, asked)
    report.launched = claims.launch_all(session.store, to_launch, launcher)
    failpoint("tick-launched")
    spool.unlink(plan.sweep.spooled)
    if waiting:
        warn(f"the cap is 0: {waiting} due jobs wait")
    for before, _ in plan.reanchored:
        warn(
            f"{before.job_id}: its watermark lay more than 26 h ahead of the clock and starts again from now"
        )
    for damaged in plan.set_aside:
        warn(f"{damaged.job_id} is set aside, paused: {damaged.problem}")
    touch_stamp(session.now)


def _end_batch(session: Session, batch: events.Batch, taken: events.Taken, report: TickReport) -> None:
    """The files of the events that are stored; and what a flood has left waiting, now that everything has fired."""
    events.announce(taken)
    events.clear(batch, taken)
    if batch.is_full:
        try:
            report.launched += drain.drain(session, longest_sec=_FLOOD_SEC).launched
        except CarolError as trouble:
            warn(f"events wait in the spool: {trouble.message}")


def touch_stamp(now: Millis) -> None:
    """Leave the time of this tick on the stamp file, so that the next one can tell a gap."""
    path = places.tick_stamp()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path, "ab"):
        os.utime(path, (now / 1000, now / 1000))
