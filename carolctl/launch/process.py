"""The process launcher, for containers, laptops and CI: a detached supervisor for every command.

A supervisor is a session leader with nothing of the launcher's but its environment: no terminal, no inherited
descriptor (a lock file held open by ``flock`` would otherwise stay locked as long as the job runs), no folder
kept busy. HTTP runs that are launched together share supervisors, since all that they do is wait.

Not inside the tick's own systemd unit: the end of the unit would kill everything that it started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from carolctl import places
from carolctl.errors import BadConfig
from carolctl.failpoints import failpoint
from carolctl.launch import LaunchFailure
from carolctl.lockguard import require_unlocked
from carolctl.model import Claimed, CommandAction, HttpAction
from carolctl.notices import warn

LARGEST_CHUNK = 32
"""HTTP runs that share one supervisor at most; it has a thread for each."""

RUN_VARIABLES = (
    "CAROL_RUN_ID",
    "CAROL_CLAIM",
    "CAROL_JOB_ID",
    "CAROL_MAX_TURNS",
    "CAROL_RESULT_FILE",
    "CAROL_UNIT",
)
"""What a command is told about its own run; a run that is launched from inside another must not inherit it."""

_TICK_UNIT = "carolctl-tick.service"
_RUNNER_LOG_CAP = 1024 * 1024


class ProcessLauncher:
    """Starts supervisors as detached processes. Raises `BadConfig` inside the tick's own unit."""

    def __init__(self, *, db: str, home: str, cgroup_file: str = "/proc/self/cgroup") -> None:
        if inside_tick_unit(os.environ, cgroup_file):
            raise BadConfig(
                "the process launcher does not work inside the tick's systemd unit, whose end kills its jobs",
                hint="set CAROL_LAUNCHER=systemd in the unit",
            )
        self._db = db
        self._home = home

    def launch(self, claimed: Sequence[Claimed]) -> list[LaunchFailure]:
        """See `Launcher`."""
        require_unlocked("launching runs")
        failures = [failure for one in claimed if (failure := _refusal(one))]
        refused = {failure.run_id for failure in failures}
        claimed = [one for one in claimed if one.run.run_id not in refused]
        if not claimed:
            return failures
        environment = self._environment()
        output = self._open_runner_log()
        try:
            for arguments, share in _supervisors(claimed):
                problem = _spawn(arguments, environment, output)
                if problem:
                    failures += [_failure(one, problem) for one in share]
        finally:
            os.close(output)
        return failures

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in RUN_VARIABLES}
        own |= {"CAROL_SCHEDULER_DB": self._db, "CAROL_DATA_DIR": self._home}
        # A supervisor works in another folder, where a relative path would mean another file.
        planner = places.planner_db()
        return own | {"CAROL_PLANNER_DB": planner} if planner else own

    def _open_runner_log(self) -> int:
        """Where supervisors complain; they own no output otherwise."""
        path = os.path.join(self._home, "logs", "runner.log")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                if os.stat(path).st_size > _RUNNER_LOG_CAP:
                    os.replace(path, f"{path}.1")
            return os.open(path, flags, 0o600)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def inside_tick_unit(environ: Mapping[str, str], cgroup_file: str) -> bool:
    """Whether this process belongs to the service that the tick timer starts."""
    if "INVOCATION_ID" not in environ:
        return False
    try:
        with open(cgroup_file, encoding="utf-8", errors="replace") as file:
            return any(_TICK_UNIT in line.strip().split("/") for line in file)
    except OSError:
        return False


def _supervisors(claimed: Sequence[Claimed]) -> Iterator[tuple[list[str], Sequence[Claimed]]]:
    """The arguments of each supervisor, and the claims that are its share."""
    calls = [one for one in claimed if isinstance(one.action, HttpAction)]
    for begin in range(0, len(calls), LARGEST_CHUNK):
        chunk = calls[begin : begin + LARGEST_CHUNK]
        yield ["http", *(f"{one.run.run_id}:{one.run.claim_no}" for one in chunk)], chunk
    for one in claimed:
        if not isinstance(one.action, HttpAction):
            yield ["command", str(one.run.run_id), str(one.run.claim_no)], [one]


def _refusal(one: Claimed) -> LaunchFailure | None:
    """Why a run is not for this launcher: it would run as somebody else, or without its credentials."""
    action = one.action
    if not isinstance(action, CommandAction):
        return None
    if action.run_as is not None or action.load_credential:
        return _failure(one, "--run-as and --load-credential need systemd: CAROL_LAUNCHER=systemd")
    if action.memory_max or action.cpu_quota:
        warn(f"{one.run.job_id}: --memory-max and --cpu-quota are not enforced without systemd")
    return None


def _spawn(arguments: list[str], environment: dict[str, str], output: int) -> str | None:
    """Start one supervisor; why not, if it could not be."""
    try:
        supervisor = subprocess.Popen(
            [os.path.abspath(sys.executable), "-I", "-m", "carolctl.runner", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        return f"the supervisor could not be started: {problem.strerror}"
    # It outlives us and is nobody's to wait for; without this Popen would warn when it is dropped.
    supervisor.returncode = 0
    failpoint("launcher-after-spawn")
    return None


def _failure(one: Claimed, problem: str) -> LaunchFailure:
    return LaunchFailure(run_id=one.run.run_id, claim_no=one.run.claim_no, message=problem)
