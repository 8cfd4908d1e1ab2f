"""The mirror of our runs in the legacy run ledger, ``droid_runs`` of the planner database.

Incident: one lock on the planner database starved everybody, so jobs and runs have a store of their own; but sixteen
joins and some ten other writers use its ledger, which stays where it is. Decision: a run that changes leaves a
dirty mark in its own transaction, and a tick publishes what is marked, as one row a run under the event id
``<store uuid>:<run id>``. Consequence: the ledger is complete within a tick of the planner database being free.

Two databases, so never one transaction: the planner's is committed first, and the mark deleted after. Whoever
dies between the two publishes the same row again. All of it is bounded and none of it fatal: whatever the other
database does, a tick goes on and the marks stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from carolctl.errors import BadConfig, CarolError, StoreBusy
from carolctl.failpoints import failpoint
from carolctl.legacy_cells import Cell, from_document, is_blank, plain, stamp
from carolctl.model import Job, Millis, Run
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.store.ledger import Deadline, LedgerRow, opened

#: What publishing may take in all.
DEADLINE_MS = 1500
_BATCH = 500
_FINAL = ("completed", "failed", "cancelled")


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
    database = problem.details.get("database") if isinstance(problem, StoreBusy) else None
    if not database:
        return ""
    from carolctl.lock_child import holder_phrase

    phrase = holder_phrase(str(database))
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
