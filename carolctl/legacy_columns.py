"""The columns of a legacy job table: which source column is which, and what the cell of each means.

A cell may be spelt in many ways: epoch seconds or ISO text, ``7:05`` or ``07:05``, NULL or ``UTC``. `MEANINGS`
has one reading for each known column; two cells with the same meaning are two spellings of one thing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carolctl.errors import BadData, UsageError
from carolctl.legacy_cells import Cell, RawText, Row, flag, instant, is_blank, plain, row_digest, whole, word

TARGETS = (
    "job_id", "droid_name", "description", "schedule_type", "daily_at", "interval_sec", "cron_expr", "run_at",
    "timezone", "endpoint_url", "http_method", "payload_json", "command", "enabled", "last_run_at", "last_status",
    "next_run_at", "run_count", "created_at", "updated_at",
)  # fmt: skip
"""The columns of the legacy table that are understood."""

RUN_STATE = frozenset({"last_run_at", "last_status", "next_run_at", "run_count", "updated_at"})
"""What running a job changes: no part of its definition, neither there nor here."""

MOVING = RUN_STATE | {"enabled"}
"""Where a job may have moved on since its migration, without anybody having edited it."""

MARK = "$source"
"""The key of the migration's own notes in ``legacy``; no column may be called so."""

_NEEDED = ({"job_id"}, {"schedule_type"}, {"daily_at", "interval_sec", "cron_expr", "run_at"},
           {"endpoint_url", "command"})  # fmt: skip
_PAYLOAD_DEPTH = 100
_LARGEST_COUNT = 2**53


# -- which column is what ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a source table in their order, each with the target it is mapped to, or None."""

    table: str
    columns: dict[str, str | None]

    def source_of(self, target: str) -> str | None:
        """The source column that is mapped to `target`."""
        return next((source for source, mapped in self.columns.items() if mapped == target), None)

    def by_target(self, row: Row) -> Row:
        """The mapped cells of a row, by target."""
        return {target: row.get(source) for source, target in self.columns.items() if target}

    def definition(self, row: Row) -> str:
        """The digest of what defines a row: every cell that is not NULL and no run state."""
        names = [
            name
            for name, target in self.columns.items()
            if target not in RUN_STATE and row.get(name) is not None
        ]
        return row_digest(row, sorted(names))


def standard_layout(table: str) -> Layout:
    """The layout of a legacy table that has just the known columns."""
    return Layout(table=table, columns={target: target for target in TARGETS})


def layout_of(table: str, columns: Sequence[str], mapping: Mapping[str, str]) -> Layout:
    """Match `columns` with the targets: by `mapping` (target to source) first, then by name.

    Raises `UsageError` for an unknown target, `BadData` for a column that is missing.
    """
    by_lower = {column.lower(): column for column in columns}
    chosen: dict[str, str] = {}
    for target, source in mapping.items():
        _check_mapping(target, source, by_lower, chosen)
        chosen[by_lower[source.lower()]] = target
    for column in columns:
        target = column.lower()
        if target in TARGETS and column not in chosen and target not in chosen.values():
            chosen[column] = target
    _refuse_missing(table, columns, set(chosen.values()))
    return Layout(table=table, columns={column: chosen.get(column) for column in columns})


def _check_mapping(target: str, source: str, by_lower: Mapping[str, str], chosen: Mapping[str, str]) -> None:
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", field="--map", hint="known: " + ", ".join(TARGETS))
    if source.lower() not in by_lower:
        raise BadData(f"the table has no column {source!r}", hint="it has: " + ", ".join(by_lower.values()))
    if by_lower[source.lower()] in chosen:
        raise UsageError(f"column {source!r} is given for two targets", field="--map")


def _refuse_missing(table: str, columns: Sequence[str], found: set[str]) -> None:
    missing = [" or ".join(sorted(group)) for group in _NEEDED if not group & found]
    if missing:
        raise BadData(
            f"table {table} lacks {', '.join(missing)}",
            hint=f"say which column it is with --map TARGET=SOURCE; it has: {', '.join(columns)}",
        )
    if MARK in columns:
        raise BadData(f"a column named {MARK} cannot be kept", hint="rename it in a copy of the database")


# -- what a column means: two cells with the same meaning are two spellings ----


def always(cell: Cell) -> object:
    """For what never changes here: the source's own cell stands."""
    return None


def count(cell: Cell) -> int:
    """A number of runs; what is none is 0."""
    return min(max(0, whole(cell) or 0), _LARGEST_COUNT)


def kind_name(cell: Cell) -> str:
    """The schedule type in small letters."""
    return word(cell).lower()


def time_of_day(cell: Cell) -> str:
    """``7:05`` and ``07:05:00`` are ``07:05``."""
    text = re.sub(r"^(\d\d?:\d\d):00(?:\.0+)?$", r"\1", word(cell))
    return text.zfill(5) if re.fullmatch(r"\d:\d\d", text) else text


def seconds(cell: Cell) -> object:
    """A whole number where it is one, else the text, for the schedule's own parser to refuse."""
    number = whole(cell)
    return word(cell) if number is None else number


def cron_text(cell: Cell) -> str:
    """Single spaces, names in capitals, aliases in small letters."""
    text = " ".join(word(cell).split())
    return text.lower() if text.startswith("@") else text.upper()


def zone_name(cell: Cell) -> str:
    """The zone; nothing is UTC."""
    text = word(cell)
    return "UTC" if text.lower() in ("", "utc", "z") else text


def method_name(cell: Cell) -> str:
    """The method in capitals; nothing is POST."""
    return word(cell).upper() or "POST"


def url_text(cell: Cell) -> str | None:
    """The address; nothing is None."""
    return word(cell) or None


def command_line(cell: Cell) -> str | None:
    """The shell line, blanks and all; nothing is None."""
    return None if is_blank(cell) else plain(cell)


def payload_of(cell: Cell) -> tuple[Any, bool]:
    """The payload, and whether it is JSON that can be sent and stored; else it is the text itself."""
    if is_blank(cell):
        return None, True
    text = plain(cell)
    if text is None or isinstance(cell, RawText):
        return text, False
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        is_shallow = _depth(value) <= _PAYLOAD_DEPTH
    except (ValueError, RecursionError):
        return text, False
    return (value, True) if is_shallow else (text, False)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("too large a number")
    return number


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(_depth, inside), default=0)


def json_text(value: Any) -> str:
    """JSON as people write it; escaped to ASCII only where SQLite could not hold it otherwise."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def payload_text(cell: Cell) -> str:
    """The payload in one spelling: ``1`` and ``true`` are equal in Python, not in JSON."""
    return json_text(payload_of(cell)[0])


MEANINGS: dict[str, Callable[[Cell], object]] = {
    "job_id": always,
    "droid_name": lambda cell: plain(cell) or "",
    "description": plain,
    "schedule_type": kind_name,
    "daily_at": time_of_day,
    "interval_sec": seconds,
    "cron_expr": cron_text,
    "run_at": instant,
    "timezone": zone_name,
    "endpoint_url": url_text,
    "http_method": method_name,
    "payload_json": payload_text,
    "command": command_line,
    "enabled": flag,
    "last_run_at": instant,
    "last_status": plain,
    "next_run_at": instant,
    "run_count": count,
    "created_at": always,
    "updated_at": instant,
}
