"""What a job's own figures warn of, in words: breaches of its turn budget, firings near the end of its lease. Pure."""

from __future__ import annotations

from carolctl.config import Settings
from carolctl.model import Job, Run


def warnings_of(job: Job, settings: Settings) -> list[str]:
    """The warnings in force for `job`; none for most."""
    found = [breach_warning(job, settings), drift_warning(job, settings)]
    return [warning for warning in found if warning]


def breach_warning(job: Job, settings: Settings) -> str | None:
    """From ``streak.breach_warn`` breaches in a row on."""
    streak = job.turn_budget_breach_streak
    if streak < settings.breach_warn:
        return None
    took = "" if job.last_turn_count is None else f", the last one at turn {job.last_turn_count}"
    rest = "" if job.status == "paused" else f"; {settings.breach_pause} pause the job"
    return f"{streak} turn-limit breaches in a row{took}{rest}: raise --max-turns, or give it less to do"


def overrun_said(run: Run) -> str | None:
    """Of a run that ended well and yet used more turns than it may."""
    if run.status != "completed" or run.max_turns is None or (run.turn_count or 0) <= run.max_turns:
        return None
    return (
        f"run {run.run_id} of {run.job_id} ended well, but used {run.turn_count} of {run.max_turns} turns:"
        " a breach of its budget"
    )


def drift_warning(job: Job, settings: Settings) -> str | None:
    """From ``streak.lease_drift_warn`` firings in a row on that ended above 80 % of their lease."""
    streak = job.lease_drift_streak
    if streak < settings.lease_drift_warn:
        return None
    lease = job.max_run_duration_sec or settings.max_run_duration_sec
    return f"{streak} firings in a row ended above 80 % of the lease of {lease} s: raise --max-run-duration"
