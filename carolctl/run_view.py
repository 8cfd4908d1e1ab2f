"""Runs as they are shown: one document a run for JSON, and which of the live ones truly run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from carolctl import clock, launch, places, policy
from carolctl.errors import CarolError
from carolctl.model import OCCUPYING, Millis, Run
from carolctl.notices import warn
from carolctl.session import Session

if TYPE_CHECKING:
    from carolctl.store.ledger import ForeignRow

_INSTANTS = frozenset(
    {
        "scheduled_for",
        "slots_from",
        "stop_requested_at",
        "not_before",
        "queued_at",
        "slot_claimed_at",
        "lease_expires_at",
        "started_at",
        "completed_at",
    }
)


def document(run: Run) -> dict[str, Any]:
    """The row by column name, instants in ISO 8601."""
    return {
        field.name: clock.iso(value) if field.name in _INSTANTS else value
        for field in fields(Run)
        for value in (getattr(run, field.name),)
    }


def event_documents(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events by column name, instants in ISO 8601."""
    return [
        event | {name: clock.iso(event[name]) for name in ("emitted_at", "received_at")} for event in events
    ]


def in_words(name: str, value: Any) -> Any:
    """A member of a run's document for people."""
    if name == "logs":
        return ", ".join(value)
    return "; ".join(_event_in_words(event) for event in value) if name == "events" else value


def _event_in_words(event: dict[str, Any]) -> str:
    words = [event["emitted_at"], event["kind"]]
    if event["turns"] is not None:
        words.append(f"turns {event['turns']}")
    if event["data"] is not None:
        words.append(json.dumps(event["data"], separators=(",", ":"))[:80])
    return " ".join(words)


def elapsed_sec(run: Run, now: Millis) -> int | None:
    """Seconds from its start, or else its claim, to its end, or else to now."""
    begin = run.started_at or run.slot_claimed_at
    if begin is None or run.status == "queued":
        return None
    return max(0, ((run.completed_at or now) - begin) // 1000)


def log_paths(run: Run) -> list[str]:
    """The files with its captured output, one for each claim that started, oldest first."""
    paths = [
        os.path.join(places.logs(), f"run-{run.run_id}-{claim}.log") for claim in range(1, run.claim_no + 1)
    ]
    return [path for path in paths if os.path.exists(path)]


def truly_running(session: Session) -> list[tuple[Run, launch.Liveness]]:
    """The runs that hold a slot and are not known to be over: neither proved dead nor past their lease unseen."""
    with session.store.read() as tx:
        occupying = [run for run in tx.live_runs() if run.status in OCCUPYING]
    boot_id = clock.boot_id()
    liveness = launch.probe(occupying, host=clock.hostname(), boot_id=boot_id)
    return [
        (run, liveness[run.run_id])
        for run in occupying
        if liveness[run.run_id] == "alive" or not _is_over(run, liveness[run.run_id], session.now, boot_id)
    ]


def foreign_running(session: Session) -> list[ForeignRow]:
    """The rows of the legacy ledger that run and are none of ours, where a planner database is given.

    What is older than the threshold of orphans is not taken for alive.
    """
    planner_db = places.planner_db()
    if planner_db is None:
        return []
    from carolctl import orphans

    with session.store.read() as tx:
        settings, store_uuid, busy = session.settings(tx), tx.store_uuid(), orphans.busy_droids(tx)
    try:
        found = orphans.find_orphans(
            planner_db,
            now=session.now,
            threshold_min=settings.orphan_threshold_min,
            store_uuid=store_uuid,
            busy=busy,
        )
    except CarolError as problem:
        warn(f"what runs in the legacy ledger is not shown: {problem.message}")
        return []
    return list(found.young)


def foreign_document(row: ForeignRow) -> dict[str, Any]:
    """A row of the legacy ledger for JSON: its start in ISO 8601, everything else as text."""
    from carolctl.legacy_cells import instant, plain

    return {
        "source": "ledger",
        "id": row.id,
        "droid_name": plain(row.droid_name),
        "initiative_id": plain(row.initiative_id),
        "event_id": plain(row.event_id),
        "trigger_kind": plain(row.trigger_kind),
        "status": plain(row.status),
        "started_at": clock.iso(instant(row.started_at)),
        "completed_at": clock.iso(instant(row.completed_at)),
        "result_summary": plain(row.result_summary),
    }


def _is_over(run: Run, liveness: launch.Liveness, now: Millis, boot_id: str) -> bool:
    verdict = policy.judge(
        run, liveness, now=now, boottime_ms=clock.boottime_ms(), boot_id=boot_id, is_http=False
    )
    return isinstance(verdict, policy.End)
