"""The account of every slot: which were due in a period, which rows stand for them, and which slots lack one.

Incident: a scheduler lost firings, and nobody could say how many, since what did not happen left no trace.
Decision: what was due is computed anew from the schedules and their history, by the engine that fires them, and
held against the rows. Consequence: that nothing was lost is no promise but a check with an exit code.

A slot may be without a row where it lies beyond the job's watermark: due and waiting, or within a pause that lasts.
And no slot may have two, and no row stand for anything else: `slot_faults`. The proof rests on the audit log and on the
job's own row; who changes those and the rows of runs alike can deceive it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from carolctl import job_history, slot_faults
from carolctl.clock import iso
from carolctl.job_history import Entry, Epoch
from carolctl.model import Job, Millis
from carolctl.session import Session
from carolctl.slot_faults import Fault, Row
from carolctl.store.tx import ReadTx

Range = tuple[Millis, Millis]
Waits = Literal["paused", "due", "removed"]
_DAY_MS = 86_400_000
_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The slots of one job under one schedule."""

    job_id: str
    schedule: str
    slots: int
    due: Sequence[Millis] = ()
    lacking: Sequence[Millis] = ()
    #: Slots beyond the watermark, and why they may be without a row.
    waiting: Sequence[Millis] = ()
    waits: Waits = "due"
    #: The schedule cannot be read: nothing is proved.
    unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found for all jobs."""

    since: Millis
    until: Millis
    #: The period that was asked for begins before the oldest row that is kept.
    is_clipped: bool
    accounts: Sequence[Account]
    rows: int
    #: What is wrong with rows.
    faults: Sequence[Fault] = ()
    #: Rows for slots that came due twice, since the clock was set back.
    repeated: int = 0

    @property
    def holds(self) -> bool:
        """Whether every slot has exactly one row, every row its slots, and every schedule can be read."""
        return not self.faults and not any(one.lacking or one.unreadable for one in self.accounts)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "verdict": "pass" if self.holds else "fail",
            "since": iso(self.since),
            "until": iso(self.until),
            "clipped": self.is_clipped,
            "jobs": len({one.job_id for one in self.accounts}),
            "slots": sum(one.slots for one in self.accounts),
            "rows": self.rows,
            "lacking": [_some(one, one.lacking) for one in self.accounts if one.lacking],
            "wrong": {"count": len(self.faults), "rows": [_wrong(one) for one in self.faults[:_SHOWN]]},
            "repeated": self.repeated,
            "waiting": [
                _some(one, one.waiting) | {"status": one.waits} for one in self.accounts if one.waiting
            ],
            "unreadable": sorted({one.job_id for one in self.accounts if one.unreadable}),
        }


def _some(one: Account, slots: Sequence[Millis]) -> dict[str, Any]:
    return {
        "job_id": one.job_id,
        "schedule": one.schedule,
        "count": len(slots),
        "slots": [iso(slot) for slot in slots[:_SHOWN]],
    }


def _wrong(fault: Fault) -> dict[str, Any]:
    return {
        "job_id": fault.job_id,
        "kind": fault.kind,
        "run_id": fault.run_id,
        "slot": iso(fault.slot),
        "said": fault.said,
    }


def account(epoch: Epoch, covered: Sequence[Range], watermark: Millis | None, waits: Waits) -> Account:
    """The slots in (begin, end] of an epoch whose end is set, held against the rows' ranges.

    `watermark`: beyond it slots wait; None: none may.
    """
    words = f"{epoch.kind} {epoch.expr}".strip() + f" ({epoch.timezone})"
    if epoch.times is None or epoch.end is None:
        return Account(job_id=epoch.job_id, schedule=words, slots=0, unreadable=True)
    due = list(epoch.times.between(epoch.begin, epoch.end)) if epoch.begin < epoch.end else []
    without = _without_row(due, covered)
    beyond = epoch.end if watermark is None else watermark
    return Account(
        job_id=epoch.job_id,
        schedule=words,
        slots=len(due),
        due=due,
        lacking=[slot for slot in without if slot <= beyond],
        waiting=[slot for slot in without if slot > beyond],
        waits=waits,
    )


def _without_row(due: Sequence[Millis], covered: Sequence[Range]) -> list[Millis]:
    """The slots that no row stands for; most rows stand for one slot."""
    ends = {last for _, last in covered}
    left = [slot for slot in due if slot not in ends]
    wide = _merged(one for one in covered if one[0] < one[1])
    firsts = [first for first, _ in wide]
    return [slot for slot in left if not _lies_in(slot, wide, firsts)]


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """The same as disjoint ranges, ascending: those of one job overlap only where the clock was set back."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], Millis(max(last, found[-1][1])))
        else:
            found.append((first, last))
    return found


def _lies_in(slot: Millis, ranges: Sequence[Range], firsts: Sequence[Millis]) -> bool:
    place = bisect_right(firsts, slot) - 1
    return place >= 0 and slot <= ranges[place][1]


# -- reading -----------------------------------------------------------------------------------------------


def audit(session: Session, job_id: str | None, since: Millis, until: Millis) -> Audit:
    """Account for every slot in (since, until] of one job or of all, removed ones included."""
    with session.store.read() as tx:
        settings = session.settings(tx)
        days = min(settings.retention_runs_days, settings.retention_audit_days)
        start = Millis(max(since, session.now - days * _DAY_MS))
        present, histories = _histories(tx, job_id)
        broken = [one.job_id for one in tx.damaged_jobs() if job_id in (None, one.job_id)]
        names = {*histories, *(tx.jobs_with_slot_rows(start, until) if job_id is None else ())}
        rows = {
            name: [Row(*row) for row in tx.slot_rows(name, start, until)]
            for name in sorted(names - {*broken})
        }
        changes = {name: tx.schedule_changes(name) for name in rows}
        overwritten = {
            name for one in tx.migrations() for name in (one["after"] or {}).get("overwritten") or ()
        }
    parts = [
        _of_job(
            name,
            histories.get(name, []),
            rows[name],
            present.get(name),
            changes[name],
            start,
            until,
            forgets=name in overwritten,
        )
        for name in rows
    ]
    unproved = [Account(job_id=name, schedule="", slots=0, unreadable=True) for name in broken]
    return Audit(
        since=start,
        until=until,
        is_clipped=since < start,
        accounts=[one for part in parts for one in part[0]] + unproved,
        rows=sum(map(len, rows.values())),
        faults=[fault for part in parts for fault in part[1]],
        repeated=sum(part[2] for part in parts),
    )


def _of_job(
    name: str,
    epochs: Sequence[Epoch],
    rows: Sequence[Row],
    job: Job | None,
    changes: Sequence[Entry],
    since: Millis,
    until: Millis,
    *,
    forgets: bool,
) -> tuple[list[Account], list[Fault], int]:
    """The accounts of a job, the faults of its rows, and how many of those are excused.

    `forgets`: an import overwrote the job, and of its schedule before that nothing is known.
    """
    covered = [(row.slots_from, row.scheduled_for) for row in rows]
    accounts = _accounts(epochs, covered, job, since, until)
    due = {slot for one in accounts for slot in one.due}
    known = [row for row in rows if row.scheduled_for > epochs[0].begin] if forgets and epochs else rows
    faults, excused = slot_faults.of_job(name, known, epochs, due, changes, since=since, until=until)
    return accounts, faults, excused


def _histories(tx: ReadTx, job_id: str | None) -> tuple[dict[str, Job], dict[str, list[Epoch]]]:
    """The jobs there are, and the epochs of those and of the removed ones."""
    changes: dict[str, list[Entry]] = {}
    for entry in tx.schedule_changes(job_id):
        changes.setdefault(entry["subject"], []).append(entry)
    jobs = {job.job_id: job for job in tx.jobs() if job_id in (None, job.job_id)}
    imports = tx.migrations()
    names = sorted({*jobs, *changes})
    return jobs, {
        name: job_history.epochs(name, jobs.get(name), changes.get(name, []), imports) for name in names
    }


def _accounts(
    epochs: Sequence[Epoch], covered: Sequence[Range], job: Job | None, since: Millis, until: Millis
) -> list[Account]:
    found = []
    for epoch in epochs:
        watermark, waits = _watermark(epoch, job)
        part = job_history.clipped(epoch, since, until)
        found.append(account(part, covered, watermark, waits))
    return found


def _watermark(epoch: Epoch, job: Job | None) -> tuple[Millis | None, Waits]:
    """Beyond which instant slots may be without a row, and why; an edit leaves none without."""
    if epoch.end is not None:
        return epoch.watermark, "removed"
    assert job is not None
    return job.last_scheduled_for, "paused" if job.status == "paused" else "due"
