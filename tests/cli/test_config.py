"""config: what is in force, where it comes from, and changing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl import config
from carolctl.store.db import Store
from tests.builders import Carol, Result

Inside = Callable[..., Result]


def test_without_a_store_the_defaults_are_in_force_and_none_is_made(inside: Inside, home: Path) -> None:
    listed = inside("config", "list", "--json").json()["settings"]
    assert [shown["key"] for shown in listed] == [setting.key for setting in config.REGISTRY]
    assert all(shown["source"] == "default" and shown["value"] == shown["default"] for shown in listed)
    assert inside("config", "get", "schedule.max_concurrent").out == "2\n"
    assert inside("config", "get", "schedule.max_turns").out == "\n"
    assert not home.exists()


def test_a_setting_is_kept_until_it_is_unset(inside: Inside, home: Path) -> None:
    assert inside("config", "set", "schedule.max_concurrent", "0").out == "schedule.max_concurrent is 0\n"
    assert inside("config", "set", "schedule.max_concurrent", "00").out.endswith("is 0 already\n")
    shown = inside("config", "get", "schedule.max_concurrent", "--json").json()
    assert (shown["value"], shown["source"], shown["default"]) == (0, "table", 2)
    assert inside("config", "unset", "schedule.max_concurrent").out.endswith("is 2, its default\n")
    assert inside("config", "unset", "schedule.max_concurrent").out.endswith("was not set\n")
    assert inside("config", "get", "schedule.max_concurrent").out == "2\n"


def test_the_environment_stands_above_the_table_and_a_bad_value_is_warned_about(carol: Carol) -> None:
    assert carol("config", "set", "schedule.max_concurrent", "5").code == 0
    above = carol("config", "get", "schedule.max_concurrent", "--json", SCHEDULE_MAX_CONCURRENT="7").json()
    assert (above["value"], above["source"]) == (7, "environment")
    bad = carol("config", "get", "schedule.max_concurrent", SCHEDULE_MAX_CONCURRENT="many")
    assert bad.out == "5\n"
    assert "SCHEDULE_MAX_CONCURRENT='many' is ignored" in bad.err
    told = carol("config", "set", "schedule.max_concurrent", "6", SCHEDULE_MAX_CONCURRENT="7")
    assert "SCHEDULE_MAX_CONCURRENT is set here and stands above it" in told.err


@pytest.mark.parametrize(
    "key, value",
    [
        ("schedule.max_concurrent", "-1"),
        ("schedule.max_concurrent", "two"),
        ("schedule.max_concurrent", "1_0"),
        ("schedule.max_concurrent", ""),
        ("schedule.max_run_duration_sec", "0"),
        ("schedule.max_turns", "none"),
        ("retention.runs_days", "1.5"),
        ("http.ca_file", "relative.pem"),
        ("http.ca_file", "/a\nb"),
        ("http.ca_file", "/a\udcff"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused_with_its_key(
    inside: Inside, home: Path, key: str, value: str
) -> None:
    answer = inside("config", "set", key, value)
    assert answer.code == 2
    assert answer.err.startswith(f"carolctl: {key}: ")
    assert not home.exists()


@pytest.mark.parametrize("command", [["get", "no.such"], ["set", "no.such", "1"], ["unset", "no.such"]])
def test_an_unknown_setting_is_refused_with_a_hint(inside: Inside, command: list[str]) -> None:
    answer = inside("config", *command)
    assert answer.code == 2
    assert "no such setting: 'no.such' (hint: carolctl config list shows them all)" in answer.err


def test_every_change_is_audited(inside: Inside, home: Path, store: Callable[..., Store]) -> None:
    inside("config", "set", "streak.breach_pause", "7")
    inside("config", "set", "streak.breach_pause", "7")
    inside("config", "unset", "streak.breach_pause")
    with store(home).read() as tx:
        entries = [(e["command"], e["subject"], e["before"], e["after"]) for e in tx.audit_entries()]
    assert entries == [
        ("config unset", "streak.breach_pause", '"7"', None),
        ("config set", "streak.breach_pause", None, '"7"'),
    ]


def test_people_see_value_source_and_purpose(inside: Inside) -> None:
    lines = inside("config", "list").out.splitlines()
    assert lines[0].split() == ["setting", "value", "from", "about"]
    assert any("schedule.max_concurrent" in line and "global cap" in line for line in lines)


def test_config_alone_is_a_mistake_with_a_hint(inside: Inside) -> None:
    answer = inside("config")
    assert (answer.code, answer.err) == (2, "carolctl: Missing command. (hint: carolctl config --help)\n")
