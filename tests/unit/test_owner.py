"""Proof of life and death: what /proc says about one process, and what follows for a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from carolctl import clock, launch
from carolctl.launch import owner
from carolctl.lockguard import IOUnderLock, set_write_open
from carolctl.model import Run
from tests.builders import T0

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a process that leads a session of its own; killed with all of that session after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE, **options))
        return started[-1]

    yield start
    for process in started:
        for member in owner.members(owner.process_table(), [process.pid]):
            owner.send(member.pid, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=10)


def run_of(process: subprocess.Popen[bytes] | None = None, **columns: Any) -> Run:
    """A running run that `process` owns, on this host and boot."""
    empty: dict[str, Any] = dict.fromkeys(Run.__slots__)
    known = {
        "run_id": 7,
        "job_id": "nightly",
        "source": "manual",
        "status": "running",
        "queued_at": T0,
        "claim_no": 1,
        "host": clock.hostname(),
        "boot_id": clock.boot_id(),
        "pid": process.pid if process else None,
        "pid_start": owner.start_time(process.pid) if process else None,
    }
    return Run(**empty | known | columns)


def liveness(run: Run) -> str:
    """What a probe on this host and boot says."""
    return launch.probe([run], host=clock.hostname(), boot_id=clock.boot_id())[run.run_id]


def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait for `condition`; the test fails when it does not come true."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.01)


def test_a_running_owner_is_alive(spawn: Spawn) -> None:
    assert liveness(run_of(spawn("sleep", "60"))) == "alive"


def test_an_owner_that_ended_is_dead_before_and_after_its_parent_notices(spawn: Spawn) -> None:
    process = spawn("sleep", "60")
    run = run_of(process)
    process.kill()
    until(lambda: liveness(run) == "dead")
    process.wait()
    assert liveness(run) == "dead"


def test_another_process_with_the_same_id_is_not_the_owner(spawn: Spawn) -> None:
    run = run_of(spawn("sleep", "60"))
    assert run.pid_start is not None
    assert liveness(replace(run, pid_start=run.pid_start - 1)) == "dead"


def test_an_owner_of_another_boot_is_dead_whatever_has_its_id_now(spawn: Spawn) -> None:
    run = run_of(spawn("sleep", "60"), boot_id="11111111-2222-3333-4444-555555555555")
    assert liveness(run) == "dead"


def test_an_owner_on_another_host_is_unknown_even_where_its_id_is_free() -> None:
    assert liveness(run_of(pid=2**22 + 1, pid_start=1, host="elsewhere")) == "unknown"
    assert liveness(run_of(pid=2**22 + 1, pid_start=1)) == "dead"


def test_a_run_without_an_owner_is_unknown_also_after_a_reboot() -> None:
    assert liveness(run_of()) == "unknown"
    assert liveness(run_of(boot_id="11111111-2222-3333-4444-555555555555")) == "unknown"


def test_a_run_in_a_unit_is_not_judged_by_process_ids() -> None:
    assert liveness(run_of(unit="carolctl-run-7-1.service")) == "unknown"


def test_a_process_whose_start_is_not_on_the_row_proves_nothing(spawn: Spawn) -> None:
    assert liveness(run_of(spawn("sleep", "60"), pid_start=None)) == "unknown"


def test_a_boot_id_that_cannot_be_read_is_no_proof_of_a_reboot(spawn: Spawn) -> None:
    run = run_of(spawn("sleep", "60"))
    assert launch.probe([run], host=clock.hostname(), boot_id="unknown") == {7: "alive"}
    assert liveness(replace(run, boot_id="unknown")) == "alive"


@pytest.mark.parametrize("name", ["a b", "a) R 1 1 (", "(((", "new\nline"])
def test_a_program_name_cannot_forge_what_proc_says(name: str, spawn: Spawn) -> None:
    rename = (
        "import sys, time; open('/proc/self/comm', 'w').write(sys.argv[1]); print(flush=True); time.sleep(60)"
    )
    process = spawn(sys.executable, "-I", "-c", rename, name)
    assert process.stdout is not None
    process.stdout.readline()
    seen = owner.look(process.pid)
    assert seen is not None
    assert (seen.pid, seen.session, seen.has_ended) == (process.pid, process.pid, False)
    assert seen.start == run_of(process).pid_start


def test_stop_asks_the_owner_and_no_one_with_another_start_time(spawn: Spawn) -> None:
    process = spawn("sleep", "60")
    run = run_of(process)
    assert run.pid_start is not None
    launch.stop([replace(run, pid_start=run.pid_start + 1), replace(run, host="elsewhere"), run_of()])
    time.sleep(0.05)
    assert process.poll() is None
    launch.stop([run])
    assert process.wait(timeout=5) == -signal.SIGTERM


def test_stop_wakes_an_owner_that_was_stopped(spawn: Spawn) -> None:
    process = spawn("sleep", "60")
    os.kill(process.pid, signal.SIGSTOP)
    launch.stop([run_of(process)])
    assert process.wait(timeout=5) == -signal.SIGTERM


def session_of_three(spawn: Spawn) -> subprocess.Popen[bytes]:
    """A session leader, a child that does not listen, and an orphan of another child."""
    process = spawn("sh", "-c", "(trap '' TERM; sleep 60) & (sleep 60 & ) ; echo; wait")
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: len(left_in(process)) >= 3)
    return process


def left_in(process: subprocess.Popen[bytes]) -> set[int]:
    return {member.pid for member in owner.members(owner.process_table(), [process.pid])}


def test_bury_kills_every_member_of_a_dead_owners_session(spawn: Spawn) -> None:
    process = session_of_three(spawn)
    run = run_of(process)
    process.kill()
    until(lambda: liveness(run) == "dead")
    assert left_in(process)
    launch.bury([run])
    assert left_in(process) == set()


def test_bury_leaves_the_living_and_the_strangers_alone(spawn: Spawn) -> None:
    process = session_of_three(spawn)
    run = run_of(process)
    assert run.pid_start is not None
    before = left_in(process)
    launch.bury([run, replace(run, host="elsewhere"), run_of()])
    launch.bury([replace(run, pid_start=run.pid_start - 1)])
    launch.bury([replace(run, boot_id="11111111-2222-3333-4444-555555555555")])
    assert left_in(process) == before


def test_bury_spares_what_is_older_than_the_owner(spawn: Spawn) -> None:
    process = session_of_three(spawn)
    run = run_of(process)
    process.kill()
    process.wait()
    assert run.pid_start is not None
    launch.bury([replace(run, pid_start=run.pid_start + 1_000_000)])
    assert left_in(process)
    launch.bury([run])
    assert left_in(process) == set()


def test_kill_ends_a_live_owner_and_its_session_at_once(spawn: Spawn) -> None:
    process = session_of_three(spawn)
    run = run_of(process)
    launch.kill([run])
    assert process.wait(timeout=5) == -signal.SIGKILL
    assert left_in(process) == set()


@pytest.mark.parametrize("call", [launch.stop, launch.kill, launch.bury])
def test_nothing_is_signalled_while_a_write_is_open(call: Callable[[list[Run]], None]) -> None:
    set_write_open(True)
    try:
        with pytest.raises(IOUnderLock):
            call([])
        with pytest.raises(IOUnderLock):
            launch.probe([], host="here", boot_id="now")
    finally:
        set_write_open(False)
