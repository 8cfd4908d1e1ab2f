"""What reaches the terminal without rich: JSON documents, plain lines, error lines, and the filter for hostile text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from carolctl.errors import CarolError, Unshown


def safe(text: object) -> str:
    """`text` with every character that could move a terminal (controls, escapes, bidi marks) spelled out."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


@contextmanager
def showing() -> Iterator[None]:
    """Raise `Unshown` where standard output takes nothing more; a reader that went away is another matter."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as trouble:
        raise Unshown(
            f"done, but what came of it cannot be shown: standard output: {trouble.strerror}",
            hint="do not try again before you have looked: carolctl list-runs, list-jobs",
        ) from trouble


def print_json(document: Any) -> None:
    """One JSON document on standard output, pure ASCII."""
    with showing():
        print(json.dumps(document, indent=2 if sys.stdout.isatty() else None))  # noqa: T201


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on standard output. Each is filtered: a newline inside one does not survive."""
    with showing():
        for line in lines:
            print(safe(line))  # noqa: T201


def tell(line: str, document: Any, *, as_json: bool) -> None:
    """What a command did: as a document, or in a line for people."""
    if as_json:
        print_json(document)
    else:
        print_lines([line])


def note(text: str) -> None:
    """One line of talk on standard error; lost where that takes nothing, since nobody could be told."""
    _say(f"carolctl: {safe(text)}")


def _say(line: str) -> None:
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr)  # noqa: T201


def report_error(error: CarolError, *, as_json: bool) -> None:
    """The one line of an error, on standard error."""
    if as_json:
        line = {"error": error.name, "message": error.message, "hint": error.hint, **error.details}
        if "CAROL_NOW" in os.environ:
            line["rehearsal"] = os.environ["CAROL_NOW"]
        _say(json.dumps(line))
    else:
        hint = f" (hint: {error.hint})" if error.hint else ""
        note(f"{error.message}{hint}")


def announce_pinned_clock(*, as_json: bool) -> None:
    """Say on standard error that the clock stands still, while ``CAROL_NOW`` is set."""
    pinned = os.environ.get("CAROL_NOW")
    if pinned and as_json:
        _say(json.dumps({"rehearsal": pinned}))
    elif pinned:
        note(f"rehearsal: the clock stands at {pinned} (CAROL_NOW)")
