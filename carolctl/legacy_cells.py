"""The cells of a legacy table: SQLite's typed values, their JSON form, their checksum, and what they may mean.

SQLite lets any column hold any type, so a cell is compared as (type, value) and kept as it is: text that is no
UTF-8 keeps its bytes (`RawText`), BLOBs and infinities get a tagged JSON form. The readings at the end are what
the mapping goes by: they say what a cell means, or that it says nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from carolctl.model import Millis


@dataclass(frozen=True, slots=True)
class RawText:
    """A TEXT value whose bytes are no UTF-8."""

    raw: bytes


Cell = None | int | float | str | bytes | RawText
Row = dict[str, Cell]
"""The cells of one row by column name."""


def text_cell(raw: bytes) -> str | RawText:
    """What a TEXT value becomes: sqlite3's ``text_factory``; it never raises."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return RawText(raw)


# -- JSON ----


def to_document(cell: Cell) -> Any:
    """The JSON value of a cell; what JSON cannot hold is an object with one tag."""
    match cell:
        case bytes():
            return {"blob": base64.b64encode(cell).decode()}
        case RawText():
            return {"text": base64.b64encode(cell.raw).decode()}
        case float() if not math.isfinite(cell):
            return {"real": repr(cell)}
    return cell


def from_document(document: Any) -> Cell:
    """The reverse of `to_document`."""
    match document:
        case {"blob": str(text)}:
            return base64.b64decode(text)
        case {"text": str(text)}:
            return RawText(base64.b64decode(text))
        case {"real": str(text)}:
            return float(text)
        case None | int() | float() | str():
            return document
    raise ValueError("not a legacy cell")


# -- identity ----


def typed(cell: Cell) -> tuple[bytes, bytes]:
    """SQLite's type and the bytes of the value: two cells are equal when these are."""
    match cell:
        case None:
            return b"null", b""
        case int():
            return b"integer", str(cell).encode()
        case float():
            return b"real", struct.pack(">d", cell)
        case str():
            return b"text", cell.encode("utf-8", "surrogatepass")
        case bytes():
            return b"blob", cell
        case RawText():
            return b"text", cell.raw


def row_digest(row: Row, columns: Iterable[str]) -> str:
    """SHA-256 over names, types and values of `columns`, each with its length, so that nothing can shift."""
    hasher = hashlib.sha256()
    for column in columns:
        for part in (column.encode("utf-8", "surrogatepass"), *typed(row.get(column))):
            hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()


def checksum(digests: Iterable[str]) -> str:
    """SHA-256 over the digests of rows, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


# -- readings ----

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DIGITS = re.compile(r"\d{9,13}(\.\d{1,9})?", re.ASCII)
#: A number this large counts milliseconds: as seconds it would lie beyond the year 5000.
_MILLISECONDS_FROM = 10**11
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999


def plain(cell: Cell) -> str | None:
    """The text of a cell for people: numbers spelt out, bad bytes replaced; None for NULL and BLOBs."""
    match cell:
        case str():
            return cell
        case RawText():
            return cell.raw.decode("utf-8", "replace")
        case int() | float():
            return str(cell)
    return None


def word(cell: Cell) -> str:
    """The text of a cell without the blanks around it; empty for NULL, and a mark for a BLOB."""
    return "<blob>" if isinstance(cell, bytes) else (plain(cell) or "").strip()


def is_blank(cell: Cell) -> bool:
    """NULL, or text of nothing but blanks."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def whole(cell: Cell) -> int | None:
    """A whole number, also one written as text or as a real; None for anything else."""
    match cell:
        case int():
            return cell
        case float() if cell.is_integer():
            return int(cell)
        case str() if cell.strip().isascii() and cell.strip().isdigit() and len(cell) < 19:
            return int(cell)
    return None


_TRUE, _FALSE = {"1", "true", "yes", "on", "t", "y"}, {"", "0", "false", "no", "off", "f", "n"}


def flag(cell: Cell) -> bool | None:
    """Yes or no; NULL and empty text are no, and what is neither is None."""
    number = whole(cell)
    if number is not None:
        return number != 0
    text = word(cell).lower()
    return None if text not in _TRUE | _FALSE else text in _TRUE


def instant(cell: Cell) -> Millis | None:
    """The instant of UTC text, ISO 8601 or epoch seconds (milliseconds if huge); None for anything else."""
    match cell:
        case int() | float():
            return _from_number(cell)
        case str() if _EPOCH_DIGITS.fullmatch(cell.strip()):
            return _from_number(float(cell))
        case str():
            return _from_text(cell.strip().removesuffix(" UTC"))
    return None


def _from_number(number: float) -> Millis | None:
    if not math.isfinite(number):
        return None
    ms = round(number if abs(number) >= _MILLISECONDS_FROM else number * 1000)
    return Millis(ms) if _FIRST_MS <= ms <= _LAST_MS else None


def _from_text(text: str) -> Millis | None:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        ms = (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return None
    return Millis(ms) if _FIRST_MS <= ms <= _LAST_MS else None


def stamp(moment: Millis | None) -> str | None:
    """The usual form of an instant there: ``YYYY-MM-DD HH:MM:SS`` UTC, milliseconds only where there are any."""
    if moment is None:
        return None
    wall = (_EPOCH + timedelta(milliseconds=moment)).replace(tzinfo=None)
    return wall.isoformat(sep=" ", timespec="milliseconds" if moment % 1000 else "seconds")
