"""Tables of runs for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carolctl import run_view
from carolctl.cli import render
from carolctl.cli.output import print_lines
from carolctl.cli.render import Column
from carolctl.model import Millis, Run
from carolctl.policy import slots_counted


def print_runs(runs: Sequence[Run], now: Millis) -> None:
    """The runs of a list, newest first."""
    if not runs:
        print_lines(["no runs"])
        return
    columns = [
        Column(name="run", least=4, justify="right"),
        Column(name="job", least=12, overflow="fold"),
        Column(name="status", least=9),
        Column(name="why", least=10, dispensable=1),
        Column(name="slot", least=17, dispensable=3),
        Column(name="started", least=17, dispensable=4),
        Column(name="took", least=5, justify="right"),
        Column(name="try", least=3, justify="right", dispensable=5),
        Column(name="source", least=9, dispensable=6),
        Column(name="summary", least=16, dispensable=2),
    ]
    render.table(None, columns, [_row(run, now) for run in runs])


def _row(run: Run, now: Millis) -> list[object]:
    tones: dict[str, render.Tone] = {
        "completed": "good",
        "failed": "bad",
        "skipped": "dim",
        "running": "warn",
    }
    elapsed = run_view.elapsed_sec(run, now)
    return [
        run.run_id,
        run.job_id,
        render.Toned(run.status, tones.get(run.status, "")),
        _why(run),
        render.moment(run.scheduled_for),
        render.moment(run.started_at),
        None if elapsed is None else f"{elapsed} s",
        run.attempt,
        run.source,
        run.result_summary,
    ]


def _why(run: Run) -> str | None:
    reason = run.failure_reason or run.skip_reason or run.stop_reason
    many = f"{slots_counted(run.coalesced)} slots" if run.coalesced > 1 else None
    if run.status == "queued" and run.attempt > 1:
        reason = f"try {run.attempt} from {render.moment(run.not_before)}"
    return ", ".join(word for word in (reason, many) if word) or None


def print_running(running: Sequence[tuple[Run, str]], now: Millis) -> None:
    """What runs now, each with whether its owner lives."""
    columns = [
        Column(name="run", least=4, justify="right"),
        Column(name="job", least=12, overflow="fold"),
        Column(name="status", least=8),
        Column(name="for", least=6, justify="right"),
        Column(name="lease left", least=10, justify="right"),
        Column(name="owner", least=8),
        Column(name="source", least=9, dispensable=1),
        Column(name="where", least=12, dispensable=2),
    ]
    rows = [
        [
            run.run_id,
            run.job_id,
            f"stopping: {run.stop_reason}" if run.stop_reason else run.status,
            f"{run_view.elapsed_sec(run, now)} s",
            None if run.lease_expires_at is None else f"{(run.lease_expires_at - now) // 1000} s",
            liveness,
            run.source,
            run.unit or (f"pid {run.pid}" if run.pid else run.host),
        ]
        for run, liveness in running
    ]
    render.table(None, columns, rows)


def print_foreign(rows: Sequence[Mapping[str, Any]]) -> None:
    """What others run, by the legacy ledger."""
    columns = [
        Column(name="id", least=4, justify="right"),
        Column(name="droid", least=12, overflow="fold"),
        Column(name="status", least=8),
        Column(name="started", least=17),
        Column(name="kind", least=9, dispensable=1),
        Column(name="initiative", least=10, dispensable=2),
        Column(name="event", least=8, dispensable=3),
    ]
    names = ("id", "droid_name", "status", "started_at", "trigger_kind", "initiative_id", "event_id")
    render.table("droid_runs", columns, [[row[name] for name in names] for row in rows])
