"""add-job, edit-job, remove-job, show-job, pause and resume, as a person or a script calls them."""

from __future__ import annotations

import json
import os
import pty
import select
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carolctl.model import Run
from carolctl.store.db import Store
from carolctl.store.runs import RunFilter
from tests.builders import DAY, HOUR, T0, Carol, Result, add_jobs, at, job

Inside = Callable[..., Result]
Opener = Callable[..., Store]

NEW_YEAR = "2026-01-01T00:00:00Z"
TWO_DAYS_ON = "2026-01-03T10:30:00Z"


def runs_of(store: Opener, home: Path, job_id: str) -> list[Run]:
    with store(home).read() as tx:
        return tx.runs(RunFilter(job_id=job_id))


def audit_of(store: Opener, home: Path) -> list[dict[str, Any]]:
    with store(home).read() as tx:
        entries = tx.audit_entries()
    for entry in entries:
        for side in ("before", "after"):
            entry[side] = entry[side] and json.loads(entry[side])
    return entries


# -- add-job ---------------------------------------------------------------------------------------------------


def test_a_job_with_every_option_is_stored_as_said(carol: Carol) -> None:
    carol("add-job", "handler", "--manual", "--", "true")
    added = carol(
        "add-job", "gen-tasks-01", "--cron", "*/15 9-17 * * mon-fri", "--timezone", "Europe/Berlin",
        "--dst-rule", "literal", "--spread", "5m", "--url", "https://localhost:9000/run", "--method", "put",
        "--header", "Authorization: Bearer ${env:TOKEN}", "--header", "X-Team: a:b", "--payload", '{"n": [1]}',
        "--project", "tasks", "--description", "makes\ntasks", "--priority", "-5", "--overlap", "queue",
        "--catch-up", "all", "--misfire-grace", "10m", "--max-run-duration", "2h", "--max-turns", "40",
        "--max-attempts", "3", "--idempotent", "--agent-profile", "careful", "--on-failure", "handler", "--json",
        CAROL_NOW=NEW_YEAR,
    )  # fmt: skip
    assert added.code == 0, added.err
    shown = carol("show-job", "gen-tasks-01", "--json").json()
    assert shown["schedule"] == {
        "kind": "cron",
        "expr": "*/15 9-17 * * MON-FRI",
        "timezone": "Europe/Berlin",
    }
    assert shown["action"] == {
        "kind": "http",
        "url": "https://localhost:9000/run",
        "method": "PUT",
        "headers": {"Authorization": "Bearer ${env:TOKEN}", "X-Team": "a:b"},
        "payload": {"n": [1]},
    }
    expected = {
        "dst_rule": "literal", "spread_sec": 300, "project": "tasks", "description": "makes\ntasks",
        "priority": -5, "overlap": "queue", "catch_up": "all", "misfire_grace_sec": 600,
        "max_run_duration_sec": 7200, "max_turns": 40, "max_turns_set_at": NEW_YEAR, "max_attempts": 3,
        "idempotent": True, "agent_profile": "careful", "on_failure": "handler", "created_at": NEW_YEAR,
        "last_scheduled_for": NEW_YEAR, "schedule_rev": 1, "status": "active",
    }  # fmt: skip
    assert {name: shown[name] for name in expected} == expected


def test_a_command_is_taken_word_by_word(carol: Carol) -> None:
    words = ["sh", "-c", 'echo "$HOME"; exit 3', "--json", "", "-h"]
    assert carol("add-job", "a", "--every", "15m", "--", *words).code == 0
    assert carol("show-job", "a", "--json").json()["action"] == {"kind": "command", "argv": words}


def test_the_store_is_made_private_and_not_by_a_refused_job(carol: Carol, home: Path) -> None:
    assert carol("add-job", "a", "--cron", "61 * * * *", "--", "true").code == 2
    assert not home.exists()
    assert carol("add-job", "a", "--cron", "1 * * * *", "--", "true").code == 0
    assert (home / "scheduler.db").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "command",
    [
        "list-jobs",
        "show-job a",
        "edit-job a --priority 1",
        "remove-job a",
        "pause",
        "pause a",
        "resume",
        "resume a",
    ],
)
def test_nothing_else_makes_a_store(inside: Inside, home: Path, command: str) -> None:
    answer = inside(*command.split())
    assert answer.code == 66
    assert "no such file" in answer.err
    assert not home.exists()


def test_a_taken_id_is_refused_with_a_hint(inside: Inside) -> None:
    assert inside("add-job", "a", "--manual", "--", "true").code == 0
    again = inside("add-job", "a", "--manual", "--json", "--", "false")
    assert again.code == 1
    assert again.error()["error"] == "refused"
    assert again.error()["hint"] == "carolctl edit-job a"


def test_a_handler_must_exist_and_be_another_job(inside: Inside) -> None:
    missing = inside("add-job", "a", "--manual", "--on-failure", "ghost", "--", "true")
    assert (missing.code, "on_failure: no such job: ghost" in missing.err) == (66, True)
    itself = inside("add-job", "a", "--manual", "--on-failure", "a", "--", "true")
    assert (itself.code, "on_failure: a job cannot handle its own failure" in itself.err) == (2, True)


def test_a_literal_secret_is_warned_about_and_never_shown(inside: Inside, store: Opener, home: Path) -> None:
    added = inside(
        "add-job",
        "a",
        "--manual",
        "--url",
        "http://h/",
        "--header",
        "Authorization: Bearer canary-3141",
        "--json",
    )
    assert added.code == 0
    assert "warning: the value of Authorization is stored as it is" in added.err
    for answer in (
        added,
        inside("list-jobs", "--json"),
        inside("show-job", "a"),
        inside("show-job", "a", "--json"),
    ):
        assert "[redacted]" in answer.out
        assert "canary" not in answer.out + answer.err
    assert "canary" not in json.dumps(audit_of(store, home))
    by_reference = inside("edit-job", "a", "--header", "Authorization: Bearer ${env:T}")
    assert "warning" not in by_reference.err


GOOD = ["--cron", "0 3 * * *", "--", "true"]
CALL = ["--manual", "--url", "http://localhost/"]

BAD_INPUT: list[tuple[list[str], str]] = [
    (["a", "--", "true"], "schedule: one of --cron"),
    (["a", "--cron", "0 3 * * *"], "action: --url URL or -- COMMAND"),
    (["a", "--cron", "0 3 * * *", "--every", "5m", "--", "true"], "every: a job has one schedule"),
    (["a", "--daily-at", "3:00", "--manual", "--", "true"], "manual: a job has one schedule"),
    (["a", *CALL, "--", "true"], "argv: a job makes a call or runs a command"),
    (["a", "--manual", "--", ""], "argv: the command is empty"),
    (["a", "--manual", "--", "x" * 200_000], "argv: longer than"),
    (["a", "--cron", "", "--", "true"], "cron: "),
    (["a", "--cron", "* * * *", "--", "true"], "cron: 4 fields"),
    (["a", "--cron", "* * * * * *", "--", "true"], "cron: 6 fields"),
    (["a", "--cron", "60 * * * *", "--", "true"], "cron: minute"),
    (["a", "--cron", "* 24 * * *", "--", "true"], "cron: hour"),
    (["a", "--cron", "0 0 30 2 *", "--", "true"], "cron: day of month"),
    (["a", "--cron", "R * * * *", "--", "true"], "cron: minute"),
    (["a", "--cron", "@sometimes", "--", "true"], "cron: no such alias"),
    (["a", "--cron", "* " * 400, "--", "true"], "cron: longer than"),
    (["a", "--daily-at", "24:00", "--", "true"], "daily_at: "),
    (["a", "--daily-at", "noon", "--", "true"], "daily_at: "),
    (["a", "--every", "0", "--", "true"], "every: "),
    (["a", "--every", "5 minutes", "--", "true"], "every: "),
    (["a", "--every", "-5m", "--", "true"], "every: "),
    (["a", "--at", "tomorrow", "--", "true"], "at: "),
    (["a", "--at", "2020-01-01T00:00:00Z", "--", "true"], "at: 2020-01-01T00:00:00Z has passed"),
    (["a", "--timezone", "Mars/Olympus", *GOOD], "timezone: no such zone"),
    (["a", "--timezone", "", *GOOD], "timezone: no such zone"),
    (["a", "--timezone", "../../etc/passwd", *GOOD], "timezone: no such zone"),
    (["a", "--dst-rule", "twice", *GOOD], "dst_rule: 'twice' is not one of once, literal"),
    (["a", "--spread", "2d", *GOOD], "spread: '2d' is more than a day"),
    (["a", "--spread", "x", *GOOD], "spread: "),
    (["a", "--manual", "--url", "ftp://h/"], "url: 'ftp://h/' is not an http or https URL"),
    (["a", "--manual", "--url", "file:///etc/passwd"], "url: "),
    (["a", "--manual", "--url", "http://"], "url: "),
    (["a", "--manual", "--url", "http:///x"], "url: "),
    (["a", "--manual", "--url", "http://h:99999/"], "url: "),
    (["a", "--manual", "--url", "http://h:0/"], "url: "),
    (["a", "--manual", "--url", "http://h/a b"], "url: "),
    (["a", "--manual", "--url", "http://h/\r\nX: y"], "url: "),
    (["a", "--manual", "--url", "http://[::1/"], "url: "),
    (["a", "--manual", "--url", "localhost:9000/x"], "url: "),
    (["a", "--manual", "--url", "http://user:secret@h/"], "url: credentials do not belong in a URL"),
    (["a", "--manual", "--url", "http://token@h/"], "url: credentials"),
    (["a", "--manual", "--url", "http://h/" + "x" * 3000], "url: longer than"),
    (["a", *CALL, "--method", "BREW"], "method: 'BREW' is not one of"),
    (["a", "--manual", "--method", "GET", "--header", "A: b"], "method: is for a job with --url"),
    (["a", *CALL, "--header", "no colon"], "header: 'no colon' is not 'Name: value'"),
    (["a", *CALL, "--header", ": empty name"], "header: "),
    (["a", *CALL, "--header", "Bad Name: x"], "header: "),
    (["a", *CALL, "--header", "X: a\r\nY: b"], "header: the value of X holds a line break"),
    (["a", *CALL, "--header", "Content-Length: 5"], "header: Content-Length is set by the program"),
    (["a", *CALL, "--header", "Idempotency-Key: mine"], "header: Idempotency-Key is set by the program"),
    (["a", *CALL, "--payload", "{"], "payload: not JSON"),
    (["a", *CALL, "--payload", "NaN"], "payload: not JSON: NaN is no JSON number"),
    (["a", *CALL, "--payload", "9" * 5000], "payload: not JSON"),
    (["a", *CALL, "--payload", "[" * 33 + "]" * 33], "payload: nested deeper than 32"),
    (["a", *CALL, "--payload", '"' + "x" * 262_144 + '"'], "payload: larger than 256 KiB"),
    (["a", "--project", "x" * 201, *GOOD], "project: "),
    (["a", "--project", "two\nlines", *GOOD], "project: "),
    (["a", "--project", "\x1b[31mred", *GOOD], "project: "),
    (["a", "--description", "\udcff", *GOOD], "description: "),
    (["a", "--description", "x" * 4001, *GOOD], "description: "),
    (["a", "--agent-profile", "\u202ex", *GOOD], "agent_profile: "),
    (["a", "--priority", "101", *GOOD], "priority: '101' is not a whole number from -100 to 100"),
    (["a", "--priority", "-101", *GOOD], "priority: "),
    (["a", "--priority", "1_0", *GOOD], "priority: "),
    (["a", "--priority", "٣", *GOOD], "priority: "),
    (["a", "--overlap", "both", *GOOD], "overlap: 'both' is not one of skip, queue, allow"),
    (["a", "--catch-up", "some", *GOOD], "catch_up: "),
    (["a", "--misfire-grace", "soon", *GOOD], "misfire_grace: "),
    (["a", "--max-run-duration", "0", *GOOD], "max_run_duration: "),
    (["a", "--max-run-duration", "99999999999d", *GOOD], "max_run_duration: "),
    (["a", "--max-turns", "0", *GOOD], "max_turns: "),
    (["a", "--max-turns", "1.5", *GOOD], "max_turns: "),
    (["a", "--max-attempts", "0", *GOOD], "max_attempts: "),
    (["a", "--max-attempts", "101", *GOOD], "max_attempts: "),
    (["a", "--on-failure", "no such id", *GOOD], "on_failure: 'no such id' cannot be the id of a job"),
    (["a", "--on-failure", "a", *GOOD], "on_failure: a job cannot handle its own failure"),
]


@pytest.mark.parametrize(
    "arguments, complaint",
    BAD_INPUT,
    ids=[f"{n}-{text.split(':')[0]}" for n, (_, text) in enumerate(BAD_INPUT)],
)
def test_bad_input_is_refused_with_its_field_named(
    inside: Inside, home: Path, arguments: list[str], complaint: str
) -> None:
    answer = inside("add-job", *arguments)
    assert answer.code == 2, answer.err
    assert answer.err.startswith(f"carolctl: {complaint}")
    assert answer.err.count("\n") == 1
    assert answer.out == ""
    assert not home.exists()


@pytest.mark.parametrize(
    "arguments",
    [a[1:] for a, text in BAD_INPUT if not text.startswith(("schedule", "action", "manual:", "method: is"))][
        ::3
    ],
)
def test_an_edit_refuses_the_same(inside: Inside, home: Path, arguments: list[str]) -> None:
    before = job("a", url="http://h/") if "--url" in arguments else job("a")
    add_jobs(home, before)
    answer = inside("edit-job", "a", *arguments)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    after = inside("show-job", "a", "--json").json()
    assert (after["schedule_rev"], after["schedule_expr"]) == (1, before.schedule_expr)


# -- edit-job --------------------------------------------------------------------------------------------------


def test_an_edit_of_the_schedule_leaves_a_row_for_what_was_due(
    carol: Carol, home: Path, store: Opener
) -> None:
    add_jobs(home, job("a", cron="0 * * * *"))
    edited = carol("edit-job", "a", "--daily-at", "00:05", "--json", CAROL_NOW=TWO_DAYS_ON)
    assert edited.code == 0
    assert edited.json()["skipped"] == 58
    assert edited.json()["job"]["next_fire_at"] == "2026-01-04T00:05:00Z"
    [row] = runs_of(store, home, "a")
    assert (row.status, row.skip_reason, row.source, row.schedule_rev) == (
        "skipped",
        "edited",
        "scheduled",
        1,
    )
    assert (row.slots_from, row.scheduled_for, row.coalesced) == (T0 + HOUR, T0 + 58 * HOUR, 58)
    [entry] = audit_of(store, home)
    assert (entry["command"], entry["subject"], entry["at"]) == ("edit-job", "a", at(TWO_DAYS_ON))
    assert (entry["before"]["schedule_expr"], entry["after"]["schedule_expr"]) == ("0 * * * *", "00:05")
    assert "project" not in entry["after"]


def test_any_other_edit_leaves_no_row_and_says_what_changed(
    inside: Inside, home: Path, store: Opener
) -> None:
    add_jobs(home, job("a"))
    edited = inside("edit-job", "a", "--max-turns", "5", "--project", "p")
    assert edited.out.startswith("changed project, max_turns of a; next ")
    assert runs_of(store, home, "a") == []


def test_an_edit_that_changes_nothing_says_so_and_leaves_no_trace(
    inside: Inside, home: Path, store: Opener
) -> None:
    add_jobs(home, job("a", project="p"))
    edited = inside("edit-job", "a", "--project", "p", "--cron", "0  *  * * *")
    assert (edited.code, edited.out) == (0, "a is so already; nothing was changed\n")
    assert inside("edit-job", "a", "--project", "p", "--json").json() == {"job_id": "a", "changed": False}
    assert audit_of(store, home) == []
    with store(home).read() as tx:
        assert tx.job("a") == job("a", project="p")


def test_an_edit_without_anything_to_change_is_a_mistake(inside: Inside, home: Path) -> None:
    add_jobs(home, job("a"))
    assert inside("edit-job", "a").code == 2


def test_the_word_none_takes_a_value_away(inside: Inside, home: Path) -> None:
    values: dict[str, Any] = {
        "project": "p", "description": "d", "misfire_grace_sec": 5, "max_run_duration_sec": 5, "max_turns": 5,
        "agent_profile": "x", "on_failure": "b", "spread_sec": 60,
    }  # fmt: skip
    add_jobs(home, job("a", **values), job("b"))
    options = [
        word for name in values for word in ("--" + name.removesuffix("_sec").replace("_", "-"), "none")
    ]
    assert inside("edit-job", "a", *options).code == 0
    shown = inside("show-job", "a", "--json").json()
    assert {name: shown[name] for name in values} == dict.fromkeys(values) | {"spread_sec": 0}


def test_a_jobs_action_may_change_its_kind(inside: Inside, home: Path) -> None:
    add_jobs(home, job("a"))
    assert inside("edit-job", "a", "--url", "http://h/x").code == 0
    assert inside("show-job", "a", "--json").json()["action"]["kind"] == "http"
    assert inside("edit-job", "a", "--", "echo", "hi").code == 0
    assert inside("show-job", "a", "--json").json()["action"] == {"kind": "command", "argv": ["echo", "hi"]}
    assert inside("edit-job", "a", "--header", "A: b").err.startswith(
        "carolctl: header: is for a job with --url"
    )


def test_an_update_of_a_job_lands_while_somebody_else_holds_the_planner_database(
    carol: Carol, home: Path, tmp_path: Path
) -> None:
    add_jobs(home, job("gen-tasks-01", daily_at="03:00"))
    planner = tmp_path / "plangenerator.db"
    foreign = sqlite3.connect(planner, isolation_level=None)
    foreign.execute("CREATE TABLE scheduled_jobs (job_id TEXT PRIMARY KEY)")
    foreign.execute("BEGIN EXCLUSIVE")
    try:
        began = time.monotonic()
        edited = carol("edit-job", "gen-tasks-01", "--daily-at", "00:05", CAROL_PLANNER_DB=str(planner))
        took = time.monotonic() - began
    finally:
        foreign.close()
    assert edited.code == 0, edited.err
    # The busy deadline; without contention it is the start of the program and one fsync.
    assert took < 5
    assert carol("show-job", "gen-tasks-01", "--json").json()["schedule"]["expr"] == "00:05"


def test_a_locked_job_store_is_exit_75_after_the_deadline(carol: Carol, home: Path) -> None:
    add_jobs(home, job("a"))
    foreign = sqlite3.connect(home / "scheduler.db", isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    try:
        edited = carol("edit-job", "a", "--priority", "5", "--json", CAROL_BUSY_TIMEOUT_MS="100")
    finally:
        foreign.close()
    assert edited.code == 75
    assert edited.error()["error"] == "database_busy"


# -- pause and resume ------------------------------------------------------------------------------------------


def test_pause_and_resume_leave_a_row_each_for_what_they_skip(
    carol: Carol, home: Path, store: Opener
) -> None:
    add_jobs(home, job("a", cron="0 * * * *", failure_streak=2))
    paused = carol("pause", "a", "--reason", "endpoint moves", CAROL_NOW="2026-01-01T02:30:00Z")
    assert paused.out == "paused a: endpoint moves; slots skipped: 2\n"
    resumed = carol("resume", "a", CAROL_NOW=TWO_DAYS_ON)
    assert resumed.out == "resumed a; next 2026-01-03T11:00:00Z; slots skipped: 56\n"
    rows = runs_of(store, home, "a")
    assert [(row.slots_from, row.scheduled_for, row.coalesced, row.skip_reason) for row in rows] == [
        (T0 + 3 * HOUR, T0 + 58 * HOUR, 56, "paused"),
        (T0 + HOUR, T0 + 2 * HOUR, 2, "paused"),
    ]
    after = carol("show-job", "a", "--json").json()
    assert (after["status"], after["paused_reason"], after["failure_streak"]) == ("active", None, 0)
    assert [(entry["command"], entry["reason"]) for entry in audit_of(store, home)] == [
        ("resume", None),
        ("pause", "endpoint moves"),
    ]


def test_without_a_reason_the_pause_names_who_paused(inside: Inside, home: Path) -> None:
    add_jobs(home, job("a"))
    assert inside("pause", "a").out.startswith("paused a: paused by ")


def test_pausing_and_resuming_twice_is_harmless(inside: Inside, home: Path, store: Opener) -> None:
    add_jobs(home, job("a", manual=True))
    assert [inside(command, "a").code for command in ("pause", "pause", "resume", "resume")] == [0, 0, 0, 0]
    assert inside("resume", "a").out == "a is active already\n"
    assert len(audit_of(store, home)) == 2


def test_everything_is_paused_for_a_while_or_until_further_notice(
    carol: Carol, home: Path, store: Opener
) -> None:
    add_jobs(home, job("a"))
    paused = carol("pause", "--for", "2h", "--reason", "exam", "--json", CAROL_NOW=NEW_YEAR)
    assert paused.json() == {"paused": True, "until": "2026-01-01T02:00:00Z", "changed": True}
    listed = carol("list-jobs", CAROL_NOW="2026-01-01T01:59:00Z")
    assert "everything is paused until 2026-01-01T02:00:00Z" in listed.out
    assert carol("list-jobs", "--json", CAROL_NOW="2026-01-01T02:00:00Z").json()["paused"] is None
    assert carol("pause").out == "everything is paused; carolctl resume ends it\n"
    assert carol("pause", "--json").json()["changed"] is False
    assert carol("list-jobs", "--json").json()["paused"] == {"until": None}
    assert (carol("resume").out, carol("resume").out) == ("resumed\n", "nothing was paused\n")
    assert runs_of(store, home, "a") == []
    assert [entry["reason"] for entry in audit_of(store, home)] == [None, None, "exam"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["a", "--for", "2h"], "for: is for pausing everything, not one job"),
        (["--for", "soon"], "for: "),
        (["a", "--reason", "two\nlines"], "reason: "),
        (["--reason", "x" * 201], "reason: "),
    ],
)
def test_a_pause_that_cannot_be_meant_is_refused(
    inside: Inside, home: Path, arguments: list[str], complaint: str
) -> None:
    add_jobs(home, job("a"))
    answer = inside("pause", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"carolctl: {complaint}")


# -- show-job --------------------------------------------------------------------------------------------------


def test_a_job_is_shown_with_its_next_slots_and_their_wake_ups(carol: Carol, home: Path) -> None:
    add_jobs(home, job("a", daily_at="02:30", timezone="Europe/Berlin", spread_sec=600))
    shown = carol("show-job", "a", "--json", CAROL_NOW="2026-03-27T12:00:00Z").json()
    assert shown["next"] == [
        "2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z",
        "2026-04-01T00:30:00Z",
    ]  # fmt: skip
    offsets = {at(wake) - at(slot) for slot, wake in zip(shown["next"], shown["next_wake_ups"], strict=True)}
    assert len(offsets) == 1
    assert 0 < offsets.pop() < 600_000
    page = carol("show-job", "a", CAROL_NOW="2026-03-27T12:00:00Z").out
    assert "daily_at 02:30 Europe/Berlin" in page
    assert "2026-03-29 01:00Z" in page


def test_every_column_of_the_table_is_shown(carol: Carol, home: Path) -> None:
    add_jobs(home, job("a"))
    with sqlite3.connect(home / "scheduler.db") as connection:
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(scheduled_jobs)")}
    connection.close()
    assert columns <= carol("show-job", "a", "--json").json().keys()


def test_an_unknown_job_is_exit_66_with_a_hint_of_similar_ones(inside: Inside, home: Path) -> None:
    add_jobs(home, job("nightly-backup"), job("nightly-report"))
    for command in ("show-job", "remove-job", "pause", "resume"):
        answer = inside(command, "nightly")
        assert answer.code == 66
        assert "did you mean nightly-backup, nightly-report?" in answer.err
    assert "did you mean" in inside("show-job", "nigthly").err


def test_a_damaged_row_is_named_and_can_be_removed(inside: Inside, home: Path, store: Opener) -> None:
    add_jobs(home, job("a"), job("b"))
    damage(home, "a")
    answer = inside("show-job", "a")
    assert answer.code == 65
    assert "the row of job a is damaged" in answer.err
    assert inside("edit-job", "a", "--priority", "1").code == 65
    assert inside("add-job", "a", "--manual", "--", "true").code == 1
    assert inside("remove-job", "a").code == 0
    assert [shown["job_id"] for shown in inside("list-jobs", "--json").json()["jobs"]] == ["b"]


def damage(home: Path, job_id: str) -> None:
    connection = sqlite3.connect(home / "scheduler.db", isolation_level=None)
    connection.execute("UPDATE scheduled_jobs SET action = '[]' WHERE job_id = ?", (job_id,))
    connection.close()


# -- remove-job ------------------------------------------------------------------------------------------------


def test_a_removed_job_leaves_its_runs(inside: Inside, home: Path, store: Opener) -> None:
    add_jobs(home, job("a"))
    with store(home).write() as tx:
        run_id = tx.insert_run("a", source="manual", now=T0)
        assert run_id is not None
        tx.cancel_queued(run_id, now=T0, summary="over")
    assert inside("remove-job", "a").out == "removed a\n"
    assert [run.run_id for run in runs_of(store, home, "a")] == [run_id]
    assert inside("remove-job", "a").code == 66


def test_a_job_with_a_live_run_goes_only_with_cancel(inside: Inside, home: Path, store: Opener) -> None:
    add_jobs(home, job("a"))
    with store(home).write() as tx:
        run_id = tx.insert_run("a", source="manual", now=T0)
    refused = inside("remove-job", "a", "--json")
    assert refused.code == 1
    assert refused.error()["hint"].startswith("--cancel")
    assert inside("remove-job", "a", "--cancel", "--json").json()["cancelled"] == [run_id]
    [run] = runs_of(store, home, "a")
    assert run.status == "cancelled"
    assert inside("list-jobs", "--json").json()["count"] == 0


def test_a_handler_of_others_stays(inside: Inside, home: Path) -> None:
    add_jobs(home, job("handler"), job("a", on_failure="handler"), job("b", on_failure="handler"))
    refused = inside("remove-job", "handler", "--cancel")
    assert refused.code == 1
    assert "handler handles the failures of a, b" in refused.err


@pytest.mark.parametrize("reply, code, left", [(b"n\n", 1, 1), (b"y\n", 0, 0)])
def test_a_terminal_is_asked_first(carol: Carol, home: Path, reply: bytes, code: int, left: int) -> None:
    add_jobs(home, job("a"))
    assert on_a_terminal(carol, "remove-job", "a", reply=reply) == code
    assert carol("list-jobs", "--json").json()["count"] == left


def test_with_yes_or_without_a_terminal_nobody_is_asked(carol: Carol, home: Path) -> None:
    add_jobs(home, job("a"), job("b"))
    assert on_a_terminal(carol, "remove-job", "a", "--yes", reply=b"") == 0
    assert carol("remove-job", "b").code == 0


def on_a_terminal(carol: Carol, *arguments: str, reply: bytes) -> int:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        carol.command(*arguments), stdin=follower, stdout=follower, stderr=follower, env=carol.environment()
    )
    os.close(follower)
    if reply:
        select.select([leader], [], [], 20)
        os.write(leader, reply)
    code = process.wait(timeout=20)
    os.close(leader)
    return code


# -- all of them -----------------------------------------------------------------------------------------------


def test_the_removal_of_a_job_a_day_later_is_in_the_audit_log(
    inside: Inside, home: Path, store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_jobs(home, job("a"))
    monkeypatch.setenv("CAROL_NOW", "2026-01-02T00:00:00Z")
    assert inside("remove-job", "a").code == 0
    [entry] = audit_of(store, home)
    assert (entry["command"], entry["subject"], entry["at"]) == ("remove-job", "a", T0 + DAY)


@pytest.mark.parametrize(
    "command",
    [
        "add-job",
        "edit-job",
        "remove-job",
        "list-jobs",
        "show-job",
        "pause",
        "resume",
        "next",
        "config",
        "config list",
        "config get",
        "config set",
        "config unset",
    ],
)
def test_the_help_has_an_example_and_the_exit_codes(inside: Inside, command: str) -> None:
    page = inside(*command.split(), "--help")
    assert page.code == 0
    assert "Example: carolctl " in page.out
    assert "EXIT STATUS: 0 done" in page.out
    assert command == "config" or "--json" in page.out
