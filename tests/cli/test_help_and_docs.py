"""Every command explains itself, and the README knows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from carolctl.cli import app
from tests import builders
from tests.builders import Carol, Result, job

README = (Path(__file__).parents[2] / "README.md").read_text()


def leaves() -> dict[str, typer.core.TyperCommand]:
    """Every command by the words that call it."""
    found = {}
    root = app.build("")
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {inner}": leaf for inner, leaf in command.commands.items()}
        else:
            found[name] = command
    return found


LEAVES = leaves()


@pytest.mark.parametrize("words", sorted(LEAVES))
def test_the_help_of_a_command_has_an_example_and_its_exit_codes(words: str) -> None:
    command = LEAVES[words]
    assert command.help
    assert re.search(rf"Example: carolctl {words}\b", command.epilog)
    assert "EXIT STATUS: 0 done" in command.epilog


@pytest.mark.parametrize("words", sorted(LEAVES))
def test_a_command_takes_json(words: str) -> None:
    assert any("--json" in parameter.opts for parameter in LEAVES[words].params)


@pytest.mark.parametrize("words", sorted(LEAVES))
def test_a_command_is_in_the_readme(words: str) -> None:
    assert f"`{words}`" in README


def test_the_table_of_commands_names_each_of_them_in_its_module() -> None:
    named = [name for names in app.COMMANDS.values() for name in names]
    assert sorted(named) == sorted(app.build("").commands)
    for name in named:
        assert list(app.build(name).commands)[:1] == [name]


def test_the_list_of_the_help_says_what_the_commands_say_of_themselves() -> None:
    said = {name: text for held in app.COMMANDS.values() for name, text in held.items()}
    for name, command in app.build("").commands.items():
        assert command.help.startswith(said[name].rstrip(".")), name


def test_the_readme_has_the_whole_table_of_exit_codes() -> None:
    from carolctl.errors import Exit

    codes = {value for name, value in vars(Exit).items() if name.isupper()}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == codes


@pytest.mark.parametrize("arguments", [(), ("--help",), ("tick", "--help"), ("add-job", "-h")])
def test_help_is_printed_and_the_exit_code_is_right(carol: Carol, arguments: tuple[str, ...]) -> None:
    result = carol(*arguments)
    if arguments:
        assert (result.code, "Usage: carolctl" in result.out, result.err) == (0, True, "")
    else:
        assert (result.code, len(result.err.splitlines())) == (2, 1)


def test_version_is_printed(carol: Carol) -> None:
    from carolctl import __version__

    assert carol("--version").out == f"carolctl {__version__}\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "audit --since 2999-01-01"),
        (2, "forecast --hours 99999"),
        (66, "forecast --plot /no/such/x.svg"),
        (2, "trigger nightly --event-id= --kind k"),
        (2, "run-job nightly --requester="),
        (2, "add-job z"),
        (2, "add-job z --cron 61_*_*_*_* -- true"),
        (2, "pressure hold a/b"),
        (2, "emit abc --kind k"),
        (66, "backup --restore /no/such"),
        (66, "show-job nobody"),
        (66, "show-run 99"),
        (2, "config set schedule.max^concurrent many"),
        (2, "emit 1 --kind"),
    ],
)
def test_whatever_is_wrong_there_is_a_hint(
    inside: Callable[..., Result], home: Path, code: int, words: str
) -> None:
    builders.add_jobs(home, job())
    given = [word.replace("_", " ").replace("^", "_") for word in words.split()]
    refused = inside(*given)
    assert (refused.code, refused.err.count("\n"), "(hint: " in refused.err) == (code, 1, True), refused.err
