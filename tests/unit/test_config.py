"""Settings: what a number is, which source wins, and that a typing mistake never stops a tick."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carolctl import config
from carolctl.errors import Exit, UsageError

CAP = "schedule.max_concurrent"
CAP_VARIABLE = "SCHEDULE_MAX_CONCURRENT"

#: No example is timed: a machine that is busy with something else is no counterexample.
calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Warnings(list[str]):
    """Collects what would be said on standard error."""

    def __call__(self, text: str) -> None:
        self.append(text)


# -- numbers ----


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("2", 2), ("007", 7), (" 5 ", 5), ("5\n", 5), ("999999999999", 10**12 - 1)]
)
def test_a_plain_decimal_number_is_a_number(text: str, number: int) -> None:
    assert config.whole_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+5", "1_0", "1.0", "1e3", "0x10", "٣", "²", "five", "1 0", "1,000", "1" * 13, "NaN",
     "None", "2;", "1\x00"],
)  # fmt: skip
def test_anything_else_is_not_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        config.whole_number(text)


def test_a_number_below_the_least_is_refused_with_the_least() -> None:
    assert config.whole_number("1", least=1) == 1
    with pytest.raises(ValueError, match="at least 1"):
        config.whole_number("0", least=1)


@calmly
@given(st.text(max_size=20))
def test_whatever_is_taken_for_a_number_reads_as_its_digits(text: str) -> None:
    try:
        number = config.whole_number(text)
    except ValueError:
        return
    assert text.strip().lstrip("0") in (str(number), "")


# -- the registry ----


def test_every_setting_has_its_field_with_the_same_default() -> None:
    defaults = {field.name: field.default for field in fields(config.Settings)}
    assert {setting.field: setting.default for setting in config.REGISTRY} == defaults


def test_no_two_settings_share_a_key_a_field_or_a_variable() -> None:
    for name in ("key", "field", "env"):
        values = [value for setting in config.REGISTRY if (value := getattr(setting, name)) is not None]
        assert len(values) == len(set(values)), name


@pytest.mark.parametrize("setting", config.REGISTRY, ids=lambda setting: setting.key)
def test_every_default_would_be_accepted_if_it_were_typed_in(setting: config.Setting) -> None:
    if setting.default is not None:
        assert setting.parse(str(setting.default)) == setting.default
    assert setting.about
    assert "." in setting.key


@pytest.mark.parametrize(
    ("key", "default", "variable"),
    [
        ("schedule.max_concurrent", 2, "SCHEDULE_MAX_CONCURRENT"),
        ("schedule.max_run_duration_sec", 1200, "SCHEDULE_MAX_RUN_DURATION_SEC"),
        ("schedule.max_turns", None, None),
        ("schedule.chat_pressure_delay_sec", 30, "SCHEDULE_CHAT_PRESSURE_DELAY_SEC"),
        ("pressure.max_deferral_sec", 3600, None),
        ("reap.orphan_threshold_min", 30, "ORPHAN_THRESHOLD_MIN"),
    ],
)
def test_the_settings_that_operators_rely_on(key: str, default: object, variable: str | None) -> None:
    setting = config.BY_KEY[key]
    assert (setting.default, setting.env) == (default, variable)


# -- precedence ----


@pytest.mark.parametrize(
    ("table", "environ", "value", "source"),
    [
        ({}, {}, 2, "default"),
        ({CAP: "3"}, {}, 3, "table"),
        ({}, {CAP_VARIABLE: "4"}, 4, "environment"),
        ({CAP: "3"}, {CAP_VARIABLE: "4"}, 4, "environment"),
        ({CAP: "3"}, {CAP_VARIABLE: "0"}, 0, "environment"),
    ],
)
def test_the_environment_stands_above_the_table_and_that_above_the_default(
    table: dict[str, str], environ: dict[str, str], value: int, source: str
) -> None:
    warned = Warnings()
    assert config.value_and_source(config.BY_KEY[CAP], table, environ, warned) == (value, source)
    assert config.resolve(table, environ, warned).max_concurrent == value
    assert not warned


@pytest.mark.parametrize("bad", ["lots", "-1", "", "1_0", "2.5"])
def test_a_bad_value_in_the_environment_is_warned_about_and_the_next_source_used(bad: str) -> None:
    warned = Warnings()
    settings = config.resolve({CAP: "5"}, {CAP_VARIABLE: bad}, warned)
    assert settings.max_concurrent == 5
    [line] = warned
    assert CAP_VARIABLE in line
    assert repr(bad) in line


def test_bad_values_everywhere_leave_the_default_and_a_warning_for_each() -> None:
    warned = Warnings()
    assert config.resolve({CAP: "many"}, {CAP_VARIABLE: "lots"}, warned).max_concurrent == 2
    assert [line.split("=")[0] for line in warned] == [CAP_VARIABLE, CAP]


def test_an_unknown_key_in_the_table_is_no_harm() -> None:
    warned = Warnings()
    assert config.resolve({"schedule.max_concurrency": "9"}, {}, warned) == config.Settings()
    assert not warned


# -- one value, checked ----


def test_a_checked_value_is_parsed() -> None:
    assert config.checked(CAP, "0") == 0
    assert config.checked("http.ca_file", "/etc/ca.pem") == "/etc/ca.pem"


@pytest.mark.parametrize(
    ("key", "text"),
    [(CAP, "lots"), ("schedule.max_run_duration_sec", "0"), ("http.ca_file", "ca.pem"), ("no.such", "1")],
)
def test_a_value_that_cannot_be_is_a_usage_error_that_names_it(key: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.checked(key, text)
    assert caught.value.code == Exit.USAGE
    assert key in caught.value.message


# -- the two that are needed before the store ----


@pytest.mark.parametrize(
    ("environ", "deadline", "warnings"),
    [
        ({}, 5000, 0),
        ({"CAROL_BUSY_TIMEOUT_MS": "0"}, 0, 0),
        ({"CAROL_BUSY_TIMEOUT_MS": "250"}, 250, 0),
        ({"CAROL_BUSY_TIMEOUT_MS": "5s"}, 5000, 1),
        ({"CAROL_BUSY_TIMEOUT_MS": ""}, 5000, 1),
    ],
)
def test_the_busy_deadline_comes_from_the_environment(
    environ: dict[str, str], deadline: int, warnings: int
) -> None:
    warned = Warnings()
    assert config.busy_timeout_ms(environ, warned) == deadline
    assert len(warned) == warnings


@pytest.mark.parametrize(
    ("environ", "name", "warnings"),
    [
        ({}, "auto", 0),
        ({"CAROL_LAUNCHER": "systemd"}, "systemd", 0),
        ({"CAROL_LAUNCHER": "process"}, "process", 0),
        ({"CAROL_LAUNCHER": "docker"}, "auto", 1),
    ],
)
def test_an_unknown_launcher_is_warned_about_and_auto_is_used(
    environ: dict[str, str], name: str, warnings: int
) -> None:
    warned = Warnings()
    assert config.launcher(environ, warned) == name
    assert len(warned) == warnings
