"""Why did it not run? One test for each answer; a fleet with a told clock makes the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carolctl import jobs
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
