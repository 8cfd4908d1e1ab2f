"""The process launcher, with real supervisors: detached, nothing inherited, nobody waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from carolctl import launch
from carolctl.errors import BadConfig, Exit, Unavailable
from carolctl.launch import owner, service_manager
from carolctl.launch.process import ProcessLauncher, inside_tick_unit
from carolctl.lockguard import IOUnderLock, set_write_open
from carolctl.model import Claimed, CommandAction
from tests import builders
from tests.endpoint import Endpoint, Reply
from tests.yard import Yard, python, until


@pytest.fixture
def yard(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """A data home that is also the one of this process; every process in it is ended after the test."""
    for name in [name for name in os.environ if name.startswith(("CAROL_", "SCHEDULE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.setenv("CAROL_LAUNCHER", "process")
    made = Yard(home)
    yield made
    made.close()


def launched(yard: Yard, *argv: str) -> Claimed:
    """A command job, claimed and launched from this process."""
    claimed = yard.ready(*argv)
    assert launch.choose("process").launch([claimed]) == []
    return claimed


def complaints(yard: Yard) -> str:
    return (yard.home / "logs" / "runner.log").read_text()


def test_a_launched_command_runs_to_its_end(yard: Yard) -> None:
    claimed = launched(yard, "sh", "-c", "echo done; exit 3")
    yard.until_status("failed", claimed.run.run_id)
    run = yard.row(claimed.run.run_id)
    assert (run.failure_reason, run.exit_status, run.result_summary) == ("exit_nonzero", 3, "done")
    assert complaints(yard) == ""


def test_each_command_has_a_session_of_its_own(yard: Yard) -> None:
    yard.queue(*(builders.job(f"job-{n}", manual=True, argv=("sleep", "60")) for n in range(5)))
    claimed = yard.claim()
    launch.choose("process").launch(claimed)
    yard.until_status("running", *(one.run.run_id for one in claimed))
    pids = {run.pid for run in yard.rows()}
    assert len(pids) == 5
    assert all(pid is not None and os.getsid(pid) == pid for pid in pids)
    launch.stop(yard.rows())
    yard.until_status("failed", *(one.run.run_id for one in claimed))
    assert {run.failure_reason for run in yard.rows()} == {"aborted"}


def test_http_runs_share_supervisors_in_chunks(yard: Yard) -> None:
    together = threading.Event()
    with Endpoint() as endpoint:
        url = endpoint.on("/job", Reply(hold=together))
        yard.queue(*(builders.job(f"call-{n}", manual=True, url=url) for n in range(40)))
        (command,) = yard.queue(builders.job("command", manual=True, argv=("sleep", "0.1")))
        assert launch.choose("process").launch(yard.claim()) == []
        endpoint.wait_for(40)
        by_pid: dict[int | None, int] = {}
        for run in yard.rows()[:40]:
            by_pid[run.pid] = by_pid.get(run.pid, 0) + 1
        assert sorted(by_pid.values()) == [8, 32]
        assert yard.row(command).pid not in by_pid
        together.set()
        yard.until_status("completed", *(run.run_id for run in yard.rows()))


def test_a_supervisor_inherits_no_descriptor_and_holds_no_folder(yard: Yard, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(lock, True)
    try:
        claimed = launched(yard, "sleep", "60")
        yard.until_status("running", claimed.run.run_id)
    finally:
        os.close(lock)
    process = Path(f"/proc/{yard.row(claimed.run.run_id).pid}")
    opened = {}
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            opened[entry.name] = os.readlink(entry)
    assert str(tmp_path / "lock") not in opened.values()
    log = str(yard.home / "logs" / "runner.log")
    assert [opened["0"], opened["1"], opened["2"]] == ["/dev/null", log, log]
    assert os.readlink(process / "cwd") == "/"


def test_a_launched_run_outlives_its_launcher(yard: Yard) -> None:
    claimed = yard.ready("sh", "-c", "sleep 0.5; echo outlived")
    code = f"""
import signal, sys
# As some callers leave it: a command whose end is thrown away would have no exit status.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from carolctl import launch
from carolctl.session import open_session
with open_session().store.read() as tx:
    run = tx.run({claimed.run.run_id})
from carolctl.model import Claimed, CommandAction
print(launch.choose_configured().launch([Claimed(run=run, action=CommandAction(argv=("unused",)))]))
"""
    done = subprocess.run(
        python(code), env=yard.carol.environment(), capture_output=True, timeout=30, check=True
    )
    assert done.stdout == b"[]\n"
    yard.until_status("completed", claimed.run.run_id)
    run = yard.row(claimed.run.run_id)
    assert (run.result_summary, run.exit_status) == ("outlived", 0)


def test_a_run_launched_from_inside_another_inherits_nothing_of_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAROL_MAX_TURNS", "99")
    monkeypatch.setenv("CAROL_RESULT_FILE", str(tmp_path / "foreign"))
    monkeypatch.setenv("OTHER", "kept")
    claimed = launched(yard, "sh", "-c", 'echo "$CAROL_MAX_TURNS|$CAROL_RESULT_FILE|$CAROL_RUN_ID|$OTHER"')
    yard.until_status("completed", claimed.run.run_id)
    summary = yard.row(claimed.run.run_id).result_summary
    assert summary == f"|{yard.home}/results/1-1.json|1|kept"


def test_relative_places_mean_the_launchers_folder(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(yard.home.parent)
    monkeypatch.setenv("CAROL_DATA_DIR", "home")
    monkeypatch.setenv("CAROL_SCHEDULER_DB", "home/scheduler.db")
    monkeypatch.setenv("CAROL_PLANNER_DB", "planner.db")
    claimed = launched(yard, "sh", "-c", 'echo "$CAROL_DATA_DIR $CAROL_SCHEDULER_DB $CAROL_PLANNER_DB"')
    yard.until_status("completed", claimed.run.run_id)
    told = f"{yard.home} {yard.home}/scheduler.db {yard.home.parent}/planner.db\n"
    assert yard.log(claimed.run) == told.encode()


def test_what_could_not_be_started_comes_back(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.queue(
        builders.job("command", manual=True),
        *(builders.job(f"call-{n}", manual=True, url="http://127.0.0.1:9/") for n in range(2)),
    )
    claimed = yard.claim()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    failures = launch.choose("process").launch(claimed)
    assert sorted((failure.run_id, failure.claim_no) for failure in failures) == [(1, 1), (2, 1), (3, 1)]
    assert all("No such file" in failure.message for failure in failures)
    assert [run.status for run in yard.rows()] == ["claimed"] * 3


def test_a_folder_for_complaints_that_cannot_be_made_stops_no_launch(yard: Yard) -> None:
    (yard.home / "logs").write_text("in the way")
    claimed = launched(yard, "true")
    yard.until_status("completed", claimed.run.run_id)


def test_a_supervisor_complains_in_the_runner_log_which_stays_small(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    (yard.home / "logs").mkdir(parents=True)
    (yard.home / "logs" / "runner.log").write_text("x" * 2_000_000)
    monkeypatch.setenv("CAROL_SCHEDULER_DB", str(yard.home / "nothing-here.db"))
    launched(yard, "true")
    until(lambda: "no such file" in complaints(yard))
    assert (yard.home / "logs" / "runner.log").stat().st_size < 1000
    assert (yard.home / "logs" / "runner.log.1").stat().st_size == 2_000_000


def test_nothing_to_launch_leaves_no_trace(yard: Yard) -> None:
    assert launch.choose("process").launch([]) == []
    assert not (yard.home / "logs").exists()


def test_a_dead_supervisor_is_told_from_a_living_one(yard: Yard) -> None:
    claimed = launched(yard, "sleep", "60")
    yard.until_status("running", claimed.run.run_id)
    run = yard.row(claimed.run.run_id)
    assert run.host is not None
    assert run.boot_id is not None
    assert launch.probe([run], host=run.host, boot_id=run.boot_id) == {1: "alive"}
    launch.kill([run])
    assert launch.probe([run], host=run.host, boot_id=run.boot_id) == {1: "dead"}
    assert owner.members(owner.process_table(), [run.pid or 0]) == []
    assert yard.row(1).status == "running"


# -- where it may be used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cgroup", "inside"),
    [
        ("0::/system.slice/carolctl-tick.service\n", True),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/carolctl-tick.service\n", True),
        ("12:cpu:/\n1:name=systemd:/system.slice/carolctl-tick.service/payload\n0::/\n", True),
        ("0::/system.slice/cron.service\n", False),
        ("0::/system.slice/not-carolctl-tick.service\n", False),
        ("0::/carolctl.slice/carolctl-run-1-1.service\n", False),
        ("", False),
    ],
)
def test_the_ticks_own_unit_is_known_by_its_control_group(cgroup: str, inside: bool, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    path = str(tmp_path / "cgroup")
    assert inside_tick_unit({"INVOCATION_ID": "f00"}, path) is inside
    assert inside_tick_unit({}, path) is False
    assert inside_tick_unit({"INVOCATION_ID": "f00"}, str(tmp_path / "missing")) is False


def test_inside_the_ticks_own_unit_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/system.slice/carolctl-tick.service\n")
    monkeypatch.setenv("INVOCATION_ID", "f00")
    with pytest.raises(BadConfig) as refused:
        ProcessLauncher(db="/unused", home="/unused", cgroup_file=str(tmp_path / "cgroup"))
    assert refused.value.code == Exit.CONFIG


def test_the_systemd_launcher_needs_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_manager, "manager_here", lambda: None)
    with pytest.raises(Unavailable) as refused:
        launch.choose("systemd")
    assert refused.value.code == Exit.UNAVAILABLE
    assert "linger" in (refused.value.hint or "")


def test_nothing_is_launched_while_a_write_is_open(yard: Yard) -> None:
    launcher = launch.choose("process")
    set_write_open(True)
    try:
        with pytest.raises(IOUnderLock):
            launcher.launch([])
    finally:
        set_write_open(False)


def test_a_command_gets_its_folder_and_the_variables_of_its_file(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "job.env").write_text('# a comment\nPLAIN=one two\nQUOTED="three"\n\nnothing\n')
    action = CommandAction(
        argv=("sh", "-c", 'echo "$PWD $PLAIN $QUOTED"'),
        working_directory=str(tmp_path),
        environment_file=str(tmp_path / "job.env"),
    )
    [run_id] = yard.queue(builders.job(manual=True, action=action))
    assert launch.choose("process").launch(yard.claim()) == []
    yard.until_status("completed", run_id)
    assert yard.row(run_id).result_summary == f"{tmp_path} one two three"


def test_a_command_of_another_user_is_not_run_as_this_one(yard: Yard) -> None:
    yard.queue(builders.job(manual=True, action=CommandAction(argv=("true",), run_as="nobody")))
    [failure] = launch.choose("process").launch(yard.claim())
    assert "systemd" in failure.message
