"""Statements on ``runs``: the claim, and compare-and-swap for every later step of a run's life.

Incident: five schedules fired at once, used 12,600 agent turns and starved the chat. Decision: one global cap,
held by one SQL statement whose WHERE counts the live rows; occupancy is never kept in a counter, and every
claim carries a number that start, finish and reap must name. Consequence: two claimers cannot both win, a crash
leaks no slot, and a zombie changes no row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from carolctl.model import Action, Claimed, Firing, Millis, Outcome, Run, RunSource, StopReason
from carolctl.store.rows import RUN_COLUMNS, action_from_text, column_list, run_from_row, to_json

_COLUMNS = column_list(RUN_COLUMNS, "runs.")
_SELECT = f"SELECT {_COLUMNS} FROM runs"  # noqa: S608 - names of ours
_SELECT_BY_ID = f"{_SELECT} WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id"  # noqa: S608

# What is live is written out in the very words of the index ``runs_live``, redundant as it looks: SQLite uses a
# partial index only where it sees its condition, and would read every run that ever was, under the lock.
_CLAIM = f"""
WITH occupied AS (
  SELECT count(*) AS slots FROM runs WHERE completed_at IS NULL AND status <> 'queued'
), candidate AS (
  SELECT q.run_id, coalesce(j.max_run_duration_sec, :lease_sec) * 1000 AS lease_ms
    FROM runs AS q JOIN scheduled_jobs AS j ON j.job_id = q.job_id
   WHERE (SELECT slots FROM occupied) < :cap
     AND q.status = 'queued' AND q.completed_at IS NULL
     AND (q.not_before IS NULL OR q.not_before <= :now)
     AND (q.source <> 'scheduled' OR j.status = 'active')
     AND (q.attempt = 1 OR j.next_fire_at IS NULL OR j.next_fire_at > :now)
     AND (:only IS NULL OR q.run_id = :only)
     AND (j.overlap = 'allow' OR NOT EXISTS (
           SELECT 1 FROM runs AS l
            WHERE l.job_id = q.job_id AND l.completed_at IS NULL
              AND (l.status <> 'queued'
                   OR (:only IS NULL AND (l.queued_at, l.run_id) < (q.queued_at, q.run_id)
                       AND (l.not_before IS NULL OR l.not_before <= :now)
                       AND (l.source <> 'scheduled' OR j.status = 'active')))))
   ORDER BY j.priority DESC, q.queued_at, q.run_id
   LIMIT :cap - (SELECT slots FROM occupied)
)
UPDATE runs
   SET status = 'claimed', claim_no = claim_no + 1, launches = 1, slot_claimed_at = :now,
       claimed_boottime_ms = :boottime_ms, lease_expires_at = :now + candidate.lease_ms, started_at = NULL,
       host = :host, boot_id = :boot_id, unit = NULL, pid = NULL, pid_start = NULL, stop_reason = NULL,
       stop_requested_at = NULL, turn_count = NULL, failure_reason = NULL
  FROM candidate
 WHERE runs.run_id = candidate.run_id AND runs.status = 'queued'
RETURNING {column_list(RUN_COLUMNS)}
"""  # noqa: S608


#: A version is drawn, not counted: a mark that was deleted and set again must not look like the one that a
#: publisher has read, and a counter on the row would begin anew with the row.
_MARK = """
INSERT OR REPLACE INTO ledger_outbox (run_id, version)
SELECT :run_id, random() & 0x3FFFFFFFFFFFFFFF
 WHERE :mirrored OR EXISTS (SELECT 1 FROM meta WHERE key = 'ledger' AND value = 'on')
"""
_MARK_RUNNING = """
INSERT OR REPLACE INTO ledger_outbox (run_id, version)
SELECT run_id, random() & 0x3FFFFFFFFFFFFFFF FROM runs
 WHERE completed_at IS NULL AND status = 'running'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """Who claims, and when: written on the row, so that later anyone can prove the owner dead."""

    now: Millis
    boottime_ms: int | None
    host: str
    boot_id: str
    lease_sec: int

    def parameters(self) -> dict[str, Any]:
        """The named parameters of the statements that claim."""
        return {
            "now": self.now,
            "boottime_ms": self.boottime_ms,
            "host": self.host,
            "boot_id": self.boot_id,
            "lease_sec": self.lease_sec,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list, newest first."""

    job_id: str | None = None
    statuses: tuple[str, ...] = ()
    source: str | None = None
    since: Millis | None = None
    limit: int | None = 50


class RunReads:
    """What may be asked about runs."""

    _connection: sqlite3.Connection

    def run(self, run_id: int) -> Run | None:
        """The run of that id."""
        row = self._connection.execute(f"{_SELECT} WHERE run_id = ?", (run_id,)).fetchone()
        return run_from_row(row) if row else None

    def runs_by_id(self, run_ids: Sequence[int]) -> list[Run]:
        """The runs of those ids, oldest first."""
        rows = self._connection.execute(_SELECT_BY_ID, (to_json(list(run_ids)),))
        return [run_from_row(row) for row in rows.fetchall()]

    def runs(self, wanted: RunFilter) -> list[Run]:
        """The runs that `wanted` describes, newest first."""
        conditions = {
            "job_id = :job_id": wanted.job_id,
            "source = :source": wanted.source,
            "queued_at >= :since": wanted.since,
            "status IN (SELECT value FROM json_each(:statuses))": wanted.statuses or None,
        }
        chosen = [condition for condition, value in conditions.items() if value is not None]
        where = f" WHERE {' AND '.join(chosen)}" if chosen else ""
        rows = self._connection.execute(
            f"{_SELECT}{where} ORDER BY run_id DESC LIMIT :limit",
            {
                "job_id": wanted.job_id,
                "source": wanted.source,
                "since": wanted.since,
                "statuses": to_json(list(wanted.statuses)),
                "limit": -1 if wanted.limit is None else wanted.limit,
            },
        )
        return [run_from_row(row) for row in rows.fetchall()]

    def live_runs(self) -> list[Run]:
        """Every queued, claimed or running run, oldest first."""
        rows = self._connection.execute(f"{_SELECT} WHERE completed_at IS NULL ORDER BY run_id")
        return [run_from_row(row) for row in rows.fetchall()]

    def live_runs_of(self, job_id: str) -> list[Run]:
        """The live runs of one job, oldest first."""
        # The plus sign keeps SQLite from walking through all the runs that the job ever had, for their order.
        rows = self._connection.execute(
            f"{_SELECT} WHERE completed_at IS NULL AND job_id = ? ORDER BY +run_id",
            (job_id,),
        )
        return [run_from_row(row) for row in rows.fetchall()]

    def event_run(self, job_id: str, event_id: str, trigger_kind: str) -> int:
        """The id of the run of that job for that event; 0 when there is none."""
        row = self._connection.execute(
            "SELECT run_id FROM runs WHERE job_id = ? AND event_id = ? AND trigger_kind = ?",
            (job_id, event_id, trigger_kind),
        ).fetchone()
        return int(row[0]) if row else 0

    def slots_beyond(
        self, watermarks: Iterable[tuple[str, Millis]], *, until: Millis
    ) -> dict[str, frozenset[Millis]]:
        """By job: the slots up to `until` that have a row although they lie beyond the watermark; most have none."""
        rows = self._connection.execute(
            "SELECT r.job_id, r.scheduled_for FROM json_each(:jobs) AS due CROSS JOIN runs AS r"
            " WHERE r.source = 'scheduled' AND r.job_id = due.value ->> 0"
            "   AND r.scheduled_for > due.value ->> 1 AND r.scheduled_for <= :until",
            {"jobs": to_json(list(watermarks)), "until": until},
        )
        found: dict[str, set[Millis]] = {}
        for job_id, slot in rows.fetchall():
            found.setdefault(job_id, set()).add(Millis(slot))
        return {job_id: frozenset(slots) for job_id, slots in found.items()}

    def count_live(self) -> tuple[int, int]:
        """How many runs are queued, and how many hold a slot."""
        row = self._connection.execute(
            "SELECT coalesce(sum(status = 'queued'), 0), coalesce(sum(status <> 'queued'), 0) FROM runs"
            " WHERE completed_at IS NULL"
        ).fetchone()
        return row[0], row[1]

    def ledger_is_mirrored(self) -> bool:
        """Whether every change of a run leaves a dirty mark, whoever makes it: see `mirror_runs`."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = 'ledger'").fetchone()
        return bool(row == ("on",))

    def ledger_marks(self, *, after: int = 0, limit: int = 500) -> list[tuple[int, int]]:
        """The first dirty marks of runs beyond the id `after`: (run_id, version), by run id."""
        rows = self._connection.execute(
            "SELECT run_id, version FROM ledger_outbox WHERE run_id > ? ORDER BY run_id LIMIT ?",
            (after, limit),
        )
        return rows.fetchall()


class RunWrites(RunReads):
    """What may be done to runs, inside a write transaction.

    What the legacy ledger shows of a run changes in five verbs, and each leaves the dirty mark in the same
    transaction: `start_all`, `end_run`, `requeue_run`, `end_retry` and `cancel_queued`.
    """

    #: Whether this process mirrors runs, whatever the store says.
    _mirrored = False

    def insert_slot_rows(
        self, firings: Sequence[Firing], *, now: Millis, max_turns: dict[str, int | None]
    ) -> list[tuple[int, str, str, int]]:
        """Write the rows of the firings in one statement; of those that are new (run_id, job_id, status, suppressed).

        A slot that already has its row is left alone: one firing per slot.
        """
        plan = [
            (
                firing.job_id,
                row.scheduled_for,
                row.slots_from,
                row.coalesced,
                firing.schedule_rev,
                row.skip_reason,
                max_turns.get(firing.job_id),
            )
            for firing in firings
            for row in firing.rows
        ]
        rows: list[tuple[int, str, str, int]] = self._connection.execute(
            """
            INSERT INTO runs (job_id, source, scheduled_for, slots_from, coalesced, schedule_rev, status,
                              skip_reason, queued_at, completed_at, max_turns)
            SELECT value ->> 0, 'scheduled', value ->> 1, value ->> 2, value ->> 3, value ->> 4,
                   iif(value ->> 5 IS NULL, 'queued', 'skipped'), value ->> 5, :now,
                   iif(value ->> 5 IS NULL, NULL, :now), value ->> 6
              FROM json_each(:plan) WHERE true
            ON CONFLICT (job_id, scheduled_for) WHERE source = 'scheduled' DO NOTHING
            RETURNING run_id, job_id, status, iif(skip_reason = 'overlap', coalesced, 0)
            """,
            {"plan": to_json(plan), "now": now},
        ).fetchall()
        return sorted(rows)

    def insert_run(
        self,
        job_id: str,
        *,
        source: RunSource,
        now: Millis,
        max_turns: int | None = None,
        forced: bool = False,
        requester: str | None = None,
        event_id: str | None = None,
        trigger_kind: str | None = None,
    ) -> int | None:
        """Queue a manual or event run; None when that event already has its run for that job."""
        row = self._connection.execute(
            """
            INSERT INTO runs (job_id, source, status, queued_at, max_turns, forced, requester, event_id,
                              trigger_kind)
            VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?)
            ON CONFLICT (job_id, event_id, trigger_kind) WHERE event_id IS NOT NULL DO NOTHING
            RETURNING run_id
            """,
            (job_id, source, now, max_turns, int(forced), requester, event_id, trigger_kind),
        ).fetchone()
        return row[0] if row else None

    def claim(self, claimant: Claimant, *, cap: int, only: int | None = None) -> list[Claimed]:
        """Give free slots to queued runs, by priority, then age; `only` restricts it to one run.

        A job holds one slot at a time unless its overlap is ``allow``.
        """
        rows = self._connection.execute(_CLAIM, claimant.parameters() | {"cap": cap, "only": only}).fetchall()
        return self._with_actions(sorted((run_from_row(row) for row in rows), key=lambda run: run.run_id))

    def reclaim(self, runs: Sequence[Run], claimant: Claimant) -> list[Claimed]:
        """Launch again what was claimed and never started, under the next claim number; the slot stays held."""
        if not runs:
            return []
        plan = [(run.run_id, run.claim_no) for run in runs]
        rows = self._connection.execute(
            f"""
            UPDATE runs
               SET claim_no = runs.claim_no + 1, launches = launches + 1, slot_claimed_at = :now,
                   claimed_boottime_ms = :boottime_ms, host = :host, boot_id = :boot_id,
                   lease_expires_at = :now + coalesce((SELECT max_run_duration_sec FROM scheduled_jobs AS j
                                                        WHERE j.job_id = runs.job_id), :lease_sec) * 1000
              FROM (SELECT value ->> 0 AS run_id, value ->> 1 AS claim_no FROM json_each(:plan)) AS plan
             WHERE runs.run_id = plan.run_id AND runs.claim_no = plan.claim_no AND runs.status = 'claimed'
            RETURNING {column_list(RUN_COLUMNS)}
            """,  # noqa: S608
            claimant.parameters() | {"plan": to_json(plan)},
        ).fetchall()
        return self._with_actions(sorted((run_from_row(row) for row in rows), key=lambda run: run.run_id))

    def hand_back(self, runs: Sequence[Run]) -> None:
        """Claimed to queued, in the transaction that claimed them: as if they had not been."""
        self._connection.execute(
            """
            UPDATE runs
               SET status = 'queued', launches = 0, slot_claimed_at = NULL, claimed_boottime_ms = NULL,
                   lease_expires_at = NULL, host = NULL, boot_id = NULL
              FROM (SELECT value ->> 0 AS run_id, value ->> 1 AS claim_no FROM json_each(:plan)) AS plan
             WHERE runs.run_id = plan.run_id AND runs.claim_no = plan.claim_no AND runs.status = 'claimed'
            """,
            {"plan": to_json([(run.run_id, run.claim_no) for run in runs])},
        )

    def start(
        self,
        run_id: int,
        claim_no: int,
        *,
        now: Millis,
        pid: int | None,
        pid_start: int | None,
        unit: str | None,
    ) -> Claimed | None:
        """Claimed to running, for the holder of `claim_no` only; None: you are stale, run nothing."""
        started = self.start_all([(run_id, claim_no)], now=now, pid=pid, pid_start=pid_start, unit=unit)
        return started[0] if started else None

    def start_all(
        self,
        claims: Sequence[tuple[int, int]],
        *,
        now: Millis,
        pid: int | None,
        pid_start: int | None,
        unit: str | None,
    ) -> list[Claimed]:
        """The same for each of `claims` (run id, claim number) by itself; the stale ones are left out."""
        rows = self._connection.execute(
            f"""
            UPDATE runs SET status = 'running', started_at = :now, pid = :pid, pid_start = :pid_start, unit = :unit
              FROM (SELECT value ->> 0 AS run_id, value ->> 1 AS claim_no FROM json_each(:plan)) AS plan
             WHERE runs.run_id = plan.run_id AND runs.claim_no = plan.claim_no AND runs.status = 'claimed'
            RETURNING {column_list(RUN_COLUMNS)}
            """,  # noqa: S608
            {"now": now, "pid": pid, "pid_start": pid_start, "unit": unit, "plan": to_json(list(claims))},
        ).fetchall()
        started = sorted((run_from_row(row) for row in rows), key=lambda run: run.run_id)
        for run in started:
            self._mark(run.run_id)
        return self._with_actions(started)

    def accept(self, run_id: int, claim_no: int) -> bool:
        """The other side took the work on (202): from here the run lives under its lease alone."""
        cursor = self._connection.execute(
            "UPDATE runs SET unit = NULL, pid = NULL, pid_start = NULL, http_status = 202"
            " WHERE run_id = ? AND claim_no = ? AND status = 'running'",
            (run_id, claim_no),
        )
        return cursor.rowcount == 1

    def set_stop_reason(self, run_id: int, claim_no: int, reason: StopReason, *, now: Millis) -> bool:
        """Decide that a running run is to be stopped, once; its slot stays held until its owner is gone."""
        cursor = self._connection.execute(
            "UPDATE runs SET stop_reason = ?, stop_requested_at = ?"
            " WHERE run_id = ? AND claim_no = ? AND status = 'running' AND stop_reason IS NULL",
            (reason, now, run_id, claim_no),
        )
        return cursor.rowcount == 1

    def end_run(self, outcome: Outcome) -> bool:
        """Claimed or running to a terminal state, for the holder of the claim number only."""
        cursor = self._connection.execute(
            """
            UPDATE runs
               SET status = :status, failure_reason = :failure_reason, completed_at = :completed_at,
                   turn_count = coalesce(:turns, turn_count), exit_status = :exit_status,
                   http_status = :http_status, result_summary = :summary
             WHERE run_id = :run_id AND claim_no = :claim_no AND status IN ('claimed', 'running')
            """,
            _outcome_parameters(outcome),
        )
        return cursor.rowcount == 1 and self._mark(outcome.run_id)

    def requeue_run(self, outcome: Outcome, *, not_before: Millis) -> bool:
        """Claimed or running back to queued for the next attempt: same row, same idempotency key.

        The failure stays on the row until the attempt begins.
        """
        cursor = self._connection.execute(
            """
            UPDATE runs
               SET status = 'queued', attempt = attempt + 1, not_before = :not_before, launches = 0,
                   failure_reason = :failure_reason,
                   stop_reason = NULL, unit = NULL, pid = NULL, pid_start = NULL,
                   turn_count = coalesce(:turns, turn_count), exit_status = :exit_status,
                   http_status = :http_status, result_summary = :summary
             WHERE run_id = :run_id AND claim_no = :claim_no AND status IN ('claimed', 'running')
            """,
            _outcome_parameters(outcome) | {"not_before": not_before},
        )
        return cursor.rowcount == 1 and self._mark(outcome.run_id)

    def end_retry(self, run_id: int, claim_no: int, *, now: Millis) -> Run | None:
        """A run that waits for another attempt ends with the failure of the last one, if its job is due; it then."""
        row = self._connection.execute(
            f"""
            UPDATE runs
               SET status = 'failed', failure_reason = coalesce(failure_reason, 'outcome_unknown'),
                   completed_at = :now, attempt = attempt - 1, not_before = NULL,
                   result_summary = coalesce(result_summary || '; ', '')
                                    || 'not tried again: the next slot fell due'
             WHERE run_id = :run_id AND claim_no = :claim_no AND status = 'queued' AND attempt > 1
               AND EXISTS (SELECT 1 FROM scheduled_jobs AS j WHERE j.job_id = runs.job_id
                              AND j.status = 'active' AND j.next_fire_at <= :now)
            RETURNING {column_list(RUN_COLUMNS)}
            """,  # noqa: S608
            {"run_id": run_id, "claim_no": claim_no, "now": now},
        ).fetchone()
        if row is None:
            return None
        self._mark(run_id)
        return run_from_row(row)

    def overrun_after_end(self, run_id: int, turns: int, *, claim_no: int | None) -> Run | None:
        """Note for a run that had ended well that it used more turns than it may; the run, the first time only."""
        row = self._connection.execute(
            f"""
            UPDATE runs SET turn_count = :turns
             WHERE run_id = :run_id AND status = 'completed' AND max_turns < :turns
               AND coalesce(turn_count, 0) <= max_turns AND (:claim_no IS NULL OR claim_no = :claim_no)
            RETURNING {column_list(RUN_COLUMNS)}
            """,  # noqa: S608
            {"run_id": run_id, "turns": turns, "claim_no": claim_no},
        ).fetchone()
        if row is None:
            return None
        run = run_from_row(row)
        self._connection.execute(
            "UPDATE schedule_firing_metrics SET turn_count = ? WHERE run_id = ? AND attempt = ?",
            (turns, run_id, run.attempt),
        )
        self._mark(run_id)
        return run

    def cancel_queued(self, run_id: int, *, now: Millis, summary: str) -> bool:
        """Queued to cancelled."""
        cursor = self._connection.execute(
            "UPDATE runs SET status = 'cancelled', completed_at = ?, result_summary = ?, failure_reason = NULL"
            " WHERE run_id = ? AND status = 'queued'",
            (now, summary, run_id),
        )
        return cursor.rowcount == 1 and self._mark(run_id)

    def mirror_runs(self) -> None:
        """From here on every change of a run leaves a dirty mark, and what runs now has one at once."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('ledger', 'on')")
        self._connection.execute(_MARK_RUNNING)

    def clear_ledger_marks(self, marks: Sequence[tuple[int, int]]) -> int:
        """Delete the marks that still have the version that was published; how many did."""
        cursor = self._connection.execute(
            "DELETE FROM ledger_outbox WHERE (run_id, version) IN"
            " (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
            (to_json(list(marks)),),
        )
        return cursor.rowcount

    def _mark(self, run_id: int) -> bool:
        """The run is to be shown anew in the legacy ledger, where runs are mirrored at all; true."""
        self._connection.execute(_MARK, {"run_id": run_id, "mirrored": self._mirrored})
        return True

    def _with_actions(self, runs: Sequence[Run]) -> list[Claimed]:
        actions = {
            job_id: (kind, text)
            for job_id, kind, text in self._connection.execute(
                "SELECT job_id, action_kind, action FROM scheduled_jobs"
                " WHERE job_id IN (SELECT value FROM json_each(?))",
                (to_json([run.job_id for run in runs]),),
            ).fetchall()
        }
        return [Claimed(run=run, action=_action_or_none(actions.get(run.job_id))) for run in runs]


def _outcome_parameters(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _action_or_none(columns: tuple[str, str] | None) -> Action | None:
    if columns is None:
        return None
    try:
        return action_from_text(*columns)
    except (ValueError, KeyError, TypeError):
        return None
