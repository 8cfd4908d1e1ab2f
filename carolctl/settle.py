"""One function for every end of a run, whoever saw it: the finish of its runner, a sweep, or the spool.

Incident: an agent died, and its row stayed ``running`` for a day. Decision: an end is written in one place, by
compare-and-swap on the claim number, together with the streaks, the metrics, the on-failure run and the audit
line it causes. Consequence: a zombie changes nothing, and no end is half-recorded. A savepoint a row: a run
whose job cannot be understood any more never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from carolctl.config import Settings
from carolctl.end_facts import NOTHING_KNOWN, EndFacts
from carolctl.endings import Streaks, breaches_pause, final_outcome, has_overrun, retry_at, streaks_after
from carolctl.job_warnings import breach_warning, drift_warning, overrun_said
from carolctl.model import FailureClass, Job, Millis, Outcome, Run
from carolctl.store.records import AuditEntry, FiringMetrics
from carolctl.store.tx import WriteTx

#: What a damaged row, or a value that the database refuses, raises.
UNUSABLE = (ValueError, KeyError, TypeError, OverflowError)

_LEASE_DRIFT_SHARE = 0.8


@dataclass(slots=True)
class Settled:
    """What became of the outcomes, by run id."""

    ended: list[int] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    #: The claim was not the run's present one, or the run had ended: nothing was changed.
    stale: list[int] = field(default_factory=list)
    #: Run id and what went wrong; the run was ended bare, without streaks or metrics.
    damaged: list[tuple[int, str]] = field(default_factory=list)


def settle(
    tx: WriteTx,
    outcomes: Iterable[Outcome],
    *,
    now: Millis,
    settings: Settings,
    facts: EndFacts = NOTHING_KNOWN,
) -> Settled:
    """Record `outcomes` inside the open write transaction `tx`; `facts` were gathered before it."""
    settled = Settled()
    for outcome in outcomes:
        try:
            with tx.savepoint:
                became = _settle_one(tx, outcome, now=now, settings=settings, facts=facts)
            getattr(settled, became).append(outcome.run_id)
        except UNUSABLE as problem:
            settled.damaged.append((outcome.run_id, f"{type(problem).__name__}: {problem}"))
            _end_bare(tx, outcome)
    return settled


def _settle_one(
    tx: WriteTx, outcome: Outcome, *, now: Millis, settings: Settings, facts: EndFacts
) -> Literal["ended", "requeued", "stale"]:
    run = tx.run(outcome.run_id)
    if run is None:
        return "stale"
    outcome = final_outcome(run, outcome)
    job = tx.job(run.job_id)
    again_at = retry_at(run, job, outcome)
    if again_at is not None:
        if not tx.requeue_run(outcome, not_before=again_at):
            return "stale"
        _record_metrics(tx, run, outcome, now=now, facts=facts)
        return "requeued"
    if not tx.end_run(outcome):
        return "stale"
    _record_metrics(tx, run, outcome, now=now, facts=facts)
    if job is not None:
        _update_job(tx, run, job, outcome, now=now, settings=settings, facts=facts)
        # A handler whose row is damaged costs the job that failed nothing of its own.
        with suppress(*UNUSABLE), tx.savepoint:
            _trigger_handler(tx, run, job, outcome, now=now, settings=settings)
    return "ended"


def end_retries(tx: WriteTx, waiting: Iterable[Run], *, now: Millis, settings: Settings) -> None:
    """End the runs that wait for another try while the next slot of their job is due: it runs in their place."""
    for run in waiting:
        with suppress(*UNUSABLE), tx.savepoint:
            ended = tx.end_retry(run.run_id, run.claim_no, now=now)
            if ended is not None:
                _follow_up(tx, ended, now=now, settings=settings)


def _follow_up(tx: WriteTx, ended: Run, *, now: Millis, settings: Settings) -> None:
    """What the last failure of a run causes. Its attempts have their metrics, and no lease is at its end here."""
    job = tx.jobs_named([ended.job_id]).get(ended.job_id)
    if job is None:
        return
    outcome = Outcome(
        run_id=ended.run_id,
        claim_no=ended.claim_no,
        status="failed",
        completed_at=now,
        failure_reason=cast("FailureClass", ended.failure_reason),
    )
    unleased = replace(ended, slot_claimed_at=None)
    _update_job(tx, unleased, job, outcome, now=now, settings=settings, facts=NOTHING_KNOWN)
    with suppress(*UNUSABLE), tx.savepoint:
        _trigger_handler(tx, ended, job, outcome, now=now, settings=settings)


def _end_bare(tx: WriteTx, outcome: Outcome) -> None:
    """The end alone, without what the other side said, so that the slot is free."""
    with suppress(*UNUSABLE), tx.savepoint:
        run = tx.run(outcome.run_id)
        if run is not None:
            bare = replace(outcome, turns=None, summary=None, exit_status=None, http_status=None)
            tx.end_run(final_outcome(run, bare))


def _record_metrics(tx: WriteTx, run: Run, outcome: Outcome, *, now: Millis, facts: EndFacts) -> None:
    started = run.started_at
    tx.record_metrics(
        FiringMetrics(
            run_id=run.run_id,
            attempt=run.attempt,
            job_id=run.job_id,
            fired_at=run.queued_at,
            slot_claimed_at=run.slot_claimed_at,
            completed_at=outcome.completed_at,
            slot_wait_ms=_between(run.queued_at, run.slot_claimed_at),
            duration_ms=_between(started, outcome.completed_at),
            lateness_ms=_between(run.scheduled_for, started),
            turn_count=outcome.turns if outcome.turns is not None else run.turn_count,
            max_turns_at_firing=run.max_turns,
            concurrent_schedules=tx.count_live()[1],
            pressure_sources=",".join(tx.pressure_sources(now)) or None,
            psi_cpu_avg10=facts.psi_cpu_avg10,
            failure_reason=outcome.failure_reason,
        )
    )


def _between(earlier: Millis | None, later: Millis | None) -> int | None:
    return None if earlier is None or later is None else later - earlier


def _update_job(
    tx: WriteTx,
    run: Run,
    job: Job,
    outcome: Outcome,
    *,
    now: Millis,
    settings: Settings,
    facts: EndFacts,
) -> None:
    overrun = has_overrun(run, outcome)
    streaks = streaks_after(
        job,
        outcome,
        failure_pause=settings.failure_pause,
        breach_pause=settings.breach_pause,
        in_grace=facts.is_in_grace(job, outcome.completed_at),
        overrun=overrun,
    )
    values: dict[str, Any] = {
        "last_run_id": run.run_id,
        "last_status": outcome.status,
        "last_failure_reason": outcome.failure_reason,
        "lease_drift_streak": _lease_drift_streak(run, job, outcome),
    }
    turns = outcome.turns if outcome.turns is not None else run.turn_count
    if overrun:
        _audit_overrun(tx, replace(run, status="completed", turn_count=turns), now=now)
    is_reset = outcome.status == "completed" and not overrun
    values["breaches_before_success"] = job.turn_budget_breach_streak if is_reset else 0
    _write_job(tx, run, job, streaks, values, turns=turns, now=now, settings=settings)


def _write_job(
    tx: WriteTx,
    run: Run,
    job: Job,
    streaks: Streaks,
    values: dict[str, Any],
    *,
    turns: int | None,
    now: Millis,
    settings: Settings,
) -> None:
    """The job's streaks, turns and `values`; a pause where a streak calls for one; what is to be warned of."""
    values |= {
        "failure_streak": streaks.failure_streak,
        "turn_budget_breach_streak": streaks.turn_budget_breach_streak,
        "updated_at": now,
    }
    if turns is not None:
        values |= {"last_turn_count": turns, "avg_turns_per_firing": tx.average_turns(job.job_id)}
    if streaks.pause_reason and job.status == "active":
        values |= {"status": "paused", "paused_reason": streaks.pause_reason}
        after = {"status": "paused", "run_id": run.run_id}
        before = {"status": job.status}
        tx.audit(_entry(now, "settle", job.job_id, streaks.pause_reason, after=after, before=before))
    tx.set_job_columns(job.job_id, values)
    _audit_warnings(tx, job, replace(job, **values), run, now=now, settings=settings)


def settle_late_turns(
    tx: WriteTx,
    run_id: int,
    turns: int,
    *,
    claim_no: int | None,
    now: Millis,
    settings: Settings,
    facts: EndFacts,
) -> Run | None:
    """An event that came home after its run had ended well: the run, if it shows now that it was a breach.

    Counted once a run; the streak that its end reset goes on where it was, unless other runs have ended since.
    """
    run = tx.overrun_after_end(run_id, turns, claim_no=claim_no)
    job = None if run is None else tx.job(run.job_id)
    if run is None or job is None or run.completed_at is None:
        return run
    _audit_overrun(tx, run, now=now)
    is_last = job.last_run_id == run_id
    before = job.breaches_before_success if is_last else 0
    breaches = job.turn_budget_breach_streak + before + (not facts.is_in_grace(job, run.completed_at))
    streaks = Streaks(
        failure_streak=job.failure_streak,
        turn_budget_breach_streak=breaches,
        pause_reason=breaches_pause(breaches, settings.breach_pause),
    )
    values = {"breaches_before_success": 0} if is_last else {}
    said = turns if is_last else None
    _write_job(tx, run, job, streaks, values, turns=said, now=now, settings=settings)
    return run


def _audit_overrun(tx: WriteTx, run: Run, *, now: Millis) -> None:
    after = {"run_id": run.run_id, "turn_count": run.turn_count, "max_turns": run.max_turns}
    tx.audit(_entry(now, "turn_budget_overrun", run.job_id, overrun_said(run) or "", after=after))


def _audit_warnings(
    tx: WriteTx, before: Job, after: Job, run: Run, *, now: Millis, settings: Settings
) -> None:
    """A line for each warning at the end that brings it about; show-job says it for as long as it holds."""
    for command, warning in (("turn_budget_warning", breach_warning), ("lease_drift_warning", drift_warning)):
        said = warning(after, settings)
        if said and not warning(before, settings):
            tx.audit(_entry(now, command, after.job_id, said, after={"run_id": run.run_id}))


def _entry(
    now: Millis, command: str, job_id: str, reason: str, *, after: dict[str, Any], before: Any = None
) -> AuditEntry:
    return AuditEntry(
        at=now,
        actor="carolctl",
        command=command,
        subject=job_id,
        before=before,
        after=after,
        reason=reason,
    )


def _lease_drift_streak(run: Run, job: Job, outcome: Outcome) -> int:
    """How many firings in a row ended above 80 % of their lease."""
    if run.slot_claimed_at is None or run.lease_expires_at is None:
        return job.lease_drift_streak
    lease = run.lease_expires_at - run.slot_claimed_at
    used = outcome.completed_at - run.slot_claimed_at
    return job.lease_drift_streak + 1 if used > _LEASE_DRIFT_SHARE * lease else 0


def _trigger_handler(
    tx: WriteTx, run: Run, job: Job, outcome: Outcome, *, now: Millis, settings: Settings
) -> None:
    """Queue the on-failure job, once for this run; a handler's own failure triggers nothing."""
    if outcome.status != "failed" or job.on_failure is None or run.trigger_kind == "on_failure":
        return
    handler = tx.job(job.on_failure)
    if handler is not None:
        tx.insert_run(
            handler.job_id,
            source="event",
            now=now,
            max_turns=handler.max_turns or settings.max_turns,
            event_id=f"run:{run.run_id}",
            trigger_kind="on_failure",
        )
