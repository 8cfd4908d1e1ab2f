"""A day of a thousand cron lines counted into five-minute buckets: by bit sets against stepping croniter.

Both count the same schedules, in UTC, in one process and in turn; the counts must be equal, bucket by bucket, or
there is no speed to speak of. Lines are of the kinds on which the two agree (see the docstring of `schedule`).
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bench_stats import Goal, arguments, brief, machine_line, paired_ratio, print_table, spread, verdict
from croniter import croniter

from carolctl import cronfields, rearrange
from carolctl.forecast import BUCKET_MS, Forecast, Load, Window, collisions, expand, window
from carolctl.model import Millis
from carolctl.rearrange import Suggestion
from carolctl.schedule import Schedule, parse

LINES = 1000
#: A Monday, and the day on which Europe's clocks change.
MONDAY = Millis(int(datetime(2026, 3, 2, tzinfo=UTC).timestamp()) * 1000)
CHANGE = Millis(int(datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()) * 1000)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Europe/London")
THRESHOLD = 3_000_000

Counts = list[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the work; `run` is what is timed."""

    name: str
    run: Callable[[], object]


def lines(dice: random.Random) -> list[str]:
    """A made-up fleet: some every few minutes, many hourly, most once a day."""
    minutes = ("*", "*/5", "*/10", "*/15", "0", "0,30", "7-59/15")
    hours = ("*", "*", "*/2", "9-17")
    found = []
    for _ in range(LINES):
        minute = dice.choice((*minutes, *(str(dice.randrange(60)) for _ in range(4))))
        hour = dice.choice((*hours, *(str(dice.randrange(24)) for _ in range(4))))
        found.append(f"{minute} {hour} * * {dice.choice(('*', '*', '*', 'MON-FRI', 'SUN'))}")
    return found


def stepped(exprs: Sequence[str], span: Window) -> Counts:
    """What a loop over croniter's next times counts."""
    begin, end = span.start / 1000, span.instant(span.size) / 1000
    counts: Counts = []
    for expr in exprs:
        found, times = Counter[int](), croniter(expr, datetime.fromtimestamp(begin - 1, UTC))
        while (at := times.get_next(float)) < end:
            found[int(at - begin) * 1000 // BUCKET_MS] += 1
        counts.append([found[bucket] for bucket in range(span.size)])
    return counts


def counted(schedules: Sequence[Schedule], span: Window) -> Counts:
    """The same by bit sets."""
    return [times.tallies(span.start, BUCKET_MS, span.size) for times in schedules]


def loads(exprs: Sequence[str], zones: Sequence[str]) -> list[Load]:
    """The lines as schedules of 40 turns a firing, round the zones."""
    return [
        Load(
            name=f"job-{number:04}",
            schedule=parse("cron", expr, zones[number % len(zones)], anchor_at=Millis(0)),
            weight=40_000,
        )
        for number, expr in enumerate(exprs)
    ]


def read_again(known: Sequence[Load]) -> list[Schedule]:
    """The schedules from the text that a job store keeps: what a command has to do first."""
    cronfields.decode_fields.cache_clear()
    return [
        parse("cron", one.schedule.expr, anchor_at=Millis(0), compiled=one.schedule.compiled) for one in known
    ]


def ways(exprs: Sequence[str]) -> tuple[list[Way], list[Way]]:
    """What is compared, each with its reference first; and what is only reported."""
    span, change = window(MONDAY, 86_400), window(CHANGE, 86_400)
    flat, zoned = loads(exprs, ZONES[:1]), loads(exprs, ZONES)
    schedules = [load.schedule for load in flat]
    worst = expand(zoned, change)
    compared = [
        Way("croniter, step by step", lambda: stepped(exprs, span)),
        Way("bit sets", lambda: counted(schedules, span)),
        Way("bit sets, six zones, clocks change", lambda: [load.counts(change) for load in zoned]),
    ]
    reported = [
        Way("to read the stored text of the lines", lambda: read_again(flat)),
        Way("forecast of six zones: weights and schedules", lambda: expand(zoned, change)),
        Way("collisions in it", lambda: collisions(worst, THRESHOLD)),
        Way("best move in the worst collision", lambda: _best_move(worst)),
    ]
    return compared, reported


def _best_move(worst: Forecast) -> Suggestion | None:
    names = rearrange.heaviest_in(worst, collisions(worst, THRESHOLD)[0])
    return rearrange.best_move(worst, names, THRESHOLD, range(5, 60, 5))


def timed(each: Sequence[Way], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turn."""
    taken: dict[str, list[float]] = {way.name: [] for way in each}
    for _ in range(runs):
        for way in each:
            began = time.perf_counter()
            way.run()
            taken[way.name].append((time.perf_counter() - began) * 1000)
    return taken


def main() -> int:
    options = arguments(__doc__, runs=5)
    print(machine_line())
    exprs = lines(random.Random(1))
    compared, reported = ways(exprs)
    ours = counted([load.schedule for load in loads(exprs, ZONES[:1])], window(MONDAY, 86_400))
    if stepped(exprs, window(MONDAY, 86_400)) != [list(counts) for counts in ours]:
        print("the two do not count alike: no comparison")
        return 1
    print(f"{LINES} lines, {sum(map(sum, ours)):,} firings in 24 h, the same in every bucket\n")
    taken = timed(compared, options.runs) | timed(reported, options.runs)
    reference = taken[compared[0].name]
    rows = [
        [
            name,
            spread(values),
            f"{paired_ratio(reference, values):.0f}" if name in {way.name for way in compared} else "",
            brief(statistics.median(values) / LINES * 1000),
        ]
        for name, values in taken.items()
    ]
    print_table(["24 h", "ms (least-most)", "x faster", "us a line"], rows, markdown=options.markdown)
    goals = [
        Goal(name=f"{way.name}, time", value=paired_ratio(taken[way.name], reference), most=0.01)
        for way in compared[1:]
    ]
    return verdict(goals, report=options.report)


if __name__ == "__main__":
    sys.exit(main())
