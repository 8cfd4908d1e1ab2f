"""Statements on the small tables: meta, settings, audit log, firing metrics, pressure, and pruning."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Any, Literal

from carolctl.model import Millis
from carolctl.store.rows import column_list, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the audit log; `before` and `after` are JSON documents or None."""

    at: Millis
    actor: str
    command: str
    subject: str | None = None
    before: Any = None
    after: Any = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringMetrics:
    """One row of ``schedule_firing_metrics``: one attempt of one run, durations in milliseconds."""

    run_id: int
    attempt: int
    job_id: str
    fired_at: Millis
    slot_claimed_at: Millis | None
    completed_at: Millis
    slot_wait_ms: int | None
    duration_ms: int | None
    lateness_ms: int | None
    turn_count: int | None
    max_turns_at_firing: int | None
    concurrent_schedules: int | None
    pressure_sources: str | None
    psi_cpu_avg10: float | None
    failure_reason: str | None


_METRICS_COLUMNS = tuple(field.name for field in fields(FiringMetrics))

PLAIN_HOLD = ""
"""The holder of a source that no command holds."""

#: A holder that slept with its machine finds its row again, and can tell a lease that ran out from a release.
_KEPT_AFTER_END_MS = 86_400_000

PruneTable = Literal["runs", "schedule_firing_metrics", "events", "audit_log"]

#: By table: its key, and the condition under which a row is old. The newest success and failure of each job stay.
_OLD: dict[PruneTable, tuple[str, str]] = {
    "runs": (
        "run_id",
        """completed_at < :before
           AND NOT EXISTS (SELECT 1 FROM ledger_outbox AS mark WHERE mark.run_id = runs.run_id)
           AND (status NOT IN ('completed', 'failed') OR EXISTS (
                SELECT 1 FROM runs AS newer WHERE newer.job_id = runs.job_id
                   AND newer.run_id > runs.run_id AND newer.status = runs.status
                   AND newer.completed_at IS NOT NULL))""",
    ),
    "schedule_firing_metrics": ("run_id, attempt", "completed_at < :before"),
    "events": ("rowid", "received_at < :before"),
    "audit_log": ("audit_id", "at < :before"),
}


class RecordReads:
    """What may be asked of the small tables."""

    _connection: sqlite3.Connection

    def meta(self, key: str) -> str | None:
        """The value under `key` in meta."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def store_uuid(self) -> str:
        """The identity of this store, the first half of every idempotency key."""
        return self.meta("store_uuid") or ""

    def settings_table(self) -> dict[str, str]:
        """The settings that were set, as text by key."""
        return dict(self._connection.execute("SELECT key, value FROM settings").fetchall())

    def pressure_sources(self, now: Millis) -> list[str]:
        """The names of the pressure sources that are held at `now`."""
        rows = self._connection.execute(
            "SELECT DISTINCT name FROM pressure_sources WHERE expires_at > ? ORDER BY name", (now,)
        )
        return [name for (name,) in rows.fetchall()]

    def held_pressure(self, now: Millis) -> list[tuple[str, Millis]]:
        """The pressure sources that are held at `now`, by name, with the instants at which the last holder ends."""
        return [(name, until) for name, until, _ in self.pressure_holders(now)]

    def pressure_holders(self, now: Millis) -> list[tuple[str, Millis, int]]:
        """The sources that are held at `now`, by name: when the last holder of each ends, and how many there are."""
        rows = self._connection.execute(
            "SELECT name, max(expires_at), count(*) FROM pressure_sources WHERE expires_at > ?"
            " GROUP BY name ORDER BY name",
            (now,),
        )
        return [(name, Millis(until), holders) for name, until, holders in rows.fetchall()]

    def ledger_pending(self) -> int:
        """How many runs wait to be mirrored to the legacy ledger."""
        count: int = self._connection.execute("SELECT count(*) FROM ledger_outbox").fetchone()[0]
        return count

    def audit_entries(
        self, *, limit: int = 100, subject: str | None = None, since: Millis | None = None
    ) -> list[dict[str, Any]]:
        """The newest entries of the audit log, newest first, by column name."""
        conditions = {"subject = :subject": subject, "at >= :since": since}
        chosen = [condition for condition, value in conditions.items() if value is not None]
        where = f" WHERE {' AND '.join(chosen)}" if chosen else ""
        cursor = self._connection.execute(
            f"SELECT * FROM audit_log{where} ORDER BY audit_id DESC LIMIT :limit",  # noqa: S608
            {"subject": subject, "since": since, "limit": limit},
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def recent_durations_ms(self, job_id: str, *, limit: int = 20) -> list[int]:
        """How long the latest attempts of a job took, newest first: those that ended well, or if none did, all."""
        rows = self._connection.execute(
            "SELECT duration_ms, failure_reason IS NULL FROM schedule_firing_metrics"
            " WHERE job_id = ? AND duration_ms IS NOT NULL ORDER BY completed_at DESC LIMIT ?",
            (job_id, limit),
        ).fetchall()
        return [duration for duration, ended_well in rows if ended_well] or [duration for duration, _ in rows]

    def turns_of_profile(self, agent_profile: str, *, limit: int) -> list[int]:
        """The turns of the latest attempts that reported any, of all jobs with that profile."""
        rows = self._connection.execute(
            "SELECT turn_count FROM scheduled_jobs AS j JOIN schedule_firing_metrics AS m ON m.job_id = j.job_id"
            " WHERE j.agent_profile = ? AND turn_count IS NOT NULL ORDER BY completed_at DESC LIMIT ?",
            (agent_profile, limit),
        )
        return [turns for (turns,) in rows.fetchall()]

    def average_turns(self, job_id: str, *, over: int = 50) -> float | None:
        """The mean turns of the latest attempts of a job that reported any."""
        row = self._connection.execute(
            "SELECT avg(turn_count) FROM (SELECT turn_count FROM schedule_firing_metrics"
            " WHERE job_id = ? AND turn_count IS NOT NULL ORDER BY completed_at DESC LIMIT ?)",
            (job_id, over),
        ).fetchone()
        average: float | None = row[0]
        return average


class RecordWrites(RecordReads):
    """What may be written to the small tables."""

    def set_meta(self, key: str, value: str | None) -> None:
        """Set or, with None, remove a value of meta."""
        if value is None:
            self._connection.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def set_setting(self, key: str, value: str, *, now: Millis) -> None:
        """Set one setting."""
        self._connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (key, value, now))

    def unset_setting(self, key: str) -> bool:
        """Remove one setting, so that its default is in force again."""
        return self._connection.execute("DELETE FROM settings WHERE key = ?", (key,)).rowcount == 1

    def hold_pressure(self, name: str, *, now: Millis, until: Millis, holder: str = PLAIN_HOLD) -> Millis:
        """Hold a source for `holder` until `until`, or later if it held it so; its end. What ran out long ago goes."""
        self._connection.execute(
            "DELETE FROM pressure_sources WHERE expires_at <= ?", (now - _KEPT_AFTER_END_MS,)
        )
        row = self._connection.execute(
            "INSERT INTO pressure_sources (name, expires_at, holder) VALUES (?, ?, ?)"
            " ON CONFLICT (name, holder) DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)"
            " RETURNING expires_at",
            (name, until, holder),
        ).fetchone()
        return Millis(row[0])

    def renew_pressure(self, name: str, holder: str, *, until: Millis) -> bool:
        """Let a holder's row end at `until`; False when the source was released: it is not taken back."""
        cursor = self._connection.execute(
            "UPDATE pressure_sources SET expires_at = max(expires_at, ?) WHERE name = ? AND holder = ?",
            (until, name, holder),
        )
        return cursor.rowcount == 1

    def release_pressure(self, name: str, *, holder: str | None = None) -> bool:
        """Let a source go, for one holder or for all of them; whether there was a row."""
        cursor = self._connection.execute(
            "DELETE FROM pressure_sources WHERE name = ?1 AND (?2 IS NULL OR holder = ?2)", (name, holder)
        )
        return cursor.rowcount > 0

    def audit(self, entry: AuditEntry) -> None:
        """Add an entry to the audit log."""
        self._connection.execute(
            "INSERT INTO audit_log (at, actor, command, subject, before, after, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                entry.at,
                entry.actor,
                entry.command,
                entry.subject,
                None if entry.before is None else to_json(entry.before),
                None if entry.after is None else to_json(entry.after),
                entry.reason,
            ),
        )

    def record_metrics(self, metrics: FiringMetrics) -> None:
        """Write the metrics of one attempt."""
        self._connection.execute(
            f"INSERT OR REPLACE INTO schedule_firing_metrics ({column_list(_METRICS_COLUMNS)})"  # noqa: S608
            f" VALUES ({column_list(_METRICS_COLUMNS, ':')})",
            {name: getattr(metrics, name) for name in _METRICS_COLUMNS},
        )

    def prune(self, table: PruneTable, *, before: Millis, limit: int) -> int:
        """Delete at most `limit` old rows of `table`; how many went."""
        key, old = _OLD[table]
        cursor = self._connection.execute(
            f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {old} LIMIT :limit)",  # noqa: S608
            {"before": before, "limit": limit},
        )
        return cursor.rowcount

    @property
    def savepoint(self) -> _Savepoints:
        """Savepoints inside the transaction: see `settle`."""
        return _Savepoints(self._connection)


class RefusedValue(ValueError):
    """The database does not take a value: a CHECK, a type, a range."""


class _Savepoints:
    """``with tx.savepoint:`` undoes what the block wrote when it raises, and lets the error out."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("SAVEPOINT one_row")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK TO one_row")
        if self._connection.in_transaction:
            self._connection.execute("RELEASE one_row")
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)):
            raise RefusedValue(str(error)) from error
