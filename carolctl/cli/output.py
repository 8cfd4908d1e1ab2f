"""What reaches the terminal without rich: JSON documents, plain lines, error lines, and the filter for hostile text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from carolctl.errors import CarolError


def safe(text: object) -> str:
    """`text` with every character that could move a terminal (controls, escapes, bidi marks) spelled out."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def print_json(document: Any) -> None:
    """One JSON document on standard output, pure ASCII."""
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None))  # noqa: T201


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on standard output. Each is filtered: a newline inside one does not survive."""
    for line in lines:
        print(safe(line))  # noqa: T201


def tell(line: str, document: Any, *, as_json: bool) -> None:
    """What a command did: as a document, or in a line for people."""
    if as_json:
        print_json(document)
    else:
        print_lines([line])


def note(text: str) -> None:
    """One line of talk on standard error."""
    print(f"carolctl: {safe(text)}", file=sys.stderr)  # noqa: T201


def report_error(error: CarolError, *, as_json: bool) -> None:
    """The one line of an error, on standard error."""
    if as_json:
        line = {"error": error.name, "message": error.message, "hint": error.hint, **error.details}
        if "CAROL_NOW" in os.environ:
            line["rehearsal"] = os.environ["CAROL_NOW"]
        print(json.dumps(line), file=sys.stderr)  # noqa: T201
    else:
        hint = f" (hint: {error.hint})" if error.hint else ""
        note(f"{error.message}{hint}")


def announce_pinned_clock(*, as_json: bool) -> None:
    """Say on standard error that the clock stands still, while ``CAROL_NOW`` is set."""
    pinned = os.environ.get("CAROL_NOW")
    if pinned and as_json:
        print(json.dumps({"rehearsal": pinned}), file=sys.stderr)  # noqa: T201
    elif pinned:
        note(f"rehearsal: the clock stands at {pinned} (CAROL_NOW)")
