"""What runs a run: ``python -I -m carolctl.runner command RUN CLAIM`` or ``http RUN:CLAIM ...``.

Standard library and the job store only; `requests` is imported for HTTP runs alone. ``${env:...}`` is not
expanded in an argv: every user of the machine may read the argv of a process.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from carolctl import clock, places
from carolctl.claims import Started, failed, finish, launch_all, start
from carolctl.errors import BadConfig, CarolError, Exit, UsageError
from carolctl.failure_text import class_of_exit
from carolctl.launch.capture import TELLING_LINES, CappedLog, Result, prepare_result, take_result
from carolctl.launch.process import RUN_VARIABLES
from carolctl.launch.supervisor import CommandSupervisor, Ending, Signals, boot_seconds
from carolctl.model import CommandAction, Outcome, Run
from carolctl.notices import warn
from carolctl.session import Session, open_session

"""How many of the last lines of output may name the class of a failure."""


def main(arguments: Sequence[str]) -> int:
    """Run the claims that `arguments` name; the exit code. Complaints go to standard error."""
    os.umask(0o077)
    try:
        _dispatch(arguments)
    except CarolError as error:
        warn(f"runner {' '.join(arguments)}: {error.message}")
        return error.code
    except BaseException:  # noqa: BLE001 - the last line of defence; a sweep finds us dead
        traceback.print_exc()
        return Exit.SOFTWARE
    return Exit.OK


def _dispatch(arguments: Sequence[str]) -> None:
    match arguments:
        case ["command", run_id, claim_no] if run_id.isdecimal() and claim_no.isdecimal():
            session, signals = _prepare()
            run_command(session, signals, int(run_id), int(claim_no))
        case ["http", *claims] if claims:
            pairs = [_claim(claim) for claim in claims]
            _take_environment()
            session, signals = _prepare()
            from carolctl.http_pool import HttpPool

            HttpPool(session, signals).work(pairs)
        case _:
            raise UsageError("runner command RUN CLAIM | runner http RUN:CLAIM ...")


def run_command(session: Session, signals: Signals, run_id: int, claim_no: int) -> None:
    """Start the claim, run its command, record its end and launch what was claimed in its place."""
    started = start(session.store, run_id, claim_no)
    if started is not None:
        launch_all(session.store, finish(session.store, [_carry_out(session, signals, started)]))


def _carry_out(session: Session, signals: Signals, started: Started) -> Outcome:
    run, action = started.run, started.claimed.action
    if not isinstance(action, CommandAction) or not action.argv:
        return failed(run, "launch_failed", "the job has no command to run")
    if signals.stop_asked:
        return failed(run, "aborted", "stopped before the command was started")
    if boot_seconds() >= started.deadline:
        return failed(run, "lease_expired", "the lease had run out before the command was started")
    with session.store.read() as snapshot:
        settings = session.settings(snapshot)
    result_file = os.path.join(places.results(), f"{run.run_id}-{run.claim_no}.json")
    prepare_result(result_file)
    log_file = os.path.join(places.logs(), f"run-{run.run_id}-{run.claim_no}.log")
    log = CappedLog(log_file, settings.log_max_kib * 1024)
    supervisor = CommandSupervisor(action.argv, deadline=started.deadline, log=log, signals=signals)
    if action.working_directory is not None and not os.path.isdir(action.working_directory):
        return failed(run, "launch_failed", f"no such folder: {action.working_directory[:200]}")
    try:
        variables = _from_file(action)
    except OSError as problem:
        why = f"{action.environment_file} cannot be read: {problem.strerror}"
        return failed(run, "launch_failed", why)
    try:
        environment = _environment(run, session.store.path, result_file)
        supervisor.spawn(environment | variables, action.working_directory)
    except (OSError, ValueError) as problem:
        return failed(run, "launch_failed", _cannot_run(action.argv[0], problem))
    ending = supervisor.wait()
    return _outcome(run, ending, take_result(result_file), log.last_lines(TELLING_LINES))


def _environment(run: Run, db: str, result_file: str) -> dict[str, str]:
    """This process's own without what arms failpoints, and with what a command is told about its run."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in RUN_VARIABLES and not name.startswith("CAROL_FAILPOINT")
    }
    told = {
        "CAROL_RUN_ID": str(run.run_id),
        "CAROL_CLAIM": str(run.claim_no),
        "CAROL_JOB_ID": run.job_id,
        "CAROL_RESULT_FILE": result_file,
        "CAROL_DATA_DIR": places.data_home(),
        "CAROL_SCHEDULER_DB": db,
    }
    if run.max_turns is not None:
        told["CAROL_MAX_TURNS"] = str(run.max_turns)
    return inherited | told


def _from_file(action: CommandAction) -> dict[str, str]:
    """The variables of the job's own file: ``NAME=value`` a line, a value in quotes without them."""
    if action.environment_file is None:
        return {}
    with open(action.environment_file, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    pairs = [line.partition("=") for line in lines if "=" in line and line[0] not in "#;"]
    return {name.strip(): _unquoted(value.strip()) for name, _, value in pairs}


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _cannot_run(program: str, problem: OSError | ValueError) -> str:
    why = problem.strerror if isinstance(problem, OSError) else str(problem)
    name = program.encode("utf-8", "replace").decode()
    return f"{name[:200]!r} cannot be run: {why}"


def _outcome(run: Run, ending: Ending, result: Result, last_lines: Sequence[str]) -> Outcome:
    """What we did comes first, then what the command said of itself, then how it ended; last what it printed."""
    reason = ending.ended_by_us or result.failure_reason
    if reason is None and ending.returncode:
        reason = (
            class_of_exit(ending.returncode, result.summary, *last_lines)
            if ending.returncode > 0
            else "killed"
        )
    return Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="failed" if reason else "completed",
        completed_at=clock.now(),
        failure_reason=reason,
        turns=result.turns,
        summary=result.summary or next(iter(last_lines), None),
        exit_status=ending.exit_status,
    )


def _claim(text: str) -> tuple[int, int]:
    run_id, _, claim_no = text.partition(":")
    if not (run_id.isdecimal() and claim_no.isdecimal()):
        raise UsageError(f"not RUN:CLAIM: {text!r}")
    return int(run_id), int(claim_no)


def _take_environment() -> None:
    """In a unit: what the references of the jobs are looked up in."""
    unit = os.environ.get("CAROL_UNIT")
    if unit:
        from carolctl.launch import handover

        handover.take(unit, places.data_home())


def _prepare() -> tuple[Session, Signals]:
    signals = Signals()
    signals.install()
    _lead_a_session()
    return open_session(), signals


def _lead_a_session() -> None:
    """Whoever is in our session is ended with the run: it must not be anybody else's."""
    if os.getsid(0) == os.getpid():
        return
    try:
        os.setsid()
    except PermissionError:
        raise BadConfig("a runner needs a session of its own", hint="start it with setsid") from None


def _leave(code: int) -> None:
    """End without closing the store: the last connection to close would have to write a checkpoint."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
