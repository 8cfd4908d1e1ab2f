"""Why a job ran, or did not, at a time: the facts are read in one snapshot, and `slot_story` weighs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from carolctl import global_pause, job_history, jobs, places, run_view, slot_story, slot_waits, timing
from carolctl.clock import iso
from carolctl.errors import NotFound
from carolctl.job_history import Entry, Epoch
from carolctl.model import OCCUPYING, Job, Millis, Run
from carolctl.session import Session
from carolctl.slot_story import Facts, Story, Try, Wait
from carolctl.slot_waits import Span
from carolctl.store.tx import ReadTx

_MINUTE = 60_000
_DAY_MS = 86_400_000
#: The beat of the tick, and a second.
_TICK_MS = 31_000

Rest = tuple[Millis, Millis, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The story of one slot, and the rows that it rests on."""

    facts: Facts
    story: Story

    def evidence(self) -> list[Entry]:
        """The entries of the audit log that it rests on, oldest first."""
        facts, row = self.facts, self.facts.row
        edit = facts.edit if row and row.skip_reason == "edited" else None
        found = [entry for entry in (facts.pause, edit, facts.gap, *facts.deferrals) if entry]
        return sorted(found, key=lambda entry: entry["audit_id"])

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        facts, epoch = self.facts, self.facts.epoch
        schedule = epoch and {"kind": epoch.kind, "expr": epoch.expr, "timezone": epoch.timezone}
        return {
            "job_id": facts.job_id,
            "asked": iso(facts.asked),
            "slot": iso(facts.slot),
            "verdict": self.story.verdict,
            "causes": list(self.story.causes),
            "said": self.story.said,
            "schedule": schedule,
            "nearest": {"before": iso(facts.nearest[0]), "after": iso(facts.nearest[1])},
            "watermark": iso(facts.job.last_scheduled_for) if facts.job else None,
            "run": run_view.document(facts.row) if facts.row else None,
            "holders": [run_view.document(run) for run in self.holders()],
            "tries": [slot_story.try_document(one) for one in facts.tries],
            "put_off": facts.put_off,
            "evidence": slot_story.documents_of(self.evidence()),
        }

    def holders(self) -> Sequence[Run]:
        """Who holds the slots that it waits for; of one that has run, who made way for it."""
        row = self.facts.row
        if row is not None and row.status == "queued":
            return self.facts.holders
        return self.facts.wait.made_way if "cap" in self.story.causes else ()


def why(session: Session, job_id: str, asked: Millis | None) -> Answer:
    """What became of the slot at `asked`; without one, of the last that was due, or else the first to come.

    Raises `NotFound` for a job of which nothing is known, `BadData` for a damaged row.
    """
    with session.store.read() as tx:
        job, unknown = _job(tx, job_id)
        changes = tx.schedule_changes(job_id)
        known = job_history.epochs(job_id, job, changes, tx.migrations())
        if unknown and not known:
            raise unknown
        facts = _facts(tx, session, job_id, job, known, asked, changes)
    return Answer(facts=facts, story=slot_story.tell(facts))


def _job(tx: ReadTx, job_id: str) -> tuple[Job | None, NotFound | None]:
    """The job, or how to say that there is none: one that was removed has a past all the same."""
    try:
        return jobs.find(tx, job_id), None
    except NotFound as unknown:
        return None, unknown


def _facts(
    tx: ReadTx,
    session: Session,
    job_id: str,
    job: Job | None,
    known: Sequence[Epoch],
    asked: Millis | None,
    changes: Sequence[Entry],
) -> Facts:
    asked = _latest(known, session.now) if asked is None else asked
    epoch = job_history.at(known, asked) or _around(known, asked)
    slot = _slot_at(epoch, asked)
    row = None if slot is None else tx.slot_row(job_id, slot)
    settings, live = session.settings(tx), tx.live_runs()
    until = row.queued_at if row else session.now
    put_off, deferrals = (0, []) if slot is None else tx.deferrals(job_id, slot, until)
    rests = job_history.pauses(changes, session.now)
    tries = [Try(*found) for found in tx.attempts_of(row.run_id)] if row else []
    paused_until = tx.meta(global_pause.KEY)
    return Facts(
        job_id=job_id,
        job=job,
        now=session.now,
        asked=asked,
        epoch=epoch,
        slot=slot,
        nearest=_nearest(epoch, asked if slot is None else slot),
        row=row,
        holders=[run for run in live if run.status in OCCUPYING],
        own=[run for run in live if run.job_id == job_id and run != row],
        wait=_wait(tx, row, tries, rests, session.now, alone=job is None or job.overlap != "allow"),
        tries=tries,
        laid_together=_laid_together(tx, row),
        cap=settings.max_concurrent,
        spread_ms=timing.spread_ms(job) if job else 0,
        all_paused=paused_until if global_pause.in_force(paused_until, session.now) else None,
        pressure=tx.pressure_sources(session.now),
        gap=_gap(tx, slot, until, session.now),
        put_off=put_off,
        deferrals=deferrals,
        pause=_pause(rests, slot, row),
        edit=next(
            (e for e in changes if e["command"] == "edit-job" and epoch and e["at"] == epoch.end), None
        ),
        last_tick=_last_tick(),
        kept_since=Millis(session.now - settings.retention_runs_days * _DAY_MS),
    )


def _latest(known: Sequence[Epoch], now: Millis) -> Millis:
    """The last slot that was due, else the first to come, else now."""
    for epoch in reversed(known):
        end = now if epoch.end is None else Millis(min(now, epoch.end))
        slot = epoch.times.latest_at(end) if epoch.times else None
        if slot is not None and epoch.holds(slot):
            return slot
    coming = known[-1].times.next_after(now) if known and known[-1].times else None
    return now if coming is None else coming


def _around(known: Sequence[Epoch], asked: Millis) -> Epoch | None:
    """An epoch that began within the minute that was asked for."""
    return job_history.at(known, Millis(asked + _MINUTE - 1)) if asked % _MINUTE == 0 else None


def _slot_at(epoch: Epoch | None, asked: Millis) -> Millis | None:
    """The slot at `asked`, or where that is a whole minute, the last one within it."""
    if epoch is None or epoch.times is None:
        return None
    last = Millis(asked + _MINUTE - 1) if asked % _MINUTE == 0 else asked
    slot = epoch.times.latest_at(last)
    return slot if slot is not None and slot >= asked and epoch.holds(slot) else None


def _nearest(epoch: Epoch | None, instant: Millis) -> tuple[Millis | None, Millis | None]:
    if epoch is None or epoch.times is None:
        return None, None
    before, after = epoch.times.latest_at(Millis(instant - 1)), epoch.times.next_after(instant)
    return (
        before if before is not None and epoch.holds(before) else None,
        after if after is not None and epoch.holds(after) else None,
    )


def _pause(rests: Sequence[Rest], slot: Millis | None, row: Run | None) -> Entry | None:
    """The pause that the slot lies in, or of which the beginning laid it down as skipped."""
    if slot is None or (row is not None and row.skip_reason not in ("paused", "edited")):
        return None
    if row is not None and row.skip_reason == "paused":
        return next((why for begin, end, why in rests if begin <= row.queued_at <= end), None)
    return next((why for begin, end, why in rests if begin <= slot <= end), None)


def _laid_together(tx: ReadTx, row: Run | None) -> Run | None:
    if row is None or row.skip_reason != "overlap" or row.slots_from is None:
        return None
    before = tx.slot_row_before(row.job_id, row.slots_from)
    return before if before and before.status != "skipped" and before.queued_at == row.queued_at else None


def _wait(
    tx: ReadTx, row: Run | None, tries: Sequence[Try], rests: Sequence[Rest], now: Millis, *, alone: bool
) -> Wait:
    """What it waited for before its first slot: pauses and own runs first, and only what is left for the cap.

    `alone`: the job holds one slot at a time.
    """
    if row is None:
        return Wait()
    claimed = tries[0].claimed_at if tries and tries[0].attempt == 1 else row.slot_claimed_at
    if claimed is None or claimed - row.queued_at < 1000 or (row.attempt > 1 and not tries):
        return Wait()
    begin, whole = row.queued_at, [(int(row.queued_at), int(claimed))]
    ends = tx.ends_of_job(row.job_id, begin, claimed) if alone else []
    own = [end for end in ends if end[0] != row.run_id]
    paused = slot_waits.pauses(tx.pauses_of_all(begin), now)
    resting = slot_waits.full([(since, until) for since, until, _ in rests], 1)
    behind = slot_waits.full([(since, until) for _, since, until in own], 1)
    after_pause = slot_waits.minus(whole, paused)
    after_rest = slot_waits.minus(after_pause, resting)
    left = slot_waits.minus(after_rest, behind)
    # What is left after a pause or an own run is the time until the next tick, unless it is longer.
    for_slot = [one for one in left if one[0] == begin or one[1] - one[0] > _TICK_MS]
    return Wait(
        own_ms=slot_waits.total(after_rest) - slot_waits.total(left),
        own=sorted({end[0] for end in own}),
        paused_ms=slot_waits.total(whole) - slot_waits.total(after_pause),
        resting_ms=slot_waits.total(after_pause) - slot_waits.total(after_rest),
        cap_ms=slot_waits.total(for_slot),
        made_way=_made_way(tx, row, claimed, for_slot),
    )


def _made_way(tx: ReadTx, row: Run, claimed: Millis, for_slot: Sequence[Span]) -> list[Run]:
    """Those that held a slot while it waited for one."""
    held = [run for run in tx.released_between(row.queued_at, claimed) if run != row]
    return [
        run
        for run in held
        if any((run.slot_claimed_at or 0) < high and low < (run.completed_at or 0) for low, high in for_slot)
    ]


def _gap(tx: ReadTx, slot: Millis | None, until: Millis, now: Millis) -> Entry | None:
    """The entry of the outage that the slot fell into; the tick that wrote it wrote the slot's row as well."""
    gap = None if slot is None or slot > now else tx.tick_gap(slot)
    return gap if gap and gap["after"]["from"] < slot and gap["at"] <= until else None


def _last_tick() -> Millis | None:
    try:
        return Millis(round(os.stat(places.tick_stamp()).st_mtime * 1000))
    except OSError:
        return None
