"""After a command's unit, however it ended: its end recorded in one write, and what takes its place launched.

The store may be locked or gone: then the outcome waits in the spool. At a shutdown nothing takes its place.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

from carolctl import clock, endings, places
from carolctl.errors import BadData, NotFound, NotPermitted, StoreBusy
from carolctl.failpoints import failpoint
from carolctl.failure_text import class_of_exit
from carolctl.launch import handover, journal
from carolctl.launch.capture import Result, take_result
from carolctl.launch.service_manager import (
    answer_within,
    is_being_stopped,
    is_shutting_down,
    manager_of_user,
    properties,
)
from carolctl.launch.unit_names import run_unit
from carolctl.launch.unit_result import Ended, UnitEnd, has_run_out, is_managers_own, judge
from carolctl.model import Outcome, Run
from carolctl.notices import warn
from carolctl.store.db import Store
from carolctl.unit_start import left_ms, open_own_store, result_file

_EXPIRY_SLACK_MS = 1000
_ANSWERS_SEC = 2.5
"""For the manager's answers. With the journal's and the database's times it stays below TimeoutStopSec."""

#: In words, for a run that was ended by us, by its stop reason.
_STOPPED = {
    "cancelled": "cancelled by hand",
    "lease_expired": "stopped at the end of its lease",
    "turn_limit_exceeded": "stopped: it used more turns than it may",
}


def finish(run_id: int, claim_no: int, told: str) -> None:
    """Record how the command ended, and launch what was claimed in its place.

    `told` is the folder in which the command was told to leave its result and its events.
    """
    failpoint("unit-before-finish")
    answer_within(_ANSWERS_SEC)
    unit = run_unit(run_id, claim_no)
    store, run = _look(run_id)
    handover.take(unit, places.data_home())
    if told != places.data_home():
        from carolctl.foreign_spool import bring_home

        # Also those of a run that has ended already: it was told that they are stored.
        bring_home(told, run_id)
    if store is not None and not (run and run.claim_no == claim_no and run.status in ("claimed", "running")):
        return
    end = _end_of(unit, run)
    result = take_result(result_file(run_id, claim_no, told))
    ended = judge(end, result.failure_reason)
    if ended is None:
        return
    if ended.reason == "exit_nonzero":
        ended = _in_its_words(ended, result, unit)
    outcome = _outcome(run_id, claim_no, ended, result)
    if run is not None and run.stop_reason is not None:
        outcome = endings.final_outcome(
            run, replace(outcome, summary=result.summary or _STOPPED[run.stop_reason])
        )
    _tell(outcome)
    refilling = not (end.being_stopped and is_shutting_down(manager_of_user()))
    _record(store, outcome, refilling=refilling)


def _look(run_id: int) -> tuple[Store | None, Run | None]:
    """The store and the row; None for a store that cannot be opened: the manager's word is then all there is."""
    try:
        store = open_own_store()
        with store.read() as snapshot:
            return store, snapshot.run(run_id)
    except (StoreBusy, BadData, NotFound, NotPermitted) as trouble:
        warn(f"run {run_id}: {trouble.message}")
        return None, None


def _end_of(unit: str, run: Run | None) -> UnitEnd:
    """What the manager says of the unit: what it tells its hooks, and what it only tells who asks."""
    code, status = os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", "")
    manager = manager_of_user()
    asked = properties(
        manager,
        unit,
        "Job",
        "ActiveEnterTimestampMonotonic",
        "ExecMainExitTimestampMonotonic",
        "RuntimeMaxUSec",
    )
    pending = asked.get("Job", "") not in ("", "0")
    began = asked.get("ActiveEnterTimestampMonotonic", "1") not in ("", "0")
    past_lease = has_run_out(asked)
    if past_lease is None:
        past_lease = run is None or _is_past_lease(run)
    return UnitEnd(
        service_result=os.environ.get("SERVICE_RESULT", ""),
        exit_code=code,
        exit_status=status,
        started=run is None or run.status == "running",
        executed=began or not (code == "exited" and is_managers_own(status)),
        being_stopped=pending and is_being_stopped(manager, unit),
        past_lease=past_lease,
    )


def _is_past_lease(run: Run) -> bool:
    """By either clock: a wall clock that was set back a little is no reason to call a run that was cut short done."""
    boottime_ms = clock.boottime_ms()
    by_boot = 0
    if boottime_ms is not None and run.claimed_boottime_ms is not None and run.boot_id == clock.boot_id():
        by_boot = boottime_ms - run.claimed_boottime_ms
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    lease_ms = run.lease_expires_at - run.slot_claimed_at
    return min(left_ms(run), lease_ms - by_boot) <= _EXPIRY_SLACK_MS


def _in_its_words(ended: Ended, result: Result, unit: str) -> Ended:
    """The class that the command's own words name, as the last resort: its summary, else what it printed last."""
    if ended.exit_status is None:
        return ended
    reason = class_of_exit(ended.exit_status, result.summary)
    if reason != "exit_nonzero" or result.summary:
        return replace(ended, reason=reason)
    lines = journal.last_lines(unit)
    return replace(
        ended,
        reason=class_of_exit(ended.exit_status, *lines),
        summary=next(iter(lines), ended.summary),
    )


def _outcome(run_id: int, claim_no: int, ended: Ended, result: Result) -> Outcome:
    return Outcome(
        run_id=run_id,
        claim_no=claim_no,
        status="failed" if ended.reason else "completed",
        completed_at=clock.now(),
        failure_reason=ended.reason,
        turns=result.turns,
        summary=result.summary or ended.summary,
        exit_status=ended.exit_status,
    )


def _record(store: Store | None, outcome: Outcome, *, refilling: bool) -> None:
    if store is None:
        from carolctl import spool

        spool.leave(outcome)
        return
    from carolctl import claims

    claimed = claims.finish(store, [outcome], refilling=refilling)
    failpoint("unit-recorded")
    # What follows may take its time: without us a sweep launches them.
    answer_within(math.inf)
    claims.launch_all(store, claimed)


def _tell(outcome: Outcome) -> None:
    """One line for the journal, which is no output of the command."""
    import syslog

    syslog.openlog("carolctl", syslog.LOG_PID)
    job = os.environ.get("CAROL_JOB_ID", "")
    how = f"{outcome.status} {outcome.failure_reason or ''}".strip()
    level = syslog.LOG_WARNING if outcome.failure_reason else syslog.LOG_INFO
    syslog.syslog(level, f"run={outcome.run_id} claim={outcome.claim_no} job={job} {how}")
