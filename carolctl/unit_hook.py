"""The two ends of a command's unit: ``python -I -m carolctl.unit_hook start|finish RUN CLAIM [HOME]``.

Incident: a scheduler's own process stayed by every job, and when it was killed nobody knew how the job had ended.
Decision: systemd calls ``start`` before the command, a compare-and-swap that turns stale and second launches away,
and ``finish`` after it, however it ended. Consequence: while a command runs nothing of ours does, and its end is
known even when the command, its user or its folder never was.

Exit codes of ``start``: 0 go on; 1 stale, 75 busy, or anything else: the unit is skipped, and a sweep launches the
run again if it is still claimed. HOME is our data home, where the command is told another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from carolctl import clock, config, places, policy
from carolctl.errors import BadData, CarolError, Exit, NotFound, NotPermitted, StoreBusy, UsageError
from carolctl.failpoints import failpoint
from carolctl.launch.capture import Result, prepare_result, take_result
from carolctl.launch.service_manager import (
    is_being_stopped,
    is_shutting_down,
    manager_of_user,
    properties,
    run_unit,
)
from carolctl.launch.unit_result import Ended, UnitEnd, is_managers_own, judge
from carolctl.model import Outcome, Run
from carolctl.notices import warn
from carolctl.store.db import Store, open_store

_LONGEST_WAIT_MS = 5000
"""For the database: systemd ends a hook after TimeoutStopSec, and there must be time left for the spool."""

_EXPIRY_SLACK_MS = 1000


def main(arguments: Sequence[str]) -> int:
    """Do what `arguments` say; the exit code."""
    os.umask(0o077)
    try:
        match arguments:
            case ["start" | "finish" as verb, run_id, claim_no, *home] if (
                run_id.isdecimal() and claim_no.isdecimal() and len(home) < 2
            ):
                told = places.data_home()
                if home:
                    os.environ["CAROL_DATA_DIR"] = home[0]
                if verb == "start":
                    return start(int(run_id), int(claim_no))
                finish(int(run_id), int(claim_no), told)
            case _:
                raise UsageError("unit_hook start|finish RUN CLAIM [HOME]")
    except CarolError as error:
        warn(f"unit_hook {' '.join(arguments)}: {error.message}")
        return error.code
    return Exit.OK


def _open() -> Store:
    return open_store(
        places.scheduler_db(),
        deadline_ms=min(config.busy_timeout_ms(os.environ, warn), _LONGEST_WAIT_MS),
        mirrored=places.planner_db() is not None,
    )


def _left_ms(run: Run) -> int:
    elapsed = policy.elapsed_ms(
        run, now=clock.now(), boottime_ms=clock.boottime_ms(), boot_id=clock.boot_id()
    )
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    return run.lease_expires_at - run.slot_claimed_at - elapsed


def _result_file(run_id: int, claim_no: int, folder: str) -> str:
    """Where the command was told to leave its result: with us, or in the folder of its own user."""
    if folder == places.data_home():
        return os.path.join(places.results(), f"{run_id}-{claim_no}.json")
    return os.path.join(folder, "result.json")


#: In words, for a run that was ended by us, by its stop reason.
_STOPPED = {
    "cancelled": "cancelled by hand",
    "lease_expired": "stopped at the end of its lease",
    "turn_limit_exceeded": "stopped: it used more turns than it may",
}


# -- start -------------------------------------------------------------------------------------------------


def start(run_id: int, claim_no: int) -> int:
    """Claimed to running, under the name of the unit; 0 for the one whose command is to run."""
    failpoint("hook-before-start")
    store = _open()
    with store.read() as snapshot:
        run = snapshot.run(run_id)
    if run is None or (run.status, run.claim_no) != ("claimed", claim_no) or _left_ms(run) <= 0:
        return Exit.FAILED
    prepare_result(_result_file(run_id, claim_no, places.data_home()))
    unit = run_unit(run_id, claim_no)
    with store.write() as tx:
        started = tx.start(run_id, claim_no, now=clock.now(), pid=None, pid_start=None, unit=unit)
    failpoint("hook-after-start")
    return Exit.OK if started else Exit.FAILED


# -- finish ------------------------------------------------------------------------------------------------


def finish(run_id: int, claim_no: int, told: str) -> None:
    """Record how the command ended, and launch what was claimed in its place.

    `told` is the folder in which the command was told to leave its result and its events.
    """
    from carolctl.launch import handover

    failpoint("hook-before-finish")
    unit = run_unit(run_id, claim_no)
    store, run = _look(run_id)
    handover.take(unit, places.data_home())
    if store is not None and not (run and run.claim_no == claim_no and run.status in ("claimed", "running")):
        return
    if told != places.data_home():
        from carolctl.foreign_spool import bring_home

        bring_home(told, run_id)
    end = _end_of(unit, run)
    result = take_result(_result_file(run_id, claim_no, told))
    ended = judge(end, result.failure_reason)
    if ended is None:
        return
    outcome = _outcome(run_id, claim_no, ended, result)
    if run is not None and run.stop_reason is not None:
        outcome = policy.final_outcome(
            run, replace(outcome, summary=result.summary or _STOPPED[run.stop_reason])
        )
    _tell(outcome)
    refilling = not (end.being_stopped and is_shutting_down(manager_of_user()))
    _record(store, outcome, refilling=refilling)


def _look(run_id: int) -> tuple[Store | None, Run | None]:
    """The store and the row; None for a store that cannot be opened: the manager's word is then all there is."""
    try:
        store = _open()
        with store.read() as snapshot:
            return store, snapshot.run(run_id)
    except (StoreBusy, BadData, NotFound, NotPermitted) as trouble:
        warn(f"run {run_id}: {trouble.message}")
        return None, None


def _end_of(unit: str, run: Run | None) -> UnitEnd:
    """What the manager says of the unit: what it tells its hooks, and what it only tells who asks."""
    code, status = os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", "")
    manager = manager_of_user()
    asked = properties(manager, unit, "Job", "ActiveEnterTimestampMonotonic")
    pending = asked.get("Job", "") not in ("", "0")
    began = asked.get("ActiveEnterTimestampMonotonic", "1") not in ("", "0")
    return UnitEnd(
        service_result=os.environ.get("SERVICE_RESULT", ""),
        exit_code=code,
        exit_status=status,
        started=run is None or run.status == "running",
        executed=began or not (code == "exited" and is_managers_own(status)),
        being_stopped=pending and is_being_stopped(manager, unit),
        past_lease=run is None or _left_ms(run) <= _EXPIRY_SLACK_MS,
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
    failpoint("hook-recorded")
    claims.launch_all(store, claimed)


def _tell(outcome: Outcome) -> None:
    """One line for the journal, which is no output of the command."""
    import syslog

    syslog.openlog("carolctl", syslog.LOG_PID)
    job = os.environ.get("CAROL_JOB_ID", "")
    how = f"{outcome.status} {outcome.failure_reason or ''}".strip()
    level = syslog.LOG_WARNING if outcome.failure_reason else syslog.LOG_INFO
    syslog.syslog(level, f"run={outcome.run_id} claim={outcome.claim_no} job={job} {how}")


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without closing the store: the last connection to close would have to write a checkpoint.
    os._exit(_code)
