"""Values and helpers that tests share: jobs with sound defaults, an opener of stores, the real program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from carolctl import schedule
from carolctl.clock import parse_iso
from carolctl.model import Action, CommandAction, HttpAction, Job, Millis, ScheduleKind
from carolctl.store.db import Store, open_store

#: Thursday 2026-01-01 00:00:00 UTC, the instant at which jobs of `job` are made.
T0 = Millis(1_767_225_600_000)
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: Variables that would leak the caller's world into the program under test.
_FOREIGN = ("CAROL_", "SCHEDULE_")
_FOREIGN_NAMES = {"ORPHAN_THRESHOLD_MIN", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "SUDO_USER"}


def at(text: str) -> Millis:
    """An instant from ISO 8601, UTC unless it says otherwise."""
    return parse_iso(text, field="test")


def job(
    job_id: str = "nightly",
    *,
    now: Millis = T0,
    cron: str | None = None,
    daily_at: str | None = None,
    every: str | None = None,
    once_at: str | None = None,
    manual: bool = False,
    url: str | None = None,
    argv: tuple[str, ...] = ("true",),
    **columns: Any,
) -> Job:
    """A job made at `now`: hourly unless a schedule is given, running ``true`` unless an action is.

    `columns` sets any other column by its name.
    """
    given: dict[str, str | None] = {"cron": cron, "daily_at": daily_at, "every": every, "at": once_at}
    kind, expr = next(((k, v) for k, v in given.items() if v is not None), ("cron", "0 * * * *"))
    if manual:
        kind, expr = "manual", ""
    times = schedule.parse(
        cast(ScheduleKind, kind),
        expr,
        columns.get("timezone", "UTC"),
        columns.get("dst_rule", "once"),
        anchor_at=columns.get("anchor_at", now),
    )
    action: Action = HttpAction(url=url) if url else CommandAction(argv=argv)
    upcoming = times.next_after(now)
    offset = schedule.spread_offset_ms(job_id, columns.get("spread_sec", 0))
    values: dict[str, Any] = {
        "job_id": job_id,
        "schedule_kind": times.kind,
        "schedule_expr": times.expr,
        "schedule_compiled": times.compiled,
        "anchor_at": now,
        "action": action,
        "next_fire_at": None if upcoming is None else upcoming + offset,
        "last_scheduled_for": now,
        "created_at": now,
        "updated_at": now,
    }
    return Job(**values | columns)


def store(home: Path, *, create: bool = True, deadline_ms: int = 5000) -> Store:
    """The job store of a data home; the caller closes it (the fixture ``store`` does so by itself)."""
    return open_store(str(home / "scheduler.db"), deadline_ms=deadline_ms, create=create)


def add_jobs(home: Path, *jobs: Job) -> None:
    """Write jobs straight into the store of a data home."""
    opened = store(home)
    try:
        with opened.write() as tx:
            tx.insert_jobs(jobs)
    finally:
        opened.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one run of the program ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        """The error line of a command that was given ``--json``."""
        return cast(dict[str, Any], json.loads(self.err.strip().splitlines()[-1]))


class Carol:
    """The real program, as a subprocess, in one data home: ``carol("list-jobs", CAROL_NOW="...")``."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def environment(self, **env: str) -> dict[str, str]:
        """The environment without anybody's settings, with this data home and with `env`.

        Without the service manager: whoever tests on a machine that has one would find units there.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_FOREIGN) and name not in _FOREIGN_NAMES
        }
        return kept | {"CAROL_DATA_DIR": str(self.home), "CAROL_LAUNCHER": "process"} | env

    def command(self, *arguments: str) -> list[str]:
        """The argument list that runs the program, without anything of the caller's folder or site."""
        return [sys.executable, "-I", "-m", "carolctl", *arguments]

    def __call__(self, *arguments: str, stdin: str = "", timeout: float = 60, **env: str) -> Result:
        """Run a command to its end; neither of its streams is a terminal."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin.encode(),
            capture_output=True,
            env=self.environment(**env),
            timeout=timeout,
            check=False,
        )
        return Result(
            code=done.returncode,
            out=done.stdout.decode(errors="surrogateescape"),
            err=done.stderr.decode(errors="surrogateescape"),
        )

    def spawn(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command and return at once; the caller waits for it or ends it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**env),
        )
