"""What a person says of a job on a command line, before anything of it is understood (see `job_values`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What was said of a job, by option; None or empty: nothing was said."""

    cron: str | None = None
    daily_at: str | None = None
    every: str | None = None
    at: str | None = None
    manual: bool | None = None
    timezone: str | None = None
    url: str | None = None
    method: str | None = None
    header: list[str] | None = None
    payload: str | None = None
    project: str | None = None
    description: str | None = None
    priority: str | None = None
    overlap: str | None = None
    catch_up: str | None = None
    misfire_grace: str | None = None
    max_run_duration: str | None = None
    max_turns: str | None = None
    max_attempts: str | None = None
    idempotent: bool | None = None
    may_schedule: bool | None = None
    agent_profile: str | None = None
    on_failure: str | None = None
    spread: str | None = None
    dst_rule: str | None = None
    run_as: str | None = None
    working_directory: str | None = None
    environment_file: str | None = None
    load_credential: list[str] | None = None
    memory_max: str | None = None
    cpu_quota: str | None = None
    sandbox: bool | None = None
    argv: list[str] | None = None
