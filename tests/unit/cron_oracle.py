"""A slow, plain second opinion on schedules: read the clock minute by minute and ask if the line matches.

It shares no code and no idea with the package: sets of numbers instead of bit sets, a clock that is read
instead of offsets and stretches, and a parser of its own. Only plain fields are known here: numbers, names,
ranges, lists and steps.
"""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
NAMES = {
    **{name.upper(): str(number) for number, name in enumerate(calendar.month_abbr) if name},
    **{name.upper(): str((number + 1) % 7) for number, name in enumerate(calendar.day_abbr)},
}
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def values(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        ends = [NAMES.get(end, end) for end in span.split("-")]
        if ends == ["*"]:
            ends = [str(low), str(6 if high == 7 else high)]
        elif len(ends) == 1 and step:
            ends.append(str(6 if high == 7 else high))
        found |= set(range(int(ends[0]), int(ends[-1]) + 1, int(step or 1)))
    return {number % 7 for number in found} if high == 7 else found


class Oracle:
    """A cron line as its five sets."""

    def __init__(self, line: str) -> None:
        self.texts = line.upper().split()
        self.sets = [values(text, *bounds) for text, bounds in zip(self.texts, BOUNDS, strict=True)]
        self.wildcard = self.texts[0][0] == "*" or self.texts[1][0] == "*"

    def day(self, day: date) -> bool:
        dom = day.day in self.sets[2]
        dow = day.isoweekday() % 7 in self.sets[4]
        together = self.texts[2][0] == "*" or self.texts[4][0] == "*"
        return day.month in self.sets[3] and ((dom and dow) if together else (dom or dow))

    def matches(self, wall: datetime) -> bool:
        return wall.minute in self.sets[0] and wall.hour in self.sets[1] and self.day(wall.date())

    def slots(self, zone: str, after: datetime, until: datetime, *, literal: bool = False) -> list[datetime]:
        """Every slot in (after, until], by walking the UTC minutes; the offsets must be whole minutes."""
        tz = ZoneInfo(zone)
        at = after.replace(second=0, microsecond=0) - timedelta(days=2)
        ahead = at.astimezone(tz).replace(tzinfo=None)
        found = []
        while at <= until:
            wall = at.astimezone(tz).replace(tzinfo=None)
            if literal or self.wildcard:
                due = self.matches(wall)
            else:
                # Every wall minute is looked at once, when the clock first reaches or passes it.
                due = False
                while ahead <= wall:
                    due = self.matches(ahead) or due
                    ahead += MINUTE
            if due and at > after:
                found.append(at)
            at += MINUTE
        return found


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
