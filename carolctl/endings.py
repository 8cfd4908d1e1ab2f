"""What an end means, as pure functions: the outcome above all stop reasons, another try or none, the streaks.

Incident: a job that failed at once was still being tried again when its next slots came, and they were skipped for
it. Decision: a retry needs a tick's time before the next slot, and ends when that falls due; what is not sure to be
harmless is never tried again. Consequence: a slot is displaced by nothing but a run that truly runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from carolctl.model import Job, Millis, Outcome, Run

TICK_MS = 30_000
"""How long it may be until a tick comes."""

#: Whether the work was done is not known: tried again only where doing it twice does no harm.
_ONLY_IDEMPOTENT: frozenset[str] = frozenset({"process_lost", "outcome_unknown", "lease_expired", "aborted"})
_NEVER_RETRIED: frozenset[str] = frozenset({"auth_failed", "turn_limit_exceeded", "budget_exceeded"})
_FIRST_BACKOFF_SEC, _LONGEST_BACKOFF_SEC = 30, 3600


def final_outcome(run: Run, outcome: Outcome) -> Outcome:
    """The outcome with the row's stop reason above whatever the process said at its end."""
    match run.stop_reason:
        case None:
            return outcome
        case "cancelled":
            return replace(outcome, status="cancelled", failure_reason=None)
        case "turn_limit_exceeded":
            return replace(outcome, status="failed", failure_reason="turn_limit_exceeded")
        case _:
            return replace(outcome, status="failed", failure_reason="lease_expired")


def retry_at(run: Run, job: Job | None, outcome: Outcome) -> Millis | None:
    """When to try again, or None: no attempt left, a class that is never retried, or the next slot is nearer."""
    if job is None or outcome.status != "failed" or run.attempt >= job.max_attempts or run.stop_reason:
        return None
    reason = outcome.failure_reason or ""
    if reason in _NEVER_RETRIED or (reason in _ONLY_IDEMPOTENT and not job.idempotent):
        return None
    at = Millis(outcome.completed_at + round(1000 * _backoff_sec(run, outcome)))
    # The tick that could start it must come before the one at which the slot is due.
    if job.next_fire_at is not None and at + TICK_MS >= job.next_fire_at:
        return None
    return at


def displaced_retries(live: Iterable[Run], due: Collection[str]) -> list[Run]:
    """The runs that wait for another try while the next slot of their job falls due: the slot comes first."""
    return [run for run in live if run.status == "queued" and run.attempt > 1 and run.job_id in due]


def _backoff_sec(run: Run, outcome: Outcome) -> float:
    if outcome.retry_after_sec is not None:
        return max(outcome.retry_after_sec, 1.0)
    # Jitter that is the same for the same attempt, so that a rehearsal repeats itself.
    jitter = 0.75 + (run.run_id * 2654435761 + run.attempt) % 1000 / 2000
    return float(min(_FIRST_BACKOFF_SEC * 2 ** (run.attempt - 1), _LONGEST_BACKOFF_SEC) * jitter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaks:
    """A job's two streaks after an end, and why it is to be paused, if it is."""

    failure_streak: int
    turn_budget_breach_streak: int
    pause_reason: str | None = None


def has_overrun(run: Run, outcome: Outcome) -> bool:
    """Whether a run that ends well has used more turns than it may: it stays completed, and counts as a breach."""
    turns = run.turn_count if outcome.turns is None else outcome.turns
    return (
        outcome.status == "completed"
        and run.max_turns is not None
        and turns is not None
        and turns > run.max_turns
    )


def streaks_after(
    job: Job,
    outcome: Outcome,
    *,
    failure_pause: int,
    breach_pause: int,
    in_grace: bool = False,
    overrun: bool = False,
) -> Streaks:
    """Count a failure or a turn-limit breach, each in its own streak; a success resets both.

    `in_grace`: the job's turn budget is so new that a breach of it counts nowhere. An `overrun` is a success that
    is a breach: it resets the one streak and adds to the other.
    """
    failures, breaches = job.failure_streak, job.turn_budget_breach_streak
    if outcome.status == "completed":
        breaches = breaches + (not in_grace) if overrun else 0
        return Streaks(
            failure_streak=0,
            turn_budget_breach_streak=breaches,
            pause_reason=breaches_pause(breaches, breach_pause) if overrun else None,
        )
    if outcome.status == "cancelled" or outcome.failure_reason == "aborted":
        return Streaks(failure_streak=failures, turn_budget_breach_streak=breaches)
    if outcome.failure_reason == "turn_limit_exceeded":
        breaches += not in_grace
        reason = breaches_pause(breaches, breach_pause)
    else:
        failures += 1
        reason = (
            f"{failures} failures in a row, the last one {outcome.failure_reason}"
            if failures >= failure_pause
            else None
        )
    return Streaks(failure_streak=failures, turn_budget_breach_streak=breaches, pause_reason=reason)


def breaches_pause(breaches: int, breach_pause: int) -> str | None:
    """Why so many breaches in a row pause a job, if they do."""
    return f"{breaches} turn-limit breaches in a row" if breaches >= breach_pause else None
