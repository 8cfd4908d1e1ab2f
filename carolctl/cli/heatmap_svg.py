"""The heat map of the UTC day as one SVG file: text only, no script, no font, nothing fetched.

It says what it is to a screen reader, each cell says its figures when pointed at, and it follows the reader's
choice of light or dark.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from xml.sax.saxutils import escape

from carolctl import collisions
from carolctl.cli.heatmap import Cell, cells
from carolctl.cli.output import safe
from carolctl.collisions import Check, turns
from carolctl.errors import DiskFull, NotFound, NotPermitted, UsageError
from carolctl.lockguard import require_unlocked

_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 64, 78, 46, 20, 2
_SIZE = (_LEFT + 12 * _WIDTH + 24, _TOP + 24 * _HEIGHT + 64)
_NAMED = 12

_STYLE = """
  svg { background: #ffffff; font: 12px system-ui, sans-serif }
  text { fill: #24292f } .head { font-size: 16px; font-weight: 600 } .axis { fill: #57606a }
  rect { stroke: none } .l0 { fill: #eef0f2 } .l1 { fill: #c6dbef } .l2 { fill: #6baed6 }
  .l3 { fill: #2171b5 } .l4 { fill: #b35900 } .hit { stroke: #cf222e; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 } text { fill: #e6edf3 } .axis { fill: #9198a1 }
    .l0 { fill: #1c2128 } .l1 { fill: #12395e } .l2 { fill: #1f6fb2 } .l3 { fill: #79c0ff }
    .l4 { fill: #f0a03c } .hit { stroke: #ff7b72 }
  }
"""


def write(path: str, found: Check) -> None:
    """Write the map to `path`; see `write_whole`."""
    write_whole(path, svg(found))


def write_whole(path: str, text: str) -> None:
    """Write a picture to `path`, whole or not at all.

    Raises `UsageError` for what is no regular file or not named as SVG, `NotFound` for a missing folder,
    `NotPermitted`, `DiskFull`.
    """
    require_unlocked("writing a picture")
    if not path.lower().endswith(".svg"):
        raise UsageError(f"{path[-200:]} is not named as SVG, which is what is written", field="plot")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"{path[:200]} is no regular file", field="plot")
    partial = f"{path}.{os.getpid()}.partial"
    try:
        _replace(partial, path, text)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"no such folder: {os.path.dirname(path) or '.'}", hint="make it, or give another path"
        ) from None
    except PermissionError as refusal:
        raise NotPermitted(
            f"{path[:200]} cannot be written: {refusal.strerror}", hint="check the owner and the modes"
        ) from None
    except OSError as trouble:
        if trouble.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"{path[:200]} was not written: the disk is full", hint="free some space") from None


def _replace(partial: str, path: str, text: str) -> None:
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def svg(found: Check) -> str:
    """The document."""
    width, height = _SIZE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-labelledby="title desc">',
            '<title id="title">Turns of scheduled jobs over the UTC day</title>',
            f'<desc id="desc">{_text(_description(found))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<text class="head" x="{_LEFT}" y="28">Turns of scheduled jobs, in buckets of 5 minutes</text>',
            f'<text class="axis" x="{_LEFT}" y="48">{_text(_subtitle(found))}</text>',
            *_axes(),
            *(_rect(cell) for cell in cells(found.forecast, found.threshold)),
            *_legend(found.threshold),
            "</svg>\n",
        ]
    )


def _text(value: object) -> str:
    return escape(safe(value))


def _subtitle(found: Check) -> str:
    start, end = collisions.period(found.forecast)
    return f"{start} to {end}, {len(found.forecast.loads)} schedules; threshold {found.threshold:,} turns"


def _description(found: Check) -> str:
    told = [collisions.phrase(found.forecast, collision) for collision in found.collisions[:_NAMED]]
    return f"{_subtitle(found)}. " + ("; ".join(told) if told else "No collision") + "."


def _axes() -> Iterator[str]:
    yield f'<text class="axis" x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end">UTC</text>'
    for place in range(12):
        x = _LEFT + place * _WIDTH + (_WIDTH - _GAP) // 2
        yield f'<text class="axis" x="{x}" y="{_TOP - 8}" text-anchor="middle">:{5 * place:02}</text>'
    for hour in range(24):
        y = _TOP + hour * _HEIGHT + 13
        yield f'<text class="axis" x="{_LEFT - 8}" y="{y}" text-anchor="end">{hour:02}:00</text>'


def _rect(cell: Cell) -> str:
    hour, minute = divmod(cell.minute, 60)
    x, y = _LEFT + minute // 5 * _WIDTH, _TOP + hour * _HEIGHT
    told = f"{hour:02}:{minute:02}Z: " + (
        f"{turns(cell.weight):,} turns: {collisions.some(cell.names, _NAMED)}" if cell.names else "nothing"
    )
    kind = f"l{cell.level} hit" if cell.collides else f"l{cell.level}"
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{_WIDTH - _GAP}" height="{_HEIGHT - _GAP}" rx="2">'
        f"<title>{_text(told)}</title></rect>"
    )


def _legend(threshold: int) -> Iterator[str]:
    y = _TOP + 24 * _HEIGHT + 24
    words = ["none", *(f"to {threshold * third // 3:,}" for third in (1, 2, 3)), f"over {threshold:,}"]
    for number, word in enumerate(words):
        x = _LEFT + number * 108
        yield f'<rect class="l{number}" x="{x}" y="{y}" width="16" height="16" rx="2"/>'
        yield f'<text x="{x + 22}" y="{y + 12}">{word}</text>'
    yield f'<text class="axis" x="{_LEFT}" y="{y + 34}">Outlined: two or more schedules together over it</text>'
