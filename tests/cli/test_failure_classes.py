"""Failure classes and what follows from them for retries: real runs, a real endpoint."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl.clock import parse_iso
from tests.builders import Carol, add_jobs, job
from tests.cli.test_tick import due_job, now, wait_until
from tests.endpoint import Endpoint, Reply


def settled(carol: Carol) -> dict[str, Any] | None:
    """The only run, once it holds no slot any more."""
    [run] = carol("list-runs", "--json").json()["runs"]
    found: dict[str, Any] | None = run if run["status"] not in ("claimed", "running") else None
    return found if found and found["claim_no"] else None


def fails(home: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute("SELECT attempt, failure_reason FROM schedule_firing_metrics").fetchall()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '401 Unauthorized: invalid x-api-key'; exit 1", "auth_failed"),
        ("echo 'Error: your quota: insufficient_quota'; echo 'see the log'; exit 2", "budget_exceeded"),
        ("echo 'Reached max turns (50)'; exit 1", "turn_limit_exceeded"),
    ],
)
def test_never_retried_for_authentication_or_budget(
    carol: Carol, home: Path, script: str, reason: str
) -> None:
    add_jobs(home, job("agent", manual=True, argv=("sh", "-c", script), max_attempts=5, idempotent=True))
    assert carol("run-job", "agent", "--wait").code == 1
    assert fails(home) == [(1, reason)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'request timed out'; exit 1", "timeout"),
        ("exit 124", "timeout"),
        ("echo 'rate limit reached'; exit 1", "rate_limited"),
        ("echo 'segment 7 of 9'; exit 1", "exit_nonzero"),
        ("echo '401 Unauthorized'; kill -9 $$", "killed"),
        (
            """echo 401 Unauthorized; echo '{"failure_reason": "timeout"}' > "$CAROL_RESULT_FILE"; exit 1""",
            "timeout",
        ),
        (
            """echo '{"failure_reason": "RateLimitError", "summary": "429"}' > "$CAROL_RESULT_FILE\"""",
            "rate_limited",
        ),
    ],
)
def test_text_is_the_last_resort_and_such_failures_are_retried_with_backoff(
    carol: Carol, home: Path, script: str, reason: str
) -> None:
    add_jobs(home, job("agent", manual=True, argv=("sh", "-c", script), max_attempts=5))
    carol("run-job", "agent")
    run = wait_until(lambda: settled(carol))
    assert (run["status"], run["attempt"]) == ("queued", 2)
    assert fails(home) == [(1, reason)]
    pause = parse_iso(run["not_before"], field="test") - now()
    assert 10_000 < pause < 40_000


def test_words_in_the_output_of_a_success_mean_nothing(carol: Carol, home: Path) -> None:
    add_jobs(home, job("agent", manual=True, argv=("echo", "401 Unauthorized")))
    assert carol("run-job", "agent", "--wait").code == 0


def test_a_rate_limit_is_retried_when_its_answer_says(carol: Carol, home: Path) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=429, headers={"Retry-After": "90000"}))
        add_jobs(home, job("agent", manual=True, url=endpoint.url("/agent"), max_attempts=2))
        carol("run-job", "agent")
        run = wait_until(lambda: settled(carol))
    assert (run["status"], fails(home)) == ("queued", [(1, "rate_limited")])
    assert 89_000_000 < parse_iso(run["not_before"], field="test") - now() <= 90_000_000


def test_a_retry_never_goes_past_the_next_slot(carol: Carol, home: Path) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=429, headers={"Retry-After": "90000"}))
        add_jobs(home, due_job("agent", url=endpoint.url("/agent"), max_attempts=2))
        carol("tick")
        run = wait_until(lambda: settled(carol))
    assert (run["status"], run["failure_reason"]) == ("failed", "rate_limited")


def test_the_http_status_stands_above_the_words_of_its_answer(carol: Carol, home: Path) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=400, json={"summary": "rate limit reached"}))
        add_jobs(home, job("agent", manual=True, url=endpoint.url("/agent")))
        carol("run-job", "agent", "--wait")
    assert fails(home) == [(1, "http_error")]
