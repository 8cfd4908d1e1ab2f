"""Warnings on standard error: what a person should know although the command goes on."""

from __future__ import annotations

import sys


def warn(text: str) -> None:
    """One line on standard error, with nothing in it that could move a terminal."""
    line = text if text.isprintable() else text.encode("unicode_escape").decode()
    print(f"carolctl: warning: {line}", file=sys.stderr)  # noqa: T201
