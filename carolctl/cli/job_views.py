"""Jobs as documents for programs and as rows for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from carolctl import job_values
from carolctl.cli import render
from carolctl.cli.output import print_lines
from carolctl.cli.render import Column, Toned
from carolctl.clock import iso
from carolctl.model import CommandAction, Job, Millis, Run, action_document, action_kind
from carolctl.store.jobs import DamagedJob

_INTERNAL = ("legacy", "schedule_compiled")
_COLUMNS = (
    Column(name="job", least=18, overflow="fold"),
    Column(name="schedule", least=16),
    Column(name="next", least=20),
    Column(name="status", least=9),
    Column(name="last", least=9),
    Column(name="last fired", least=20, dispensable=2),
    Column(name="streaks", least=8, dispensable=3),
    Column(name="project", least=8, dispensable=4),
    Column(name="action", least=20, dispensable=5),
)
_TONES: dict[str | None, render.Tone] = {"completed": "good", "failed": "bad", "cancelled": "warn"}


# -- for programs ----------------------------------------------------------------------------------------------


def document(job: Job) -> dict[str, Any]:
    """A job as `list-jobs` gives it: every column but the internal ones, instants as ISO 8601."""
    whole = full_document(job)
    return {name: value for name, value in whole.items() if name not in _INTERNAL}


def full_document(job: Job) -> dict[str, Any]:
    """A job with every column by its name, and its schedule and action as objects."""
    job = _shown(job)
    values = {field.name: _plain(field.name, getattr(job, field.name)) for field in fields(Job)}
    action = job_values.showable(job.action)
    return values | {
        "schedule": {"kind": job.schedule_kind, "expr": job.schedule_expr, "timezone": job.timezone},
        "action_kind": action_kind(action),
        "action": {"kind": action_kind(action), **action_document(action)},
    }


def _shown(job: Job) -> Job:
    """A job that rests has no next firing, whatever wake-up it had when it was paused."""
    return job if job.status == "active" else replace(job, next_fire_at=None)


def _plain(name: str, value: Any) -> Any:
    return iso(value) if name in _INSTANTS else value


_INSTANTS = {
    field.name for field in fields(Job) if field.name.endswith("_at") or field.name == "last_scheduled_for"
}


# -- for people ------------------------------------------------------------------------------------------------


def print_jobs(jobs: Sequence[Job], damaged: Sequence[DamagedJob]) -> None:
    """The table of list-jobs."""
    rows = {job.job_id: _row(job) for job in jobs} | {
        broken.job_id: _damaged_row(broken) for broken in damaged
    }
    render.table(None, _COLUMNS, [rows[job_id] for job_id in sorted(rows)])


def _row(job: Job) -> render.Row:
    job = _shown(job)
    return (
        job.job_id,
        schedule_text(job),
        render.moment(job.next_fire_at),
        _status(job),
        Toned(job.last_status, _TONES.get(job.last_status, "")) if job.last_status else None,
        render.moment(job.last_fired_at),
        _streaks(job),
        job.project,
        action_text(job),
    )


def _damaged_row(damaged: DamagedJob) -> render.Row:
    return (damaged.job_id, None, None, Toned(f"damaged: {damaged.problem}", "bad"), *[None] * 5)


def schedule_text(job: Job) -> str:
    """``daily_at 03:00 Europe/Berlin``: the kind where the expression does not tell, the zone where it matters."""
    words: list[str] = [job.schedule_kind] if job.schedule_kind != "cron" else []
    words.append(job.schedule_expr)
    if job.timezone != "UTC" and job.schedule_kind in ("cron", "daily_at"):
        words.append(job.timezone)
    return " ".join(word for word in words if word)


def _status(job: Job) -> Toned:
    if job.status == "active":
        return Toned("active", "")
    return Toned(f"paused: {job.paused_reason}" if job.paused_reason else "paused", "warn")


def _streaks(job: Job) -> object:
    parts = [
        f"{count} {name}"
        for count, name in ((job.failure_streak, "failed"), (job.turn_budget_breach_streak, "over budget"))
        if count
    ]
    return Toned(", ".join(parts), "bad") if parts else None


def action_text(job: Job) -> str:
    """The command line, or method and URL."""
    if isinstance(job.action, CommandAction):
        import shlex

        return shlex.join(job.action.argv)
    return f"{job.action.method} {job.action.url}"


def print_job(job: Job, upcoming: Sequence[tuple[Millis, Millis]], runs: Sequence[Run]) -> None:
    """The page of show-job: the job, its next slots with their wake-ups, its last runs."""
    render.pairs(None, _facts(job))
    print_lines([""])
    if upcoming:
        names = (Column(name="next slot", least=17), Column(name="wakes up", least=17))
        render.table(None, names, [(render.moment(slot), render.moment(wake)) for slot, wake in upcoming])
    else:
        render.pairs(None, [("next", "nothing to come")])
    print_lines([""])
    if runs:
        _print_runs(runs)
    else:
        render.pairs(None, [("runs", "none yet")])


def _facts(job: Job) -> list[tuple[str, object]]:
    job = _shown(job)
    shown = full_document(job)
    for name in ("schedule", "schedule_kind", "schedule_expr", "schedule_compiled", "action", "action_kind"):
        del shown[name]
    for name in _INSTANTS & shown.keys():
        shown[name] = render.moment(getattr(job, name))
    first = {"job_id": job.job_id, "status": _status(job), "schedule": schedule_text(job)}
    first |= {"action": action_text(job)} | _http_facts(job)
    first["idempotent"] = "yes" if job.idempotent else "no"
    first["may_schedule"] = "yes" if job.may_schedule else "no"
    del shown["paused_reason"]
    return list((first | {name: value for name, value in shown.items() if name not in first}).items())


def _http_facts(job: Job) -> dict[str, object]:
    action = job_values.showable(job.action)
    if isinstance(action, CommandAction):
        return {}
    import json

    headers = "; ".join(f"{name}: {value}" for name, value in action.headers.items())
    payload = None if action.payload is None else json.dumps(action.payload)
    return {"headers": headers or None, "payload": payload}


def _print_runs(runs: Sequence[Run]) -> None:
    columns = (
        Column(name="run", least=4, justify="right"),
        Column(name="slot", least=17),
        Column(name="source", least=9, dispensable=1),
        Column(name="status", least=9),
        Column(name="ended", least=17, dispensable=2),
        Column(name="why", least=10),
    )
    render.table(None, columns, [_run_row(run) for run in runs])


def _run_row(run: Run) -> render.Row:
    slot = render.moment(run.scheduled_for)
    if run.coalesced > 1:
        slot = f"{slot} (+{run.coalesced - 1})"
    why = run.failure_reason or run.skip_reason or run.result_summary
    status = Toned(run.status, _TONES.get(run.status, ""))
    return (run.run_id, slot, run.source, status, render.moment(run.completed_at), why)
