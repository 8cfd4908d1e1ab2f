"""Statements on ``events``: each stored once by its id, and what an event does to its run, once with it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from carolctl.model import Millis, Run
from carolctl.store.rows import RUN_COLUMNS, column_list, run_from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What an agent said about a run; `data` is a JSON document as text."""

    event_id: str
    run_id: int
    kind: str
    emitted_at: Millis
    turns: int | None = None
    data: str | None = None
    #: The claim that the sender works under; None: it did not say.
    claim_no: int | None = None


class EventReads:
    """What may be asked about events."""

    _connection: sqlite3.Connection

    def events_of(self, run_id: int, *, limit: int = 20) -> list[dict[str, Any]]:
        """The newest events of a run, oldest first, by column name; `data` as a value."""
        cursor = self._connection.execute(
            "SELECT event_id, kind, turns, data, emitted_at, received_at FROM events WHERE run_id = ?"
            " ORDER BY emitted_at DESC, rowid DESC LIMIT ?",
            (run_id, limit),
        )
        names = [column[0] for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return [
            event | {"data": None if event["data"] is None else json.loads(event["data"])}
            for event in reversed(found)
        ]

    def run_of_event(self, event_id: str) -> int | None:
        """The run that a stored event is about."""
        row = self._connection.execute("SELECT run_id FROM events WHERE event_id = ?", (event_id,)).fetchone()
        return row[0] if row else None


class EventWrites(EventReads):
    """What an event may change."""

    def insert_event(self, event: Event, *, now: Millis) -> bool:
        """Store an event; False when one of its id is there already."""
        cursor = self._connection.execute(
            "INSERT INTO events (event_id, run_id, kind, turns, data, emitted_at, received_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING",
            (event.event_id, event.run_id, event.kind, event.turns, event.data, event.emitted_at, now),
        )
        return cursor.rowcount == 1

    def raise_turns(self, run_id: int, turns: int, *, claim_no: int | None) -> Run | None:
        """Raise the turn count of a running run, by its present claim if `claim_no` is given; the run as it is now.

        None: it does not run, or under another claim. Nothing else changes, its lease least of all.
        """
        row = self._connection.execute(
            f"""
            UPDATE runs SET turn_count = max(coalesce(turn_count, 0), :turns)
             WHERE run_id = :run_id AND status = 'running' AND (:claim_no IS NULL OR claim_no = :claim_no)
            RETURNING {column_list(RUN_COLUMNS)}
            """,  # noqa: S608
            {"run_id": run_id, "turns": turns, "claim_no": claim_no},
        ).fetchone()
        return run_from_row(row) if row else None
