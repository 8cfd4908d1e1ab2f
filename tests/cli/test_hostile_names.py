"""Names made to break something: refused in one clear line by every command, and shown harmless where they got in."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl.job_values import JOB_ID
from tests.builders import Carol, Result, add_jobs, job

Inside = Callable[..., Result]

_SEEDS = [
    "", " ", "\t", "\n", "\r\n", "a b", " a", "a ", "a\nb", "a\tb", "a\0b", "\0", "\x01", "\x07", "\x08" * 5, "\x7f",
    "\x1b[31mred", "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x07", "\x1b]8;;http://h\x1b\\x", "\x9b31m", "\x85",
    "[red]", "[/bold]", "[link=http://h]x", "[bold red]x[/]", "a[red]b", "\\[red]", ":smile:", "{x}", "{0}", "%s%n",
    "\u202eabc", "a\u200bb", "\ufeffa", "\u2066x\u2069", "a\u0301", "é", "日本", "🙂", "٣", "ａ", "\u2028", "\xa0a",
    "\ud800", "a\udcffb", "\U000e0041", "\uffff", ".", "..", "./a", "../a", "../../etc/passwd", "/etc/passwd", "a/b",
    "a\\b", "C:\\x", "~", "~root", "$HOME", "${env:HOME}", "$(id)", "`id`", "a;id", "a|id", "a&id", "a>b", "<a", "a*",
    "?", "a'b", 'a"b', "'; DROP TABLE scheduled_jobs; --", "1' OR '1'='1", "a' UNION SELECT 1 --", "%", "_", "-", "--",
    "-a", "--all", "--json", "-rf", "@a", "@daily", "#a", "a#b", "!a", "a!b", "a=b", "a:b", "a,b", "a+b", "a^b", "(a)",
    "a.service\n", "_a", ".hidden", "-" * 64, "." * 64, "a" * 65, "a" * 200, "a" * 10_000, "é" * 64, "x\n" * 32,
    "NULL\0", "None ", "nan\n", "0 ", "1e3!", "0x[", "true;", "a\r", "a\x0bb", "a\x0cb", "\x1c", "\x1f", "\x80", "\x9f",
]  # fmt: skip
#: The same again wrapped in what is allowed, so that a check of the first character alone would not do.
_HOSTILE = [*_SEEDS, *(f"ok-{seed}-ok" for seed in _SEEDS if seed.strip("-._"))]
NAMES = [name for name in dict.fromkeys(_HOSTILE) if not JOB_ID.fullmatch(name)]

COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "add-job": lambda name: ["add-job", "--manual", "--", name, "true"],
    "edit-job": lambda name: ["edit-job", "--priority", "1", "--", name],
    "show-job": lambda name: ["show-job", "--", name],
    "remove-job": lambda name: ["remove-job", "--cancel", "--", name],
    "run-job": lambda name: ["run-job", "--", name],
    "pause": lambda name: ["pause", "--", name],
    "resume": lambda name: ["resume", "--", name],
    "on-failure": lambda name: ["edit-job", "nightly", "--on-failure", name],
    "json": lambda name: ["show-job", "--json", "--", name],
}
#: The others look their job up by the same function.
_THOROUGH = ("add-job", "edit-job", "show-job", "remove-job", "run-job")


def is_harmless(text: str) -> bool:
    """Whether no character but the newline could move a terminal or turn its text around."""
    return all(char.isprintable() for line in text.split("\n") for char in line)


def test_there_are_two_hundred_of_them() -> None:
    assert len(NAMES) >= 200


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_hostile_name_in_one_clear_line(
    inside: Inside, home: Path, command: str
) -> None:
    add_jobs(home, job("nightly"))
    for name in NAMES if command in _THOROUGH else NAMES[::5]:
        if command == "on-failure" and not name.strip():
            continue  # an empty handler is no handler
        answer = inside(*COMMANDS[command](name))
        assert answer.code in (2, 66), (name, answer.code, answer.err)
        assert answer.err.count("\n") == 1, (name, answer.err)
        assert answer.out == "", name
        assert "Traceback" not in answer.err
        assert is_harmless(answer.err), name
        assert len(answer.err) < 1000, name
    assert [shown["job_id"] for shown in inside("list-jobs", "--json").json()["jobs"]] == ["nightly"]


def test_a_hostile_project_to_list_by_finds_nothing(inside: Inside, home: Path) -> None:
    add_jobs(home, job("nightly", project="p"))
    for name in NAMES:
        answer = inside("list-jobs", f"--project={name}")
        assert (answer.code, answer.out) == (0, "no job matches\n"), name


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "[/bold]", "a' OR '1'='1", "\u202eabc", "a" * 10_000, "../x"]
)
def test_the_real_program_says_it_in_one_line_too(carol: Carol, home: Path, name: str) -> None:
    add_jobs(home, job("nightly"))
    for command in ("add-job", "show-job", "remove-job"):
        answer = carol(*COMMANDS[command](name))
        assert answer.code in (2, 66)
        assert answer.err.count("\n") == 1
        assert is_harmless(answer.err)


@pytest.mark.parametrize("width", ["80", "160"])
def test_what_got_into_the_store_some_other_way_is_shown_harmless(
    carol: Carol, home: Path, width: str
) -> None:
    storable = [
        name for name in NAMES if not any("\ud800" <= char <= "\udfff" or char == "\0" for char in name)
    ]
    add_jobs(
        home,
        *(
            job(
                f"job-{n:03}", project=name, description=name, status="paused", paused_reason=name,
                agent_profile=name, last_status=name, argv=("echo", name),
            )
            for n, name in enumerate(storable)
        ),
    )  # fmt: skip
    listed = carol("list-jobs", COLUMNS=width)
    assert listed.code == 0, listed.err
    assert is_harmless(listed.out)
    for n in range(0, len(storable), 20):
        shown = carol("show-job", f"job-{n:03}", COLUMNS=width)
        assert shown.code == 0, shown.err
        assert is_harmless(shown.out)


def test_markup_is_shown_as_typed(carol: Carol, home: Path) -> None:
    texts = ["[red]", "[/bold]", "[link=http://h]x", "a[red]b", ":smile:"]
    add_jobs(home, *(job(f"job-{n}", project=text, argv=(text,)) for n, text in enumerate(texts)))
    out = carol("list-jobs", COLUMNS="200").out
    assert all(text in out for text in texts)


def test_a_row_whose_id_breaks_the_rules_is_shown_harmless(carol: Carol, home: Path) -> None:
    add_jobs(home, job("nightly"))
    connection = sqlite3.connect(home / "scheduler.db", isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("UPDATE scheduled_jobs SET job_id = ?", ("\x1b[31m\u202e[red]",))
    connection.close()
    listed = carol("list-jobs")
    assert listed.out.splitlines()[1].startswith("\\x1b[31m\\u202e[red]")
    assert carol("list-jobs", "--json").json()["jobs"][0]["job_id"] == "\x1b[31m\u202e[red]"
