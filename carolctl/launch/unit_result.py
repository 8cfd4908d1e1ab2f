"""What the end of a unit means for its run: a pure function of what the service manager says, and of the row.

Decision: the manager's word (``$SERVICE_RESULT``, ``$EXIT_CODE``, ``$EXIT_STATUS``) is not enough. A job that traps
SIGTERM and exits 0 reads as a success when somebody stops it, and as a time-out when its lease ends; so a pending
stop job, the lease and whether the command ever ran are looked at as well. Consequence: a run that was cut short
is never taken for one that was done.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from carolctl.model import FailureClass

#: Exit codes that the manager itself gives where it could not run the command (systemd.exec(5)).
_MANAGERS_OWN = range(200, 244)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitEnd:
    """What is known at the end of a unit."""

    #: ``$SERVICE_RESULT``, ``$EXIT_CODE`` and ``$EXIT_STATUS``; empty where no process ran.
    service_result: str
    exit_code: str = ""
    exit_status: str = ""
    #: The start hook made the run ``running``; else it is still ``claimed``.
    started: bool = True
    #: The program was executed. A failing exec never gets so far.
    executed: bool = True
    #: The manager was told to stop the unit, by whomever.
    being_stopped: bool = False
    past_lease: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the command ended: the class of a failure, or None for a success."""

    reason: FailureClass | None
    exit_status: int | None
    #: In words, for a run that has nothing to say itself.
    summary: str | None = None


def judge(end: UnitEnd, said: FailureClass | None) -> Ended | None:
    """What to record, `said` being the failure that the command itself reported; None: nothing, it is not ours."""
    if not end.started and end.service_result == "exec-condition":
        return None
    status = exit_status(end.exit_code, end.exit_status)
    reason = _reason(end, said, status)
    return Ended(reason=reason, exit_status=status, summary=_in_words(end, reason, status))


def _reason(end: UnitEnd, said: FailureClass | None, status: int | None) -> FailureClass | None:
    """What was done to it comes first, then what it said of itself, then how it ended."""
    result = end.service_result
    if end.being_stopped and not (result == "timeout" and end.past_lease):
        return "aborted"
    if not (end.started and end.executed and end.exit_code) or result in _NEVER_RAN:
        # Without an exit code there was no process: a hook died, or was too slow.
        return "launch_failed"
    if result == "oom-kill":
        return "out_of_memory"
    if result == "timeout" and end.past_lease:
        return "lease_expired"
    if result == "watchdog":
        return "timeout"
    return said or _by_itself(end, status)


_NEVER_RAN = frozenset({"exec-condition", "start-limit-hit", "resources", "protocol"})


def _by_itself(end: UnitEnd, status: int | None) -> FailureClass | None:
    if end.exit_code == "exited":
        # Also "timeout": it had ended, and what it left running would not.
        return "exit_nonzero" if status else None
    if end.exit_code in ("killed", "dumped"):
        return "killed"
    return "outcome_unknown"


def exit_status(code: str, status: str) -> int | None:
    """As a shell has it: 128 + n for signal n, which the manager gives by its name."""
    if code == "exited" and status.isdecimal():
        return int(status)
    number = getattr(signal, f"SIG{status}", None)
    return 128 + int(number) if code in ("killed", "dumped") and number is not None else None


def has_run_out(shown: Mapping[str, str]) -> bool | None:
    """Whether the command lived until its unit's RuntimeMaxSec was over, by the manager's own clock, which nobody sets.

    `shown` are properties of the unit as systemctl shows them; None: they do not tell.
    """
    began, ended = (
        int(shown.get(f"{name}TimestampMonotonic") or 0) for name in ("ActiveEnter", "ExecMainExit")
    )
    most = sum(
        float(number) * _MICROSECONDS[word] for number, word in _SPAN.findall(shown.get("RuntimeMaxUSec", ""))
    )
    return ended - began >= round(most) if began and ended and most else None


_SPAN = re.compile(r"([0-9.]+)(y|month|w|d|h|min|s|ms|us)\b")
_MICROSECONDS = {
    "y": 31_557_600_000_000, "month": 2_629_800_000_000, "w": 604_800_000_000, "d": 86_400_000_000,
    "h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1,
}  # fmt: skip


def is_managers_own(status: str) -> bool:
    """Whether an exit status is one of those that the manager gives where a command could not be run."""
    return status.isdecimal() and int(status) in _MANAGERS_OWN


def _in_words(end: UnitEnd, reason: FailureClass | None, status: int | None) -> str | None:
    if reason is None:
        return None
    if reason == "launch_failed" and status in _MANAGERS_OWN:
        return f"systemd could not run the command: {_STEPS.get(status or 0, 'exit status')} ({status})"
    if reason == "launch_failed":
        return f"systemd did not run the command: {end.service_result}"
    if reason == "aborted":
        return "stopped by an operator or a shutdown"
    if end.exit_code in ("killed", "dumped"):
        return f"ended by signal {end.exit_status}: {end.service_result}"
    return f"exit status {status}" if status is not None else end.service_result


#: The exit codes that people meet, in their words.
_STEPS = {
    200: "its working directory cannot be entered",
    202: "file descriptors",
    203: "the program cannot be executed",
    208: "the environment cannot be set up",
    209: "standard output",
    216: "its group is not known",
    217: "its user is not known",
    218: "capabilities",
    219: "its control group",
    226: "its file system namespace",
    228: "its system call filter",
    233: "its runtime directory",
    237: "its keyring",
    243: "a credential cannot be loaded",
}
