"""What is forecast as a picture of signs: a line a job, time from left to right, and how full the slots are.

Where the output cannot carry the block signs, plain ASCII stands for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from carolctl import simulation
from carolctl.cli import render
from carolctl.cli.output import safe
from carolctl.clock import iso
from carolctl.model import Millis
from carolctl.simulation import Expected, Outlook

MOST_JOBS = 40
_DAY_MS = 86_400_000
_NAME = 24


class Signs(NamedTuple):
    """What stands for nothing, a wait, a run and a skip."""

    none: str
    waits: str
    runs: str
    skipped: str


_BLOCKS, _ASCII = Signs("·", "░", "█", "×"), Signs(".", "-", "#", "x")


def print_gantt(outlook: Outlook) -> None:
    """Print the lines, and below them the slots that are taken and the time."""
    signs = _signs()
    chosen = list(simulation.by_job(outlook).items())
    name = min(_NAME, max([len(job_id) for job_id, _ in chosen], default=0) + 1)
    name = max(name, len("slots taken "))
    width = max(20, min(120, render.available_width() - name))
    for job_id, expected in chosen[:MOST_JOBS]:
        print(_label(job_id, name) + _line(expected, outlook, width, signs))  # noqa: T201
    if len(chosen) > MOST_JOBS:
        print(f"and {len(chosen) - MOST_JOBS} more jobs (--json shows all)")  # noqa: T201
    print(_label("slots taken", name) + _taken(outlook, width, signs))  # noqa: T201
    print(" " * name + axis(outlook, width))  # noqa: T201
    legend = (
        f"{signs.runs} runs  {signs.waits} waits for a slot  {signs.skipped} skipped  {_each(outlook, width)}"
    )
    print(legend)  # noqa: T201


def _signs() -> Signs:
    try:
        "".join(_BLOCKS).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _BLOCKS


def _label(text: str, width: int) -> str:
    plain = safe(text)
    return (plain if len(plain) < width else plain[: width - 2] + "~").ljust(width)


def _line(expected: Sequence[Expected], outlook: Outlook, width: int, signs: Signs) -> str:
    cells = [signs.none] * width
    for one in expected:
        if one.skip_reason is not None:
            _paint(cells, one.queued_at, (one.skips_until or one.queued_at) + 1, outlook, signs.skipped)
            continue
        _paint(cells, one.queued_at, one.start or outlook.until, outlook, signs.waits)
    for one in expected:
        if one.start is not None and one.end is not None:
            _paint(cells, one.start, one.end, outlook, signs.runs)
    return "".join(cells)


def _paint(cells: list[str], begin: int, end: int, outlook: Outlook, sign: str) -> None:
    """The cells that [begin, end) touches; nothing for what is empty or lies outside."""
    first, last = max(begin, outlook.begin), min(end, outlook.until)
    if first >= last:
        return
    span = outlook.until - outlook.begin
    for place in range(
        (first - outlook.begin) * len(cells) // span, (last - 1 - outlook.begin) * len(cells) // span + 1
    ):
        cells[place] = sign


def _taken(outlook: Outlook, width: int, signs: Signs) -> str:
    """The most slots taken in each cell: a digit, or a star above nine."""
    levels = [0] * width
    span = outlook.until - outlook.begin
    spans = [
        (max(one.start, outlook.begin), min(one.end, outlook.until))
        for one in outlook.starts()
        if one.start is not None and one.end is not None
    ]
    changes = sorted(change for begin, end in spans if begin < end for change in ((begin, 1), (end, -1)))
    level, since = 0, outlook.begin
    for at, step in [*changes, (outlook.until, 0)]:
        if level and at > since:
            low, high = (since - outlook.begin) * width // span, (at - 1 - outlook.begin) * width // span
            for place in range(low, min(high, width - 1) + 1):
                levels[place] = max(levels[place], level)
        level, since = level + step, at
    return "".join(signs.none if not level else str(level) if level < 10 else "*" for level in levels)


def axis(outlook: Outlook, width: int) -> str:
    """Times in UTC, as many as have room; with their dates where it is longer than a day."""
    dated = outlook.until - outlook.begin > _DAY_MS
    room, text = 15 if dated else 12 if width >= 60 else 8, ""
    while len(text) + (12 if dated else 6) <= width:
        at = outlook.begin + (outlook.until - outlook.begin) * len(text) // width
        text += moment(Millis(at), dated=dated).ljust(room)
    return text[:width].rstrip()


def moment(at: Millis, *, dated: bool) -> str:
    """A minute in UTC, after its month and day if so wished."""
    told = iso(at - at % 60_000) or ""
    return (told[5:10] + " " if dated else "") + told[11:16] + "Z"


def _each(outlook: Outlook, width: int) -> str:
    minutes = (outlook.until - outlook.begin) / width / 60_000
    return f"a sign is {minutes:.1f} min"
