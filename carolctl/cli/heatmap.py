"""The load of the UTC day as a table of hours by five minutes; a shade for how much, in signs and in colour.

Shades are steps of the threshold, so that two maps may be compared. Where the output cannot carry the block
signs, plain ASCII stands for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from carolctl.cli import render
from carolctl.cli.render import Column, Toned
from carolctl.collisions import turns
from carolctl.firing_weight import UNIT
from carolctl.forecast import DAY_BUCKETS, Forecast, collides

_PER_HOUR = 12
_BLOCKS, _ASCII = "·░▒▓█", ".-+x#"
#: Signs in a cell, so that twelve cells, the hour and the peak fit 80 columns.
_CELL = 3


class Cell(NamedTuple):
    """Five minutes of the day: over several days the heaviest of them."""

    minute: int
    #: Thousandths of a turn.
    weight: int
    names: tuple[str, ...]
    #: 0 for nothing, 1 to 3 by thirds of the threshold, 4 above it.
    level: int
    collides: bool


def cells(forecast: Forecast, threshold: int) -> list[Cell]:
    """The 288 cells of the UTC day."""
    heaviest: dict[int, int] = {}
    for bucket, weight in enumerate(forecast.weights):
        minute = forecast.span.minute(bucket)
        if minute not in heaviest or weight > forecast.weights[heaviest[minute]]:
            heaviest[minute] = bucket
    return [_cell(forecast, minute * 5, heaviest.get(minute * 5), threshold) for minute in range(DAY_BUCKETS)]


def _cell(forecast: Forecast, minute: int, bucket: int | None, threshold: int) -> Cell:
    if bucket is None or not forecast.schedules[bucket]:
        return Cell(minute, 0, (), 0, False)
    weight = forecast.weights[bucket]
    return Cell(
        minute,
        weight,
        tuple(forecast.names(bucket)),
        level(weight, threshold),
        collides(weight, forecast.schedules[bucket], threshold * UNIT),
    )


def level(weight: int, threshold: int) -> int:
    """The shade of a weight that is somebody's: 1 to 3 by thirds of the threshold, 4 above it."""
    limit = threshold * UNIT
    return 4 if weight > limit else max(1, -(-3 * weight // limit)) if limit else 1


def print_map(forecast: Forecast, threshold: int) -> None:
    """Print the day, its 24 hours one a line, and the legend."""
    shades = _shades()
    hours = cells(forecast, threshold)
    columns = [
        Column(name="UTC", least=5),
        *(Column(name=f":{5 * place:02}", least=_CELL) for place in range(_PER_HOUR)),
        Column(name="peak", least=6, justify="right"),
        Column(name="who", least=20, dispensable=1),
    ]
    rows = [_row(hours[start : start + _PER_HOUR], shades) for start in range(0, DAY_BUCKETS, _PER_HOUR)]
    render.table(None, columns, rows)
    render.pairs(None, [("turns in 5 min", legend(threshold, shades))])


def _shades() -> str:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _BLOCKS


_TONES: tuple[render.Tone, ...] = ("dim", "good", "good", "warn", "bad")


def _row(hour: Sequence[Cell], shades: str) -> list[object]:
    heaviest = max(hour, key=lambda cell: (cell.weight, -cell.minute))
    shown: list[object] = [f"{hour[0].minute // 60:02}:00"]
    shown += [Toned(shades[cell.level] * (_CELL if cell.level else 1), _TONES[cell.level]) for cell in hour]
    if not heaviest.names:
        return [*shown, "", ""]
    at = f":{heaviest.minute % 60:02} {', '.join(heaviest.names)}"
    return [*shown, f"{turns(heaviest.weight):,}", at]


def legend(threshold: int, shades: str) -> str:
    """``. none  - to 1,000  + to 2,000  x to 3,000  # over 3,000``."""
    thirds = [threshold * third // 3 for third in (1, 2, 3)]
    told = [f"{shades[number + 1]} to {most:,}" for number, most in enumerate(thirds)]
    return "  ".join([f"{shades[0]} none", *told, f"{shades[4]} over {threshold:,}"])
