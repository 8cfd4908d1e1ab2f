"""Warnings on standard error: what a person should know although the command goes on."""

from __future__ import annotations

import sys
from contextlib import suppress


def warn(text: str) -> None:
    """One line on standard error, with nothing in it that could move a terminal.

    Never raises: where a log on a full disk cannot take a warning, the work it speaks of has to go on.
    """
    line = text if text.isprintable() else text.encode("unicode_escape").decode()
    with suppress(OSError, ValueError):
        print(f"carolctl: warning: {line}", file=sys.stderr)  # noqa: T201
