"""trigger, on_failure, and who may make the fleet do more."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Carol, Result, add_jobs, job
from tests.cli.test_tick import all_ended, wait_until

Inside = Callable[..., Result]
NEW = ("add-job", "new", "--manual", "--", "true")


def rows(home: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute(question).fetchall()


def manual(job_id: str, *argv: str, **columns: Any) -> Any:
    return job(job_id, manual=True, argv=argv or ("true",), **columns)


# -- trigger ----


def test_an_event_runs_its_job_once_however_often_it_is_told(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("deploy", max_turns=7))
    event = ("trigger", "deploy", "--event-id", "3f2a", "--kind", "push", "--json")
    together = [carol.spawn(*event) for _ in range(3)]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in together]
    assert sorted(told, key=str) == [{"run_id": 1, "new": False}] * 2 + [{"run_id": 1, "new": True}]
    wait_until(lambda: all_ended(carol))
    assert carol(*event).json() == {"run_id": 1, "new": False}
    [(after,)] = rows(home, "SELECT after FROM audit_log WHERE command = 'trigger' AND subject = 'deploy'")
    assert json.loads(after)["event_id"] == "3f2a"
    [run] = carol("list-runs", "--json").json()["runs"]
    assert (run["status"], run["source"], run["event_id"], run["trigger_kind"], run["max_turns"]) == (
        "completed", "event", "3f2a", "push", 7
    )  # fmt: skip


def test_another_kind_or_another_job_is_another_event(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("a"), manual("b"))
    for job_id, kind in (("a", "push"), ("a", "tag"), ("b", "push")):
        assert carol("trigger", job_id, "--event-id", "E", "--kind", kind, "--json").json()["new"]
    wait_until(lambda: all_ended(carol))


def test_an_event_run_waits_under_the_cap_and_is_not_put_off_by_pressure(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("a", "sleep", "1"), manual("b"))
    carol("pressure", "hold", "chat")
    cap = {"SCHEDULE_MAX_CONCURRENT": "1"}
    assert "is launched" in carol("trigger", "a", "--event-id", "1", "--kind", "k", **cap).out
    assert "is queued" in carol("trigger", "b", "--event-id", "1", "--kind", "k", **cap).out
    ended = wait_until(lambda: all_ended(carol))
    assert [run["status"] for run in ended] == ["completed"] * 2


@pytest.mark.parametrize(
    ("event_id", "kind", "code"),
    [("", "push", 2), ("a\nb", "push", 2), ("x" * 201, "push", 2), ("1", "Push", 2), ("1", "on_failure", 2)],
)
def test_what_cannot_be_an_event_is_refused(
    inside: Inside, home: Path, event_id: str, kind: str, code: int
) -> None:
    add_jobs(home, manual("a"))
    assert inside("trigger", "a", "--event-id", event_id, "--kind", kind).code == code


def test_trigger_of_an_unknown_job_is_66(inside: Inside, home: Path) -> None:
    add_jobs(home, manual("a"))
    assert inside("trigger", "b", "--event-id", "1", "--kind", "k").code == 66


def test_the_event_of_a_paused_job_is_run_and_the_pause_is_told(carol: Carol, home: Path) -> None:
    reason = "3 failures in a row, the last one timeout"
    add_jobs(home, manual("a", status="paused", paused_reason=reason), manual("b"))
    event = ("trigger", "a", "--event-id", "1", "--kind", "k")
    done = carol(*event)
    assert done.out == f"run 1 of a is launched, although the job is paused: {reason}\n"
    assert carol(*event, "--json").json() == {"run_id": 1, "new": False, "job_paused": reason}
    [run] = wait_until(lambda: all_ended(carol))
    assert run["status"] == "completed"
    assert "trigger" in " ".join(carol("pause", "--help").out.split())


# -- on_failure ----


def test_the_handler_that_is_paused_runs_all_the_same_as_the_help_of_pause_says(
    carol: Carol, home: Path
) -> None:
    add_jobs(home, manual("work", "false", on_failure="mend"), manual("mend", status="paused"))
    carol("run-job", "work")
    runs = wait_until(lambda: len(found := all_ended(carol) or []) == 2 and found)
    assert {run["job_id"]: run["status"] for run in runs} == {"work": "failed", "mend": "completed"}
    assert "on-failure handler of another job" in " ".join(carol("pause", "--help").out.split())


def test_a_handler_waits_for_the_last_attempt(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("work", "false", on_failure="mend", max_attempts=2), manual("mend"))
    carol("run-job", "work", CAROL_NOW="2026-01-01T00:00:00Z")
    wait_until(lambda: rows(home, "SELECT 1 FROM runs WHERE status = 'queued' AND attempt = 2"))
    assert rows(home, "SELECT count(*) FROM runs") == [(1,)]
    carol("tick", CAROL_NOW="2026-01-01T00:05:00Z")
    wait_until(lambda: len(all_ended(carol) or []) == 2)
    assert rows(home, "SELECT job_id, event_id, attempt FROM runs") == [
        ("work", None, 2),
        ("mend", "run:1", 1),
    ]


def test_on_failure_runs_after_the_last_attempt_and_its_own_failure_triggers_nothing(
    carol: Carol, home: Path
) -> None:
    add_jobs(
        home,
        manual("work", "false", on_failure="mend"),
        manual("mend", "false", on_failure="work"),
    )
    carol("run-job", "work")
    runs = wait_until(lambda: len(found := all_ended(carol) or []) == 2 and found)
    assert {run["job_id"]: (run["event_id"], run["trigger_kind"]) for run in runs} == {
        "work": (None, None), "mend": ("run:1", "on_failure")
    }  # fmt: skip


def test_a_job_cannot_handle_its_own_failure(inside: Inside, home: Path) -> None:
    add_jobs(home, manual("a"))
    assert inside("edit-job", "a", "--on-failure", "a").code == 2


# -- the recursion guard ----

_NO_JOB = "no job is added, changed or run"
_NO_SETTING = "no setting is changed"
_TRIES = [
    (NEW, _NO_JOB),
    (("edit-job", "worker", "--may-schedule"), _NO_JOB),
    (("run-job", "other", "--force", "--reason", "x"), _NO_JOB),
    (("trigger", "other", "--event-id", "1", "--kind", "k"), _NO_JOB),
    (("config", "set", "schedule.max_concurrent", "11"), _NO_SETTING),
    (("config", "unset", "schedule.max_concurrent"), _NO_SETTING),
    (("resume", "resting"), "nothing is resumed"),
    (("resume",), "nothing is resumed"),
]


@pytest.mark.parametrize(("words", "said"), _TRIES, ids=lambda words: " ".join(words[:2]))
def test_a_run_cannot_add_change_or_run_jobs_nor_undo_limits(
    carol: Carol, home: Path, words: tuple[str, ...], said: str
) -> None:
    script = '"$@" 2> "$CAROL_DATA_DIR/said"; echo $? > "$CAROL_DATA_DIR/code"'
    command = ("sh", "-c", script, "sh", *carol.command(*words))
    resting = manual("resting", status="paused", paused_reason="3 failures in a row")
    add_jobs(home, manual("worker", *command), manual("other"), resting)
    carol("config", "set", "schedule.max_concurrent", "3")
    assert carol("run-job", "worker", "--wait").code == 0
    assert (home / "code").read_text() == "77\n"
    assert f"inside run 1 of worker {said}" in (home / "said").read_text()
    assert carol("config", "get", "schedule.max_concurrent").out == "3\n"
    assert carol("show-job", "resting", "--json").json()["status"] == "paused"
    assert rows(home, "SELECT count(*) FROM runs") == [(1,)]
    assert rows(home, "SELECT count(*), sum(may_schedule) FROM scheduled_jobs") == [(3, 0)]


def test_a_run_may_change_settings_when_its_job_allows_it(carol: Carol, home: Path) -> None:
    words = carol.command("config", "set", "schedule.max_concurrent", "4")
    add_jobs(home, manual("worker", *words, may_schedule=True))
    assert carol("run-job", "worker", "--wait").code == 0
    assert carol("config", "get", "schedule.max_concurrent").out == "4\n"


def test_a_run_may_when_its_job_allows_it(carol: Carol, home: Path) -> None:
    added = carol("add-job", "worker", "--manual", "--may-schedule", "--", *carol.command(*NEW))
    assert added.code == 0, added.err
    assert carol("show-job", "worker", "--json").json()["may_schedule"] is True
    assert carol("run-job", "worker", "--wait").code == 0
    assert carol("show-job", "new").code == 0


@pytest.mark.parametrize("run_id", ["999", "none of ours", "1" * 40])
def test_a_run_of_which_nothing_is_known_may_not(carol: Carol, home: Path, run_id: str) -> None:
    assert carol(*NEW, CAROL_RUN_ID=run_id).code == 77
    assert not home.exists()


def test_a_run_may_look_emit_and_report(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("a"))
    assert carol("list-jobs", CAROL_RUN_ID="1").code == 0
    assert carol("emit", "1", "--kind", "heartbeat", CAROL_RUN_ID="1").code == 0


# -- requesters ----


def test_a_requester_who_is_not_on_the_list_is_refused_with_77(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("a"))
    assert carol("config", "set", "requesters.allowed", "ann, bob").out == "requesters.allowed is ann,bob\n"
    event = ("trigger", "a", "--event-id", "1", "--kind", "k")
    for words in (("run-job", "a", "--wait"), ("run-job", "a", "--force", "--reason", "r"), event):
        assert carol(*words, "--requester", "eve").code == 77
        assert carol(*words).code == 77
    assert rows(home, "SELECT count(*) FROM runs") == [(0,)]
    assert carol("run-job", "a", "--wait", "--requester", "bob").code == 0
    assert rows(home, "SELECT requester FROM runs") == [("bob",)]
    [(actor, after)] = rows(home, "SELECT actor, after FROM audit_log WHERE command = 'run-job'")
    assert (actor, json.loads(after).keys()) == ("bob", {"run_id", "by"})


def test_without_a_list_anyone_may(carol: Carol, home: Path) -> None:
    add_jobs(home, manual("a"))
    assert carol("run-job", "a", "--wait", "--requester", "anyone").code == 0


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\x1b[31mred"])
def test_a_requester_is_1_to_64_printable_characters(inside: Inside, home: Path, name: str) -> None:
    add_jobs(home, manual("a"))
    event = ("trigger", "a", "--event-id", "1", "--kind", "k")
    for words in (("run-job", "a"), ("run-job", "a", "--force", "--reason", "r"), event):
        done = inside(*words, "--requester", name)
        assert (done.code, "1 to 64 printable characters" in done.err) == (2, True)
    assert rows(home, "SELECT count(*) FROM runs") == [(0,)]


@pytest.mark.parametrize("names", ["", "ann,,bob", ",", "a\tb"])
def test_a_list_that_names_nobody_is_refused(inside: Inside, home: Path, names: str) -> None:
    assert inside("config", "set", "requesters.allowed", names).code == 2


_CHANGES = (
    ("add-job",),
    ("edit-job", "new", "--max-turns", "5"),
    ("pause", "new"),
    ("resume", "new"),
    ("config", "set", "schedule.max_turns", "9"),
    ("config", "unset", "schedule.max_turns"),
    ("pause",),
    ("resume",),
    ("pressure", "hold", "chat"),
    ("pressure", "hold", "chat", "--", "true"),
    ("pressure", "release", "chat"),
    ("run-job", "new", "--wait"),
    ("run-job", "new", "--wait", "--force"),
    ("trigger", "new", "--event-id", "1", "--kind", "k"),
    ("remove-job", "new", "--yes"),
)
_WITHOUT_REASON = {"add-job", "resume"}


def test_every_change_is_in_the_audit_log_with_actor_before_after_and_reason(
    carol: Carol, home: Path
) -> None:
    for number, words in enumerate(_CHANGES):
        if words == ("add-job",):
            assert carol(*NEW).code == 0
            continue
        because = () if words[0] in _WITHOUT_REASON else ("--reason", f"because {number}")
        at = words.index("--") if "--" in words else len(words)
        done = carol(*words[:at], *because, *words[at:])
        assert done.code == 0, (words, done.err)
        wait_until(lambda: all_ended(carol) is not None or not rows(home, "SELECT 1 FROM runs"))
    found = rows(home, "SELECT command, subject, before, reason FROM audit_log ORDER BY audit_id")
    assert [(command, reason) for command, _, _, reason in found] == [
        ("add-job", None), ("edit-job", "because 1"), ("pause", "because 2"), ("resume", None),
        ("config set", "because 4"), ("config unset", "because 5"), ("pause", "because 6"), ("resume", None),
        ("pressure hold", "because 8"), ("pressure hold", "because 9"), ("pressure release", None),
        ("pressure release", "because 10"), ("run-job", "because 11"), ("manual_force_bypass", "because 12"),
        ("trigger", "because 13"), ("remove-job", "because 14"),
    ]  # fmt: skip
    assert json.loads(found[1][2])["max_turns"] is None
    assert json.loads(found[-1][2])["max_turns"] == 5
    assert rows(home, "SELECT DISTINCT actor IS NULL OR actor = '' FROM audit_log") == [(0,)]


@pytest.mark.parametrize(
    "words",
    [
        ("edit-job", "a", "--max-turns", "5"),
        ("remove-job", "a", "--yes"),
        ("trigger", "a", "--event-id", "1", "--kind", "k"),
        ("config", "set", "schedule.max_turns", "9"),
        ("config", "unset", "schedule.max_turns"),
        ("pressure", "hold", "chat"),
        ("pressure", "release", "chat"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_reason_is_one_line_that_can_be_printed(inside: Inside, home: Path, words: tuple[str, ...]) -> None:
    add_jobs(home, manual("a"))
    assert inside(*words, "--reason", "a\nb").code == 2
    assert rows(home, "SELECT count(*) FROM audit_log") == [(0,)]
