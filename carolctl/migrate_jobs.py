"""migrate-jobs: the legacy job table becomes jobs of ours, all of it or nothing, with a proof of equality.

Everything is read, mapped and planned before the lock is taken. Inside the one write transaction the rows are
written, read back, mapped back to source columns and compared by checksum over (type, value) of every cell; a
difference rolls it all back. A job of the same id that differs, or that was removed here since, is a conflict and
stays as it is: only ``overwrite`` gives the source the last word.

What counts as a difference. The definition: what runs, when, and under which rules. Not the traces of running
(last run, counters, streaks, the watermark) and not pause and resume, for those change by themselves. In the
checksum of a row that was migrated earlier, a column of that sort is left out once it has moved on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from carolctl import policy
from carolctl.errors import BadData, StoreBusy, UsageError
from carolctl.job_plans import times_of
from carolctl.job_values import JOB_ID
from carolctl.legacy import Imported, mark_of, to_job, to_source
from carolctl.legacy_cells import Cell, Row, checksum, plain, row_digest, typed
from carolctl.legacy_columns import MOVING, RUN_STATE, Layout, layout_of
from carolctl.migration_report import SHOWN, Conflict, Report
from carolctl.model import CommandAction, Firing, Job, Millis, SkipReason, SlotRow
from carolctl.session import Session
from carolctl.store.legacy import Shape
from carolctl.store.records import AuditEntry
from carolctl.store.tx import ReadTx, WriteTx

DEFINITION = (
    "project", "description", "schedule_kind", "schedule_expr", "timezone", "dst_rule", "spread_sec", "action",
    "priority", "overlap", "catch_up", "misfire_grace_sec", "max_run_duration_sec", "max_turns", "max_attempts",
    "idempotent", "may_schedule", "agent_profile", "on_failure",
)  # fmt: skip
"""What a person decides about a job; pause and resume are operation."""

_TRACES = (
    "last_fired_at", "last_run_id", "last_status", "last_failure_reason", "firing_count", "suppression_count",
    "failure_streak", "turn_budget_breach_streak", "lease_drift_streak", "last_turn_count",
    "avg_turns_per_firing", "breaches_before_success",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for."""

    #: Target column to source column.
    mapping: Mapping[str, str] = field(default_factory=dict)
    #: Source id to job id.
    rename: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    dry_run: bool = False


# -- the migration ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A legacy table that can be migrated: its columns are matched, and each row has its job id."""

    shape: Shape
    layout: Layout
    rows: Sequence[Row]
    job_ids: Sequence[str]


def source_of(shape: Shape, rows: Sequence[Row], request: Request) -> Source:
    """Match the columns and name the jobs, before a job store is made.

    Raises `BadData` for a missing column and for ids that cannot be used, `UsageError` for a wrong request.
    """
    layout = layout_of(shape.table, shape.columns, request.mapping)
    column = layout.source_of("job_id")
    assert column is not None
    job_ids = _job_ids([row[column] for row in rows], request.rename)
    return Source(shape=shape, layout=layout, rows=rows, job_ids=job_ids)


def migrate(session: Session, source: Source, request: Request) -> Report:
    """Bring the rows of a legacy table into the job store; see the module's docstring.

    Raises `BadData` when the proof fails, and `StoreBusy` when somebody changed one of the jobs meanwhile;
    nothing is written then.
    """
    imported = [
        to_job(row, source.layout, job_id=job_id, now=session.now)
        for row, job_id in zip(source.rows, source.job_ids, strict=True)
    ]
    with session.store.read() as tx:
        plan = _plan(tx, source.layout, imported, request, session.now)
        if not plan.written:
            return _proved(tx, plan, source.layout, request)
    with session.store.write(dry_run=request.dry_run) as tx:
        _apply(tx, plan, session.now)
        report = _proved(tx, plan, source.layout, request)
        if plan.written:
            _record(tx, plan, source.shape, report, session)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How a legacy table and the jobs brought over from it stand to each other, by job id."""

    left_behind: list[str]
    conflicts: list[Conflict]


def differences(tx: ReadTx, shape: Shape, rows: Sequence[Row], *, now: Millis) -> Differences:
    """Compare as a migration would, with the columns and ids that the last one was told; nothing is written.

    Raises what `source_of` raises.
    """
    known = json.loads(tx.meta(meta_key(shape.table)) or "{}").get("columns", {})
    mapping = {target: source for source, target in known.items() if target}
    column = mapping.get("job_id", "job_id")
    given = {plain(to_source(job).get(column)): job.job_id for job in tx.jobs() if mark_of(job)}
    there = {plain(row.get(column)) for row in rows}
    rename = {old: new for old, new in given.items() if old is not None and old in there and old != new}
    source = source_of(shape, rows, Request(mapping=mapping, rename=rename))
    pairs = zip(source.rows, source.job_ids, strict=True)
    imported = [to_job(row, source.layout, job_id=job_id, now=now) for row, job_id in pairs]
    plan = _plan(tx, source.layout, imported, Request(), now)
    return Differences(left_behind=[item.job.job_id for item in plan.new], conflicts=plan.conflicts)


def _job_ids(cells: Sequence[Cell], rename: Mapping[str, str]) -> list[str]:
    """The job id of each row. Raises `BadData` naming those that cannot be one or that occur twice."""
    there = [None if cell is None else plain(cell) for cell in cells]
    unknown = sorted(set(rename) - {name for name in there if name is not None})
    if unknown:
        raise UsageError(f"no row has the id {unknown[0]!r}", field="--rename")
    named = ["" if name is None else rename.get(name, name) for name in there]
    bad = [name for name, job_id in zip(there, named, strict=True) if not JOB_ID.fullmatch(job_id)]
    if bad:
        shown = ", ".join("NULL or a BLOB" if name is None else repr(name[:80]) for name in bad[:SHOWN])
        raise BadData(
            f"{len(bad)} ids cannot be job ids: {shown}",
            hint="give each a new one with --rename OLD=NEW (letters, digits, . _ -; at most 64); a NULL must be"
            " mended in the source; nothing was written",
        )
    twice = sorted(job_id for job_id, times in Counter(named).items() if times > 1)
    if twice:
        raise BadData(
            f"ids that occur more than once: {', '.join(twice[:SHOWN])}",
            hint="give them different ones with --rename OLD=NEW; nothing was written",
        )
    return named


@dataclass(frozen=True, slots=True)
class _Replacement:
    """A conflict that the source wins: the job as it is, as it will be, and the slots that fall out."""

    before: Job
    after: Imported
    firing: Firing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to do with each row."""

    source_rows: int
    new: list[Imported]
    unchanged: list[Imported]
    replaced: list[_Replacement]
    #: Damaged jobs that make room for the source's.
    discarded: list[str]
    conflicts: list[Conflict]
    gone_there: list[str]

    @property
    def written(self) -> int:
        return len(self.new) + len(self.replaced)

    def settled(self) -> list[Imported]:
        """Every row that is here when it is done, and that the proof is about."""
        return [*self.new, *(replacement.after for replacement in self.replaced), *self.unchanged]


def _plan(tx: ReadTx, layout: Layout, imported: Sequence[Imported], request: Request, now: Millis) -> _Plan:
    here = {job.job_id: job for job in tx.jobs()}
    damaged = {job.job_id for job in tx.damaged_jobs()}
    migrated_before = set(json.loads(tx.meta(meta_key(layout.table)) or "{}").get("jobs", ()))
    ids = {item.job.job_id for item in imported}
    plan = _Plan(
        source_rows=len(imported), new=[], unchanged=[], replaced=[], discarded=[], conflicts=[],
        gone_there=sorted(_from_table(here.values(), layout.table) - ids),
    )  # fmt: skip
    for item in imported:
        job = here.get(item.job.job_id)
        conflict = _conflict(item, job, layout, damaged, migrated_before)
        if conflict and not request.overwrite:
            plan.conflicts.append(conflict)
        elif conflict and job:
            plan.replaced.append(_replacement(job, item, now))
        elif job:
            plan.unchanged.append(item)
        else:
            plan.new.append(item)
            plan.discarded.extend({item.job.job_id} & damaged)
    return plan


def _from_table(jobs: Iterable[Job], table: str) -> set[str]:
    return {job.job_id for job in jobs if (mark_of(job) or {}).get("table") == table}


def _conflict(
    item: Imported, job: Job | None, layout: Layout, damaged: set[str], migrated_before: set[str]
) -> Conflict | None:
    job_id = item.job.job_id
    if job is None:
        if job_id in damaged:
            return Conflict(job_id, "damaged_here", ())
        return Conflict(job_id, "removed_here", ()) if job_id in migrated_before else None
    differing = tuple(name for name in DEFINITION if getattr(job, name) != getattr(item.job, name))
    mark = mark_of(job)
    if mark is None:
        return Conflict(job_id, "made_here", differing)
    if mark["definition"] != layout.definition(item.row):
        return Conflict(job_id, "changed_there", _changed_columns(job, item.row, layout))
    return Conflict(job_id, "changed_here", differing) if differing else None


def _changed_columns(job: Job, row: Row, layout: Layout) -> tuple[str, ...]:
    back = to_source(job)
    return tuple(
        name
        for name, target in layout.columns.items()
        if target not in RUN_STATE and typed(back.get(name)) != typed(row.get(name))
    )


def _replacement(before: Job, item: Imported, now: Millis) -> _Replacement:
    """As an edit: a new revision from now on; the slots up to now are written down as skipped; traces stay."""
    traces = {name: getattr(before, name) for name in _TRACES}
    after = replace(item.job, **traces, schedule_rev=before.schedule_rev + 1, updated_at=now)
    firing = Firing(
        job_id=before.job_id,
        schedule_rev=before.schedule_rev,
        watermark_before=before.last_scheduled_for,
        watermark=now,
        next_fire_at=after.next_fire_at,
        rows=tuple(_elapsed(before, now)),
    )
    return _Replacement(before, replace(item, job=after), firing)


def _elapsed(job: Job, now: Millis) -> list[SlotRow]:
    times, why = times_of(job), "edited" if job.status == "active" else "paused"
    return policy.skip_elapsed(job, times, now=now, reason=cast(SkipReason, why)) if times else []


# -- under the lock: rows and comparisons only ----


def _apply(tx: WriteTx, plan: _Plan, now: Millis) -> None:
    for job_id in plan.discarded:
        tx.delete_job(job_id)
    new = [item.job for item in plan.new]
    if tx.jobs_named(job.job_id for job in new):
        raise _moved("somebody added one of the jobs meanwhile")
    tx.insert_jobs(new)
    tx.insert_slot_rows([r.firing for r in plan.replaced], now=now, max_turns={})
    for replacement in plan.replaced:
        if not tx.replace_job(replacement.before, replacement.after.job):
            raise _moved(f"{replacement.before.job_id} was changed meanwhile")


def _moved(what: str) -> StoreBusy:
    return StoreBusy(what, hint="run it again; nothing was written")


def _proved(tx: ReadTx, plan: _Plan, layout: Layout, request: Request) -> Report:
    """Read back, map back, compare; `BadData` when a single cell differs."""
    settled = plan.settled()
    stored = tx.jobs_named(item.job.job_id for item in settled)
    fresh = {item.job.job_id for item in plan.new}
    source, target = [], []
    for item in settled:
        job_id = item.job.job_id
        back = to_source(stored[job_id]) if job_id in stored else {}
        columns = _covered(item.row, back, layout, whole=job_id in fresh)
        source.append(row_digest(item.row, columns))
        target.append(row_digest(back, columns) if back else "missing")
    _refuse_difference(settled, source, target)
    return _report(plan, stored, layout, request, checksum(source), checksum(target))


def _covered(row: Row, back: Row, layout: Layout, *, whole: bool) -> list[str]:
    """The columns to compare: all of a row just written; of an earlier one, not those that moved on since."""
    return [
        name
        for name, target in layout.columns.items()
        if whole or target not in MOVING or typed(row.get(name)) == typed(back.get(name))
    ]


def _refuse_difference(settled: Sequence[Imported], source: Sequence[str], target: Sequence[str]) -> None:
    pairs = zip(settled, source, target, strict=True)
    differing = [item.job.job_id for item, there, here in pairs if there != here]
    if differing:
        raise BadData(
            f"the proof failed: {', '.join(differing[:SHOWN])} would not give the source row back",
            hint="everything was rolled back; please report it",
            source_checksum=checksum(source),
            target_checksum=checksum(target),
        )


def _report(
    plan: _Plan, stored: Mapping[str, Job], layout: Layout, request: Request, there: str, here: str
) -> Report:
    written = {item.job.job_id for item in plan.settled()[: plan.written]}
    still_paused = {
        item.job.job_id: item.problem
        for item in plan.settled()
        if item.problem and stored[item.job.job_id].paused_reason == item.problem
    }
    return Report(
        layout=layout,
        source_rows=plan.source_rows,
        migrated=plan.written,
        unchanged=len(plan.unchanged),
        overwritten=tuple(r.before.job_id for r in plan.replaced),
        conflicts=tuple(plan.conflicts),
        paused=still_paused,
        shell_commands=tuple(
            job_id
            for job_id in sorted(written)
            if isinstance(stored[job_id].action, CommandAction) and job_id not in still_paused
        ),
        already_past=tuple(job_id for job_id in sorted(written) if _is_past(stored[job_id])),
        gone_there=tuple(plan.gone_there),
        source_checksum=there,
        target_checksum=here,
        dry_run=request.dry_run,
    )


def _is_past(job: Job) -> bool:
    return job.schedule_kind == "at" and job.status == "active" and job.next_fire_at is None


def _record(tx: WriteTx, plan: _Plan, shape: Shape, report: Report, session: Session) -> None:
    """Remember the table's shape for the way back, which jobs came from it, and who did it."""
    key = meta_key(shape.table)
    before = json.loads(tx.meta(key) or "{}").get("jobs", [])
    jobs = sorted({*before, *(item.job.job_id for item in plan.settled())})
    known = {"shape": asdict(shape), "columns": report.layout.columns, "jobs": jobs}
    tx.set_meta(key, json.dumps(known))
    summary = report.document()
    counts = {name: summary[name] for name in ("source_rows", "migrated", "unchanged", "conflicts")}
    after = counts | {"overwritten": summary["overwritten"], "checksum": report.target_checksum}
    tx.audit(
        AuditEntry(
            at=session.now, actor=session.actor, command="migrate-jobs", subject=shape.table, after=after
        )
    )


def meta_key(table: str) -> str:
    """Where the store's meta remembers a legacy table: its shape, its mapping, the jobs that came from it."""
    return f"legacy:{table.lower()}"
