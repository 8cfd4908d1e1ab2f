"""Streaks: what counts where, what warns, what pauses; real runs that end as their job tells them to."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.builders import HOUR, T0, Carol, add_jobs, job
from tests.cli.test_tick import all_ended, due_job, wait_until
from tests.endpoint import Endpoint, Reply

#: A job that ends as the file ``end.json`` in its data home says, and otherwise with success.
ENDS_AS_TOLD = ("sh", "-c", 'cp "$CAROL_DATA_DIR/end.json" "$CAROL_RESULT_FILE"')
BREACH = {"failure_reason": "turn_limit_exceeded", "turns": 51}
FAILURE = {"failure_reason": "sdk_error"}


def rows(home: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute(question).fetchall()


def run(carol: Carol, end: dict[str, Any], now: str = "2026-01-01T12:00:00Z", job_id: str = "agent") -> Any:
    """Run the job to that end; the job as it is then."""
    (carol.home / "end.json").write_text(json.dumps(end))
    done = carol("run-job", job_id, "--wait", CAROL_NOW=now)
    assert done.code in (0, 1), done.err
    return carol("show-job", job_id, "--json").json()


def streaks(shown: Any) -> tuple[int, int]:
    return shown["failure_streak"], shown["turn_budget_breach_streak"]


def agent(**columns: Any) -> Any:
    return job("agent", argv=ENDS_AS_TOLD, **columns)


def test_a_breach_leaves_failure_streak_and_a_failure_leaves_the_breach_streak(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, agent())
    assert [streaks(run(carol, end)) for end in (BREACH, FAILURE, BREACH, FAILURE)] == [
        (0, 1), (1, 1), (1, 2), (2, 2)
    ]  # fmt: skip
    assert streaks(run(carol, {"failure_reason": "aborted"})) == (2, 2)
    assert streaks(run(carol, {"turns": 3})) == (0, 0)


def test_three_generic_failures_pause_with_a_reason_that_list_jobs_and_show_job_say(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, agent())
    assert [run(carol, FAILURE)["status"] for _ in range(3)] == ["active", "active", "paused"]
    reason = "3 failures in a row, the last one sdk_error"
    assert carol("list-jobs", "--json").json()["jobs"][0]["paused_reason"] == reason
    assert reason in " ".join(carol("show-job", "agent", COLUMNS="160").out.split())


def test_two_breaches_warn_and_the_fifth_pauses(carol: Carol, home: Path) -> None:
    add_jobs(home, agent(max_turns=50))
    found = [run(carol, BREACH) for _ in range(5)]
    assert [shown["status"] for shown in found] == ["active"] * 4 + ["paused"]
    assert [len(shown["warnings"]) for shown in found] == [0, 1, 1, 1, 1]
    assert found[1]["warnings"] == [
        "2 turn-limit breaches in a row, the last one at turn 51; 5 pause the job: raise --max-turns, or give it"
        " less to do"
    ]
    assert found[4]["paused_reason"] == "5 turn-limit breaches in a row"
    assert found[4]["failure_streak"] == 0
    assert "5 turn-limit breaches in a row" in carol("list-jobs").out
    written = rows(home, "SELECT command FROM audit_log WHERE actor = 'carolctl' ORDER BY audit_id")
    assert written == [("turn_budget_warning",), ("settle",)]


def test_a_breach_counts_once_the_third_slot_after_the_budget_was_set_has_come(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, agent(daily_at="03:00"))
    assert carol("edit-job", "agent", "--max-turns", "50", CAROL_NOW="2026-01-05T04:00:00Z").code == 0
    for now, breaches in (("07T23:00", 0), ("08T02:59", 0), ("08T03:00", 1), ("09T00:00", 2)):
        assert streaks(run(carol, BREACH, f"2026-01-{now}:00Z")) == (0, breaches), now
    assert carol("edit-job", "agent", "--max-turns", "60", CAROL_NOW="2026-01-09T04:00:00Z").code == 0
    assert streaks(run(carol, BREACH, "2026-01-10T00:00:00Z")) == (0, 2)


def test_the_grace_follows_the_real_slots_of_an_edited_schedule(carol: Carol, home: Path) -> None:
    add_jobs(home, agent(cron="0 0 1 1 *", max_turns=50, max_turns_set_at=T0))
    assert streaks(run(carol, BREACH)) == (0, 0)
    assert carol("edit-job", "agent", "--every", "10m", CAROL_NOW="2026-01-01T12:00:00Z").code == 0
    assert streaks(run(carol, BREACH, "2026-01-01T12:29:59Z")) == (0, 0)
    assert streaks(run(carol, BREACH, "2026-01-01T12:30:00Z")) == (0, 1)


OVER = {"turns": 5000}


def overran(home: Path) -> list[Any]:
    return [
        json.loads(after)["turn_count"]
        for (after,) in rows(home, "SELECT after FROM audit_log WHERE command = 'turn_budget_overrun'")
    ]


def test_a_good_end_over_the_budget_is_a_breach_that_warns_and_at_the_fifth_pauses(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, agent(max_turns=10, failure_streak=2))
    found = [run(carol, OVER) for _ in range(5)]
    assert [streaks(shown) for shown in found] == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert [len(shown["warnings"]) for shown in found] == [0, 1, 1, 1, 1]
    assert (found[4]["status"], found[4]["paused_reason"]) == ("paused", "5 turn-limit breaches in a row")
    assert {status for (status,) in rows(home, "SELECT status FROM runs")} == {"completed"}
    assert overran(home) == [5000] * 5
    said = "warning: run 5 of agent ended well, but used 5000 of 10 turns: a breach of its budget"
    assert said in carol("show-run", "5").err


def test_turns_at_the_budget_are_no_breach_and_reset_the_streak(carol: Carol, home: Path) -> None:
    add_jobs(home, agent(max_turns=10))
    assert streaks(run(carol, OVER)) == (0, 1)
    assert streaks(run(carol, {"turns": 10})) == (0, 0)


def test_a_good_end_over_a_new_budget_counts_nowhere(carol: Carol, home: Path) -> None:
    add_jobs(home, agent(max_turns=10, max_turns_set_at=T0, turn_budget_breach_streak=1))
    assert streaks(run(carol, OVER, "2026-01-01T02:59:59Z")) == (0, 1)
    assert streaks(run(carol, OVER, "2026-01-01T03:00:00Z")) == (0, 2)


def test_turns_that_finish_run_or_an_http_answer_reports_are_held_against_the_budget(
    carol: Carol, home: Path
) -> None:
    with Endpoint() as endpoint:
        endpoint.on("/run", Reply(json={"turns": 5000}), Reply(status=202))
        add_jobs(home, job("agent", url=endpoint.url("/run"), max_turns=10))
        assert carol("run-job", "agent", "--wait").code == 0
        assert streaks(carol("show-job", "agent", "--json").json()) == (0, 1)
        run_id = str(carol("run-job", "agent", "--json").json()["run_id"])
        wait_until(lambda: carol("show-run", run_id, "--json").json()["http_status"] == 202)
    done = carol("finish-run", run_id, "--claim", "1", "--status", "completed", "--turns", "500")
    assert (done.code, done.out) == (0, f"run {run_id} completed\n")
    assert "used 500 of 10 turns: a breach of its budget" in done.err
    assert streaks(carol("show-job", "agent", "--json").json()) == (0, 2)


@pytest.mark.parametrize("taken_in_by", ["drain", "tick"])
def test_an_event_that_comes_home_after_the_end_counts_once_and_takes_the_streak_up_again(
    carol: Carol, home: Path, taken_in_by: str
) -> None:
    long_ago = T0 - 200 * HOUR
    add_jobs(
        home, agent(daily_at="23:00", max_turns=10, max_turns_set_at=long_ago, turn_budget_breach_streak=4)
    )
    assert streaks(run(carol, {})) == (0, 0)
    for turns in ("9", "500", "5000"):
        carol("emit", "1", "--kind", "turns", "--turns", turns)
    for _ in range(2):
        done = carol(taken_in_by, CAROL_NOW="2026-01-01T12:00:30Z")
    shown = carol("show-job", "agent", "--json").json()
    assert (streaks(shown), shown["status"], len(overran(home))) == ((0, 5), "paused", 1)
    assert shown["last_turn_count"] == overran(home)[0]
    assert rows(home, "SELECT turn_count FROM schedule_firing_metrics") == [tuple(overran(home))]
    assert done.code == 0


def test_an_attempt_is_not_charged_with_the_turns_of_the_one_before(carol: Carol, home: Path) -> None:
    once = 'test -e "$CAROL_DATA_DIR/tried" && exit 0; touch "$CAROL_DATA_DIR/tried"; \
echo "{\\"turns\\":50}" > "$CAROL_RESULT_FILE"; exit 1'
    add_jobs(home, job("agent", argv=("sh", "-c", once), max_turns=10, max_attempts=2, manual=True))
    carol("run-job", "agent", CAROL_NOW="2026-01-01T12:00:00Z")
    wait_until(lambda: rows(home, "SELECT 1 FROM runs WHERE status = 'queued'"))
    carol("tick", CAROL_NOW="2026-01-01T12:02:00Z")
    [ended] = wait_until(lambda: all_ended(carol))
    assert (ended["status"], ended["turn_count"], ended["attempt"]) == ("completed", None, 2)
    assert streaks(carol("show-job", "agent", "--json").json()) == (0, 0)


def test_a_breach_that_an_event_reports_obeys_the_grace(carol: Carol, home: Path) -> None:
    for job_id, set_at in (("new", T0), ("old", T0 - 24 * HOUR)):
        add_jobs(
            home,
            job(job_id, argv=("sleep", "60"), max_turns=5, max_turns_set_at=set_at, now=T0 - 48 * HOUR),
        )
        done = carol("run-job", job_id, "--json", CAROL_NOW="2026-01-01T00:30:00Z")
        run_id = str(done.json()["run_id"])
        wait_until(lambda run_id=run_id: carol("show-run", run_id, "--json").json()["status"] == "running")
        carol("emit", run_id, "--kind", "turns", "--turns", "6")
        carol("drain", CAROL_NOW="2026-01-01T00:30:00Z")
    ended = wait_until(lambda: all_ended(carol))
    assert {one["failure_reason"] for one in ended} == {"turn_limit_exceeded"}
    found = rows(home, "SELECT job_id, turn_budget_breach_streak, failure_streak FROM scheduled_jobs")
    assert sorted(found) == [("new", 0, 0), ("old", 1, 0)]


def test_skips_change_no_streak(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("busy", argv=("sleep", "3"), failure_streak=2, turn_budget_breach_streak=4))
    assert len(carol("tick", "--json").json()["fired"]) == 1
    with closing(sqlite3.connect(home / "scheduler.db")) as connection, connection:
        # The slot before is due as well now: a run lives, so it is skipped.
        connection.execute(
            "UPDATE scheduled_jobs SET last_scheduled_for = last_scheduled_for - 60001, next_fire_at = 1"
        )
        connection.execute("UPDATE runs SET scheduled_for = 1, slots_from = 1")
    assert carol("tick", "--json").json()["skipped"]
    assert rows(home, "SELECT failure_streak, turn_budget_breach_streak FROM scheduled_jobs") == [(2, 4)]
    wait_until(lambda: all_ended(carol))


@pytest.mark.parametrize(("streak", "warns"), [(2, True), (1, False)])
def test_a_third_firing_in_a_row_near_the_end_of_its_lease_warns_to_raise_it(
    carol: Carol, home: Path, streak: int, warns: bool
) -> None:
    add_jobs(home, job("slow", argv=("sleep", "1.8"), max_run_duration_sec=2, lease_drift_streak=streak))
    carol("run-job", "slow", "--wait")
    said = "3 firings in a row ended above 80 % of the lease of 2 s: raise --max-run-duration"
    assert carol("show-job", "slow", "--json").json()["warnings"] == ([said] if warns else [])
    assert (said in carol("show-job", "slow").err) == warns
    assert rows(home, "SELECT reason FROM audit_log WHERE command = 'lease_drift_warning'") == (
        [(said,)] if warns else []
    )
