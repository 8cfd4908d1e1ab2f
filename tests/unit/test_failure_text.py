"""The class of a failure by its words: what names a cause, and what only looks like it."""

from __future__ import annotations

import pytest

from carolctl.failure_text import class_of, class_of_exit


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Error: Reached max turns (50)", "turn_limit_exceeded"),
        ("error_max_turns", "turn_limit_exceeded"),
        ("the turn limit was hit", "turn_limit_exceeded"),
        ("subprocess.TimeoutExpired: Command 'x' timed out after 30 seconds", "timeout"),
        ("requests.exceptions.ReadTimeout: HTTPSConnectionPool", "timeout"),
        ("DEADLINE_EXCEEDED", "timeout"),
        ("TimeoutError", "timeout"),
        ("Your credit balance is too low to access the API", "budget_exceeded"),
        ("You exceeded your current quota, please check your plan", "budget_exceeded"),
        ("insufficient_quota", "budget_exceeded"),
        ("budget exceeded: 12.00 of 10.00 USD", "budget_exceeded"),
        ('{"type":"authentication_error","message":"invalid x-api-key"}', "auth_failed"),
        ("401 Client Error: Unauthorized for url", "auth_failed"),
        ("Error: token has expired, run login", "auth_failed"),
        ("anthropic.RateLimitError: Error code: 429", "rate_limited"),
        ("HTTP 429: Too Many Requests", "rate_limited"),
        ("rate_limit_error", "rate_limited"),
        ("Request was aborted by the user", "aborted"),
        ("KeyboardInterrupt", "aborted"),
    ],
)
def test_words_that_name_a_cause_name_the_class(text: str, named: str) -> None:
    assert class_of(text) == named


@pytest.mark.parametrize(
    "text",
    [None, "", "done", "exit 1", "0 tests timeouted", "Traceback (most recent call last):", "took 3 turns",
     "429 rows written", "ValueError: 401", "set --timeout to wait longer", "Turned left", "budget report is written",
     "the author failed to answer", "Aborted (core dumped)", "token: abc"],
)  # fmt: skip
def test_other_words_name_nothing(text: str | None) -> None:
    assert class_of(text) is None


def test_the_first_text_to_name_a_class_names_it() -> None:
    assert class_of(None, "all well", "timed out", "401 Unauthorized") == "timeout"


def test_a_text_of_any_length_is_looked_through_in_no_time() -> None:
    assert class_of("a budget of " * 100_000 + "rate limit") is None


def test_the_status_of_timeout_tells_more_than_what_was_printed() -> None:
    assert class_of_exit(124, "401 Unauthorized") == "timeout"
    assert class_of_exit(1, "nothing") == "exit_nonzero"
