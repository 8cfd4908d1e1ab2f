"""collision-check: what the jobs of the store, and one that is not there yet, will do to each other.

The store is read, never written; the arithmetic is `forecast`'s and `rearrange`'s. Paused and manual jobs fire
nothing by themselves and do not count. What a firing weighs is in `firing_weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from carolctl import forecast, jobs, rearrange, timing
from carolctl.clock import iso
from carolctl.config import Settings
from carolctl.errors import BadSchedule
from carolctl.firing_weight import UNIT, fires, weight_of
from carolctl.forecast import BUCKET_MS, Collision, Forecast, Load
from carolctl.model import Job, Millis
from carolctl.rearrange import Suggestion
from carolctl.schedule import Schedule, spread_offset_ms
from carolctl.session import Session

Caused = tuple[Forecast, list[Collision]]

CANDIDATE = "(candidate)"
"""The name of a schedule that is no job yet: no job id looks like it."""

DAY_SEC = 86_400
PEAKS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A schedule that is no job yet."""

    schedule: Schedule
    spread_sec: int = 0
    #: None: like any job of which nothing is known.
    turns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to check."""

    candidate: Candidate | None = None
    project: str | None = None
    exclude: Sequence[str] = ()
    horizon_sec: int = DAY_SEC
    #: None: as set.
    threshold: int | None = None
    suggest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found."""

    forecast: Forecast
    collisions: Sequence[Collision]
    threshold: int
    horizon_sec: int
    default_turns: int
    #: How many schedules have no measured turns.
    unmeasured: int
    #: Jobs whose schedule or row cannot be read.
    unreadable: Sequence[str]
    suggested: bool
    suggestion: Suggestion | None

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        span = self.forecast.span
        document: dict[str, Any] = {
            "warnings": warnings(self.forecast, self.collisions),
            "peaks": [peak(self.forecast, bucket) for bucket in self.forecast.peaks(PEAKS_SHOWN)],
            "from": iso(span.start),
            "until": iso(span.instant(span.size)),
            "horizon_sec": self.horizon_sec,
            "bucket_sec": BUCKET_MS // 1000,
            "threshold": self.threshold,
            "schedules": len(self.forecast.loads),
            "unmeasured": self.unmeasured,
            "default_turns": self.default_turns,
            "unreadable": list(self.unreadable),
        }
        if self.suggested:
            document["suggestion"] = suggestion_document(self.suggestion) if self.suggestion else None
        return document


# -- checking --------------------------------------------------------------------------------------------------


def check(session: Session, question: Question) -> Check:
    """Expand every active schedule over the horizon. Raises `NotFound` for an excluded job that is not there."""
    with session.store.read() as tx:
        for job_id in question.exclude:
            jobs.find(tx, job_id)
        everything, damaged, settings = tx.jobs(), tx.damaged_jobs(), session.settings(tx)
    chosen = [
        job
        for job in everything
        if fires(job) and job.job_id not in question.exclude and question.project in (None, job.project)
    ]
    loads, unreadable = _loads(chosen, settings)
    if question.candidate:
        loads[CANDIDATE] = _candidate_load(question, settings)
    threshold = settings.collision_threshold_turns if question.threshold is None else question.threshold
    expected = forecast.expand(loads.values(), forecast.window(session.now, question.horizon_sec))
    found = forecast.collisions(expected, threshold * UNIT)
    return Check(
        forecast=expected,
        collisions=found,
        threshold=threshold,
        horizon_sec=question.horizon_sec,
        default_turns=settings.collision_default_turns,
        unmeasured=_unmeasured(chosen, question.candidate),
        unreadable=sorted([*unreadable, *(broken.job_id for broken in damaged)]),
        suggested=question.suggest,
        suggestion=_suggested(expected, found, threshold * UNIT) if question.suggest else None,
    )


def _unmeasured(chosen: Sequence[Job], candidate: Candidate | None) -> int:
    unknown = sum(job.avg_turns_per_firing is None for job in chosen)
    return unknown + (candidate is not None and candidate.turns is None)


def _loads(chosen: Iterable[Job], settings: Settings) -> tuple[dict[str, Load], list[str]]:
    """The loads of jobs by id, and the jobs whose schedule cannot be read."""
    loads, unreadable = {}, []
    for job in chosen:
        try:
            times = timing.schedule_of(job)
        except BadSchedule:
            unreadable.append(job.job_id)
            continue
        loads[job.job_id] = Load(
            name=job.job_id, schedule=times, offset_ms=timing.spread_ms(job), weight=weight_of(job, settings)
        )
    return loads, unreadable


def _candidate_load(question: Question, settings: Settings) -> Load:
    candidate = question.candidate
    assert candidate is not None
    # Its offset within the spread follows from its id, which only the job that it replaces can tell.
    spread = candidate.spread_sec if len(question.exclude) == 1 else 0
    turns = settings.collision_default_turns if candidate.turns is None else candidate.turns
    return Load(
        name=CANDIDATE,
        schedule=candidate.schedule,
        offset_ms=spread_offset_ms(question.exclude[0], spread) if spread else 0,
        weight=turns * UNIT,
    )


def _suggested(expected: Forecast, found: Sequence[Collision], threshold: int) -> Suggestion | None:
    """The best move of the candidate; without one, of a job of the worst collision."""
    if any(load.name == CANDIDATE for load in expected.loads):
        return rearrange.best_move(expected, [CANDIDATE], threshold, range(1, 60))
    if not found:
        return None
    names = rearrange.heaviest_in(expected, found[0])
    best = rearrange.best_move(expected, names, threshold, range(5, 60, 5))
    # Only elsewhere quieter for itself: no gain for anybody.
    return best if best and best.after[:-1] < best.before[:-1] else None


# -- at save time ----------------------------------------------------------------------------------------------


def caused_by(job_id: str, chosen: Sequence[Job], settings: Settings, now: Millis) -> Caused:
    """The collisions of the coming day that one of the ``chosen`` jobs has a part in."""
    expected = forecast.expand(_loads(chosen, settings)[0].values(), forecast.window(now, DAY_SEC))
    own = expected.buckets(job_id)
    return expected, forecast.collisions(expected, settings.collision_threshold_turns * UNIT, among=own)


# -- as documents ----------------------------------------------------------------------------------------------


def warnings(expected: Forecast, found: Iterable[Collision]) -> list[dict[str, Any]]:
    """Collisions as JSON; ``overlapping_minutes`` are beginnings of buckets, as minutes of the UTC day."""
    return [
        {
            "type": "cron_collision",
            "overlapping_schedules": list(collision.names),
            "overlapping_minutes": minutes(expected, collision),
            "estimated_concurrent_steps": turns(collision.weight),
        }
        for collision in found
    ]


def minutes(expected: Forecast, collision: Collision) -> list[int]:
    """The minutes of the UTC day at which the buckets of a collision begin, each once."""
    return sorted({expected.span.minute(bucket) for bucket in collision.buckets})


def turns(weight: int) -> int | float:
    """Turns from thousandths; whole ones as a whole number."""
    return weight // UNIT if weight % UNIT == 0 else weight / UNIT


def peak(expected: Forecast, bucket: int) -> dict[str, Any]:
    """One bucket as JSON."""
    return {
        "start": iso(expected.span.instant(bucket)),
        "minute": expected.span.minute(bucket),
        "turns": turns(expected.weights[bucket]),
        "schedules": expected.names(bucket),
    }


def suggestion_document(suggestion: Suggestion) -> dict[str, Any]:
    """A suggestion as JSON: what to change, and the highest figures before and after."""
    return {
        "job": suggestion.name,
        "kind": suggestion.kind,
        "expr": suggestion.expr,
        "timezone": suggestion.timezone,
        "options": options(suggestion),
        "command": command(suggestion),
        "peak_before": turns(suggestion.before.peak),
        "peak_after": turns(suggestion.after.peak),
        "peak_falls_by": turns(suggestion.before.peak - suggestion.after.peak),
        "shared_peak_before": turns(suggestion.before.shared_peak),
        "shared_peak_after": turns(suggestion.after.shared_peak),
        "own_peak_before": turns(suggestion.before.own_peak),
        "own_peak_after": turns(suggestion.after.own_peak),
        "collisions_before": suggestion.before.collisions,
        "collisions_after": suggestion.after.collisions,
    }


def options(suggestion: Suggestion) -> list[str]:
    """The options that give a job the suggested schedule."""
    return [f"--{suggestion.kind.replace('_', '-')}", suggestion.expr, "--timezone", suggestion.timezone]


def command(suggestion: Suggestion) -> str:
    """What to paste into a shell: the edit of a job; of a candidate only its options."""
    from shlex import join

    if suggestion.name == CANDIDATE:
        return join(options(suggestion))
    return join(["carolctl", "edit-job", suggestion.name, *options(suggestion)])


def phrase(expected: Forecast, collision: Collision, *, most: int = 5) -> str:
    """A collision in one line: ``3 schedules fire together at 03:00Z: up to 4,500 turns (a, b, c)``."""
    when = clock_times(minutes(expected, collision), most)
    return (
        f"{len(collision.names)} schedules fire together at {when}: up to {turns(collision.weight):,} turns"
        f" in five minutes ({some(collision.names, most)})"
    )


def some(names: Sequence[str], most: int) -> str:
    """``a, b and 3 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def clock_times(found: Sequence[int], most: int) -> str:
    """``03:00Z, 15:00Z and 2 more``."""
    told = ", ".join(f"{minute // 60:02}:{minute % 60:02}Z" for minute in found[:most])
    return told + (f" and {len(found) - most} more" if len(found) > most else "")


def period(expected: Forecast) -> tuple[str, str]:
    """From when to when, for people."""
    span = expected.span
    start, end = (str(iso(span.instant(bucket))) for bucket in (0, span.size))
    return start.replace(":00Z", "Z"), end.replace(":00Z", "Z")
