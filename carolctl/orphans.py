"""Rows of the legacy ledger that say ``running`` and are none of ours: which are orphans, and their end.

Incident: an agent died mid-run, its row 924 of ``droid_runs`` stayed ``running`` for 25 hours, and a monitor
showed it as live. Decision: a foreign row that is older than a threshold and that no known process stands behind
becomes ``failed``, by an update that is guarded by what was looked at. Consequence: the ledger never shows the
dead for longer than the threshold; what cannot be dated is left alone, and said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from carolctl import finish, places
from carolctl.errors import BadConfig, CarolError, NotFound, Refused
from carolctl.failpoints import failpoint
from carolctl.launch import owner
from carolctl.ledger import droid_name
from carolctl.legacy_cells import Cell, instant, plain, stamp, to_document, whole
from carolctl.model import OCCUPYING, Millis
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.store.ledger import Deadline, Ending, ForeignRow, opened
from carolctl.store.records import AuditEntry
from carolctl.store.tx import ReadTx

#: What a look, or a sweep, may take in all.
DEADLINE_MS = 1500
_MOST_AT_ONCE = 500
_EARLY_MS = 60_000
_MOST_NAMED = 8


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
        return owner.exists(pid)
    return not process.has_ended and pid_start in (None, process.start)


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
        rows = found.orphans[:_MOST_AT_ONCE]
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
