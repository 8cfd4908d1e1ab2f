"""When which schedule of a job was in force, read backwards from the audit log. Pure.

Every edit, pause and resume leaves the columns that it changed, before and after. From the present row they are
undone one by one, so that each slot of the past is known as it was due then. A schedule's time starts at its
anchor: the instant of the add, the import or the edit that made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from carolctl import schedule
from carolctl.errors import BadSchedule
from carolctl.model import Job, Millis
from carolctl.schedule import Schedule

_COLUMNS = ("schedule_kind", "schedule_expr", "timezone", "dst_rule", "spread_sec", "anchor_at")
_DEFAULTS: dict[str, Any] = {"schedule_expr": "", "timezone": "UTC", "dst_rule": "once", "spread_sec": 0}

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A stretch of a job's life under one schedule: its slots lie in (begin, end]."""

    job_id: str
    kind: str
    expr: str
    timezone: str
    spread_sec: int
    begin: Millis
    #: None: it is in force.
    end: Millis | None
    #: None: it cannot be read.
    times: Schedule | None
    #: Of a removed job: up to here its slots have their rows.
    watermark: Millis | None = None

    def holds(self, instant: Millis) -> bool:
        """Whether a slot at `instant` would belong to it."""
        return self.begin < instant and (self.end is None or instant <= self.end)


def epochs(
    job_id: str, job: Job | None, entries: Sequence[Entry], imports: Iterable[Entry] = ()
) -> list[Epoch]:
    """The epochs of a job, oldest first, from its present row and its audit entries (oldest first).

    `imports`: entries of migrate-jobs; before one that overwrote the job nothing is known.
    """
    found: list[Epoch] = []
    state = None if job is None else _state(job)
    end: Millis | None = None
    for entry in _backwards(job_id, entries, imports):
        before, command = entry["before"] or {}, entry["command"]
        if command == "remove-job":
            state = _from_document(before)
            end = entry["at"]
        elif state is None:
            continue
        elif command in ("add-job", "migrate-jobs"):
            found.append(_epoch(job_id, state, end))
            state = None
            if command == "migrate-jobs":
                break
        elif "anchor_at" in before:
            found.append(_epoch(job_id, state, end))
            state |= {name: before[name] for name in _COLUMNS if name in before}
            end = entry["at"]
            state.pop("last_scheduled_for", None)
    if state is not None:
        found.append(_epoch(job_id, state, end))
    return found[::-1]


def _backwards(job_id: str, entries: Sequence[Entry], imports: Iterable[Entry]) -> list[Entry]:
    overwrote = [entry for entry in imports if job_id in ((entry["after"] or {}).get("overwritten") or ())]
    return sorted([*entries, *overwrote], key=lambda entry: -entry["audit_id"])


def _state(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in _COLUMNS}


def _from_document(before: dict[str, Any]) -> dict[str, Any] | None:
    if "anchor_at" not in before:
        return None
    return _DEFAULTS | {name: before[name] for name in (*_COLUMNS, "last_scheduled_for") if name in before}


def _epoch(job_id: str, state: dict[str, Any], end: Millis | None) -> Epoch:
    return Epoch(
        job_id=job_id,
        kind=state["schedule_kind"],
        expr=state["schedule_expr"],
        timezone=state["timezone"],
        spread_sec=state["spread_sec"],
        begin=state["anchor_at"],
        end=end,
        times=_times(state),
        watermark=state.get("last_scheduled_for"),
    )


def _times(state: dict[str, Any]) -> Schedule | None:
    try:
        return schedule.parse(
            state["schedule_kind"],
            state["schedule_expr"],
            state["timezone"],
            state["dst_rule"],
            anchor_at=state["anchor_at"],
        )
    except (BadSchedule, TypeError, ValueError):
        return None


def at(found: Sequence[Epoch], instant: Millis) -> Epoch | None:
    """The epoch that a slot at `instant` belongs to; the newest where the clock was set back."""
    return next((epoch for epoch in reversed(found) if epoch.holds(instant)), None)


def pauses(entries: Sequence[Entry], now: Millis) -> list[tuple[Millis, Millis, Entry]]:
    """(from, until, entry) of each rest of the job; one that lasts until now ends there."""
    found: list[tuple[Millis, Millis, Entry]] = []
    open_since: Entry | None = None
    for entry in entries:
        status = "paused" if entry["command"] == "set_aside" else (entry["after"] or {}).get("status")
        if status == "paused" and open_since is None:
            open_since = entry
        elif open_since is not None and (status == "active" or entry["command"] == "remove-job"):
            found.append((open_since["at"], entry["at"], open_since))
            open_since = None
    if open_since is not None:
        found.append((open_since["at"], now, open_since))
    return found


def clipped(epoch: Epoch, since: Millis, until: Millis) -> Epoch:
    """The part of an epoch in (since, until]."""
    end = until if epoch.end is None else Millis(min(epoch.end, until))
    return replace(epoch, begin=Millis(max(epoch.begin, since)), end=end)
