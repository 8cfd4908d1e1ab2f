"""Legacy rows to jobs, and jobs back to legacy rows. Pure: no database, no clock.

Incident: a rival's move to a new store silently lost 44 of 45 jobs in one installation and all 28 in another; its
own report said all was well. Decision: the mapping runs both ways, and a migration proves, by checksum over
(type, value) of every cell, that the rows written give the source rows back. Consequence: what a job cannot say
is kept beside it, never dropped.

How the way back works. `_said` spells out in legacy columns what the job says now. Where the source spelt the
same thing otherwise (epoch seconds, ``7:05``, NULL for UTC), and where a column has no counterpart, the source
cell is kept in ``legacy``; on the way back a kept spelling is used only while it means what the job says. So a
mapped column that was stored wrongly breaks the proof, and an edit made here shows in an export.

``legacy`` is one JSON object: the kept cells by column name, and under ``$source`` the table, its columns with
what each was mapped to, the digest of the row's definition at migration, and what could not be used.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

from carolctl import clock, http_rules, job_values, schedule
from carolctl.errors import BadSchedule, UsageError
from carolctl.legacy_cells import (
    Cell,
    Row,
    flag,
    from_document,
    instant,
    is_blank,
    plain,
    stamp,
    to_document,
    typed,
    word,
)
from carolctl.legacy_columns import (
    MARK,
    MEANINGS,
    Layout,
    count,
    json_text,
    kind_name,
    method_name,
    payload_of,
    seconds,
    standard_layout,
    time_of_day,
    zone_name,
)
from carolctl.model import Action, CommandAction, HttpAction, Job, Millis, ScheduleKind
from carolctl.said import Said

NO_ACTION = CommandAction(argv=("/bin/false",))
"""Stands where a row names no usable action; such a job is imported paused."""

_SHELL = ("/bin/sh", "-c")
_KINDS: dict[str, ScheduleKind] = {"daily_at": "daily_at", "interval": "every", "cron": "cron", "once": "at"}
_TYPES = {kind: name for name, kind in _KINDS.items()}


# -- a row becomes a job ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A source row, as it is and as a job."""

    job: Job
    row: Row
    #: Why the job is imported paused although the row says enabled; None when it is usable.
    problem: str | None


def to_job(row: Row, layout: Layout, *, job_id: str, now: Millis) -> Imported:
    """The job that a row describes. What cannot be used is imported paused, with its reason."""
    cells = layout.by_target(row)
    plan, schedule_problems = _read_schedule(cells, now)
    action, action_problems, unread = _read_action(cells)
    problem = _in_one([*schedule_problems, *action_problems, *_unclear_enabled(cells)])
    paused = problem or _disabled(cells)
    bare = Job(
        job_id=job_id,
        description=plain(cells.get("description")),
        schedule_kind=plan.kind,
        schedule_expr=plan.expr,
        timezone=plan.timezone,
        anchor_at=now,
        schedule_compiled=plan.compiled,
        action=action,
        status="paused" if paused else "active",
        paused_reason=paused,
        agent_profile=plain(cells.get("droid_name")) or None,
        next_fire_at=None if paused else plan.next_after(now),
        last_scheduled_for=now,
        last_fired_at=instant(cells.get("last_run_at")),
        last_status=plain(cells.get("last_status")),
        firing_count=count(cells.get("run_count")),
        created_at=_instant_or(cells.get("created_at"), now),
        updated_at=_instant_or(cells.get("updated_at"), now),
    )
    mark = {
        "table": layout.table,
        "columns": layout.columns,
        "definition": layout.definition(row),
        "problem": problem,
        "unread": ["schedule"] * bool(schedule_problems) + ["action"] * unread,
        "next_fire_at": bare.next_fire_at,
        "updated_at": bare.updated_at,
    }
    return Imported(job=_with_kept(bare, mark, row), row=row, problem=problem)


def _in_one(problems: list[str]) -> str | None:
    return "cannot be used as the planner database has it: " + "; ".join(problems) if problems else None


def _with_kept(bare: Job, mark: dict[str, Any], row: Row) -> Job:
    """The job with its notes, and with the cells that it alone would not give back; and with the droid's name,
    which people look for."""
    marked = replace(bare, legacy={MARK: mark})
    back = to_source(marked)
    kept = {
        name: to_document(row.get(name))
        for name, target in mark["columns"].items()
        if target in (None, "droid_name") or typed(back[name]) != typed(row.get(name))
    }
    return replace(marked, legacy=kept | {MARK: mark})


def _read_schedule(cells: Row, now: Millis) -> tuple[schedule.Schedule, list[str]]:
    try:
        return _parsed_schedule(cells, now), []
    except UsageError as problem:
        return schedule.parse("manual", "", anchor_at=now), [problem.message]


def _parsed_schedule(cells: Row, now: Millis) -> schedule.Schedule:
    kind = _KINDS.get(kind_name(cells.get("schedule_type")))
    if kind is None:
        text = word(cells.get("schedule_type"))[:40]
        raise BadSchedule(f"{text!r} is not one of {', '.join(_KINDS)}", field="schedule_type")
    expr = {
        "daily_at": lambda: time_of_day(cells.get("daily_at")),
        "every": lambda: f"{seconds(cells.get('interval_sec'))}s",
        "cron": lambda: word(cells.get("cron_expr")),
        "at": lambda: clock.iso(instant(cells.get("run_at"))) or word(cells.get("run_at")),
    }[kind]()
    return schedule.parse(kind, expr, zone_name(cells.get("timezone")), anchor_at=now)


def _read_action(cells: Row) -> tuple[Action, list[str], bool]:
    """The action, what is wrong with it, and whether `NO_ACTION` had to stand in."""
    url, command = cells.get("endpoint_url"), cells.get("command")
    if not is_blank(url) and not is_blank(command):
        return NO_ACTION, ["both endpoint_url and command are set: which one is meant?"], True
    if isinstance(command, str) and not is_blank(command):
        return CommandAction(argv=(*_SHELL, command)), _command_problems(command), False
    if isinstance(url, str) and not is_blank(url):
        return *_read_http(url, cells), False
    what = "neither endpoint_url nor command is set"
    if not (is_blank(url) and is_blank(command)):
        what = "endpoint_url or command is not readable text"
    return NO_ACTION, [what], True


def _command_problems(line: str) -> list[str]:
    try:
        job_values.spoken_action(Said(argv=[*_SHELL, line]), None)
    except UsageError as problem:
        return ["the command holds a NUL character" if "\0" in line else f"command: {problem.message}"]
    return []


def _read_http(url: str, cells: Row) -> tuple[HttpAction, list[str]]:
    method = method_name(cells.get("http_method"))
    payload, is_json = payload_of(cells.get("payload_json"))
    problems = _url_problems(url.strip())
    if method not in http_rules.METHODS:
        problems.append(f"http_method {method[:20]!r} is not one of {', '.join(http_rules.METHODS)}")
    if not is_json:
        problems.append("payload_json is no usable JSON (it is kept as text)")
    action = HttpAction(url=_escaped(url.strip()), method=method, payload=_map_text(payload, _escaped))
    return action, problems


def _url_problems(url: str) -> list[str]:
    try:
        job_values.check_url(url)
    except UsageError as problem:
        return [problem.message]
    return []


def _unclear_enabled(cells: Row) -> list[str]:
    unclear = "enabled" in cells and flag(cells["enabled"]) is None
    return [f"enabled is neither yes nor no: {word(cells['enabled'])[:20]!r}"] if unclear else []


def _disabled(cells: Row) -> str | None:
    return "disabled in the planner database" if "enabled" in cells and not flag(cells["enabled"]) else None


def _instant_or(cell: Cell, otherwise: Millis) -> Millis:
    told = instant(cell)
    return otherwise if told is None else told


# -- a job becomes a row ----


def mark_of(job: Job) -> dict[str, Any] | None:
    """What the migration noted about the job's row; None for a job that was not migrated."""
    mark = (job.legacy or {}).get(MARK)
    return mark if isinstance(mark, dict) else None


def to_source(job: Job, layout: Layout | None = None) -> Row:
    """The legacy row of a job, by source column: what the job says now, in the source's own spelling if it
    still means that. `layout` serves jobs that were not migrated; they fill only the columns they speak of."""
    mark = mark_of(job)
    columns = mark["columns"] if mark else (layout or standard_layout("")).columns
    said = _said(job, mark or {})
    kept = {name: from_document(value) for name, value in (job.legacy or {}).items() if name != MARK}
    row: Row = {}
    for name, target in columns.items():
        if target is None or target not in said:
            row |= {name: kept.get(name)} if mark else {}
        elif name in kept and MEANINGS[target](kept[name]) == MEANINGS[target](said[target]):
            row[name] = kept[name]
        else:
            row[name] = said[target]
    return row


def _said(job: Job, mark: Mapping[str, Any]) -> Row:
    """What the job says, in the usual spelling, by target. Absent: it says nothing about that column."""
    said: Row = {
        "job_id": job.job_id,
        "droid_name": job.agent_profile or "",
        "description": job.description,
        "last_run_at": stamp(job.last_fired_at),
        "last_status": job.last_status,
        "run_count": job.firing_count,
        "created_at": stamp(job.created_at),
    }
    if job.paused_reason is None or job.paused_reason != mark.get("problem"):
        said["enabled"] = int(job.status == "active")
    if job.next_fire_at != mark.get("next_fire_at"):
        said["next_run_at"] = stamp(job.next_fire_at)
    if job.updated_at != mark.get("updated_at"):
        said["updated_at"] = stamp(job.updated_at)
    if job.schedule_kind != "manual":
        said |= _schedule_said(job)
    if job.action != NO_ACTION or "action" not in mark.get("unread", ()):
        said |= _action_said(job.action)
    return said


def _schedule_said(job: Job) -> Row:
    said: Row = {"schedule_type": _TYPES[job.schedule_kind], "timezone": job.timezone}
    match job.schedule_kind:
        case "daily_at":
            said["daily_at"] = job.schedule_expr
        case "every":
            said["interval_sec"] = schedule.parse_duration(job.schedule_expr, field="every")
        case "at":
            said["run_at"] = stamp(instant(job.schedule_expr))
        case "cron":
            said["cron_expr"] = job.schedule_expr
        case "manual":
            raise AssertionError("the legacy table has no manual jobs")
        case _:
            assert_never(job.schedule_kind)
    return said


def _action_said(action: Action) -> Row:
    if isinstance(action, HttpAction):
        payload = _map_text(action.payload, _unescaped)
        return {
            "endpoint_url": _unescaped(action.url),
            "http_method": action.method,
            "payload_json": None if payload is None else json_text(payload),
            "command": None,
        }
    is_shell_line = len(action.argv) == 3 and action.argv[:2] == _SHELL
    line = action.argv[2] if is_shell_line else shlex.join(action.argv)
    return {"command": line, "endpoint_url": None}


def inexpressible(job: Job) -> str | None:
    """Why the legacy table cannot hold the job at all; None when it can."""
    mark = mark_of(job) or {}
    if job.schedule_kind == "manual" and "schedule" not in mark.get("unread", ()):
        return "it has no schedule (manual)"
    return None


# -- texts that carolctl would take for references to secrets ----


def _escaped(text: str) -> str:
    """``${`` written so that it is sent as it stands, where carolctl would resolve it (see `references`)."""
    return text.replace("${", "$${") if re.search(r"\$\$\{|\$\{(env|file):", text) else text


def _unescaped(text: str) -> str:
    return text.replace("$${", "${")


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` made to every string in it but the keys, as the resolver goes through it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_text(item, change) for key, item in value.items()}
    return value
