"""Why did it not run? One test for each answer; a fleet with a told clock makes the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carolctl import clock, jobs
from carolctl.clock import iso
from carolctl.model import Millis
from carolctl.said import Said
from carolctl.why import Answer, why
from tests.builders import DAY, HOUR, MINUTE, T0, Carol, job
from tests.fleet import Fleet

SEC = 1000


def ask(fleet: Fleet, at: int | None, job_id: str = "nightly") -> Answer:
    return why(fleet.session(), job_id, None if at is None else Millis(at))


def verdict(answer: Answer) -> tuple[str, list[str]]:
    return answer.story.verdict, list(answer.story.causes)


def test_a_slot_that_ran_names_its_run_and_how_it_ended(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR + 5 * SEC).tick()
    fleet.at(T0 + HOUR + 65 * SEC).end_all()
    answer = ask(fleet, None)
    assert verdict(answer) == ("ran", [])
    assert answer.facts.row is not None
    assert (answer.facts.slot, answer.facts.row.status) == (T0 + HOUR, "completed")
    assert answer.facts.nearest == (None, T0 + 2 * HOUR)


def test_a_running_slot_says_so(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    assert verdict(ask(fleet, T0 + HOUR)) == ("running", [])


def test_overlap_is_named(fleet: Fleet) -> None:
    fleet.add(job(max_run_duration_sec=DAY // 1000))
    fleet.at(T0 + HOUR).tick()
    fleet.at(T0 + 2 * HOUR).tick()
    answer = ask(fleet, T0 + 2 * HOUR)
    assert verdict(answer) == ("skipped", ["overlap"])
    assert "overlap skip" in answer.story.said


def test_a_misfire_is_named_with_the_outage_that_made_it(fleet: Fleet) -> None:
    fleet.add(job(misfire_grace_sec=600))
    fleet.at(T0).tick()
    fleet.at(T0 + HOUR + 20 * MINUTE).tick()
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("skipped", ["misfire", "tick_gap"])
    assert [entry["command"] for entry in answer.evidence()] == ["tick_gap"]


def test_a_late_run_after_an_outage_says_that_no_tick_came_and_for_how_many_slots_it_stands(
    fleet: Fleet,
) -> None:
    fleet.add(job())
    fleet.at(T0).tick()
    fleet.at(T0 + 4 * HOUR + 30 * MINUTE).tick()
    fleet.end_all()
    for slot in (1, 2, 3, 4):
        answer = ask(fleet, T0 + slot * HOUR)
        assert verdict(answer) == ("ran", ["tick_gap"])
        assert "stands for 4 slots" in answer.story.said
        assert "no tick came from 2026-01-01T00:00:00Z to 2026-01-01T04:30:00Z" in answer.story.said


def test_paused_slots_name_who_paused_and_why_before_and_after_the_resume(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + MINUTE)
    jobs.pause(fleet.session(), "nightly", "the disk is full")
    fleet.at(T0 + 2 * HOUR + MINUTE)
    assert verdict(ask(fleet, T0 + HOUR)) == ("paused", ["paused"])
    jobs.resume(fleet.session(), "nightly")
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("skipped", ["paused"])
    assert "the disk is full" in answer.story.said
    assert [entry["command"] for entry in answer.evidence()] == ["pause"]


def test_everything_paused_is_named_for_due_slots_and_those_within_the_pause(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + 30 * MINUTE)
    jobs.pause_all(fleet.session(), until=Millis(T0 + 2 * HOUR + MINUTE), reason=None)
    for slot, expected in ((1, "paused"), (2, "paused"), (3, "will_run")):
        assert verdict(ask(fleet, T0 + slot * HOUR))[0] == expected


def test_a_slot_before_an_edit_is_told_by_the_schedule_of_then(fleet: Fleet) -> None:
    fleet.add(job(cron="0 * * * *"))
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    fleet.at(T0 + 2 * HOUR + MINUTE)
    jobs.edit(fleet.session(), "nightly", Said(cron="30 * * * *"))
    assert verdict(ask(fleet, T0 + HOUR)) == ("ran", [])
    edited = ask(fleet, T0 + 2 * HOUR)
    assert verdict(edited) == ("skipped", ["edited"])
    assert [entry["command"] for entry in edited.evidence()] == ["edit-job"]
    then, now = ask(fleet, T0 + 90 * MINUTE), ask(fleet, T0 + 3 * HOUR)
    assert (verdict(then)[0], verdict(now)[0]) == ("never_due", "never_due")
    assert "0 * * * *" in then.story.said
    assert "30 * * * *" in now.story.said
    assert verdict(ask(fleet, T0 + 150 * MINUTE))[0] == "will_run"


def test_never_due_shows_the_schedule_and_the_nearest_slots(fleet: Fleet) -> None:
    fleet.add(job(daily_at="03:00", timezone="Europe/Berlin"))
    answer = ask(fleet, T0 + 10 * DAY + 3 * HOUR)
    assert verdict(answer) == ("never_due", [])
    nearest = answer.document()["nearest"]
    assert nearest == {"before": "2026-01-11T02:00:00Z", "after": "2026-01-12T02:00:00Z"}
    assert ask(fleet, T0 - DAY).story.verdict == "never_due"


def test_pressure_that_puts_a_slot_off_is_named_while_it_lasts_and_afterwards(
    fleet: Fleet, home: Path
) -> None:
    fleet.add(job())
    with fleet.store.write() as tx:
        tx._connection.execute(
            "INSERT INTO pressure_sources (name, expires_at) VALUES ('chat', ?)", (T0 + HOUR + 45 * SEC,)
        )
    fleet.at(T0 + HOUR + SEC).tick()
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("deferred", ["pressure"])
    assert "chat" in answer.story.said
    fleet.at(T0 + HOUR + 61 * SEC).tick()
    fleet.end_all()
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("ran", ["pressure"])
    assert {entry["command"] for entry in answer.evidence()} == {"deferred"}


def test_a_queued_slot_names_the_cap_and_the_runs_that_hold_the_slots(fleet: Fleet) -> None:
    fleet.add(*(job(name) for name in ("a", "b", "c")))
    fleet.at(T0 + HOUR).tick()
    answer = ask(fleet, T0 + HOUR, "c")
    assert verdict(answer) == ("queued", ["cap"])
    assert [run.job_id for run in answer.holders()] == ["a", "b"]
    assert "all 2 slots are taken by 1 a since" in answer.story.said
    fleet.at(T0 + HOUR + 90 * SEC).end(1)
    fleet.end_all()
    answer = ask(fleet, T0 + HOUR, "c")
    assert verdict(answer) == ("ran", ["cap"])
    assert "waited 90 s for a slot, held by runs " in answer.story.said


def test_a_wait_behind_a_run_of_the_same_job_is_told_as_that_and_not_as_one_for_the_cap(
    fleet: Fleet,
) -> None:
    fleet.monkeypatch.setenv("SCHEDULE_MAX_CONCURRENT", "5")
    fleet.add(job(overlap="queue", max_run_duration_sec=7200), job("other"))
    fleet.at(T0 + HOUR).tick()
    fleet.at(T0 + 2 * HOUR).tick()
    assert verdict(ask(fleet, T0 + 2 * HOUR)) == ("queued", ["overlap"])
    fleet.at(T0 + 2 * HOUR + 4 * MINUTE).end_together(dict.fromkeys(sorted(fleet.running)))
    assert verdict(ask(fleet, T0 + 2 * HOUR)) == ("running", ["overlap"])
    fleet.end_all()
    answer = ask(fleet, T0 + 2 * HOUR)
    assert verdict(answer) == ("ran", ["overlap"])
    assert "it waited 240 s for the end of run 1 of the same job" in answer.story.said
    assert "for a slot" not in answer.story.said
    assert answer.document()["holders"] == []


def test_a_wait_for_the_end_of_a_pause_of_everything_is_told_as_that(fleet: Fleet) -> None:
    fleet.add(*(job(name) for name in ("a", "b", "c")))
    fleet.at(T0 + HOUR).tick()
    fleet.at(T0 + HOUR + 10 * SEC)
    jobs.pause_all(fleet.session(), until=Millis(T0 + 90 * MINUTE), reason=None)
    fleet.at(T0 + HOUR + 20 * SEC).end_together({1: None, 2: None})
    fleet.at(T0 + 90 * MINUTE + 20 * SEC).tick()
    fleet.end_all()
    answer = ask(fleet, T0 + HOUR, "c")
    assert verdict(answer) == ("ran", ["paused", "cap"])
    assert "it waited 1790 s while everything was paused and 10 s for a slot" in answer.story.said
    # The time until the tick is nobody's fault.
    assert sorted(run.run_id for run in answer.holders()) == [1, 2]


def test_a_wait_while_its_own_job_was_paused_is_told_as_that(fleet: Fleet) -> None:
    fleet.add(*(job(name) for name in ("a", "b", "c")))
    fleet.at(T0 + HOUR).tick()
    jobs.pause(fleet.session(), "c", "a look at it")
    fleet.at(T0 + HOUR + 5 * SEC).end_together({1: None, 2: None})
    fleet.at(T0 + HOUR + 300 * SEC)
    jobs.resume(fleet.session(), "c")
    fleet.tick()
    fleet.end_all()
    answer = ask(fleet, T0 + HOUR, "c")
    assert verdict(answer) == ("ran", ["paused"])
    assert "it waited 300 s while the job was paused" in answer.story.said


def test_an_hour_of_pressure_is_counted_whole_and_its_limit_is_among_the_evidence(fleet: Fleet) -> None:
    fleet.add(job(), job("often", cron="*/30 * * * *"))
    with fleet.store.write() as tx:
        tx.hold_pressure("chat", now=fleet.now, until=Millis(T0 + DAY))
    for beat in range(121):
        fleet.at(T0 + HOUR + beat * 30 * SEC).tick()
    fleet.end_all()
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("ran", ["pressure"])
    words = "pressure put it off 120 times, from 2026-01-01T01:00:00Z to 2026-01-01T02:00:00Z"
    assert f"{words}, until it could be put off no longer" in answer.story.said
    assert answer.document()["put_off"] == 120
    assert answer.evidence()[-1]["command"] == "deferral_limit"
    assert len(answer.evidence()) == 20
    often = ask(fleet, T0 + 90 * MINUTE, "often")
    assert verdict(often) == ("skipped", ["overlap", "pressure"])
    assert "the same tick queued run " in often.story.said
    assert "for an earlier slot, 2026-01-01T00:30:00Z (overlap skip)" in often.story.said
    assert "pressure put it off " in often.story.said
    assert "still alive" not in often.story.said


def test_a_slot_at_the_second_of_its_pause_names_who_paused_and_why(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + 2 * HOUR)
    jobs.pause(fleet.session(), "nightly", "the disk is full")
    # Of the slot an hour before no tick had come either: it too was laid down by the pause.
    for slot in (1, 2):
        answer = ask(fleet, T0 + slot * HOUR)
        assert verdict(answer) == ("skipped", ["paused"])
        assert "paused by tester since 2026-01-01T02:00:00Z (the disk is full)" in answer.story.said
        assert [entry["command"] for entry in answer.evidence()] == ["pause"]


def test_a_slot_within_a_pause_that_an_edit_laid_down_says_both(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + MINUTE)
    jobs.pause(fleet.session(), "nightly", "the disk is full")
    fleet.at(T0 + 90 * MINUTE)
    jobs.edit(fleet.session(), "nightly", Said(cron="30 * * * *"))
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("skipped", ["paused", "edited"])
    assert "paused by tester since 2026-01-01T00:01:00Z (the disk is full)" in answer.story.said
    assert "the schedule was edited by tester at 2026-01-01T01:30:00Z" in answer.story.said
    assert [entry["command"] for entry in answer.evidence()] == ["pause", "edit-job"]


def test_a_run_that_was_tried_again_tells_its_tries_and_its_first_start(fleet: Fleet) -> None:
    fleet.add(job(max_attempts=3))
    fleet.at(T0 + HOUR).tick()
    for attempt in range(3):
        fleet.at(fleet.now + 10 * SEC).end(1, "exit_nonzero" if attempt < 2 else "timeout")
        fleet.at(fleet.now + 20 * MINUTE).tick()
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("ran", [])
    assert (
        "run 1 was tried 3 times: first started 2026-01-01T01:00:00Z (exit_nonzero), the last time it started"
        " 2026-01-01T01:40:20Z, failed (timeout)"
    ) in answer.story.said
    told = [(one["attempt"], one["started_at"], one["failure_reason"]) for one in answer.document()["tries"]]
    assert told[0] == (1, "2026-01-01T01:00:00Z", "exit_nonzero")
    assert [reason for _, _, reason in told] == ["exit_nonzero", "exit_nonzero", "timeout"]


def test_a_time_beyond_what_schedules_are_reckoned_for_says_so(fleet: Fleet) -> None:
    fleet.add(job())
    answer = ask(fleet, clock.parse_iso("9999-01-01T00:00:00Z", field="test"))
    assert verdict(answer) == ("never_due", [])
    assert "until 2200-01-01T00:00:00Z only" in answer.story.said


def test_a_queued_slot_behind_a_manual_run_of_its_job_names_that_run(fleet: Fleet) -> None:
    fleet.add(job())
    from carolctl.run_now import run_now

    fleet.launch([run_now(fleet.session(), "nightly", force=False, reason=None, requester=None)])
    fleet.at(T0 + HOUR)
    fleet.monkeypatch.setenv("SCHEDULE_MAX_RUN_DURATION_SEC", "7200")
    with fleet.store.write() as tx:
        tx._connection.execute("UPDATE runs SET lease_expires_at = ?", (T0 + DAY,))
    fleet.tick()
    assert verdict(ask(fleet, T0 + HOUR)) == ("queued", ["overlap"])


def test_a_due_slot_without_ticks_says_that_the_tick_is_down(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0).tick()
    fleet.at(T0 + HOUR + MINUTE)
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("tick_down", ["tick_gap"])
    assert "the last tick was 2026-01-01T00:00:00Z" in answer.story.said


def test_a_retry_that_waits_says_from_when(fleet: Fleet) -> None:
    fleet.add(job(max_attempts=3))
    fleet.at(T0 + HOUR).tick()
    fleet.at(T0 + HOUR + SEC).end(1, "exit_nonzero")
    answer = ask(fleet, T0 + HOUR)
    assert verdict(answer) == ("queued", ["retry"])
    assert "try 2 begins at" in answer.story.said


def test_a_slot_whose_row_is_gone_is_owned_up_to(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    with fleet.store.write() as tx:
        tx._connection.execute("DELETE FROM runs")
    assert verdict(ask(fleet, T0 + HOUR))[0] == "no_row"
    fleet.at(T0 + 100 * DAY)
    assert verdict(ask(fleet, T0 + HOUR))[0] == "pruned"


def test_a_removed_job_is_still_accounted_for(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    fleet.at(T0 + 2 * HOUR + MINUTE)
    jobs.remove(fleet.session(), "nightly", cancel=False)
    assert verdict(ask(fleet, T0 + HOUR)) == ("ran", [])
    assert verdict(ask(fleet, T0 + 2 * HOUR)) == ("skipped", ["removed"])


@pytest.mark.parametrize(("at", "code"), [("2026-01-01T01:00", 0), ("nonsense", 2)])
def test_the_command_answers_in_words_and_as_a_document(
    fleet: Fleet, carol: Carol, at: str, code: int
) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    env = {"CAROL_NOW": str(iso(T0 + 90 * MINUTE))}
    told = carol("why", "nightly", "--at", at, **env)
    assert told.code == code
    if code == 0:
        assert "ran" in told.out
        document: dict[str, Any] = carol("why", "nightly", "--at", at, "--json", **env).json()
        assert (document["verdict"], document["run"]["run_id"]) == ("ran", 1)
        assert carol("why", "nightli", **env).code == 66
