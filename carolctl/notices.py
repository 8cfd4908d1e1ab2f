"""Warnings on standard error: what a person should know although the command goes on."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def warn(text: str) -> None:
    """One line on standard error, with nothing in it that could move a terminal; for a journal, with its priority.

    Never raises: where a log on a full disk cannot take a warning, the work it speaks of has to go on.
    """
    line = text if text.isprintable() else text.encode("unicode_escape").decode()
    with suppress(OSError, ValueError):
        print(f"{_priority()}carolctl: warning: {line}", file=sys.stderr)  # noqa: T201


def _priority() -> str:
    told = os.environ.get("JOURNAL_STREAM", "")
    try:
        here = os.fstat(2)
    except OSError:
        return ""
    return "<4>" if told == f"{here.st_dev}:{here.st_ino}" else ""
