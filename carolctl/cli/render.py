"""Tables for people: fitted to the width there is, harmless whatever the cells hold. The sole importer of rich.

On a terminal: colour, unless ``NO_COLOR`` is set, and as many columns as fit. Elsewhere: plain aligned text,
``COLUMNS`` or 160 wide. Every cell goes through `safe`, and none is read as markup.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from carolctl.cli.output import safe

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH_ELSEWHERE = 160
_GAP = 2
#: A column is left out when the others could not have this much.
_COMFORTABLE = 18

Tone = Literal["", "good", "bad", "warn", "dim"]
_STYLES: dict[Tone, str] = {"": "", "good": "green", "bad": "red", "warn": "yellow", "dim": "dim"}


@dataclass(frozen=True, slots=True)
class Toned:
    """A cell with a colour; the words must say the same without it."""

    text: object
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: how narrow it may get, when it may be left out, and what happens to text that does not fit."""

    name: str
    #: Narrower than this it is no use; text that is shorter anyway takes only what it needs.
    least: int = 8
    #: 0: always shown; else the highest is the first to be left out when room is short.
    dispensable: int = 0
    justify: Literal["left", "right"] = "left"
    #: ``fold`` goes on in the next line, for what a person copies; ``ellipsis`` cuts.
    overflow: Literal["fold", "ellipsis"] = "ellipsis"


Row = Sequence[object]


def table(title: str | None, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print a table. A cell is a `Toned`, or anything else that has a text; None is a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = _widths(columns, cells, available_width())
    grid = _grid(title, header=True)
    for column, width in zip(columns, widths, strict=True):
        if width:
            grid.add_column(
                _text(column.name),
                width=width,
                justify=column.justify,
                overflow=column.overflow,
                no_wrap=column.overflow == "ellipsis",
            )
    for row in cells:
        grid.add_row(*(cell for cell, width in zip(row, widths, strict=True) if width))
    _print(grid, _total(widths))


def line(text: str, tone: Tone) -> None:
    """One line with a colour; its words must say the same without it."""
    _print(_cell(Toned(text, tone)), 0)


def pairs(title: str | None, values: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line; a value that does not fit goes on in the next."""
    cells = [(_text(name), _cell(value)) for name, value in values]
    width = max((name.cell_len for name, _ in cells), default=0)
    grid = _grid(title, header=False)
    grid.add_column(width=width, style="bold")
    grid.add_column(width=max(8, available_width() - width - _GAP), overflow="fold")
    for name, value in cells:
        grid.add_row(name, value)
    _print(grid, 0)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, where that is a terminal; to be told the name of each step as it begins."""
    if not sys.stderr.isatty():
        yield lambda _name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    begun: list[str] = []
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")), markup=False, highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def step(name: str) -> None:
            bar.update(task, description=safe(name), completed=len(begun))
            begun.append(name)

        yield step


def available_width() -> int:
    """``COLUMNS``, else the terminal's width, else 160."""
    return max(20, shutil.get_terminal_size((WIDTH_ELSEWHERE, 24)).columns)


def moment(instant: int | None) -> str | None:
    """An instant for people: ``2026-03-29 02:30Z``, with seconds only where there are any."""
    if instant is None:
        return None
    from carolctl.clock import iso

    text = iso(instant - instant % 1000) or ""
    return text.replace("T", " ").replace(":00Z", "Z")


def _grid(title: str | None, *, header: bool) -> Table:
    from rich.table import Table

    return Table(
        box=None,
        show_header=header,
        header_style="bold",
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        title=_text(title) if title else None,
        title_justify="left",
        title_style="bold",
    )


def _text(value: object) -> Text:
    from rich.text import Text

    return Text(safe(value))


def _cell(value: object) -> Text:
    from rich.text import Text

    if isinstance(value, Toned):
        return Text(safe(value.text), style=_STYLES[value.tone])
    return Text("-", style="dim") if value is None else Text(safe(value))


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[Text]], room: int) -> list[int]:
    """The width of each column; 0 for those left out."""
    widths = [
        max([len(column.name), *(row[place].cell_len for row in cells)])
        for place, column in enumerate(columns)
    ]
    for place in sorted(range(len(columns)), key=lambda place: -columns[place].dispensable):
        wanted = [min(w, max(c.least, _COMFORTABLE)) for w, c in zip(widths, columns, strict=True)]
        if columns[place].dispensable and _total(wanted) > room:
            widths[place] = 0
    least = [min(width, column.least) for width, column in zip(widths, columns, strict=True)]
    while _total(widths) > room:
        spare = [width - floor for width, floor in zip(widths, least, strict=True)]
        if not any(spare):
            break
        # The widest gives way first, so that short columns stay whole.
        widest = max((width, place) for place, width in enumerate(widths) if spare[place])[1]
        widths[widest] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + _GAP * (len(shown) - 1)


def _print(renderable: Any, least: int) -> None:
    """Print within the width there is; where `least` does not fit, the terminal wraps."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    coloured = terminal and not os.environ.get("NO_COLOR")
    console = Console(
        width=max(available_width(), least),
        color_system="auto" if coloured else None,
        force_terminal=terminal,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        print(line.rstrip())
