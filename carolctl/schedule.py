"""When a job is due: cron lines, daily times, intervals and single instants, over zones and clock changes.

Incident. croniter, which everybody uses, goes wrong when asked with zone-aware times: ``30 2 * * *`` in
Berlin runs twice in the October night, ``*/7 * * * *`` loses four runs in Lord Howe's half-hour repeat, and
``5-5`` is the whole field. Of 3,000 schedules put to it so 388 got a wrong answer; put to it as bare wall
times, none did. A minutely job also took it 9 s to step over a year of outage, under a tick that has 25.

Decision. croniter parses, and that is all; `cronfields` finds the matches of a bare wall clock by bit sets,
in either direction, and this module lays them over UTC. The default ``dst_rule``, ``once``, is Debian's:

- A *wildcard* job, one whose minute or hour field starts with ``*``, keeps its real cadence. It is due at
  each UTC instant whose wall time matches: in both passes of a repeated hour, and never in a gap.
- Any other job is *fixed*. A wall time that is repeated counts once, in its first pass. Wall times that a gap
  leaves out are due together, once, at the first instant after it, and merge with a regular slot there.
- ``literal`` takes the wall clock as it reads for every job: twice in the repeat, not in the gap.
- A day field that starts with ``*`` is ANDed with the other day field; otherwise the two are ORed.
- ``daily_at HH:MM`` is the fixed job ``MM HH * * *``. ``every`` counts elapsed time from its anchor and knows
  no wall clock. ``at`` without an offset is a wall time: first pass, or first instant after the gap.

Consequence. Slots are strictly increasing UTC instants, the same whichever way they are asked for; counting
them over years is arithmetic, not steps; and a job whose compiled fields are stored needs no parser at all.
Instants are integer milliseconds UTC, and slots of the wall clock lie in the years 1970 to 2199. Nothing
here reads the clock, or any file but the zone data: `zoneinfo` takes the system's, else that of tzdata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, NamedTuple, assert_never, cast
from zlib import crc32

from carolctl import cronfields
from carolctl.cronfields import DAY_MS, END_YEAR, EPOCH_DAY, FIRST_YEAR, CronFields
from carolctl.errors import BadSchedule, UsageError
from carolctl.instant import Millis
from carolctl.progression import Progression

if TYPE_CHECKING:
    from carolctl.model import DstRule, ScheduleKind

_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = (date(END_YEAR, 1, 1).toordinal() - EPOCH_DAY) * _DAY
_MAX_DURATION_SEC = 3650 * _DAY
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": _DAY}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """A schedule that has been checked. Made by `parse`; all instants are milliseconds UTC."""

    kind: ScheduleKind
    #: The normalised text, as it is to be stored; `parse` gives the same schedule for it again.
    expr: str
    timezone: str
    dst_rule: DstRule
    #: What `parse` takes as ``compiled`` to do without croniter; None for every kind but cron.
    compiled: str | None
    _slots: Progression | _WallClock = field(repr=False)

    def next_after(self, after: Millis) -> Millis | None:
        """The first slot strictly after; None when there is none before the year 2200."""
        return cast("Millis | None", self._slots.next_after(after))

    def latest_at(self, at: Millis) -> Millis | None:
        """The last slot at or before, found by stepping back; None when there is none since 1970."""
        return cast("Millis | None", self._slots.latest_at(at))

    def count(self, after: Millis, until: Millis, *, limit: int) -> int:
        """The number of slots in (after, until], but at most ``limit``."""
        return max(0, min(limit, self._slots.tally(after, until, limit)))

    def newest(self, after: Millis, until: Millis, *, limit: int) -> list[Millis]:
        """The newest ``limit`` slots in (after, until], ascending, found by stepping back from ``until``."""
        return cast("list[Millis]", self._slots.newest(after, until, limit)) if limit > 0 else []

    def between(self, after: Millis, until: Millis) -> Iterator[Millis]:
        """The slots in (after, until], ascending and lazily."""
        return cast("Iterator[Millis]", self._slots.between(after, until))

    def tallies(self, start: Millis, width: int, size: int) -> Sequence[int]:
        """How many slots lie in each of ``size`` intervals ``width`` ms wide, the first from ``start`` on.

        An interval has its start and not its end. ``width`` is a whole number of minutes.
        """
        return self._slots.tallies(start, width, size)


def parse(
    kind: ScheduleKind,
    expr: str,
    timezone: str = "UTC",
    dst_rule: DstRule = "once",
    *,
    anchor_at: Millis,
    compiled: str | None = None,
) -> Schedule:
    """Check a schedule and make it ready to be asked.

    ``anchor_at`` is the instant from which ``every`` counts. ``compiled`` is what an earlier parse left in
    `Schedule.compiled`; if it belongs to this very expression croniter is not imported, else it is ignored.
    Raises BadSchedule with ``field`` cron, daily_at, every, at or timezone; on a cron line the message names
    the field of the line.
    """
    _zone(timezone)
    slots: Progression | _WallClock
    match kind:
        case "cron":
            expr, fields, compiled = _cron(expr, compiled)
            slots = _WallClock(fields, timezone, dst_rule)
        case "daily_at":
            expr, fields, compiled = *cronfields.daily_fields(expr), None
            slots = _WallClock(fields, timezone, dst_rule)
        case "every":
            period = _duration(expr, "every", BadSchedule) * 1000
            expr = expr.strip() + ("" if expr.strip()[-1] in _UNITS else "s")
            slots, compiled = Progression(anchor_at + period, period), None
        case "at":
            expr, instant = _at(expr, timezone)
            slots, compiled = Progression(instant, 1, 1), None
        case "manual":
            expr, slots, compiled = "", Progression(0, 1, 0), None
        case _:
            assert_never(kind)
    return Schedule(
        kind=kind, expr=expr, timezone=timezone, dst_rule=dst_rule, compiled=compiled, _slots=slots
    )


def spread_offset_ms(job_id: str, spread_sec: int) -> int:
    """Milliseconds to put a job off within its spread: whole seconds in [0, spread_sec), 0 without a spread.

    A checksum of the job id, so that it is the same in every process and after every restart.
    """
    return crc32(job_id.encode()) % spread_sec * 1000 if spread_sec > 0 else 0


def parse_duration(text: str, *, field: str) -> int:
    """Seconds in ``90``, ``90s``, ``15m``, ``2h`` or ``1d``. Raises UsageError naming ``field``."""
    return _duration(text, field, UsageError)


def _cron(text: str, compiled: str | None) -> tuple[str, CronFields, str | None]:
    expr = cronfields.normalise(text)
    known = cronfields.decode_fields(expr, compiled) if compiled else None
    return (expr, known, compiled) if known else (expr, *cronfields.compile_fields(expr, _expand))


def _expand(expr: str) -> list[list[int | str]]:
    # Half of a tick's start-up would go into this import; stored fields do without it.
    from croniter import croniter

    return cast("list[list[int | str]]", croniter.expand(expr)[0])


def _duration(text: str, field: str, error: type[UsageError]) -> int:
    text = text.strip()
    unit = _UNITS.get(text[-1:])
    digits = text[:-1] if unit else text
    hint = "Such as 90, 90s, 15m, 2h or 1d."
    if not (digits.isascii() and digits.isdigit()):
        raise error(f"{text[:40]!r} is not a number with a unit s, m, h or d", field=field, hint=hint)
    seconds = int(digits[:18]) * (unit or 1)
    if not 0 < seconds <= _MAX_DURATION_SEC:
        raise error(f"{text[:40]!r} is not from 1 second to 3650 days", field=field, hint=hint)
    return seconds


def _at(text: str, zone: str) -> tuple[str, int]:
    text = text.strip()
    try:
        # Thirteen characters are 2026-01-31T09: a bare date is no instant.
        moment = datetime.fromisoformat(text) if text.isascii() and len(text) >= 13 else None
    except ValueError:
        moment = None
    if moment is None:
        hint = "Such as 2026-03-01T09:00 (in the job's zone) or 2026-03-01T09:00:00Z."
        raise BadSchedule(f"{text[:40]!r} is not an ISO 8601 date and time", field="at", hint=hint)
    if not FIRST_YEAR < moment.year < END_YEAR - 1:
        raise BadSchedule(f"the year {moment.year} is out of reach", field="at")
    instant = (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(milliseconds=1)
    if moment.tzinfo is None:
        instant = _from_wall(zone, instant)
    spec = "milliseconds" if instant % 1000 else "seconds"
    shown = (_EPOCH + timedelta(milliseconds=instant)).replace(tzinfo=None).isoformat(timespec=spec)
    return shown + "Z", instant


def _from_wall(zone: str, wall: int) -> int:
    """The instant of a wall time in ms: its first pass, or the first instant after the gap it lies in."""
    since = wall // 1000 - _MARGIN
    while wall >= ((stretch := _stretch(zone, since)).end + stretch.offset) * 1000:
        since = stretch.end
    return max(wall - stretch.offset * 1000, stretch.start * 1000)


class _Stretch(NamedTuple):
    """Time under one UTC offset, in seconds: UTC is in [start, end), the wall reads UTC + offset."""

    start: int
    end: int
    offset: int
    #: What the wall reads before this, it has read already in an earlier stretch.
    wall_from: int
    #: The wall skipped [gap_from, start + offset) when the stretch began.
    gap_from: int


_IN_UTC = _Stretch(0, _END, 0, 0, 0)
#: More than any zone differs from another, so that a jump by wall time cannot pass a slot.
_MARGIN = 2 * _DAY
#: Two changes of one zone were never, and are foreseen never, less than 6.9 days apart.
_STEP = 6 * _DAY


def _zone(name: str) -> tzinfo:
    """The zone of this IANA name. Raises BadSchedule for anything else that a machine may take for a zone."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    try:
        # IANA names begin with a capital; posix/, right/ and localtime are the machine's own.
        if "A" <= name[:1] <= "Z":
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    hint = "An IANA name such as UTC, Europe/Berlin or America/New_York."
    raise BadSchedule(f"no such zone: {name[:64]!a}", field="timezone", hint=hint)


def _stretch(zone: str, at: int) -> _Stretch:
    """The stretch that an instant in [0, _END) lies in."""
    if zone == "UTC":
        return _IN_UTC
    year = date.fromordinal(at // _DAY + EPOCH_DAY).year
    return next(s for s in _stretches(zone, year) if at < s.end)


@lru_cache(maxsize=2048)
def _stretches(zone: str, year: int) -> tuple[_Stretch, ...]:
    """The stretches of one UTC year, cut at its ends."""
    begin, end = ((date(y, 1, 1).toordinal() - EPOCH_DAY) * _DAY for y in (year, year + 1))
    # Looking back past the year's start shows a repeat or a gap that is under way there.
    changes = [*_changes(_zone(zone), begin - _MARGIN, end), (end, 0)]
    read = changes[0][0] + changes[0][1]
    found = []
    for (start, offset), (stop, _) in pairwise(changes):
        wall = start + offset
        if start >= begin:
            found.append(_Stretch(start, stop, offset, max(read, wall), min(read, wall)))
        elif stop > begin:
            found.append(_Stretch(begin, stop, offset, max(read, begin + offset), begin + offset))
        read = max(read, stop + offset)
    return tuple(found)


def _changes(zone: tzinfo, begin: int, end: int) -> list[tuple[int, int]]:
    """(instant, offset from then on) at ``begin`` and at every change of the offset before ``end``."""
    found = [(begin, _offset(zone, begin))]
    for step in range(begin, end, _STEP):
        low, high = step, min(step + _STEP, end - 1)
        offset = _offset(zone, high)
        if offset == found[-1][1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset(zone, middle) != offset else (low, middle)
        found.append((high, offset))
    return found


def _offset(zone: tzinfo, at: int) -> int:
    return int(cast(timedelta, datetime.fromtimestamp(at, zone).utcoffset()).total_seconds())


class _WallClock:
    """Cron fields laid over a zone: ``cron`` and ``daily_at``."""

    __slots__ = ("_fields", "_first_pass", "_zone")

    def __init__(self, fields: CronFields, zone: str, dst_rule: DstRule) -> None:
        self._fields = fields
        self._zone = zone
        #: A fixed job: the first pass of a repeat only, and made up for after a gap.
        self._first_pass = dst_rule == "once" and not fields.wildcard

    def next_after(self, after: int) -> int | None:
        since = max(after // 1000 + 1, 0)
        while since < _END:
            s = _stretch(self._zone, since)
            if since == s.start and self._gap(s):
                return since * 1000
            origin = max(since + s.offset, self._wall_from(s))
            wall = self._fields.at_or_after(-(-origin // 60))
            if wall is None:
                return None
            slot = wall * 60 - s.offset
            if slot < s.end:
                return slot * 1000
            # Nothing from origin on matches before slot, so skip what lies between, unless the wall may be
            # set back to before origin.
            since = max(s.end, slot - _MARGIN) if origin + _MARGIN < s.end + s.offset else s.end
        return None

    def latest_at(self, at: int) -> int | None:
        until = min(at // 1000, _END - 1)
        while until >= 0:
            s = _stretch(self._zone, until)
            origin = until + s.offset
            wall = self._fields.at_or_before(origin // 60)
            if wall is not None and wall * 60 >= self._wall_from(s):
                return (wall * 60 - s.offset) * 1000
            if self._gap(s):
                return s.start * 1000
            until = s.start - 1
            if wall is not None and origin - _MARGIN > s.start + s.offset:
                until = min(until, wall * 60 - s.offset + _MARGIN)
        return None

    def tally(self, after: int, until: int, limit: int) -> int:
        total = 0
        for _, low, high, made_up in self._spans(after, until, -1):
            total += self._fields.count(low, high) + made_up
            if total >= limit:
                break
        return total

    def tallies(self, start: int, width: int, size: int) -> Sequence[int]:
        minutes, runs = width // 60_000, [0]
        for s, low, high, made_up in self._spans(start - 1, start + width * size - 1, 1):
            bits = self._fields.bits(low, high) << ((low * 60 - s.offset) * 1000 - start) // 60_000
            for run in (bits, 1 << (s.start * 1000 - start) // 60_000) if made_up else (bits,):
                # Where a zone was off by seconds, slots of two stretches may share a minute.
                if runs[-1] & run:
                    runs.append(run)
                else:
                    runs[-1] |= run
        counts = [cronfields.lanes(run, minutes, size) for run in runs]
        return counts[0] if len(counts) == 1 else [sum(each) for each in zip(*counts, strict=True)]

    def newest(self, after: int, until: int, limit: int) -> list[int]:
        back = chain.from_iterable(run[::-1] for run in self._runs(after, until, -1))
        return list(islice(back, limit))[::-1]

    def between(self, after: int, until: int) -> Iterator[int]:
        return chain.from_iterable(self._runs(after, until, 1))

    def _runs(self, after: int, until: int, step: int) -> Iterator[list[int]]:
        """The slots in (after, until] by days, each day ascending, the days descending if ``step`` is -1."""
        for s, low, high, made_up in self._spans(after, until, step):
            if made_up and step > 0:
                yield [s.start * 1000]
            for day, ticks in self._fields.days(low, high, step):
                base = day * DAY_MS - s.offset * 1000
                yield [base + tick for tick in ticks]
            if made_up and step < 0:
                yield [s.start * 1000]

    def _spans(self, after: int, until: int, step: int) -> Iterator[tuple[_Stretch, int, int, bool]]:
        """(stretch, first wall minute, end, whether its start makes up for a gap) over (after, until]."""
        since, last = max(after // 1000 + 1, 0), min(until // 1000, _END - 1)
        at = since if step > 0 else last
        while since <= at <= last:
            s = _stretch(self._zone, at)
            low = max(max(since, s.start) + s.offset, self._wall_from(s))
            high = min(last + 1, s.end) + s.offset
            made_up = since <= s.start and self._gap(s)
            # A regular slot at that same instant already stands for the gap.
            regular = made_up and self._fields.at_or_after(-(-low // 60)) == low / 60
            yield s, -(-low // 60), -(-high // 60), made_up and not regular
            at = s.end if step > 0 else s.start - 1

    def _wall_from(self, s: _Stretch) -> int:
        return s.wall_from if self._first_pass else s.start + s.offset

    def _gap(self, s: _Stretch) -> bool:
        """Whether a wall time that was skipped when the stretch began is to be made up for at its start."""
        wall = s.start + s.offset
        if not self._first_pass or s.gap_from >= wall:
            return False
        skipped = self._fields.at_or_after(-(-s.gap_from // 60))
        return skipped is not None and skipped * 60 < wall
