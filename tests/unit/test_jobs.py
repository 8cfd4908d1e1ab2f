"""What a change does to a job: which slots it skips, where the schedule goes on, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from carolctl import job_values, jobs
from carolctl.errors import BadSchedule, NotFound, UsageError
from carolctl.job_plans import build, plan_edit, plan_pause, plan_resume
from carolctl.model import CommandAction, HttpAction, Job, Millis
from carolctl.said import Said
from carolctl.schedule import spread_offset_ms
from carolctl.session import Session
from carolctl.store.db import Store
from tests.builders import DAY, HOUR, MINUTE, T0, add_jobs, at, job

LATER = Millis(T0 + 2 * DAY + 10 * HOUR + 30 * MINUTE)


# -- new jobs --------------------------------------------------------------------------------------------------


def test_a_new_job_counts_from_now() -> None:
    made = build("nightly", Said(cron="0 3 * * *", argv=["true"]), now=T0)
    assert made.last_scheduled_for == made.anchor_at == made.created_at == T0
    assert made.next_fire_at == T0 + 3 * HOUR
    assert (made.schedule_rev, made.status, made.max_turns_set_at) == (1, "active", None)


def test_spread_moves_the_wake_up_and_never_the_slot() -> None:
    made = build("nightly", Said(cron="0 3 * * *", spread="10m", argv=["true"]), now=T0)
    offset = spread_offset_ms("nightly", 600)
    assert 0 < offset < 600_000
    assert made.next_fire_at == T0 + 3 * HOUR + offset


def test_a_turn_budget_remembers_when_it_was_set() -> None:
    assert build("a", Said(manual=True, argv=["x"], max_turns="9"), now=T0).max_turns_set_at == T0


def test_an_instant_in_the_zone_of_the_job_is_stored_in_utc() -> None:
    made = build("a", Said(at="2026-07-01T09:00", timezone="Europe/Berlin", argv=["x"]), now=T0)
    assert made.schedule_expr == "2026-07-01T07:00:00Z"
    assert made.next_fire_at == at("2026-07-01T07:00:00Z")


def test_an_instant_that_has_passed_is_refused() -> None:
    with pytest.raises(BadSchedule, match=r"at: .*can never fire"):
        build("a", Said(at="2025-12-31T23:59:59Z", argv=["x"]), now=T0)


def test_a_manual_job_has_no_next_firing() -> None:
    assert build("a", Said(manual=True, argv=["x"]), now=T0).next_fire_at is None


def test_the_action_is_an_argument_list_or_a_call() -> None:
    command = build("a", Said(manual=True, argv=["sh", "-c", "echo $HOME; rm x"]), now=T0)
    assert command.action == CommandAction(argv=("sh", "-c", "echo $HOME; rm x"))
    call = build(
        "b",
        Said(
            manual=True,
            url="https://h/x",
            method="put",
            header=["A: b ", "X-T:  ${env:T}"],
            payload='{"a":[1]}',
        ),
        now=T0,
    )
    assert call.action == HttpAction(
        url="https://h/x", method="PUT", headers={"A": "b", "X-T": "${env:T}"}, payload={"a": [1]}
    )


# -- edits -----------------------------------------------------------------------------------------------------


def test_an_edit_of_the_schedule_starts_afresh_and_skips_what_was_due() -> None:
    hourly = job(cron="0 * * * *")
    change = plan_edit(hourly, Said(daily_at="00:05"), now=LATER)
    assert change is not None
    [row] = change.skipped
    assert (row.skip_reason, row.slots_from, row.scheduled_for) == ("edited", T0 + HOUR, T0 + 58 * HOUR)
    assert row.coalesced == 58
    after = change.after
    assert after.anchor_at == after.last_scheduled_for == after.updated_at == LATER
    assert after.schedule_rev == 2
    assert (after.schedule_kind, after.schedule_expr) == ("daily_at", "00:05")
    assert after.next_fire_at == T0 + 3 * DAY + 5 * MINUTE


@pytest.mark.parametrize(
    "said",
    [
        Said(timezone="Asia/Kathmandu"),
        Said(dst_rule="literal"),
        Said(spread="5m"),
        Said(every="7m"),
        Said(manual=True),
    ],
)
def test_each_part_of_the_timing_starts_afresh(said: Said) -> None:
    change = plan_edit(job(cron="30 * * * *"), said, now=LATER)
    assert change is not None
    assert (change.after.schedule_rev, change.after.last_scheduled_for) == (2, LATER)
    assert change.skipped[0].skip_reason == "edited"


@pytest.mark.parametrize(
    "said",
    [
        Said(priority="5"),
        Said(max_turns="7"),
        Said(project="p"),
        Said(url="http://h/"),
        Said(argv=["other"]),
        Said(misfire_grace="5m"),
        Said(idempotent=True),
        Said(overlap="allow", catch_up="all"),
    ],
)
def test_any_other_edit_leaves_the_schedule_alone(said: Said) -> None:
    hourly = job(cron="0 * * * *")
    change = plan_edit(hourly, said, now=LATER)
    assert change is not None
    assert not change.skipped
    for column in ("next_fire_at", "last_scheduled_for", "anchor_at", "schedule_rev"):
        assert getattr(change.after, column) == getattr(hourly, column)


@pytest.mark.parametrize(
    "said",
    [
        Said(daily_at="3:00"),
        Said(daily_at="03:00", timezone="UTC", spread="none"),
        Said(priority="0", idempotent=False),
        Said(project="none", max_turns="none", on_failure="none"),
        Said(argv=["true"]),
    ],
)
def test_the_same_again_is_no_change(said: Said) -> None:
    assert plan_edit(job(daily_at="03:00"), said, now=LATER) is None


def test_setting_a_turn_budget_anew_starts_its_grace() -> None:
    change = plan_edit(job(max_turns=5, max_turns_set_at=T0), Said(max_turns="6"), now=LATER)
    assert change is not None
    assert change.after.max_turns_set_at == LATER
    cleared = plan_edit(job(max_turns=5, max_turns_set_at=T0), Said(max_turns="none"), now=LATER)
    assert cleared is not None
    assert (cleared.after.max_turns, cleared.after.max_turns_set_at) == (None, None)


def test_a_call_keeps_what_is_not_said_of_it() -> None:
    before = job(url="http://h/a")
    change = plan_edit(before, Said(payload='{"n": 1}'), now=LATER)
    assert change is not None
    assert change.after.action == HttpAction(url="http://h/a", payload={"n": 1})
    cleared = plan_edit(change.after, Said(payload="none"), now=LATER)
    assert cleared is not None
    assert cleared.after.action == before.action


def test_an_edit_of_a_paused_job_leaves_it_paused_until_it_is_resumed() -> None:
    paused = job(cron="0 * * * *", status="paused", paused_reason="why", next_fire_at=None)
    change = plan_edit(paused, Said(cron="15 * * * *"), now=LATER)
    assert change is not None
    assert (change.after.status, change.after.next_fire_at) == ("paused", None)
    resumed = plan_resume(change.after, now=Millis(LATER + MINUTE))
    assert resumed is not None
    assert resumed.after.next_fire_at == T0 + 2 * DAY + 11 * HOUR + 15 * MINUTE


def test_a_job_whose_schedule_cannot_be_read_is_mended_by_an_edit_and_refuses_to_resume() -> None:
    broken = replace(job(status="paused", next_fire_at=None), schedule_expr="nonsense")
    assert plan_edit(broken, Said(priority="3"), now=LATER) is not None
    with pytest.raises(BadSchedule):
        plan_resume(broken, now=LATER)
    change = plan_edit(broken, Said(every="1h"), now=LATER)
    assert change is not None
    assert plan_resume(change.after, now=LATER) is not None


def test_an_intervals_grid_stays_where_it_was_anchored() -> None:
    every = job(every="7h")
    assert plan_edit(every, Said(every="7h"), now=LATER) is None
    resting = plan_pause(every, "why", now=LATER)
    assert resting is not None
    again = plan_resume(resting.after, now=Millis(LATER + MINUTE))
    assert again is not None
    assert again.after.next_fire_at == T0 + 63 * HOUR


# -- pause and resume ------------------------------------------------------------------------------------------


def test_a_pause_skips_what_was_due_and_a_resume_what_came_meanwhile() -> None:
    hourly = job(cron="0 * * * *", failure_streak=3, turn_budget_breach_streak=2, lease_drift_streak=1)
    pause = plan_pause(hourly, "maintenance", now=Millis(T0 + 90 * MINUTE))
    assert pause is not None
    assert [(row.slots_from, row.scheduled_for, row.skip_reason) for row in pause.skipped] == [
        (T0 + HOUR, T0 + HOUR, "paused")
    ]
    assert (pause.after.status, pause.after.paused_reason, pause.after.next_fire_at) == (
        "paused", "maintenance", None,
    )  # fmt: skip
    assert (pause.after.last_scheduled_for, pause.after.schedule_rev) == (T0 + HOUR, 1)
    resume = plan_resume(pause.after, now=LATER)
    assert resume is not None
    [row] = resume.skipped
    assert (row.slots_from, row.scheduled_for, row.coalesced) == (T0 + 2 * HOUR, T0 + 58 * HOUR, 57)
    after = resume.after
    assert (after.status, after.paused_reason, after.next_fire_at) == ("active", None, T0 + 59 * HOUR)
    assert (after.failure_streak, after.turn_budget_breach_streak, after.lease_drift_streak) == (0, 0, 0)


def test_a_slot_that_waits_for_its_spread_is_skipped_by_a_pause() -> None:
    spread = job("spread", cron="0 3 * * *", spread_sec=3600)
    pause = plan_pause(spread, "why", now=Millis(T0 + 3 * HOUR + 1000))
    assert pause is not None
    assert [row.scheduled_for for row in pause.skipped] == [T0 + 3 * HOUR]


def test_pausing_twice_and_resuming_what_runs_change_nothing() -> None:
    assert plan_pause(job(status="paused"), "why", now=LATER) is None
    assert plan_resume(job(), now=LATER) is None


def test_ten_years_of_a_minutely_job_are_one_row_whose_count_stops_at_ten_thousand() -> None:
    pause = plan_pause(job(cron="* * * * *"), "why", now=Millis(T0 + 3650 * DAY))
    assert pause is not None
    [row] = pause.skipped
    assert (row.slots_from, row.scheduled_for) == (T0 + MINUTE, T0 + 3650 * DAY)
    assert row.coalesced == 10_000


def test_a_clock_that_went_back_skips_nothing() -> None:
    pause = plan_pause(job(now=LATER), "why", now=T0)
    assert pause is not None
    assert not pause.skipped
    assert pause.after.last_scheduled_for == LATER


# -- values ----------------------------------------------------------------------------------------------------


def test_a_secret_in_a_header_is_seen_unless_it_is_a_reference() -> None:
    action = HttpAction(
        url="http://h/",
        headers={"authorization": "Bearer abc", "Cookie": "${file:/run/c}", "X-Api-Key": "k", "X-Other": "v"},
    )
    assert job_values.literal_secrets(action) == ["authorization", "X-Api-Key"]
    shown = job_values.showable(action)
    assert isinstance(shown, HttpAction)
    assert shown.headers == {
        "authorization": "[redacted]", "Cookie": "${file:/run/c}", "X-Api-Key": "[redacted]", "X-Other": "v",
    }  # fmt: skip


def test_a_payload_may_nest_as_deep_as_the_cap_and_no_deeper() -> None:
    depth = job_values.PAYLOAD_CAP_DEPTH
    assert job_values.parse_payload("[" * depth + "]" * depth)
    for deeper in (depth + 1, 100_000):
        with pytest.raises(UsageError, match="payload: nested deeper"):
            job_values.parse_payload("[" * deeper + "]" * deeper)


def test_a_payload_may_be_as_large_as_the_cap_and_no_larger() -> None:
    text = '"' + "x" * (job_values.PAYLOAD_CAP_BYTES - 2) + '"'
    assert len(job_values.parse_payload(text)) == job_values.PAYLOAD_CAP_BYTES - 2
    with pytest.raises(UsageError, match="payload: larger than 256 KiB"):
        job_values.parse_payload(text + " ")


# -- writing ---------------------------------------------------------------------------------------------------


def test_everybodys_edit_lands_when_eight_edit_at_once(home: Path, store: Callable[..., Store]) -> None:
    add_jobs(home, job("busy", cron="0 * * * *"))
    said = [Said(cron=f"{minute} * * * *") for minute in range(1, 5)]
    said += [Said(project="p"), Said(priority="7"), Said(max_turns="9"), Said(argv=["other"])]
    sessions = [Session(store=store(home), now=Millis(T0 + n + 1), actor="me") for n in range(len(said))]
    with ThreadPoolExecutor(len(said)) as pool:
        changes = list(pool.map(lambda session, what: jobs.edit(session, "busy", what), sessions, said))
    assert None not in changes
    with store(home).read() as tx:
        after = tx.job("busy")
        entries = tx.audit_entries(subject="busy")
    assert after is not None
    assert after.schedule_rev == 5
    assert (after.project, after.priority, after.max_turns) == ("p", 7, 9)
    assert after.action == CommandAction(argv=("other",))
    assert len(entries) == 8


def test_a_change_and_its_skipped_slots_are_one_transaction(home: Path, store: Callable[..., Store]) -> None:
    add_jobs(home, job("hourly"))
    session = Session(store=store(home), now=LATER, actor="me")
    with pytest.raises(NotFound, match="on_failure: no such job: ghost"):
        jobs.edit(session, "hourly", Said(daily_at="04:00", on_failure="ghost"))
    with session.store.read() as tx:
        unchanged = tx.job("hourly")
        assert unchanged == job("hourly")
        assert tx.audit_entries() == []


def test_a_full_store_takes_no_more_jobs(
    home: Path, store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS", 3)
    add_jobs(home, *(job(f"job-{n}") for n in range(3)))
    with pytest.raises(Exception, match="there are 3 jobs already"):
        jobs.add(Session(store=store(home), now=T0, actor="me"), _another())


def _another() -> Job:
    return build("one-more", Said(manual=True, argv=["true"]), now=T0)
