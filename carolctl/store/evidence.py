"""Statements that look back: which row covers a slot, what was changed when, what held the slots.

Each is a range of an index, so that a job with a million runs is asked about as fast as one with a thousand.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from carolctl.model import Millis, Run
from carolctl.store.rows import RUN_COLUMNS, column_list, run_from_row, to_json

_SELECT = f"SELECT {column_list(RUN_COLUMNS)} FROM runs"  # noqa: S608 - names of ours

#: The commands that change when a job fires, or whether.
_CHANGES = ("add-job", "edit-job", "pause", "resume", "remove-job", "settle", "set_aside", "reanchored")

_PUT_OFF = (
    "FROM audit_log WHERE subject = :subject AND at BETWEEN :since AND :until"
    " AND command IN ('deferred', 'deferral_limit')"
)


class EvidenceReads:
    """What may be asked about the past."""

    _connection: sqlite3.Connection

    def slot_row(self, job_id: str, slot: Millis) -> Run | None:
        """The row of the job's scheduled firing that stands for `slot`."""
        row = self._connection.execute(
            f"{_SELECT} WHERE job_id = ? AND source = 'scheduled' AND scheduled_for >= ?"
            " ORDER BY scheduled_for LIMIT 1",
            (job_id, slot),
        ).fetchone()
        run = run_from_row(row) if row else None
        return run if run and run.slots_from is not None and run.slots_from <= slot else None

    def slot_rows(self, job_id: str, since: Millis, until: Millis) -> list[tuple[Any, ...]]:
        """Each row of the job that stands for a slot in (since, until], by the fields of `slot_faults.Row`."""
        rows = self._connection.execute(
            "SELECT run_id, slots_from, scheduled_for, coalesced,"
            " status = 'skipped' AND (claim_no > 0 OR slot_claimed_at IS NOT NULL) FROM runs"
            " WHERE job_id = ? AND source = 'scheduled' AND scheduled_for > ? AND slots_from <= ?"
            " ORDER BY scheduled_for",
            (job_id, since, until),
        )
        return rows.fetchall()

    def jobs_with_slot_rows(self, since: Millis, until: Millis) -> list[str]:
        """The jobs, present or not, of which rows stand for slots in (since, until]."""
        rows = self._connection.execute(
            "SELECT DISTINCT job_id FROM runs WHERE source = 'scheduled' AND scheduled_for > ? AND slots_from <= ?",
            (since, until),
        )
        return sorted(name for (name,) in rows.fetchall())

    def schedule_changes(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """The audit entries by which jobs, or one of them, came, went, paused or changed; oldest first."""
        return self._entries(
            "SELECT * FROM audit_log WHERE subject = :subject"
            " AND command IN (SELECT value FROM json_each(:commands)) ORDER BY audit_id"
            if job_id is not None
            else "SELECT * FROM audit_log WHERE subject IS NOT NULL"
            " AND command IN (SELECT value FROM json_each(:commands)) ORDER BY audit_id",
            {"subject": job_id, "commands": to_json(_CHANGES)},
        )

    def migrations(self) -> list[dict[str, Any]]:
        """The audit entries of imports from a legacy database; oldest first."""
        return self._entries("SELECT * FROM audit_log WHERE command = 'migrate-jobs' ORDER BY audit_id", {})

    def deferrals(
        self, job_id: str, since: Millis, until: Millis, *, limit: int = 10
    ) -> tuple[int, list[dict[str, Any]]]:
        """How often pressure put a job off in [since, until]; and the first and the last entries of it, oldest first.

        The last one may be that it no longer did.
        """
        parameters = {"subject": job_id, "since": since, "until": until, "limit": limit}
        row = self._connection.execute(f"SELECT sum(command = 'deferred') {_PUT_OFF}", parameters).fetchone()
        found = self._entries(
            f"SELECT * FROM (SELECT * {_PUT_OFF} ORDER BY at, audit_id LIMIT :limit)"  # noqa: S608
            f" UNION SELECT * FROM (SELECT * {_PUT_OFF} ORDER BY at DESC, audit_id DESC LIMIT :limit)"
            " ORDER BY audit_id",
            parameters,
        )
        return row[0] or 0, found

    def slot_row_before(self, job_id: str, slot: Millis) -> Run | None:
        """The row of the job's scheduled firing next before `slot`."""
        row = self._connection.execute(
            f"{_SELECT} WHERE job_id = ? AND source = 'scheduled' AND scheduled_for < ?"
            " ORDER BY scheduled_for DESC LIMIT 1",
            (job_id, slot),
        ).fetchone()
        return run_from_row(row) if row else None

    def attempts_of(self, run_id: int) -> list[tuple[Any, ...]]:
        """The attempts of a run, the first one first, by the fields of `slot_story.Try`."""
        rows = self._connection.execute(
            "SELECT attempt, slot_claimed_at, completed_at, duration_ms, failure_reason"
            " FROM schedule_firing_metrics WHERE run_id = ? ORDER BY attempt",
            (run_id,),
        )
        return rows.fetchall()

    def ends_of_job(self, job_id: str, since: Millis, until: Millis) -> list[tuple[Any, ...]]:
        """Each attempt of the job that ended in [since, until]: (run_id, slot_claimed_at, completed_at)."""
        rows = self._connection.execute(
            "SELECT run_id, slot_claimed_at, completed_at FROM schedule_firing_metrics"
            " WHERE job_id = ? AND completed_at BETWEEN ? AND ? AND slot_claimed_at IS NOT NULL"
            " ORDER BY completed_at",
            (job_id, since, until),
        )
        return rows.fetchall()

    def tick_gap(self, instant: Millis) -> dict[str, Any] | None:
        """The entry that says that no tick came at `instant`."""
        found = self._entries(
            "SELECT * FROM audit_log WHERE command = 'tick_gap' AND at > :instant ORDER BY at LIMIT 1",
            {"instant": instant},
        )
        return found[0] if found and (found[0]["after"] or {}).get("from", instant) < instant else None

    def released_between(self, since: Millis, until: Millis, *, limit: int = 20) -> list[Run]:
        """The runs that gave a slot back in [since, until], the last ones."""
        rows = self._connection.execute(
            f"{_SELECT} WHERE completed_at BETWEEN ? AND ? AND slot_claimed_at < ?"
            " ORDER BY completed_at DESC LIMIT ?",
            (since, until, until, limit),
        )
        return [run_from_row(row) for row in rows.fetchall()]

    def recent_metrics(self, job_id: str, *, since: Millis, limit: int) -> list[tuple[Any, ...]]:
        """The newest attempts of a job that ended since, oldest first, by the fields of `firing_stats.Attempt`."""
        rows = self._connection.execute(
            "SELECT attempt, completed_at, slot_wait_ms, duration_ms, lateness_ms, turn_count, failure_reason"
            " FROM schedule_firing_metrics WHERE job_id = ? AND completed_at >= ?"
            " ORDER BY completed_at DESC LIMIT ?",
            (job_id, since, limit),
        )
        return rows.fetchall()[::-1]

    def recent_skips(self, job_id: str, *, since: Millis, limit: int) -> dict[str, int]:
        """How many slots were skipped, by reason, in the newest rows of a job."""
        rows = self._connection.execute(
            "SELECT skip_reason, sum(coalesced) FROM"
            " (SELECT skip_reason, coalesced, queued_at FROM runs WHERE job_id = ? ORDER BY run_id DESC LIMIT ?)"
            " WHERE skip_reason IS NOT NULL AND queued_at >= ? GROUP BY skip_reason ORDER BY 2 DESC",
            (job_id, limit, since),
        )
        return dict(rows.fetchall())

    def oldest_metrics(self) -> Millis | None:
        """When the oldest attempt ended that metrics are kept of."""
        row = self._connection.execute("SELECT min(completed_at) FROM schedule_firing_metrics").fetchone()
        oldest: Millis | None = row[0]
        return oldest

    def week_of_firings(self, since: Millis, *, waited_ms: int) -> tuple[int, int, int | None, int, int]:
        """Firings, those that waited longer for whatever, p95 of all waits, most at once, strained.

        The first end among those that run at once sees all the others: the most at once is one more than it saw.
        """
        row = self._connection.execute(
            """
            SELECT coalesce(sum(attempt = 1), 0), coalesce(sum(attempt = 1 AND slot_wait_ms > :waited_ms), 0),
                   coalesce(max(concurrent_schedules) + 1, 0),
                   coalesce(sum(failure_reason = 'rate_limited' OR failure_reason = 'out_of_memory'), 0)
              FROM schedule_firing_metrics WHERE completed_at >= :since
            """,
            {"since": since, "waited_ms": waited_ms},
        ).fetchone()
        p95 = self._connection.execute(
            """
            SELECT slot_wait_ms FROM schedule_firing_metrics
             WHERE completed_at >= ?1 AND attempt = 1 AND slot_wait_ms IS NOT NULL
             ORDER BY slot_wait_ms DESC LIMIT 1 OFFSET ?2
            """,
            (since, row[0] * 5 // 100),
        ).fetchone()
        return row[0], row[1], p95[0] if p95 else None, row[2], row[3]

    def firings_put_off(self, since: Millis, *, apart_ms: int) -> int:
        """How many firings pressure put off, however often each was looked at again meanwhile.

        A look belongs to the firing that was put off before if it came when that one was to be looked at again, or
        at most `apart_ms` later, and the firing had not been let through.
        """
        row = self._connection.execute(
            """
            SELECT count(*) FROM (
              SELECT at, command, lag(after ->> 'until') OVER one AS until, lag(command) OVER one AS last
                FROM audit_log WHERE at >= :since AND command IN ('deferred', 'deferral_limit')
              WINDOW one AS (PARTITION BY subject ORDER BY at, audit_id))
             WHERE command = 'deferred' AND (last IS NOT 'deferred' OR at > until + :apart_ms)
            """,
            {"since": since, "apart_ms": apart_ms},
        ).fetchone()
        return int(row[0])

    def attempts_with_slots(self, since: Millis) -> list[tuple[Any, ...]]:
        """Each attempt that ended since, by the fields of `slot_waits.Held`."""
        rows = self._connection.execute(
            "SELECT job_id, attempt, fired_at, slot_claimed_at, completed_at FROM schedule_firing_metrics"
            " WHERE completed_at >= ? AND slot_claimed_at IS NOT NULL",
            (since,),
        )
        return rows.fetchall()

    def pauses_of_all(self, since: Millis) -> list[dict[str, Any]]:
        """The entries since by which everything was paused or resumed, oldest first, and the last one before."""
        last = self._entries(
            "SELECT * FROM audit_log WHERE at < ? AND subject IS NULL AND command IN ('pause', 'resume')"
            " ORDER BY at DESC, audit_id DESC LIMIT 1",
            (since,),
        )
        return last + self._entries(
            "SELECT * FROM audit_log WHERE at >= ? AND subject IS NULL AND command IN ('pause', 'resume')"
            " ORDER BY at, audit_id",
            (since,),
        )

    def _entries(self, statement: str, parameters: dict[str, Any] | tuple[Any, ...]) -> list[dict[str, Any]]:
        cursor = self._connection.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        return [_parsed(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def _parsed(entry: dict[str, Any]) -> dict[str, Any]:
    for name in ("before", "after"):
        try:
            entry[name] = None if entry[name] is None else json.loads(entry[name])
        except ValueError:
            entry[name] = None
    return entry
