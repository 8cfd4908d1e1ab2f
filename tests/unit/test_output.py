"""The filter that every text passes on its way to a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carolctl.cli.output import safe


@pytest.mark.parametrize(
    "text", ["nightly", "[red]", "[/bold]", "[link=https://example.org]x", "Grüße, 日本", "a b", ""]
)
def test_what_a_person_can_read_stays_as_typed(text: str) -> None:
    assert safe(text) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("nul\0", "nul\\x00"),
        ("half \ud800 pair", "half \\ud800 pair"),
        ("tag \U000e0041", "tag \\U000e0041"),
        (None, "None"),
        (42, "42"),
    ],
)
def test_what_could_move_a_terminal_is_spelled_out(text: object, shown: str) -> None:
    assert safe(text) == shown


@given(st.text())
def test_nothing_that_controls_is_ever_left(text: str) -> None:
    left = {unicodedata.category(char) for char in safe(text)}
    assert not left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    safe(text).encode()
