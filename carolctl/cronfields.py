"""The five cron fields as bit sets: their grammar, their compiled text, their matches on a bare wall clock.

Nothing here knows of UTC, zones or clock changes: `schedule` lays these matches over a zone. A *wall minute*
is what a clock without a zone has counted in minutes since 1970-01-01 00:00, a *day* the same in days.

croniter is the parser, but it is handed only what it reads as everybody does: it takes ``5-5`` for the whole
field, wraps ``22-2`` round, draws ``R`` by lot and counts ``2-31,L`` as every day. So `_check` settles those
first, names the field at fault, and keeps ``L``, ``W`` and ``#`` to itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache, lru_cache
from typing import NamedTuple

from carolctl.errors import BadSchedule

MAX_LENGTH = 256
DAY_MS = 86_400_000
#: Day number of 1970-01-01 in the proleptic calendar of `datetime.date`.
EPOCH_DAY = date(1970, 1, 1).toordinal()
#: Instants are sought in the years 1970 to 2199; a zone may read a day more at either end.
FIRST_YEAR, END_YEAR = 1970, 2200
_FIRST_MONTH, _END_MONTH = (FIRST_YEAR - 1) * 12, END_YEAR * 12 + 1

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

Expand = Callable[[str], list[list[int | str]]]
"""Turns five plain fields into their values, ``"*"`` for all; raises ValueError. croniter's part."""
Nth = tuple[tuple[int, int], ...]
"""(day of week, which one of the month) for each ``FRI#2``; 0 stands for the last, ``L5``."""


def bits_of(mask: int) -> list[int]:
    """The positions of the bits set, ascending."""
    return [k for k in range(mask.bit_length()) if mask >> k & 1]


def lanes(bits: int, width: int, size: int) -> Sequence[int]:
    """How many bits are set in each of ``size`` lanes of ``width`` bits, the lowest lane first."""
    if not bits:
        return bytes(size)
    each = format(bits, f"0{width * size}b").encode().translate(bytes.maketrans(b"01", b"\0\1"))
    if width > 255:
        return [each.count(1, n - width, n) for n in range(width * size, 0, -width)]
    # A byte holds the count of a lane, so that one addition of long numbers adds them all up.
    return sum(int.from_bytes(each[k::width]) for k in range(width)).to_bytes(size)[::-1]


# -- grammar ----


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    #: How many distinct values there are: 7 and 0 are the same Sunday.
    size: int
    names: tuple[str, ...] = ()


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DOM = _Field("day of month", 1, 31, 31)
_DOW = _Field("day of week", 0, 7, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))
_FIELDS = (
    _Field("minute", 0, 59, 60),
    _Field("hour", 0, 23, 24),
    _DOM,
    _Field("month", 1, 12, 12, _MONTHS),
    _DOW,
)


def _bad(message: str, hint: str = "") -> BadSchedule:
    return BadSchedule(message, field="cron", hint=hint)


def _bad_field(field: _Field, item: str, why: str, hint: str = "") -> BadSchedule:
    return _bad(f"{field.name}: {item[:40]!r} {why}", hint)


def normalise(text: str) -> str:
    """The one spelling that is stored: single spaces, names in capitals, aliases in small letters."""
    text = text.strip(" \t\r\n")
    if len(text) > MAX_LENGTH:
        raise _bad(f"longer than {MAX_LENGTH} characters")
    if not text.isascii() or not text.replace("\t", " ").isprintable():
        raise _bad(f"{text[:40]!a} holds a character that cron does not know", "Only plain ASCII is allowed.")
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise _bad(f"no such alias: {text[:40]!r}", "Known: " + " ".join(ALIASES))
        return text.lower()
    fields = text.upper().split()
    if len(fields) != len(_FIELDS):
        raise _bad(f"{len(fields)} fields instead of " + ", ".join(field.name for field in _FIELDS))
    return " ".join(fields)


def _check(texts: list[str]) -> list[str]:
    """What is plain in five fields, as croniter may have it. Raises BadSchedule, naming the field."""
    dom, dow = texts[2], texts[4]
    last, nearest, plain_dom = _special_days(dom)
    nth, plain_dow = _special_weekdays(dow)
    for special, field, other in ((last or nearest, _DOM, dow), (nth, _DOW, dom)):
        if special and other != "*":
            raise _bad(f"{field.name}: L, W and # are allowed only beside a * in the other day field")
    plain = [*texts[:2], plain_dom, texts[3], plain_dow]
    return [
        ",".join(_plain_item(f, i) for i in t.split(",") if t) for f, t in zip(_FIELDS, plain, strict=True)
    ]


def _plain_item(field: _Field, item: str) -> str:
    body, slash, step = item.partition("/")
    if slash and not (step.isdigit() and 1 <= int(step) <= field.size):
        raise _bad_field(field, item, f"needs a step from 1 to {field.size}")
    low, dash, high = body.partition("-")
    if dash:
        first, final = _value(field, low), _value(field, high)
        if first > final:
            raise _bad_field(field, item, "runs backwards", "Write two ranges, or SAT-7 for SAT-SUN.")
        # croniter reads an equal range as the whole field, with or without a step.
        return low if first == final else item
    if body != "*":
        _value(field, body)
    return item


def _value(field: _Field, text: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.low
    if text.isdigit() and field.low <= int(text) <= field.high:
        return int(text)
    names = f" or a name {field.names[0]} to {field.names[-1]}" if field.names else ""
    raise _bad_field(field, text, f"is not a number from {field.low} to {field.high}{names}")


def _special_days(text: str) -> tuple[bool, int, str]:
    """Split ``L`` and ``15W`` off the days of the month: (last day?, weekday nearest to, what is left)."""
    if text[-1:] == "W" and text[:-1].isdigit():
        return False, _value(_DOM, text[:-1]), ""
    if "L" not in text:
        return False, 0, text
    plain = [item for item in text.split(",") if item != "L"]
    return True, 0, ",".join(plain)


def _special_weekdays(text: str) -> tuple[Nth, str]:
    """Split ``FRI#2`` and ``L5`` off the days of the week: a field holds either those or plain days."""
    if "#" not in text and "L" not in text:
        return (), text
    items = text.split(",")
    if not all("#" in item or item.startswith("L") for item in items):
        raise _bad_field(_DOW, text, "mixes plain days with L or #, or has the L behind", "Last Friday: L5.")
    return tuple(_nth(item) for item in items), ""


def _nth(item: str) -> tuple[int, int]:
    if item.startswith("L"):
        return _value(_DOW, item[1:]) % 7, 0
    day, _, which = item.partition("#")
    if which not in ("1", "2", "3", "4", "5"):
        raise _bad_field(_DOW, item, "needs a number from 1 to 5 after the #", "The last Friday is L5.")
    return _value(_DOW, day) % 7, int(which)


# -- from text to bits ----


def compile_fields(expr: str, expand: Expand) -> tuple[CronFields, str]:
    """The fields of a normalised expression and their compiled text: the expression and five masks in hex.

    Raises BadSchedule, also for a day that none of the months has.
    """
    plain = _check(ALIASES.get(expr, expr).split())
    masks = [_mask(index, plain[index], expand) for index in range(len(_FIELDS))]
    fields = CronFields(expr, masks)
    if not fields.can_fire():
        raise _bad(f"day of month: {plain[2]!r} never comes in the months given, so it can never fire")
    return fields, " ".join([expr, "=", *(f"{mask:x}" for mask in masks)])


def _mask(index: int, plain: str, expand: Expand) -> int:
    """One field, put to the parser by itself: its own message would not say which field it minds."""
    if not plain:
        return 0
    field, alone = _FIELDS[index], ["*"] * len(_FIELDS)
    alone[index] = plain
    try:
        values = expand(" ".join(alone))[index]
    except ValueError as exc:
        raise _bad_field(field, plain, "cannot be read") from exc
    numbers = range(field.low, field.low + field.size) if "*" in values else [int(v) for v in values]
    return sum({1 << number for number in numbers})


@lru_cache(maxsize=4096)
def decode_fields(expr: str, compiled: str) -> CronFields | None:
    """The fields of a compiled text; None when it belongs to another expression or is not sound."""
    head, words = compiled[: len(expr) + 3], compiled[len(expr) + 3 :].split(" ")
    if head != expr + " = " or len(words) != len(_FIELDS):
        return None
    try:
        masks = [int(word, 16) for word in words]
        if any(not 0 <= mask < 2 << field.high for mask, field in zip(masks, _FIELDS, strict=True)):
            return None
        fields = CronFields(expr, masks)
    except ValueError:
        return None
    return fields if fields.day_minutes and fields.can_fire() else None


def daily_fields(text: str) -> tuple[str, CronFields]:
    """``HH:MM`` in full and the fields of ``MM HH * * *``. Raises BadSchedule."""
    hour, _, minute = text.strip().partition(":")
    sound = hour.isdigit() and minute.isdigit() and text.isascii() and len(hour) <= 2 == len(minute)
    if not sound or int(hour) > 23 or int(minute) > 59:
        raise BadSchedule(f"{text[:40]!r} is not a time from 00:00 to 23:59", field="daily_at")
    masks = [1 << int(minute), 1 << int(hour), (1 << 32) - 2, (1 << 13) - 2, 127]
    return f"{hour:0>2}:{minute}", CronFields(f"{minute} {hour} * * *", masks)


# -- matching ----


@cache
def _month(index: int) -> tuple[int, int, int, int]:
    """(number 1-12, day of the 1st, length, weekday of the 1st) of the month index year * 12 + number - 1."""
    first = date(index // 12, index % 12 + 1, 1).toordinal()
    following = date((index + 1) // 12, (index + 1) % 12 + 1, 1).toordinal()
    return index % 12 + 1, first - EPOCH_DAY, following - first, first % 7


_LENGTHS = {2: (28, 29), 4: (30,), 6: (30,), 9: (30,), 11: (30,)}


class CronFields:
    """Compiled fields that find their matches on the wall clock, forwards, backwards and over ranges."""

    __slots__ = ("_both", "_day_bits", "_masks", "_special", "_ticks", "day_minutes", "wildcard")

    def __init__(self, expr: str, masks: list[int]) -> None:
        """``masks`` has bit n for the value n of each field; the rest is read off the normalised text."""
        minute, hour, dom, _, dow = ALIASES.get(expr, expr).split()
        #: Debian's rule: the clock of such a job is not bent when the wall clock changes.
        self.wildcard = minute.startswith("*") or hour.startswith("*")
        #: Debian's rule: a day field that starts with * is ANDed with the other one, else they are ORed.
        self._both = dom.startswith("*") or dow.startswith("*")
        self._special = (*_special_days(dom)[:2], _special_weekdays(dow)[0])
        self._masks = masks
        #: Bit n: the n-th minute of a day that matches.
        self.day_minutes = sum(masks[0] << 60 * hour for hour in bits_of(masks[1]))
        self._day_bits: dict[int, int] = {}
        self._ticks: tuple[int, ...] = ()

    def can_fire(self) -> bool:
        """Whether any month there is has a day for it: a month is its length and the weekday of its 1st."""
        return any(
            self.days_of(length, weekday)
            for month in bits_of(self._masks[3])
            for length in _LENGTHS.get(month, (31,))
            for weekday in range(7)
        )

    def at_or_after(self, wall: int) -> int | None:
        """The first match at or after this wall minute."""
        day, minute = divmod(wall, 1440)
        found = self._day(day, 1)
        later = self.day_minutes >> minute
        if found == day:
            if later:
                return wall + (later & -later).bit_length() - 1
            found = self._day(day + 1, 1)
        if found is None:
            return None
        return found * 1440 + (self.day_minutes & -self.day_minutes).bit_length() - 1

    def at_or_before(self, wall: int) -> int | None:
        """The last match at or before this wall minute."""
        day, minute = divmod(wall, 1440)
        found = self._day(day, -1)
        earlier = self.day_minutes & ((2 << minute) - 1)
        if found == day:
            if earlier:
                return day * 1440 + earlier.bit_length() - 1
            found = self._day(day - 1, -1)
        return None if found is None else found * 1440 + self.day_minutes.bit_length() - 1

    def count(self, low: int, high: int) -> int:
        """How many wall minutes of [low, high) match: arithmetic on whole days, no stepping."""
        return (
            self._count_before(high, low // 1440) - self._count_before(low, low // 1440) if high > low else 0
        )

    def bits(self, low: int, high: int) -> int:
        """The matches in [low, high) as bits: bit n is the wall minute low + n."""
        found, first = 0, low // 1440
        for start, days in self._month_days(first, 1):
            if start * 1440 >= high:
                break
            for day in range(max(start, first), min(start + 31, -(-high // 1440))):
                if days >> day - start & 1:
                    # A day early, since the first day may begin before low.
                    found |= self.day_minutes << (day + 1) * 1440 - low
        return found >> 1440 & ((1 << max(high - low, 0)) - 1)

    def days(self, low: int, high: int, step: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The days of [low, high) with matches, descending if ``step`` is -1, and those in ms of the day."""
        if high <= low:
            return
        first, final = low // 1440, (high - 1) // 1440
        for start, days in self._month_days(first if step > 0 else final, step):
            if start > final or start + 31 <= first:
                return
            for day in [start + k for k in bits_of(days)][::step]:
                if first <= day <= final:
                    yield day, self._ticks_within(low - day * 1440, high - day * 1440)

    def _ticks_within(self, low: int, high: int) -> tuple[int, ...]:
        if not self._ticks:
            minutes = bits_of(self._masks[0])
            self._ticks = tuple((60 * h + m) * 60_000 for h in bits_of(self._masks[1]) for m in minutes)
        if low <= 0 and high >= 1440:
            return self._ticks
        return self._ticks[bisect_left(self._ticks, low * 60_000) : bisect_left(self._ticks, high * 60_000)]

    def _count_before(self, wall: int, from_day: int) -> int:
        day, minute = divmod(wall, 1440)
        whole = 0
        for start, days in self._month_days(from_day, 1):
            if start > day:
                break
            window = (1 << min(max(day - start, 0), 31)) - (1 << min(max(from_day - start, 0), 31))
            whole += (days & window).bit_count()
        partial = self.day_minutes & ((1 << minute) - 1)
        return whole * self.day_minutes.bit_count() + (partial.bit_count() if self._day(day, 1) == day else 0)

    def _day(self, day: int, step: int) -> int | None:
        """The first matching day at or after ``day``; with step -1 the last at or before it."""
        for start, days in self._month_days(day, step):
            if step > 0:
                rest = days >> max(day - start, 0)
                if rest:
                    return max(day, start) + (rest & -rest).bit_length() - 1
            else:
                rest = days & ((2 << min(day - start, 31)) - 1)
                if rest:
                    return start + rest.bit_length() - 1
        return None

    def _month_days(self, day: int, step: int) -> Iterator[tuple[int, int]]:
        """(day number of the 1st, bits of its matching days, bit 0 being the 1st) month by month."""
        at = date.fromordinal(day + EPOCH_DAY)
        stop = _END_MONTH if step > 0 else _FIRST_MONTH - 1
        for index in range(at.year * 12 + at.month - 1, stop, step):
            number, first, length, weekday = _month(index)
            if self._masks[3] >> number & 1:
                yield first, self.days_of(length, weekday)

    def days_of(self, length: int, weekday: int) -> int:
        """Bits of the matching days of any month of this length whose 1st is this weekday (0: Sunday)."""
        key = length * 7 + weekday
        if key not in self._day_bits:
            by_month, by_week = self._by_number(length, weekday), self._by_weekday(length, weekday)
            self._day_bits[key] = by_month & by_week if self._both else by_month | by_week
        return self._day_bits[key]

    def _by_number(self, length: int, weekday: int) -> int:
        bits = self._masks[2] >> 1 & ((1 << length) - 1)
        last, nearest, _ = self._special
        if last:
            bits |= 1 << length - 1
        if nearest:
            day = min(nearest, length)
            # Saturday gives way to Friday and Sunday to Monday, but never across the end of the month.
            shift = {6: -1 if day > 1 else 2, 0: 1 if day < length else -2}.get((weekday + day - 1) % 7, 0)
            bits |= 1 << day + shift - 1
        return bits

    def _by_weekday(self, length: int, weekday: int) -> int:
        week = self._masks[4]
        turned = (week >> weekday | week << 7 - weekday) & 127
        bits = turned * 0x10204081
        for day, which in self._special[2]:
            first = (day - weekday) % 7
            bits |= 1 << first + 7 * ((which or (length - 1 - first) // 7 + 1) - 1)
        return bits & ((1 << length) - 1)
