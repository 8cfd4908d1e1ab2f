"""The mirror of our runs in the legacy run ledger, and the sweep of ledger rows that nobody will ever end.

Incident: an agent died mid-run, its row 924 of ``droid_runs`` stayed ``running`` for 25 hours, and a monitor
showed it as live; sixteen joins and some ten other writers use that table, so it stays where it is. Decision: a
run that changes leaves a dirty mark in its own transaction, and a tick publishes what is marked, as one row a run
under the event id ``<store uuid>:<run id>``; foreign rows that are older than a threshold and that no known
process stands behind become ``failed``. Consequence: the ledger is complete within a tick, and never wrong for
longer than the threshold.

Two databases, so never one transaction: the planner's is committed first, and the mark deleted after. Whoever
dies between the two publishes the same row again. All of it is bounded and none of it fatal: whatever the other
database does, a tick goes on and the marks stay.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from carolctl import finish, places
from carolctl.errors import BadConfig, CarolError, NotFound, Refused, StoreBusy
from carolctl.failpoints import failpoint
from carolctl.launch import owner
from carolctl.legacy_cells import Cell, from_document, instant, is_blank, plain, stamp, to_document, whole
from carolctl.model import OCCUPYING, Job, Millis, Run
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.store.ledger import Deadline, Ending, ForeignRow, LedgerRow, opened
from carolctl.store.records import AuditEntry
from carolctl.store.tx import ReadTx

#: What publishing may take in all, and what a sweep may.
DEADLINE_MS = 1500
_BATCH = 500
_FINAL = ("completed", "failed", "cancelled")
_EARLY_MS = 60_000
_MOST_NAMED = 8


# -- a run as the ledger shows it --------------------------------------------------------------------------


def ledger_row(run: Run, job: Job | None, store_uuid: str) -> LedgerRow:
    """The present state of a run, in the ledger's words."""
    return LedgerRow(
        run_id=run.run_id,
        is_final=run.status in _FINAL,
        cells={
            "execution_id": _kept(job, "execution_id"),
            "droid_name": droid_name(run.job_id, job),
            "initiative_id": _kept(job, "initiative_id"),
            "event_id": f"{store_uuid}:{run.run_id}",
            "trigger_kind": f"carolctl:{run.source}",
            "status": "queued" if run.status == "claimed" else run.status,
            "started_at": None if run.status in ("queued", "claimed") else _text_of(run.started_at),
            "completed_at": _text_of(run.completed_at),
            "result_summary": _summary(run),
        },
    )


def droid_name(job_id: str, job: Job | None) -> str:
    """The name that the legacy job table has for a job, or else its id."""
    kept = _kept(job, "droid_name")
    return job_id if is_blank(kept) else plain(kept) or job_id


def _kept(job: Job | None, column: str) -> Cell:
    """The cell of that legacy column, where the job came from there."""
    try:
        cell = from_document((job.legacy or {}).get(column)) if job else None
    except ValueError:
        return None
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def _text_of(moment: Millis | None) -> str | None:
    return None if moment is None else stamp(Millis(moment // 1000 * 1000))


def _summary(run: Run) -> str | None:
    """The result, with the failure class in front of it unless it says so itself."""
    reason, summary = run.failure_reason, run.result_summary
    if run.status != "failed" or not reason:
        return summary
    if not summary:
        return reason
    return summary if reason in summary else f"{reason}: {summary}"


# -- publishing --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How many runs were written, how many marks are left, and what was in the way."""

    written: int
    pending: int
    trouble: str | None = None


def publish(session: Session, planner_db: str | None, *, dry_run: bool = False) -> Published:
    """Bring the marked runs into the ledger, for at most `DEADLINE_MS`; whatever is in the way is warned about."""
    tally = _Tally()
    if not dry_run:
        try:
            _publish(session, planner_db, tally)
        except CarolError as problem:
            tally.trouble = problem.message + _by_whom(problem)
    with session.store.read() as tx:
        pending = tx.ledger_pending()
    if tally.trouble:
        warn(f"{pending} runs wait to be mirrored: {tally.trouble}")
    return Published(written=tally.written, pending=pending, trouble=tally.trouble)


def _by_whom(problem: CarolError) -> str:
    """Who holds the lock, where that was the trouble."""
    if not isinstance(problem, StoreBusy):
        return ""
    from carolctl.lock_child import holder_phrase

    phrase = holder_phrase(str(problem.details["database"]))
    return f"; {phrase}" if phrase else ""


@dataclass(slots=True)
class _Tally:
    written: int = 0
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Marks by run id, and those of the runs that still exist."""

    marks: dict[int, int]
    rows: list[LedgerRow] = field(default_factory=list)

    def marks_but(self, refused: Collection[int]) -> list[tuple[int, int]]:
        return [mark for mark in self.marks.items() if mark[0] not in refused]


def _publish(session: Session, planner_db: str | None, tally: _Tally) -> None:
    batch = _next_batch(session, after=0)
    if not batch.marks:
        return
    if planner_db is None:
        raise BadConfig("no planner database is given; set CAROL_PLANNER_DB")
    deadline = Deadline(DEADLINE_MS)
    with opened(planner_db, deadline) as ledger:
        while batch.marks:
            failpoint("ledger-read")
            found = ledger.find([row.event_id for row in batch.rows])
            failpoint("ledger-found")
            written = ledger.publish(batch.rows, found)
            failpoint("ledger-committed")
            with session.store.write() as tx:
                tx.clear_ledger_marks(batch.marks_but(written.refused))
            failpoint("ledger-cleared")
            tally.written += len(written.done)
            if written.refused:
                tally.trouble = f"droid_runs refuses them: {next(iter(written.refused.values()))}"
            if deadline.is_over():
                return
            batch = _next_batch(session, after=max(batch.marks))


def _next_batch(session: Session, *, after: int) -> _Batch:
    with session.store.read() as tx:
        marks = dict(tx.ledger_marks(after=after, limit=_BATCH))
        runs = tx.runs_by_id(list(marks))
        jobs = tx.jobs_named({run.job_id for run in runs})
        store_uuid = tx.store_uuid()
    return _Batch(marks, [ledger_row(run, jobs.get(run.job_id), store_uuid) for run in runs])


def publish_and_sweep(
    session: Session, *, threshold_min: int, paused: bool, dry_run: bool
) -> tuple[Published, list[int]]:
    """What a tick and a reap do at their end; the ids of the orphans that were ended.

    Publishing comes first, and goes on while everything is paused.
    """
    planner_db = places.planner_db()
    published = publish(session, planner_db, dry_run=dry_run)
    if paused or planner_db is None:
        return published, []
    return published, sweep_orphans(session, planner_db, threshold_min=threshold_min, dry_run=dry_run)


# -- foreign rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRuns:
    """The foreign rows that say ``running``, sorted out."""

    #: Older than the threshold, with nobody known to stand behind them.
    orphans: tuple[ForeignRow, ...] = ()
    young: tuple[ForeignRow, ...] = ()
    #: When they started cannot be read: they are left alone.
    undated: tuple[ForeignRow, ...] = ()


def find_orphans(
    path: str,
    *,
    now: Millis,
    threshold_min: int,
    store_uuid: str,
    busy: Mapping[str, Millis],
    deadline: Deadline | None = None,
) -> ForeignRuns:
    """Look, read-only, at the rows that say ``running`` and are no mirror of a run of ours.

    `busy`: since when a run of ours keeps a droid busy, by its name (`busy_droids`). Raises what
    `store.ledger.opened` raises.
    """
    with opened(path, deadline or Deadline(DEADLINE_MS), read_only=True) as ledger:
        rows = [row for row in ledger.running() if not _is_ours(row, store_uuid)]
    orphans, young, undated = [], [], []
    for row in rows:
        started = instant(row.started_at)
        if started is None:
            undated.append(row)
        elif _belongs_to(row, started, busy):
            continue
        elif now - started <= threshold_min * 60_000:
            young.append(row)
        elif not _has_live_process(row):
            orphans.append(row)
    return ForeignRuns(orphans=tuple(orphans), young=tuple(young), undated=tuple(undated))


def busy_droids(tx: ReadTx) -> dict[str, Millis]:
    """Since when the runs that hold a slot keep a droid busy, by the droid's name."""
    occupying = [run for run in tx.live_runs() if run.status in OCCUPYING]
    jobs = tx.jobs_named({run.job_id for run in occupying})
    busy: dict[str, Millis] = {}
    for run in occupying:
        name = droid_name(run.job_id, jobs.get(run.job_id))
        claimed = run.slot_claimed_at or run.queued_at
        busy[name] = min(claimed, busy.get(name, claimed))
    return busy


def _is_ours(row: ForeignRow, store_uuid: str) -> bool:
    return (plain(row.event_id) or "").startswith(f"{store_uuid}:")


def _belongs_to(row: ForeignRow, started: Millis, busy: Mapping[str, Millis]) -> bool:
    """Whether a droid that a run of ours keeps busy wrote the row itself: it lives as long as the run."""
    since = busy.get(plain(row.droid_name) or "")
    return since is not None and started >= since - _EARLY_MS


def _has_live_process(row: ForeignRow) -> bool:
    pid, pid_start = whole(row.pid), whole(row.pid_start)
    if pid is None or not 0 < pid < 2**31:
        return False
    process = owner.look(pid)
    if process is None:
        return _is_hidden(pid)
    return not process.has_ended and pid_start in (None, process.start)


def _is_hidden(pid: int) -> bool:
    """/proc may hide the processes of others; the kernel says "no such process" only of the dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- the sweep ---------------------------------------------------------------------------------------------


def sweep_orphans(session: Session, planner_db: str, *, threshold_min: int, dry_run: bool) -> list[int]:
    """End the orphans, for at most `DEADLINE_MS`; their ids. Whatever is in the way is warned about.

    Nothing is swept while everything is paused; a dry run looks, and writes nothing.
    """
    with session.store.read() as tx:
        if finish.globally_paused(tx, session.now):
            return []
        store_uuid, busy = tx.store_uuid(), busy_droids(tx)
    deadline = Deadline(DEADLINE_MS)
    try:
        found = find_orphans(
            planner_db,
            now=session.now,
            threshold_min=threshold_min,
            store_uuid=store_uuid,
            busy=busy,
            deadline=deadline,
        )
        _warn_of_undated(found.undated)
        rows = found.orphans[:_BATCH]
        failpoint("ledger-looked")
        if dry_run or not rows:
            return [row.id for row in rows]
        ended = _end(planner_db, rows, session.now, tag(threshold_min), deadline)
    except CarolError as problem:
        warn(f"orphans of the ledger are left to the next tick: {problem.message}")
        return []
    failpoint("ledger-swept")
    if ended:
        _audit(session, "orphan_sweep", {"ids": ended, "threshold_min": threshold_min}, actor="carolctl")
    return ended


def tag(threshold_min: int) -> str:
    """What an orphan's result says."""
    return f"[orphan-watchdog] reaped — running >{threshold_min}min with no live process"


def _end(
    planner_db: str, rows: Sequence[ForeignRow], now: Millis, summary: str, deadline: Deadline
) -> list[int]:
    endings = [
        Ending(row=row, completed_at=moment_like(row.started_at, now), result_summary=summary) for row in rows
    ]
    with opened(planner_db, deadline) as ledger:
        written = ledger.end(endings)
    if written.refused:
        warn(
            f"droid_runs refuses the end of {_named(written.refused)}: {next(iter(written.refused.values()))}"
        )
    return written.done


def moment_like(sample: Cell, now: Millis) -> Cell:
    """`now`, to the second, spelt the way that `sample` is: epoch seconds or milliseconds, ISO 8601, or UTC text."""
    seconds = now // 1000
    match sample:
        case int() | float():
            return seconds * 1000 if abs(sample) >= 10**11 else seconds
        case str() if sample.strip().replace(".", "").isdigit():
            return str(seconds * 1000 if float(sample) >= 10**11 else seconds)
        case str() if "T" in sample:
            zone = "Z" if sample.rstrip().upper().endswith("Z") else _offset(sample)
            return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone
    return stamp(Millis(seconds * 1000))


def _offset(sample: str) -> str:
    """UTC as an offset, where `sample` has an offset."""
    return "+00:00" if any(sign in sample.partition("T")[2] for sign in "+-") else ""


def _warn_of_undated(rows: Sequence[ForeignRow]) -> None:
    if rows:
        warn(
            f"{len(rows)} running rows of droid_runs are left alone, as their started_at cannot be read:"
            f" {_named([row.id for row in rows])}"
        )


def _named(ids: Collection[int]) -> str:
    shown = ", ".join(str(one) for one in list(ids)[:_MOST_NAMED])
    return shown if len(ids) <= _MOST_NAMED else f"{shown}, ..."


def _audit(session: Session, command: str, after: dict[str, object], *, actor: str) -> None:
    entry = AuditEntry(at=session.now, actor=actor, command=command, subject="droid_runs", after=after)
    try:
        with session.store.write() as tx:
            tx.audit(entry)
    except CarolError as problem:
        warn(f"the audit log lacks an entry ({command} {after}): {problem.message}")


# -- by hand -----------------------------------------------------------------------------------------------


def reap_by_hand(
    session: Session, ledger_id: int, *, threshold_min: int, deadline_ms: int, dry_run: bool
) -> int:
    """End one foreign row whatever its age, also while everything is paused; its id.

    Raises `BadConfig` (no planner database is given), `NotFound`, `Refused` (not running, or a run of ours), or
    what `store.ledger.opened` raises.
    """
    planner_db = places.planner_db()
    if planner_db is None:
        raise BadConfig(
            "no planner database is given", hint="give --planner-db PATH, or set CAROL_PLANNER_DB"
        )
    with session.store.read() as tx:
        store_uuid = tx.store_uuid()
    deadline = Deadline(deadline_ms)
    with opened(planner_db, deadline, read_only=True) as ledger:
        row = ledger.row(ledger_id)
    row = _reapable(row, ledger_id, store_uuid)
    if dry_run:
        return ledger_id
    started = instant(row.started_at)
    is_old = started is not None and session.now - started > threshold_min * 60_000
    summary = tag(threshold_min) if is_old else "[orphan-watchdog] reaped by hand"
    if not _end(planner_db, [row], session.now, summary, deadline):
        raise Refused(f"row {ledger_id} of droid_runs could not be ended: it has changed, or refuses to")
    after = {"ids": [ledger_id], "started_at": to_document(row.started_at)}
    _audit(session, "reap", after, actor=session.actor)
    return ledger_id


def _reapable(row: ForeignRow | None, ledger_id: int, store_uuid: str) -> ForeignRow:
    if row is None:
        raise NotFound(f"droid_runs has no row {ledger_id}", hint="carolctl monitor shows what runs")
    if _is_ours(row, store_uuid):
        run = (plain(row.event_id) or "").partition(":")[2]
        raise Refused(
            f"row {ledger_id} of droid_runs is run {run} of ours", hint=f"carolctl cancel-run {run}"
        )
    if row.status != "running":
        raise Refused(f"row {ledger_id} of droid_runs is not running: {plain(row.status)}")
    return row
