"""The systemd launcher: a transient unit for every command, and one for HTTP runs that are launched together.

Incident: a tick that spawned its jobs itself took them along when its own unit ended. Decision: ``systemd-run``
makes each run a unit of its own; before the command a hook of ours claims the row, and after its end, of whatever
kind, another one records it. Consequence: no process of ours stays while a command runs, and the service manager
supervises it, keeps its output, ends it at its lease and reports how it ended.

The job's argv is the unit's own: ``$`` is doubled, since systemd expands variables; see also `exec_line`.
A secret never becomes a property of a unit, which every user may read: see `handover`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from carolctl import clock, config, places, policy
from carolctl.failpoints import failpoint
from carolctl.launch import LaunchFailure, handover
from carolctl.launch import service_manager as manager
from carolctl.launch.exec_line import carried
from carolctl.launch.refusals import failure, refusal
from carolctl.launch.supervisor import STOP_GRACE_SEC
from carolctl.launch.unit_names import (
    SLICE,
    described,
    gate_unit,
    http_unit,
    identifier,
    run_unit,
    store_tag,
    tag_of,
)
from carolctl.lockguard import require_unlocked
from carolctl.model import Claimed, CommandAction, HttpAction, Run
from carolctl.notices import warn

LARGEST_POOL = 32
"""HTTP runs that share one unit at most."""

_AT_ONCE = 4
_LAUNCH_SEC = 20.0
_GATE_SEC = 10
_SETTINGS = (
    *(one.env for one in config.REGISTRY if one.env),
    "CAROL_BUSY_TIMEOUT_MS",
    "CAROL_NOW",
    "CAROL_FAILPOINT",
)
#: Where hooks find the tools of systemd, whatever the job's own file of variables says.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What systemd-run says when nothing is wrong with the run itself.
_NO_VERDICT = (
    "already loaded", "already exists", "Failed to connect", "timed out", "Connection reset", "did not receive",
    "destructive", "shutting down", "Transport endpoint", "Disconnected",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """One unit to start, and the claims in it."""

    unit: str
    arguments: list[str]
    share: Sequence[Claimed]


class SystemdLauncher:
    """Starts transient units of one manager, ``system`` or ``user``."""

    def __init__(self, *, db: str, home: str, manager: manager.Manager) -> None:
        self._db = db
        self._home = home
        self._manager = manager
        self._tag = store_tag(db)

    def launch(self, claimed: Sequence[Claimed]) -> list[LaunchFailure]:
        """See `Launcher`."""
        require_unlocked("launching runs")
        failures = [no for one in claimed if (no := refusal(one, self._manager))]
        refused = {no.run_id for no in failures}
        orders = list(self._orders([one for one in claimed if one.run.run_id not in refused]))
        for order, complaint in self._carry_out(orders):
            failures += [failure(one, complaint) for one in order.share]
        return failures

    def _orders(self, claimed: Sequence[Claimed]) -> Iterator[Order]:
        calls = [one for one in claimed if isinstance(one.action, HttpAction)]
        for begin in range(0, len(calls), LARGEST_POOL):
            yield self._pool(calls[begin : begin + LARGEST_POOL])
        for one in claimed:
            if isinstance(one.action, CommandAction):
                yield self._command(one, one.action)

    def _pool(self, share: Sequence[Claimed]) -> Order:
        first = share[0].run
        unit = http_unit(first.run_id, first.claim_no)
        claims = [f"{one.run.run_id}:{one.run.claim_no}" for one in share]
        properties = [f"TimeoutStopSec={STOP_GRACE_SEC:.0f}", "NoNewPrivileges=yes", "UMask=0077"]
        command = [*_python("carolctl.runner"), "http", *claims]
        environment = self._told() | {"CAROL_DATA_DIR": self._home, "CAROL_UNIT": unit}
        about = f"HTTP runs {', '.join(claims)}"
        arguments = self._arguments(unit, about, environment, properties, command)
        return Order(unit=unit, arguments=arguments, share=share)

    def _command(self, one: Claimed, action: CommandAction) -> Order:
        run = one.run
        unit = run_unit(run.run_id, run.claim_no)
        environment = self._told_command(run) | (of_another_user(unit) if action.run_as is not None else {})
        arguments = self._arguments(
            unit,
            f"run {run.run_id} of {run.job_id}",
            environment,
            [*self._of_run(one, action, environment["CAROL_DATA_DIR"]), *properties_of(action, unit)],
            carried(action),
        )
        return Order(unit=unit, arguments=arguments, share=[one])

    def _told_command(self, run: Run) -> dict[str, str]:
        """The variables of a command; what arms failpoints is for its hooks alone."""
        told = {name: value for name, value in self._told().items() if name != "CAROL_FAILPOINT"} | {
            "CAROL_DATA_DIR": self._home,
            "CAROL_RUN_ID": str(run.run_id),
            "CAROL_CLAIM": str(run.claim_no),
            "CAROL_JOB_ID": run.job_id,
            "CAROL_RESULT_FILE": os.path.join(self._home, "results", f"{run.run_id}-{run.claim_no}.json"),
        }
        return told | ({} if run.max_turns is None else {"CAROL_MAX_TURNS": str(run.max_turns)})

    def _of_run(self, one: Claimed, action: CommandAction, folder: str) -> list[str]:
        run, python = one.run, _python("carolctl.unit_hook")
        told = [str(run.run_id), str(run.claim_no), self._home, folder, *self._told_hooks(run, action)]
        hook = {name: command_line([*python, name, *told]) for name in ("start", "finish")}
        return [
            # The manager finds a failing exec, and says by ActiveEnterTimestamp whether there was one.
            "Type=exec",
            # Without the prefix "+": systemd 252 forgets a hook that has one at the next daemon-reload.
            f"ExecCondition={hook['start']}",
            f"ExecStopPost={hook['finish']}",
            f"RuntimeMaxSec={_left_ms(one)}ms",
            f"TimeoutStopSec={STOP_GRACE_SEC:.0f}",
            "IgnoreSIGPIPE=no",
            f"LogExtraFields=CAROL_RUN_ID={run.run_id}",
            f"LogExtraFields=CAROL_JOB_ID={run.job_id}",
        ]

    def _told_hooks(self, run: Run, action: CommandAction) -> list[str]:
        """What hooks go by: the job's own file of variables reaches them too, and must not be believed."""
        told = self._told() | {"CAROL_JOB_ID": run.job_id}
        if action.environment_file is not None:
            told["PATH"] = _PATH
        return [f"{name}={value}" for name, value in told.items()]

    def _told(self) -> dict[str, str]:
        """What hooks and runners must know, none of it secret: the settings that the launch was made under."""
        told = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
        # Also that there is none.
        told["CAROL_PLANNER_DB"] = places.planner_db() or ""
        return told | {"CAROL_SCHEDULER_DB": self._db, "CAROL_LAUNCHER": "systemd"}

    def _arguments(
        self,
        unit: str,
        about: str,
        environment: Mapping[str, str],
        properties: Sequence[str],
        command: Sequence[str],
    ) -> list[str]:
        return [
            "systemd-run",
            *manager.option(self._manager),
            "--quiet",
            "--no-block",
            "--no-ask-password",
            "--collect",
            f"--unit={unit}",
            f"--slice={SLICE}",
            f"--description={described(about, self._tag)}",
            *(f"--setenv={name}={value}" for name, value in environment.items()),
            *(f"--property={text}" for text in (*self._of_journal(unit), *properties)),
            "--",
            *(doubled(word) for word in command),
        ]

    def _of_journal(self, unit: str) -> list[str]:
        if self._manager == "user":
            return [f"SyslogIdentifier={identifier(unit, self._tag)}"]
        return [
            f"SyslogIdentifier={unit.removesuffix('.service')}",
            f"LogExtraFields=CAROL_STORE={self._tag}",
            # None, in effect. A limit of 0, which should be none, is the default one in systemd 252.
            "LogRateLimitIntervalSec=1s",
            "LogRateLimitBurst=100000000",
        ]

    def _carry_out(self, orders: Sequence[Order]) -> list[tuple[Order, str]]:
        """Start the units, a few at a time; those that were surely refused, and why."""
        handover.leave([order.unit for order in orders], self._home)
        environment = manager.environment(os.environ)
        if len(orders) > _AT_ONCE:
            with self._gate(environment) as gate:
                return self._start(orders, environment, [f"--property=After={gate}"] if gate else [])
        return self._start(orders, environment, [])

    @contextmanager
    def _gate(self, environment: Mapping[str, str]) -> Iterator[str | None]:
        """A unit that others are started after, as long as the block lasts: their hooks would slow the launch down.

        It waits for a lock that we hold: should we die, it opens by itself. None: there is no gate.
        """
        unit = gate_unit(os.getpid(), time.monotonic_ns())
        path = os.path.join(self._home, "launch.gate")
        words = ["flock", "--timeout", str(_GATE_SEC), path, "true"]
        order = Order(unit, self._arguments(unit, "gate", {}, ["Type=oneshot"], words), [])
        try:
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            yield None
            return
        try:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gate = _begin(order, environment)
            closed = not isinstance(gate, str) and not gate.communicate()[1] and gate.returncode == 0
            yield unit if closed else None
        finally:
            os.close(lock)

    def _start(
        self, orders: Sequence[Order], environment: Mapping[str, str], more: Sequence[str]
    ) -> list[tuple[Order, str]]:
        refused: list[tuple[Order, str]] = []
        waiting = list(reversed(orders))
        under_way: list[tuple[Order, subprocess.Popen[bytes] | str]] = []
        while waiting or under_way:
            while waiting and len(under_way) < _AT_ONCE:
                order = waiting.pop()
                under_way.append((order, _begin(order, environment, more)))
            order, launch = under_way.pop(0)
            if complaint := self._refused(order, launch):
                refused.append((order, complaint))
        return refused

    def _refused(self, order: Order, launch: subprocess.Popen[bytes] | str) -> str | None:
        """Why the unit was surely not started; None where it was, or where nobody can tell: a sweep will see."""
        if isinstance(launch, str):
            return launch
        try:
            complaint = launch.communicate(timeout=_LAUNCH_SEC)[1].decode("utf-8", "replace").strip()
        except subprocess.TimeoutExpired:
            launch.kill()
            launch.communicate()
            return None
        failpoint("launcher-after-spawn")
        if launch.returncode == 0:
            return None
        if any(words in complaint for words in _NO_VERDICT):
            self._tell_of_another_store(order)
            return None
        # Refused, because it is there already: another launch of the same claim was first.
        there = manager.properties(self._manager, order.unit, "LoadState").get("LoadState")
        return f"systemd-run: {complaint[-300:]}" if there == "not-found" else None

    def _tell_of_another_store(self, order: Order) -> None:
        """Where the name is taken by a unit of another store, the run has to wait for its next one."""
        shown = manager.properties(self._manager, order.unit, "Description").get("Description", "")
        if tag_of(shown) not in (None, self._tag):
            warn(f"{order.unit} is another data home's just now: a tick launches the run under its next name")


def _begin(
    order: Order, environment: Mapping[str, str], more: Sequence[str] = ()
) -> subprocess.Popen[bytes] | str:
    program, *arguments = order.arguments
    try:
        return subprocess.Popen(
            # Byte for byte, whatever the locale is.
            [word.encode("utf-8", "surrogateescape") for word in (program, *more, *arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environment),
        )
    except (OSError, ValueError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else problem
        return f"systemd-run could not be started: {why}"


def _left_ms(one: Claimed) -> int:
    """What is left of the lease; a unit that starts after it is turned away by its start hook."""
    run = one.run
    elapsed = policy.elapsed_ms(
        run, now=clock.now(), boottime_ms=clock.boottime_ms(), boot_id=clock.boot_id()
    )
    assert run.lease_expires_at is not None
    assert run.slot_claimed_at is not None
    return max(1, run.lease_expires_at - run.slot_claimed_at - elapsed)


def _python(module: str) -> list[str]:
    return [os.path.abspath(sys.executable), "-I", "-m", module]


# -- what is asked for a command ---------------------------------------------------------------------------


def of_another_user(unit: str) -> dict[str, str]:
    """Where a command of another user, who may not enter our data home, leaves its result and its events."""
    folder = os.path.join("/run", runtime_directory(unit))
    return {"CAROL_DATA_DIR": folder, "CAROL_RESULT_FILE": os.path.join(folder, "result.json")}


def runtime_directory(unit: str) -> str:
    """The folder under /run that such a unit has for as long as it lives."""
    return unit.removesuffix(".service")


def properties_of(action: CommandAction, unit: str) -> list[str]:
    """The properties of the unit that the job's own options ask for."""
    said = {
        "User": action.run_as,
        # The hooks are ours all the same.
        "PermissionsStartOnly": "yes" if action.run_as else None,
        "WorkingDirectory": action.working_directory,
        "EnvironmentFile": action.environment_file,
        "MemoryMax": action.memory_max,
        "CPUQuota": action.cpu_quota,
        "NoNewPrivileges": "yes" if action.sandbox else None,
        "RuntimeDirectory": runtime_directory(unit) if action.run_as else None,
        "RuntimeDirectoryMode": "0700" if action.run_as else None,
    }
    given = [f"{name}={value}" for name, value in said.items() if value is not None]
    return given + [f"LoadCredential={one}" for one in action.load_credential]


# -- words for systemd -------------------------------------------------------------------------------------


def doubled(word: str) -> str:
    """A word of a command line as systemd has to be given it to pass it on as it is; ``%`` is left alone."""
    return word.replace("$", "$$")


def command_line(words: Sequence[str]) -> str:
    """A whole command as the value of ExecCondition= and its like, every word quoted."""
    return " ".join(f'"{_escaped(doubled(word))}"' for word in words)


def _escaped(word: str) -> str:
    plain = word.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in plain)
