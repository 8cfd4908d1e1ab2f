"""Statements on ``scheduled_jobs``. Nothing outside the store touches that table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from carolctl.model import Firing, Job, Millis
from carolctl.store.rows import JOB_COLUMNS, column_list, job_from_row, job_to_values, to_json

_SELECT = f"SELECT {column_list(JOB_COLUMNS)} FROM scheduled_jobs"  # noqa: S608 - names of ours
_SELECT_NAMED = f"{_SELECT} WHERE job_id IN (SELECT value FROM json_each(?))"  # noqa: S608
_SELECT_BREACHED = f"""
{_SELECT} WHERE max_turns_set_at IS NOT NULL AND job_id IN (
  SELECT r.job_id FROM json_each(?) AS said JOIN runs AS r ON r.run_id = said.value ->> 0
   WHERE said.value ->> 2 OR r.stop_reason = 'turn_limit_exceeded'
      OR coalesce(said.value ->> 1, r.turn_count) > r.max_turns)
"""  # noqa: S608
_INSERT = (
    f"INSERT INTO scheduled_jobs ({column_list(JOB_COLUMNS)})"  # noqa: S608
    f" VALUES ({column_list(JOB_COLUMNS, ':')})"
)


@dataclass(frozen=True, slots=True)
class DamagedJob:
    """A job whose row does not make a `Job` any more: it steps aside instead of stopping the others."""

    job_id: str
    problem: str


class JobReads:
    """What may be asked about jobs."""

    _connection: sqlite3.Connection

    def job(self, job_id: str) -> Job | None:
        """The job of that id."""
        row = self._connection.execute(f"{_SELECT} WHERE job_id = ?", (job_id,)).fetchone()
        return job_from_row(row) if row else None

    def jobs(self) -> list[Job]:
        """All jobs, by id; damaged ones are left out (see `damaged_jobs`)."""
        return _sound(self._connection.execute(f"{_SELECT} ORDER BY job_id"))[0]

    def damaged_jobs(self) -> list[DamagedJob]:
        """The jobs whose rows cannot be understood."""
        return _sound(self._connection.execute(f"{_SELECT} ORDER BY job_id"))[1]

    def jobs_named(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs of those ids, by id."""
        rows = self._connection.execute(_SELECT_NAMED, (to_json(list(job_ids)),))
        return {job.job_id: job for job in _sound(rows)[0]}

    def due_jobs(self, now: Millis, *, limit: int = 5000) -> tuple[list[Job], list[DamagedJob]]:
        """The active jobs whose wake-up has come, earliest first, and the damaged ones among them."""
        return _sound(
            self._connection.execute(
                f"{_SELECT} WHERE status = 'active' AND next_fire_at <= ?"
                " ORDER BY next_fire_at, job_id LIMIT ?",
                (now, limit),
            )
        )

    def jobs_with_watermark_after(self, instant: Millis) -> list[Job]:
        """The active jobs whose watermark lies after `instant`."""
        return _sound(
            self._connection.execute(
                f"{_SELECT} WHERE status = 'active' AND last_scheduled_for > ?", (instant,)
            )
        )[0]

    def jobs_of_breaches(self, said: Sequence[tuple[int, int | None, bool]]) -> list[Job]:
        """The jobs with a turn budget of their own whose runs went beyond it.

        `said`: run id, the turns that are reported now, and whether a breach of the budget is.
        """
        return _sound(self._connection.execute(_SELECT_BREACHED, (to_json(list(said)),)))[0]

    def job_ids_like(self, text: str, *, limit: int = 5) -> list[str]:
        """Ids that contain `text`, for the hint of a not-found error."""
        rows = self._connection.execute(
            "SELECT job_id FROM scheduled_jobs WHERE instr(lower(job_id), lower(?)) ORDER BY job_id LIMIT ?",
            (text, limit),
        )
        return [job_id for (job_id,) in rows]

    def jobs_with_handler(self, job_id: str) -> list[str]:
        """The jobs that name `job_id` as their ``on_failure``."""
        rows = self._connection.execute(
            "SELECT job_id FROM scheduled_jobs WHERE on_failure = ? ORDER BY job_id", (job_id,)
        )
        return [found for (found,) in rows]


class JobWrites(JobReads):
    """What may be done to jobs, inside a write transaction."""

    def insert_jobs(self, jobs: Iterable[Job]) -> None:
        """Add jobs; a taken id is an integrity error, so look first."""
        self._connection.executemany(_INSERT, [job_to_values(job) for job in jobs])

    def replace_job(self, before: Job, after: Job) -> bool:
        """Write what differs between the two, if the job still is as `before` in all that an edit rests on.

        Only changed columns are written: a run that ends meanwhile keeps its counters.
        """
        old, new = job_to_values(before), job_to_values(after)
        changed = [column for column in JOB_COLUMNS if old[column] != new[column]]
        if not changed:
            return True
        assignments = ", ".join(f"{column} = :{column}" for column in changed)
        guard = {f"old_{name}": old[name] for name in _GUARD}
        condition = " AND ".join(f"{name} IS :old_{name}" for name in _GUARD)
        cursor = self._connection.execute(
            f"UPDATE scheduled_jobs SET {assignments} WHERE {condition}",  # noqa: S608
            {column: new[column] for column in changed} | guard,
        )
        return cursor.rowcount == 1

    def delete_job(self, job_id: str) -> bool:
        """Remove a job; its runs stay."""
        return (
            self._connection.execute("DELETE FROM scheduled_jobs WHERE job_id = ?", (job_id,)).rowcount == 1
        )

    def advance_jobs(self, firings: Sequence[Firing], *, now: Millis) -> set[str]:
        """Move watermarks, wake-ups and counters by compare-and-swap, in one statement; the ids of those that moved.

        A job that another tick advanced, or that was edited or paused since the snapshot, stays as it is.
        """
        plan = [
            (f.job_id, f.schedule_rev, f.watermark_before, f.watermark, f.next_fire_at, f.fired, f.suppressed)
            for f in firings
        ]
        rows = self._connection.execute(
            """
            UPDATE scheduled_jobs
               SET last_scheduled_for = plan.watermark, next_fire_at = plan.next_fire_at, deferred_at = NULL,
                   firing_count = firing_count + plan.fired,
                   suppression_count = suppression_count + plan.suppressed,
                   last_fired_at = iif(plan.fired > 0, :now, last_fired_at), updated_at = :now
              FROM (SELECT value ->> 0 AS job_id, value ->> 1 AS schedule_rev, value ->> 2 AS watermark_before,
                           value ->> 3 AS watermark, value ->> 4 AS next_fire_at, value ->> 5 AS fired,
                           value ->> 6 AS suppressed
                      FROM json_each(:plan)) AS plan
             WHERE scheduled_jobs.job_id = plan.job_id AND scheduled_jobs.status = 'active'
               AND scheduled_jobs.schedule_rev = plan.schedule_rev
               AND scheduled_jobs.last_scheduled_for = plan.watermark_before
            RETURNING job_id
            """,
            {"plan": to_json(plan), "now": now},
        ).fetchall()
        return {job_id for (job_id,) in rows}

    def count_firings(self, counts: Iterable[tuple[str, int, int]], *, now: Millis) -> None:
        """Add to the counters of jobs: (job_id, fired, suppressed); negative numbers take back."""
        self._connection.executemany(
            "UPDATE scheduled_jobs SET firing_count = firing_count + ?2,"
            " suppression_count = suppression_count + ?3, last_fired_at = iif(?2 > 0, ?4, last_fired_at)"
            " WHERE job_id = ?1",
            [(*count, now) for count in counts],
        )

    def defer_jobs(self, jobs: Iterable[Job], *, now: Millis, until: Millis) -> list[str]:
        """Put the wake-up of due jobs off to `until`; watermarks stay. The ids of those put off."""
        plan = [(job.job_id, job.schedule_rev, job.last_scheduled_for) for job in jobs]
        rows = self._connection.execute(
            """
            UPDATE scheduled_jobs
               SET next_fire_at = :until, deferred_at = coalesce(deferred_at, :now), updated_at = :now
              FROM (SELECT value ->> 0 AS job_id, value ->> 1 AS schedule_rev, value ->> 2 AS watermark
                      FROM json_each(:plan)) AS plan
             WHERE scheduled_jobs.job_id = plan.job_id AND scheduled_jobs.status = 'active'
               AND scheduled_jobs.schedule_rev = plan.schedule_rev
               AND scheduled_jobs.last_scheduled_for = plan.watermark
            RETURNING job_id
            """,
            {"plan": to_json(plan), "now": now, "until": until},
        ).fetchall()
        return sorted(job_id for (job_id,) in rows)

    def pause_damaged_job(self, job_id: str, reason: str, *, now: Millis) -> bool:
        """Set a job aside whose row cannot be used; it keeps everything else."""
        cursor = self._connection.execute(
            "UPDATE scheduled_jobs SET status = 'paused', paused_reason = ?, updated_at = ?"
            " WHERE job_id = ? AND status = 'active'",
            (reason, now, job_id),
        )
        return cursor.rowcount == 1

    def set_job_columns(self, job_id: str, values: dict[str, Any]) -> None:
        """Write what a settled run changes on its job: streaks, last-run state, a pause."""
        assert set(values) <= _SETTLED, values
        assignments = ", ".join(f"{column} = :{column}" for column in values)
        self._connection.execute(
            f"UPDATE scheduled_jobs SET {assignments} WHERE job_id = :job_id",  # noqa: S608
            values | {"job_id": job_id},
        )


#: What an edit rests on: whoever changed one of these since the snapshot has won.
_GUARD = ("job_id", "schedule_rev", "status", "last_scheduled_for", "schedule_expr", "timezone", "action")

_SETTLED = {
    "breaches_before_success",
    "last_run_id", "last_status", "last_failure_reason", "failure_streak", "turn_budget_breach_streak",
    "lease_drift_streak", "last_turn_count", "avg_turns_per_firing", "status", "paused_reason", "updated_at",
}  # fmt: skip


def _sound(rows: Iterable[Sequence[Any]]) -> tuple[list[Job], list[DamagedJob]]:
    jobs, damaged = [], []
    for row in list(rows):
        try:
            jobs.append(job_from_row(row))
        except (ValueError, KeyError, TypeError) as problem:
            damaged.append(
                DamagedJob(row[JOB_COLUMNS.index("job_id")], f"{type(problem).__name__}: {problem}")
            )
    return jobs, damaged
