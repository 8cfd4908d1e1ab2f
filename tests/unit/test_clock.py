"""The clock: the pinned instant, ISO 8601 there and back, the boot and the host."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carolctl import clock
from carolctl.errors import Exit, UsageError
from carolctl.model import Millis
from tests.builders import T0

Y2200 = 7_258_118_400_000
Y9999 = 253_402_300_799_999

#: No example is timed: a machine that is busy with something else is no counterexample.
calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _free_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAROL_NOW", raising=False)


def test_now_is_the_wall_clock_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    now = clock.now()
    assert before <= now <= time.time_ns() // 1_000_000


def test_a_pinned_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    assert clock.now() == clock.now() == T0


def test_a_pinned_clock_has_no_boot_time_to_contradict_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock.boottime_ms() is not None
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    assert clock.boottime_ms() is None


def test_an_empty_variable_pins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_NOW", "")
    assert clock.now() > T0
    assert clock.boottime_ms() is not None


def test_a_pinned_clock_that_cannot_be_read_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_NOW", "yesterday")
    with pytest.raises(UsageError, match="CAROL_NOW") as caught:
        clock.now()
    assert caught.value.code == Exit.USAGE


def test_boot_time_goes_forwards() -> None:
    first, second = clock.boottime_ms(), clock.boottime_ms()
    assert first is not None
    assert second is not None
    assert second >= first > 0


def test_the_boot_and_the_host_have_names_that_do_not_change() -> None:
    assert clock.boot_id() == clock.boot_id() != ""
    assert clock.hostname() == os.uname().nodename


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-01T00:00:00Z", T0),
        ("2026-01-01T00:00:00+00:00", T0),
        ("2026-01-01T02:00:00+02:00", T0),
        ("2025-12-31T14:30:00-09:30", T0),
        ("2026-01-01", T0),
        ("2026-01-01T00:00", T0),
        ("2026-01-01 00:00:00", T0),
        ("20260101T000000Z", T0),
        ("  2026-01-01T00:00:00Z\n", T0),
        ("2026-01-01T00:00:00.001Z", T0 + 1),
        ("2026-01-01T00:00:00.0006Z", T0 + 1),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_iso_texts_are_instants_and_utc_unless_they_say_otherwise(text: str, instant: int) -> None:
    assert clock.parse_iso(text, field="at") == instant


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-13-01T00:00:00Z", "2026-02-30", "2026-01-01T25:00:00Z", "1767225600", "2026-01-01T0:0",
     "2026-01-01T00:00:00+99:00", "2026-01-01T00:00:00Z; rm", "٢٠٢٦-٠١-٠١"],
)  # fmt: skip
def test_what_is_no_instant_is_a_usage_error_that_names_the_field(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        clock.parse_iso(text, field="--until")
    assert caught.value.message.startswith("--until: ")
    assert "Z" in caught.value.hint


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (None, None),
        (T0, "2026-01-01T00:00:00Z"),
        (T0 + 7, "2026-01-01T00:00:00.007Z"),
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (Y9999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_written_with_z_and_milliseconds_only_where_there_are_any(
    instant: int | None, text: str | None
) -> None:
    assert clock.iso(instant) == text


@calmly
@given(st.integers(0, Y2200))
def test_an_instant_survives_its_text(instant: int) -> None:
    text = clock.iso(instant)
    assert text is not None
    assert text.endswith("Z")
    assert clock.parse_iso(text, field="at") == Millis(instant)


@calmly
@given(st.integers(Y2200, Y9999))
def test_an_instant_of_a_far_year_survives_its_text(instant: int) -> None:
    assert clock.parse_iso(clock.iso(instant) or "", field="at") == instant
