"""Hints on turn budgets at add-job and edit-job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests import builders
from tests.builders import Carol, Result, job
from tests.contract.test_slot_eta import metrics

Inside = Callable[..., Result]


def with_history(home: Path, **turns: tuple[int, ...]) -> None:
    """Jobs of profile ``writer`` whose firings took so many turns."""
    builders.add_jobs(home, *(job(name, manual=True, agent_profile="writer") for name in turns))
    with closing(builders.store(home)) as store, store.write() as tx:
        for first, (name, counts) in enumerate(turns.items()):
            for n, count in enumerate(counts):
                one = metrics(1000 * first + n, name, 60)
                tx.record_metrics(
                    type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"turn_count": count})
                )


def test_a_job_is_told_what_jobs_with_its_profile_take_the_median(inside: Inside, home: Path) -> None:
    with_history(home, a=(10, 20, 400), b=(30, 40))
    added = inside("add-job", "c", "--manual", "--agent-profile", "writer", "--json", "--", "true")
    hint = "jobs with agent profile writer take about 30 turns (the median of 5 firings)"
    assert added.json()["hints"] == [hint]
    assert f"carolctl: hint: {hint}" in added.err
    assert inside("edit-job", "c", "--max-turns", "50", "--json").json()["hints"] == [hint]
    assert inside("edit-job", "c", "--priority", "5", "--json").json()["hints"] == []
    assert (
        inside("add-job", "d", "--manual", "--agent-profile", "x", "--json", "--", "true").json()["hints"]
        == []
    )


@pytest.mark.parametrize(
    ("action", "limit"),
    [
        (("--url", "http://h/", "--payload", '{"prompt": "Tidy up. MAX 40 turns."}'), "40"),
        (("--url", "http://h/", "--payload", '["use at most 12 turns"]'), "12"),
        (("--", "agent", "--prompt", "maximum of 7 turns, please"), "7"),
        (("--", "agent", "--max-turns", "25"), "25"),
        (("--url", "http://h/", "--payload", '{"max_turns": 9}'), "9"),
        (("--", "agent", "take the next 3 turns left"), None),
        (("--", "agent"), None),
    ],
)
def test_a_limit_that_only_the_payload_speaks_of_is_noticed(
    inside: Inside, action: tuple[str, ...], limit: str | None
) -> None:
    hints = inside("add-job", "a", "--manual", "--json", *action).json()["hints"]
    assert [f"--max-turns {limit} has it enforced" in hint for hint in hints] == ([True] if limit else [])


def test_with_a_budget_of_its_own_or_of_all_jobs_nothing_is_said(carol: Carol) -> None:
    prompt = ("--", "agent", "MAX 40 turns")
    assert carol("add-job", "a", "--manual", "--max-turns", "40", "--json", *prompt).json()["hints"] == []
    carol("config", "set", "schedule.max_turns", "99")
    assert carol("add-job", "b", "--manual", "--json", *prompt).json()["hints"] == []
