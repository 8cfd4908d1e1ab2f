"""Which one schedule to move, and to which minute, so that the load of the worst five minutes falls. Pure.

A move stays within the hour: the minute of a cron line, of a daily time, or the phase of an interval, which only
a cron line can pin down. It is judged by the forecast that it would make, so what is promised is what comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import NamedTuple

from carolctl import schedule
from carolctl.cronfields import ALIASES, bits_of
from carolctl.forecast import Collision, Forecast, Load, collides
from carolctl.model import Millis, ScheduleKind
from carolctl.schedule import Schedule

MOST_TRIED = 40
"""Of a collision with more schedules, only the ones that weigh most in its worst bucket are tried."""

_HOUR = 3600


class Score(NamedTuple):
    """How bad a forecast is, what matters most first; weights in thousandths of a turn."""

    #: The heaviest bucket, and the heaviest in which two or more schedules fire.
    peak: int
    shared_peak: int
    #: Buckets that are collisions, and what they weigh above the threshold.
    collisions: int
    excess: int
    #: The heaviest bucket in which the moved schedule itself fires.
    own_peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change of one schedule, and the forecast before and after."""

    name: str
    kind: ScheduleKind
    expr: str
    timezone: str
    before: Score
    after: Score


# -- judging ---------------------------------------------------------------------------------------------------


def best_move(forecast: Forecast, names: Iterable[str], threshold: int, shifts: range) -> Suggestion | None:
    """The move of one of these schedules that scores best; None when none scores better than staying.

    ``shifts`` are the minutes to move by. Of equal moves the least shift wins, then the first name.
    """
    wanted = set(names)
    found: list[tuple[Score, int, Suggestion]] = []
    for load, counts in zip(forecast.loads, forecast.counts, strict=True):
        if load.name in wanted:
            found += _moves(_Rest.of(forecast, load, counts, threshold), load, shifts)
    best = min(found, key=lambda move: (move[:2], move[2].name), default=None)
    return best[2] if best else None


def heaviest_in(forecast: Forecast, collision: Collision) -> list[str]:
    """The schedules of a collision by what they weigh in its worst bucket, the first `MOST_TRIED`."""
    worst = max(collision.buckets, key=lambda bucket: forecast.weights[bucket])
    weights = {
        load.name: load.weight * counts[worst]
        for load, counts in zip(forecast.loads, forecast.counts, strict=True)
        if counts[worst]
    }
    return sorted(weights, key=lambda name: (-weights[name], name))[:MOST_TRIED]


def _moves(rest: _Rest, load: Load, shifts: range) -> Iterator[tuple[Score, int, Suggestion]]:
    before = rest.score(load)
    for shift in shifts:
        other = moved(load.schedule, shift, after=rest.forecast)
        if other is None:
            continue
        after = rest.score(replace(load, schedule=other))
        if after < before:
            told = Suggestion(
                name=load.name,
                kind=other.kind,
                expr=other.expr,
                timezone=other.timezone,
                before=before,
                after=after,
            )
            yield after, shift, told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rest:
    """A forecast without one of its schedules."""

    forecast: Forecast
    weights: Sequence[int]
    schedules: Sequence[int]
    threshold: int

    @classmethod
    def of(cls, forecast: Forecast, load: Load, counts: Sequence[int], threshold: int) -> _Rest:
        weights, schedules = list(forecast.weights), list(forecast.schedules)
        for bucket in compress(range(len(weights)), counts):
            weights[bucket] -= load.weight * counts[bucket]
            schedules[bucket] -= 1
        return cls(forecast=forecast, weights=weights, schedules=schedules, threshold=threshold)

    def score(self, load: Load) -> Score:
        """The score of the forecast with this schedule in it."""
        counts = load.counts(self.forecast.span)
        places = list(compress(range(len(counts)), counts))
        weights, schedules = list(self.weights), list(self.schedules)
        for bucket in places:
            weights[bucket] += load.weight * counts[bucket]
            schedules[bucket] += 1
        pairs = list(zip(weights, schedules, strict=True))
        hot = [weight for weight, firing in pairs if collides(weight, firing, self.threshold)]
        return Score(
            peak=max(weights, default=0),
            shared_peak=max((weight for weight, firing in pairs if firing > 1), default=0),
            collisions=len(hot),
            excess=sum(hot) - len(hot) * self.threshold,
            own_peak=max((weights[bucket] for bucket in places), default=0),
        )


# -- moving ----------------------------------------------------------------------------------------------------


def moved(times: Schedule, shift: int, *, after: Forecast) -> Schedule | None:
    """The schedule with its minutes ``shift`` later, round the hour; None where there is no such thing.

    An interval becomes the cron line in UTC that has the period and, from the start of the forecast ``after``
    on, the hours of the interval.
    """
    match times.kind:
        case "cron":
            return _moved_cron(times, shift)
        case "daily_at":
            hour, _, minute = times.expr.partition(":")
            expr = f"{hour}:{(int(minute) + shift) % 60:02}"
            return schedule.parse(
                "daily_at", expr, times.timezone, times.dst_rule, anchor_at=after.span.start
            )
        case "every":
            return _moved_interval(times, shift, after)
    return None


def _moved_cron(times: Schedule, shift: int) -> Schedule | None:
    _, _, compiled = (times.compiled or "").partition(" = ")
    minutes, *masks = compiled.split(" ")
    values = sorted((minute + shift) % 60 for minute in bits_of(int(minutes, 16)))
    if len(values) == 60:
        return None
    rest = ALIASES.get(times.expr, times.expr).split()[1:]
    return _cron_line(values, " ".join(rest), masks, times)


def _cron_line(values: Sequence[int], rest: str, masks: Sequence[str], like: Schedule) -> Schedule:
    expr = f"{_minute_field(values)} {rest}"
    # With the masks at hand no parser is needed: hundreds of lines may be tried.
    words = [expr, "=", f"{sum(1 << value for value in values):x}", *masks]
    zone, rule = like.timezone, like.dst_rule
    return schedule.parse(
        "cron", expr, zone, rule, anchor_at=Millis(0), compiled=" ".join(words) if masks else None
    )


def _minute_field(values: Sequence[int]) -> str:
    """``7``, ``7,37``, ``7-59/10``: as a person would write it."""
    step = 60 // len(values)
    if len(values) < 4 or list(values) != list(range(values[0], 60, step)):
        return ",".join(map(str, values))
    return f"{values[0]}-59/{step}" if values[0] else f"*/{step}"


def _moved_interval(times: Schedule, shift: int, after: Forecast) -> Schedule | None:
    first = times.next_after(Millis(after.span.start - 1))
    period = schedule.parse_duration(times.expr, field="every")
    if first is None or period % 60:
        return None
    minute, hour = (first // 60_000 + shift) % 60, first // 3_600_000 % 24
    if _HOUR % period == 0 and period < _HOUR:
        step = period // 60
        values, rest = list(range(minute % step, 60, step)), "* * * *"
        if step == 1:
            return None
    elif period % _HOUR == 0 and 24 % (period // _HOUR) == 0:
        values, rest = [minute], f"{_hour_field(hour, period // _HOUR)} * * *"
    else:
        return None
    return schedule.parse(
        "cron", f"{_minute_field(values)} {rest}", "UTC", times.dst_rule, anchor_at=after.span.start
    )


def _hour_field(hour: int, step: int) -> str:
    if step == 24:
        return str(hour)
    first = hour % step
    return "*" if step == 1 else f"{first}-23/{step}" if first else f"*/{step}"
