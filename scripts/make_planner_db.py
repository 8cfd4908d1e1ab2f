#!/usr/bin/env python3
"""Write a legacy planner database for demonstrations and tests: 27 jobs, some executions, some droid runs.

Usage: make_planner_db.py PATH [--endpoint URL]

Always the same content, with everything such a database may hold: all four kinds of schedule, calls and command
lines, disabled jobs, NULLs, empty texts, epoch seconds beside UTC and ISO text, a BLOB, any Unicode, some zones.
Only the standard library is used. An existing file is left alone.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from contextlib import closing
from typing import Any

SCHEMA = """
CREATE TABLE scheduled_jobs (
  job_id        TEXT PRIMARY KEY,
  droid_name    TEXT NOT NULL,
  description   TEXT,
  schedule_type TEXT NOT NULL, -- daily_at | interval | cron | once
  daily_at      TEXT,
  interval_sec  INTEGER,
  cron_expr     TEXT,
  run_at        TEXT,
  timezone      TEXT,
  endpoint_url  TEXT,
  http_method   TEXT,
  payload_json  TEXT,
  command       TEXT,
  enabled       INTEGER NOT NULL DEFAULT 1,
  last_run_at   TEXT,
  last_status   TEXT,
  next_run_at   TEXT,
  run_count     INTEGER DEFAULT 0,
  created_at    TEXT,
  updated_at    TEXT
);
CREATE TABLE executions (execution_id INTEGER PRIMARY KEY, initiative_id TEXT, state TEXT, created_at TEXT);
CREATE TABLE droid_runs (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,
  execution_id   INTEGER REFERENCES executions(execution_id),
  droid_name     TEXT,
  initiative_id  TEXT,
  event_id       TEXT,
  trigger_kind   TEXT,
  status         TEXT NOT NULL,
  started_at     TEXT,
  completed_at   TEXT,
  result_summary TEXT
);
"""

DEFAULT_ENDPOINT = "http://127.0.0.1:8099"
MADE = "2026-01-05 08:00:00"

Job = dict[str, Any]


def call(path: str, **columns: Any) -> Job:
    """The columns of a job that calls the endpoint."""
    return {"endpoint_url": path, "http_method": "POST"} | columns


def run(line: str, **columns: Any) -> Job:
    """The columns of a job that runs a command line."""
    return {"command": line} | columns


def daily(at: str, **columns: Any) -> Job:
    """The columns of a job that runs once a day."""
    return {"schedule_type": "daily_at", "daily_at": at} | columns


def interval(seconds: Any, **columns: Any) -> Job:
    """The columns of a job that runs every so many seconds."""
    return {"schedule_type": "interval", "interval_sec": seconds} | columns


def cron(expr: str, **columns: Any) -> Job:
    """The columns of a job with a cron line."""
    return {"schedule_type": "cron", "cron_expr": expr} | columns


def once(at: Any, **columns: Any) -> Job:
    """The columns of a job that runs at one instant."""
    return {"schedule_type": "once", "run_at": at} | columns


def calls(url: str) -> dict[str, Job]:
    """The jobs that call the endpoint, by id."""
    return {
        "gen-tasks-01": daily("00:00") | call(f"{url}/generate", payload_json='{"kind": "tasks", "count": 12}',
            droid_name="planner", description="Generates the tasks of the day", timezone="UTC",
            last_run_at="2026-01-31 00:00:02", last_status="completed", next_run_at="2026-02-01 00:00:00",
            run_count=26),
        "gen-tasks-02": daily("6:30") | call(f"{url}/generate", payload_json='{"kind":"follow-ups"}',
            droid_name="planner", timezone="Europe/Berlin", last_run_at=1769837400, last_status="completed"),
        "triage-inbox": interval(300) | call(f"{url}/triage", droid_name="triager", run_count=7211,
            last_run_at="2026-01-31T23:55:00Z", last_status="completed", next_run_at="2026-02-01T00:00:00Z"),
        "sync-calendar": interval(900) | call(f"{url}/sync/calendar", http_method="put", droid_name="syncer",
            payload_json="", last_run_at="2026-01-31T23:45:00.250+00:00", last_status="failed"),
        "sync-contacts": interval(3600) | call(f"{url}/sync/contacts", http_method=None, droid_name="syncer",
            payload_json=None, timezone="", description=""),
        "heartbeat": interval(60) | call(f"{url}/health", http_method="GET", droid_name="watcher", run_count=40320),
        "weekly-digest": cron("0 9 * * mon") | call(f"{url}/digest", payload_json='{"to":["team@example.org"]}',
            droid_name="writer", description="Monday's digest – für alle 🗞️", timezone="America/New_York"),
        "weekday-brief": cron("30 7 * * 1-5") | call(f"{url}/brief", droid_name="writer", timezone="Europe/Berlin",
            payload_json='{ "tone" : "dry", "lang" : "de" }'),
        "month-report": cron("0 6 1 * *") | call(f"{url}/report", droid_name="writer", timezone="Asia/Kathmandu",
            payload_json='{"title":"Monatsübersicht","größe":1.50}'),
        "quarter-hour": cron("*/15 * * * *") | call(f"{url}/poll", droid_name="poller", run_count=2592),
        "night-audit": cron("15 2 * * *") | call(f"{url}/audit", droid_name="auditor", timezone="Europe/Berlin",
            description="In the hour that clock changes repeat and leave out"),
        "alias-hourly": cron("@hourly") | call(f"{url}/tidy", droid_name="tidier", timezone=None),
        "launch-review": once("2026-12-01 09:00:00") | call(f"{url}/review", droid_name="reviewer",
            payload_json='{"initiative":"LAUNCH-7"}'),
        "old-reminder": once("2025-11-01T12:00:00Z") | call(f"{url}/remind", droid_name="reminder", run_count=1,
            last_run_at="2025-11-01T12:00:03Z", last_status="completed", description="Its time has passed"),
        "epoch-once": once(1798761600) | call(f"{url}/new-year", droid_name="reminder", created_at=1767600000,
            updated_at=1767600000.5),
        "paused-scan": daily("05:00") | call(f"{url}/scan", droid_name="scanner", enabled=0,
            description="Switched off in January"),
        "paused-crawl": interval(7200) | call(f"{url}/crawl", droid_name="crawler", enabled=0, last_status="failed",
            last_run_at="1769000000"),
        "blob-note": daily("10:00") | call(f"{url}/note", droid_name="noter", description=b"\x00\xff raw bytes",
            last_status=""),
        "bare-minimum": interval(86400) | call(f"{url}/bare", droid_name="", http_method=None, run_count=None,
            created_at=None, updated_at=""),
    }  # fmt: skip


def commands() -> dict[str, Job]:
    """The jobs that run a command line, by id."""
    return {
        "backup-db": daily("03:10") | run("cp -p ./plan.db ./plan.db.bak && echo done", droid_name="keeper",
            timezone="Europe/Berlin", last_run_at="2026-01-31 02:10:09", last_status="completed", run_count=26),
        "rotate-logs": daily("04:00:00") | run('for f in *.log; do echo "$f"; done', droid_name="keeper",
            http_method="", endpoint_url=""),
        "disk-check": interval(1800) | run("df -h / | tail -1", droid_name="watcher", last_status="ok"),
        "clock-check": interval("120") | run("date -u +%FT%TZ", droid_name="watcher"),
        "say-hello": cron("5 8 * * *") | run("printf '%s\\n' 'Guten Morgen, Привет, 你好, שלום'", droid_name="grüßer",
            description="Spricht viele Sprachen"),
        "prune-cache": cron("0 0 * * 0") | run("find ./cache -type f -mtime +30 -print", droid_name="keeper",
            payload_json='{"left":"over"}'),
        "one-off-fix": once("2026-06-30 22:00:00") | run("echo fixed", droid_name="fixer", description=None),
        "paused-shell": cron("0 12 * * *") | run("echo noon", droid_name="keeper", enabled=0),
    }  # fmt: skip


def jobs(endpoint: str) -> dict[str, Job]:
    """The 27 jobs by id."""
    return calls(endpoint.rstrip("/")) | commands()


EXECUTIONS = [
    (41, "LAUNCH-7", "running", "2026-01-31 08:00:00"),
    (42, "LAUNCH-7", "completed", "2026-01-30T08:00:00Z"),
    (43, None, "failed", "1769760000"),
]

DROID_RUNS: list[tuple[Any, ...]] = [
    (920, 42, "planner", "LAUNCH-7", None, "schedule", "completed", "2026-01-30 00:00:01", "2026-01-30 00:04:10",
     "12 tasks"),
    (921, 43, "syncer", None, None, "schedule", "failed", "1769760000", "1769760031", "calendar: 503"),
    (922, 41, "writer", "LAUNCH-7", "evt-17", "event", "completed", "2026-01-31T08:00:05Z", "2026-01-31T08:09:40Z",
     None),
    (923, None, "reviewer", "LAUNCH-7", "", "manual", "cancelled", "2026-01-31 09:15:00", "2026-01-31 09:15:30", ""),
    (924, 41, "crawler", "LAUNCH-7", None, "schedule", "running", "2026-01-30 23:00:00", None, None),
]  # fmt: skip


def write(path: str, endpoint: str) -> int:
    """Write the database; the number of jobs."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        made = jobs(endpoint)
        for job_id, columns in made.items():
            row = {"job_id": job_id, "created_at": MADE, "updated_at": MADE} | columns
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO scheduled_jobs ({names}) VALUES ({marks})", list(row.values()))
        connection.executemany("INSERT INTO executions VALUES (?, ?, ?, ?)", EXECUTIONS)
        connection.executemany("INSERT INTO droid_runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", DROID_RUNS)
    return len(made)


def main() -> int:
    """Run the script; the exit code."""
    parser = argparse.ArgumentParser(description="Write a legacy planner database of 27 jobs.")
    parser.add_argument("path")
    parser.add_argument(
        "--endpoint", metavar="URL", default=DEFAULT_ENDPOINT, help="base URL of the HTTP jobs"
    )
    given = parser.parse_args()
    if os.path.exists(given.path):
        print(f"{given.path} exists; it is left alone", file=sys.stderr)
        return 1
    print(f"{given.path}: {write(given.path, given.endpoint)} jobs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
