"""What each scenario of the contention test is judged by. Pure.

The limits are such that a busy machine keeps them and the designs of `broken` do not: nothing failed, nothing
acknowledged was lost, nothing waited longer than the busy deadline; where latency itself is the matter, it is
compared with the same done beside nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from carolctl.contention.figures import (
    Check,
    Measured,
    Result,
    judge,
    missing,
    most_at_once,
    percentile,
    repeated,
    together,
)

FLOOR_MS = 250.0
TIMES_IDLE = 10
MONITOR_MS = 1000.0
TIMES_QUIET = 8
TIMES_MEDIAN = 20
ENOUGH = 20

Span = tuple[str, float, float]
"""Which run was held, from when, until when, in seconds of one clock."""


def of_edits(name: str, edits: Measured, *, stored: int, locked: bool, deadline_ms: int) -> Result:
    """Every edit landed within the busy deadline, beside a planner database that was `locked` to the end."""
    return judge(
        name,
        edits,
        [
            _no_failures(edits),
            Check(what="edits lost", value=edits.writes - stored, most=0),
            Check(what="longest", value=max(edits.milliseconds), most=deadline_ms, unit=" ms"),
            Check(what="planner locked to the end", value=int(locked), least=1),
        ],
    )


def of_outsider(
    name: str,
    felt: Mapping[str, Measured],
    *,
    stored: int,
    in_flight: tuple[int, int],
    completed: tuple[int, int],
) -> Result:
    """Writes by an outsider, by database, ``idle`` for the one that nobody else writes; `stored` rows of the others.

    `in_flight` and `completed`: how many requests and runs there were, and how many there had to be.
    """
    beside = together(figures for database, figures in felt.items() if database != "idle")
    idle = percentile(felt["idle"].milliseconds, 0.95) or 0.0
    p95 = percentile(beside.milliseconds, 0.95)
    return judge(
        name,
        beside,
        [
            _no_failures(beside),
            Check(what="writes lost", value=beside.writes - stored, most=0),
            Check(what="p95", value=p95, most=max(FLOOR_MS, TIMES_IDLE * idle), unit=" ms"),
            Check(what="requests in flight", value=in_flight[0], least=in_flight[1]),
            Check(what="runs completed", value=completed[0], least=completed[1]),
        ],
    )


def of_writers(
    name: str,
    each: Mapping[str, Measured],
    stored: Mapping[str, int],
    *,
    deadline_ms: int,
    least_share: float,
    also: Sequence[Check] = (),
) -> Result:
    """Nothing failed, nothing lost by any writer, and everybody got at least `least_share` of the mean.

    A wait is long when it is so beside the median too: on a machine that is short of processors all of them are.
    """
    whole = together(each.values())
    acknowledged = {writer: part.writes for writer, part in each.items()}
    mean = whole.writes / len(each)
    # The shares of a few writes are a matter of luck.
    fair = max(1.0, least_share * mean) if mean >= ENOUGH else 1.0
    p99 = percentile(whole.milliseconds, 0.99)
    longest = max(deadline_ms / 2, TIMES_MEDIAN * (percentile(whole.milliseconds, 0.5) or 0.0))
    return judge(
        name,
        whole,
        [
            _no_failures(whole),
            Check(what="writes lost", value=missing(acknowledged, stored), most=0),
            Check(what="p99", value=p99, most=longest, unit=" ms"),
            Check(what="least served", value=min(acknowledged.values()), least=fair),
            *also,
        ],
    )


def hog_had_the_lock(share: float) -> Check:
    """How much the hog gets is the machine's affair, but a hog that got next to nothing proves nothing."""
    return Check(what="lock held by the hog", value=share * 100, least=25, unit=" %")


def of_monitor(name: str, asked: Measured, *, quiet: Sequence[float], load: Measured) -> Result:
    """The monitor answered rightly and in time beside `load`; `quiet` is what it took beside nothing."""
    limit = max(MONITOR_MS, TIMES_QUIET * (percentile(quiet, 0.5) or 0.0))
    return judge(
        name,
        asked,
        [
            _no_failures(asked),
            Check(what="p95", value=percentile(asked.milliseconds, 0.95), most=limit, unit=" ms"),
            Check(what="writes beside it", value=load.writes, least=1),
        ],
    )


def of_claims(name: str, attempts: Measured, held: Sequence[Span], *, cap: int) -> Result:
    """Never more runs held at once than the cap, and none twice."""
    at_once = most_at_once((began, ended) for _, began, ended in held)
    return judge(
        name,
        attempts,
        [
            _no_failures(attempts),
            Check(what="runs claimed", value=len(held), least=1),
            Check(what="runs claimed twice", value=repeated(run for run, _, _ in held), most=0),
            Check(what="runs at once", value=at_once, most=cap),
        ],
    )


def of_events(
    name: str,
    attempts: Measured,
    acknowledged: Iterable[str],
    stored: Mapping[str, int],
    *,
    killed: int,
    also: Sequence[Check] = (),
) -> Result:
    """Every acknowledged event is stored, and none twice, although so many were `killed` on the way."""
    events = dict.fromkeys(acknowledged, 1)
    return judge(
        name,
        attempts,
        [
            _no_failures(attempts),
            Check(what="events acknowledged", value=len(events), least=1),
            Check(what="events lost", value=missing(events, stored), most=0),
            Check(what="events stored twice", value=sum(stored.values()) - len(stored), most=0),
            Check(what="killed", value=killed, least=1),
            *also,
        ],
    )


def _no_failures(figures: Measured) -> Check:
    return Check(what="failures", value=figures.failures, most=0)
