"""list-jobs: the document for programs, and the table for people at every width, on a terminal and off it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import HOUR, T0, Carol, Result, add_jobs, job
from tests.cli.test_job_commands import damage

Inside = Callable[..., Result]

KEYS = {
    "job_id", "project", "schedule", "action", "status", "paused_reason", "next_fire_at", "last_fired_at",
    "last_status", "failure_streak", "turn_budget_breach_streak",
}  # fmt: skip


@pytest.fixture
def fleet(home: Path) -> Path:
    """Twenty-seven jobs, one of them paused, one failing, one with a very long name."""
    add_jobs(
        home,
        *(
            job(f"gen-tasks-{n:02}", cron=f"{n} * * * *", project="tasks", url="http://h/x")
            for n in range(24)
        ),
        job(
            "nightly",
            daily_at="02:30",
            timezone="Europe/Berlin",
            status="paused",
            paused_reason="endpoint moves",
        ),
        job("x" * 64, every="90s", argv=("/usr/bin/env", "sh", "-c", "echo " + "long " * 30)),
        job("failing", last_status="failed", failure_streak=2, last_fired_at=T0, turn_budget_breach_streak=1),
    )
    return home


def on_a_terminal(carol: Carol, columns: int, *arguments: str, **env: str) -> str:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        carol.command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.STDOUT,
        env=carol.environment(TERM="xterm-256color", **env),
    )
    os.close(follower)
    said = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(leader)
    assert process.wait(timeout=20) == 0
    return said.decode().replace("\r\n", "\n")


# -- for programs ----------------------------------------------------------------------------------------------


def test_the_document_has_the_agreed_keys_and_is_sorted_by_id(inside: Inside, fleet: Path) -> None:
    document = inside("list-jobs", "--json").json()
    jobs = document["jobs"]
    assert document["count"] == len(jobs) == 27
    assert [shown["job_id"] for shown in jobs] == sorted(shown["job_id"] for shown in jobs)
    assert all(shown.keys() >= KEYS for shown in jobs)
    nightly = next(shown for shown in jobs if shown["job_id"] == "nightly")
    assert nightly["schedule"] == {"kind": "daily_at", "expr": "02:30", "timezone": "Europe/Berlin"}
    assert nightly["action"] == {"kind": "command", "argv": ["true"]}
    assert (nightly["status"], nightly["paused_reason"]) == ("paused", "endpoint moves")
    failing = next(shown for shown in jobs if shown["job_id"] == "failing")
    assert failing["last_fired_at"] == "2026-01-01T00:00:00Z"
    assert failing["next_fire_at"] == "2026-01-01T01:00:00Z"
    assert (failing["last_status"], failing["failure_streak"], failing["turn_budget_breach_streak"]) == (
        "failed", 2, 1,
    )  # fmt: skip


def test_it_can_be_narrowed_by_project_and_status(inside: Inside, fleet: Path) -> None:
    assert inside("list-jobs", "--project", "tasks", "--json").json()["count"] == 24
    assert inside("list-jobs", "--status", "paused", "--json").json()["count"] == 1
    assert inside("list-jobs", "--status", "active", "--project", "none", "--json").json()["count"] == 0
    assert inside("list-jobs", "--status", "dead").err.startswith("carolctl: status: 'dead' is not")
    assert inside("list-jobs", "--project", "ghost").out == "no job matches\n"


def test_the_document_costs_no_import_of_rich(carol: Carol, fleet: Path) -> None:
    code = (
        "import sys; from carolctl.cli.entry import run; run(sys.argv[1:]);"
        "sys.exit('rich' in sys.modules or 'croniter' in sys.modules)"
    )
    for command in (["list-jobs", "--json"], ["show-job", "nightly", "--json"], ["config", "list", "--json"]):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, *command],
            env=carol.environment(), stdout=subprocess.DEVNULL, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, command


def test_a_damaged_job_is_shown_with_its_problem(inside: Inside, fleet: Path) -> None:
    damage(fleet, "nightly")
    document = inside("list-jobs", "--json").json()
    assert document["count"] == 26
    [broken] = document["damaged"]
    assert broken["job_id"] == "nightly"
    table = inside("list-jobs").out
    assert "damaged: " in next(line for line in table.splitlines() if line.startswith("nightly"))


def test_an_empty_list_says_how_to_add_a_job(inside: Inside) -> None:
    inside("add-job", "a", "--manual", "--", "true")
    inside("remove-job", "a")
    assert inside("list-jobs").out == "no jobs yet; carolctl add-job --help shows how to add one\n"
    assert inside("list-jobs", "--json").json() == {"count": 0, "jobs": [], "damaged": [], "paused": None}


# -- for people ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 160, 200])
def test_the_table_fits_the_width_there_is(carol: Carol, fleet: Path, columns: int) -> None:
    lines = carol("list-jobs", COLUMNS=str(columns)).out.splitlines()
    # Below 80 the ids and the times still stand, and cost the room they need.
    assert max(map(len, lines)) <= max(columns, 80)
    assert all(any(line.startswith(f"gen-tasks-{n:02}") for line in lines) for n in range(24))


def test_eighty_columns_show_what_matters_and_a_wide_terminal_the_rest(carol: Carol, fleet: Path) -> None:
    narrow, wide = (carol("list-jobs", COLUMNS=width).out.splitlines() for width in ("80", "160"))
    assert narrow[0].split() == ["job", "schedule", "next", "status", "last"]
    assert wide[0].split() == [
        "job", "schedule", "next", "status", "last", "last", "fired", "streaks", "project", "action",
    ]  # fmt: skip
    failing = next(line for line in wide if line.startswith("failing"))
    assert "2026-01-01 01:00Z" in failing
    assert "2 failed, 1 over" in failing
    assert any(line.startswith("failing") and "2026-01-01 01:00Z" in line for line in narrow)
    assert any("2026-01-01 00:01:30Z" in line for line in narrow)
    paused = next(line for line in narrow if line.startswith("nightly"))
    assert "paused: " in paused


def test_a_long_id_is_folded_and_never_cut(carol: Carol, fleet: Path) -> None:
    first_column = [line.split(" ")[0] for line in carol("list-jobs", COLUMNS="80").out.splitlines()]
    assert "".join(word for word in first_column if word and not word.strip("x")) == "x" * 64


def test_off_a_terminal_it_is_plain_text_160_wide(carol: Carol, fleet: Path) -> None:
    out = carol("list-jobs").out
    assert "\x1b" not in out
    assert out.isascii() or set(out) - set(map(chr, range(128))) == {"…"}
    assert 120 < max(map(len, out.splitlines())) <= 160
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_terminal_gets_colour_unless_no_color_is_set(carol: Carol, fleet: Path) -> None:
    coloured = on_a_terminal(carol, 80, "list-jobs")
    assert "\x1b[33mpaused" in coloured
    plain = on_a_terminal(carol, 80, "list-jobs", NO_COLOR="1")
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 80
    wide = on_a_terminal(carol, 160, "list-jobs", NO_COLOR="1")
    assert "streaks" in wide.splitlines()[0]


def test_a_reader_that_goes_away_is_no_traceback(carol: Carol, home: Path) -> None:
    add_jobs(home, *(job(f"job-{n:04}") for n in range(2000)))
    process = carol.spawn("list-jobs", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) != 0


def test_a_paused_job_has_no_next_firing_whatever_wake_up_it_had(home: Path, carol: Carol) -> None:
    add_jobs(home, job(status="paused", paused_reason="3 failures in a row", next_fire_at=T0 + HOUR))
    [listed] = carol("list-jobs", "--json").json()["jobs"]
    assert (listed["status"], listed["next_fire_at"]) == ("paused", None)
    shown = carol("show-job", "nightly", "--json", CAROL_NOW="2026-01-01T00:30:00Z").json()
    assert shown["next_fire_at"] is None
    assert shown["next"][0] == "2026-01-01T01:00:00Z"
    assert "2026-01-01 01:00" not in carol("list-jobs", COLUMNS="160").out
