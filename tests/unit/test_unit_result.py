"""What the end of a unit means for its run, as a table of everything that systemd may say."""

from __future__ import annotations

import pytest

from carolctl.launch.unit_result import UnitEnd, exit_status, has_run_out, judge
from carolctl.model import FailureClass


def end(result: str, code: str = "", status: str = "", **known: bool) -> UnitEnd:
    return UnitEnd(service_result=result, exit_code=code, exit_status=status, **known)


def reason(what: UnitEnd, said: FailureClass | None = None) -> str | None:
    ended = judge(what, said)
    assert ended is not None
    return ended.reason


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (end("success", "exited", "0"), None),
        (end("exit-code", "exited", "7"), "exit_nonzero"),
        (end("signal", "killed", "KILL"), "killed"),
        (end("core-dump", "dumped", "SEGV"), "killed"),
        # ``systemctl kill``: a clean end to systemd, and no success to us.
        (end("success", "killed", "TERM"), "killed"),
        (end("oom-kill", "killed", "KILL"), "out_of_memory"),
        (end("oom-kill", "exited", "1"), "out_of_memory"),
        (end("timeout", "killed", "TERM", past_lease=True), "lease_expired"),
        (end("timeout", "killed", "KILL", past_lease=True), "lease_expired"),
        (end("timeout", "exited", "0", past_lease=True), "lease_expired"),
        # It had ended long before its lease; what it left running did not want to.
        (end("timeout", "exited", "0"), None),
        (end("timeout", "exited", "3"), "exit_nonzero"),
        (end("watchdog", "killed", "ABRT"), "timeout"),
        (end("start-limit-hit"), "launch_failed"),
        (end("resources"), "launch_failed"),
        (end("protocol"), "launch_failed"),
        # Its start hook had made it running, and died before it said so.
        (end("exec-condition"), "launch_failed"),
        (end("signal", "killed", "KILL", started=False), "launch_failed"),
        (end("exit-code", "exited", "243", started=False), "launch_failed"),
        (end("exit-code", "exited", "203", executed=False), "launch_failed"),
        (end("exit-code", "exited", "203"), "exit_nonzero"),
        # Its start hook was killed after it had made the run running: the command never was.
        (end("signal"), "launch_failed"),
        (end("timeout", past_lease=True), "launch_failed"),
        (end("something-new"), "launch_failed"),
        (end("something-new", "exited", "0"), None),
        (end("something-new", "vanished", "0"), "outcome_unknown"),
    ],
)  # fmt: skip
def test_every_end_of_a_unit_has_its_failure_class(what: UnitEnd, expected: str | None) -> None:
    assert reason(what) == expected


@pytest.mark.parametrize(
    "what",
    [
        end("success", "exited", "0", being_stopped=True),
        end("success", "killed", "TERM", being_stopped=True),
        end("signal", "killed", "KILL", being_stopped=True),
        end("timeout", "killed", "KILL", being_stopped=True),
        end("exit-code", "exited", "1", being_stopped=True),
    ],
)
def test_what_was_stopped_from_outside_is_aborted_whatever_it_said_at_its_end(what: UnitEnd) -> None:
    assert reason(what) == "aborted"
    assert reason(what, "auth_failed") == "aborted"


def test_the_end_of_the_lease_stands_above_a_stop_that_came_after_it() -> None:
    assert reason(end("timeout", "killed", "TERM", being_stopped=True, past_lease=True)) == "lease_expired"


@pytest.mark.parametrize("said", ["auth_failed", "budget_exceeded"])
def test_a_command_may_say_itself_why_it_failed(said: FailureClass) -> None:
    assert reason(end("success", "exited", "0"), said) == said
    assert reason(end("exit-code", "exited", "1"), said) == said
    assert reason(end("oom-kill", "killed", "KILL"), said) == "out_of_memory"


def test_a_unit_that_its_start_hook_turned_away_changes_nothing() -> None:
    assert judge(end("exec-condition", "exited", "1", started=False), None) is None


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("exited", "0", 0),
        ("exited", "243", 243),
        ("killed", "TERM", 143),
        ("dumped", "SEGV", 139),
        ("killed", "RTMIN+3", None),
        ("exited", "", None),
        ("", "", None),
    ],
)
def test_an_exit_status_is_as_a_shell_has_it(code: str, status: str, expected: int | None) -> None:
    assert exit_status(code, status) == expected


@pytest.mark.parametrize(
    ("most", "ended", "expected"),
    [
        ("3s", 3_000_000, True),
        ("3s", 2_999_999, False),
        ("59.999s", 59_999_000, True),
        ("1min 40s", 100_000_000, True),
        ("1min 40s", 99_000_000, False),
        ("1d 2h 500ms", 93_600_499_999, False),
        ("1month", 2_629_800_000_000, True),
        ("infinity", 5, None),
        ("", 5, None),
        ("3s", -7, None),
    ],
)
def test_whether_a_command_was_ended_at_its_time_is_told_by_the_managers_own_clock(
    most: str, ended: int, expected: bool | None
) -> None:
    shown = {"ActiveEnterTimestampMonotonic": "7", "ExecMainExitTimestampMonotonic": str(ended + 7)}
    assert has_run_out(shown | {"RuntimeMaxUSec": most}) is expected


def test_a_command_that_was_never_executed_says_what_stood_in_its_way() -> None:
    ended = judge(end("exit-code", "exited", "203", executed=False), None)
    assert ended is not None
    assert ended.summary is not None
    assert "cannot be executed (203)" in ended.summary
