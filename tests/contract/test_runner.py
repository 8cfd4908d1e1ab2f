"""The runner, as a real process on a real store: what is run, what is recorded, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from carolctl import clock, launch, spool
from carolctl.launch import owner
from carolctl.model import Claimed
from tests import builders
from tests.yard import Yard, probe, python, until


@pytest.fixture
def yard(home: Path) -> Iterator[Yard]:
    """A data home for runs; every process in it is ended after the test."""
    made = Yard(home)
    yield made
    made.close()


def told(yard: Yard, code: str, *arguments: str, **env: str) -> object:
    """What a Python command that ends by ``tell(value)`` tells, as JSON through its output."""
    prelude = "import json, os, sys\ndef tell(v): print(json.dumps(v))\n"
    run = yard.run_with(env, *python(prelude + code, *arguments))
    assert run.status == "completed"
    return json.loads(yard.log(run))


# -- start -----------------------------------------------------------------------------------------------------


def test_a_stale_claim_runs_nothing_and_says_nothing(yard: Yard, tmp_path: Path) -> None:
    claimed = yard.ready("touch", str(tmp_path / "ran"))
    for run_id, claim_no in ((claimed.run.run_id, 0), (claimed.run.run_id, 2), (99, 1)):
        assert yard.spawn_runner(["command", str(run_id), str(claim_no)]).wait(timeout=30) == 0
    assert not (tmp_path / "ran").exists()
    assert yard.row(claimed.run.run_id) == claimed.run
    assert yard.complaints() == ""


def test_of_many_runners_with_one_claim_only_one_runs_it(yard: Yard) -> None:
    claimed = yard.ready("sh", "-c", f"echo once >> {yard.home}/ran")
    for runner in [yard.spawn(claimed) for _ in range(6)]:
        assert runner.wait(timeout=30) == 0
    assert (yard.home / "ran").read_text() == "once\n"
    assert yard.row(claimed.run.run_id).status == "completed"


def test_the_row_of_a_running_run_names_its_supervisor(yard: Yard) -> None:
    claimed = yard.ready("sleep", "60")
    supervisor = yard.spawn(claimed)
    yard.until_status("running", claimed.run.run_id)
    run = yard.row(claimed.run.run_id)
    assert (run.pid, run.pid_start) == (supervisor.pid, owner.start_time(supervisor.pid))
    assert probe(run) == "alive"


@pytest.mark.parametrize(
    ("point", "status"), [("runner-before-start", "claimed"), ("runner-after-start", "running")]
)
def test_a_supervisor_that_dies_at_its_start_runs_nothing(point: str, status: str, yard: Yard) -> None:
    claimed = yard.ready("touch", str(yard.home / "ran"))
    assert yard.spawn(claimed, CAROL_FAILPOINT=point).wait(timeout=30) == -signal.SIGKILL
    run = yard.row(claimed.run.run_id)
    assert run.status == status
    assert probe(run) == ("unknown" if status == "claimed" else "dead")
    assert not (yard.home / "ran").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["command"], ["command", "x", "1"], ["http"], ["http", "1"], ["other"]]
)
def test_wrong_arguments_are_refused(arguments: list[str], yard: Yard) -> None:
    assert yard.spawn_runner(arguments).wait(timeout=30) == 2


def test_a_runner_that_shares_a_session_and_cannot_leave_it_is_refused(yard: Yard) -> None:
    claimed = yard.ready("true")
    command = [sys.executable, "-I", "-m", "carolctl.runner", "command", "1", "1"]
    done = subprocess.run(
        command, process_group=0, env=yard.carol.environment(), capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 78
    assert b"session" in done.stderr
    assert yard.row(claimed.run.run_id).status == "claimed"


# -- what the command is given -----------------------------------------------------------------------------------

HOSTILE = [
    "", " ", "$HOME", "${HOME}", "$$", "${env:HOME}", "`id`", "$(id)", "a'b\"c", "\\", "\n", "a\nb\tc", ";true",
    "*", "~", "-", "--", "-c", "%n", "größer €", "\U0001f600", "e\u0301", "\x1b[31m", "#", "'", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_the_argv_arrives_byte_for_byte(locale: str, yard: Yard) -> None:
    code = "tell([list(os.fsencode(a)) for a in sys.argv[1:]])"
    arguments = [*HOSTILE, os.fsdecode(b"\xff\xfe")]
    assert told(yard, code, *arguments, LC_ALL=locale) == [
        list(argument.encode("utf-8", "surrogateescape")) for argument in arguments
    ]


def test_the_command_is_told_about_its_run(yard: Yard) -> None:
    code = "tell({k: v for k, v in os.environ.items() if k.startswith('CAROL_') or k == 'OTHER'})"
    foreign = {"CAROL_FAILPOINT": "nowhere", "CAROL_FAILPOINT_ONCE": "/nowhere", "CAROL_MAX_TURNS": "99"}
    seen = told(yard, code, OTHER="kept", **foreign)
    assert seen == {
        "OTHER": "kept",
        "CAROL_RUN_ID": "1",
        "CAROL_CLAIM": "1",
        "CAROL_JOB_ID": "nightly",
        "CAROL_RESULT_FILE": str(yard.home / "results" / "1-1.json"),
        "CAROL_DATA_DIR": str(yard.home),
        "CAROL_SCHEDULER_DB": str(yard.home / "scheduler.db"),
        "CAROL_LAUNCHER": "process",
    }


def test_the_command_is_told_its_turn_budget(yard: Yard) -> None:
    run = yard.run("sh", "-c", "echo $CAROL_MAX_TURNS", max_turns=40)
    assert run.result_summary == "40"


def test_the_command_begins_as_from_a_clean_login(yard: Yard, tmp_path: Path) -> None:
    code = """
import signal
ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
tell({
    "cwd": os.getcwd(), "umask": os.umask(0), "stdin": sys.stdin.read(),
    "fds": sorted(map(int, os.listdir("/proc/self/fd")))[:3],
    "ignored": ignored, "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "own group": os.getpgid(0) == os.getpid(), "session": os.getsid(0) == os.getppid(),
    "open": len(os.listdir("/proc/self/fd")),
})"""
    assert told(yard, code, HOME=str(tmp_path)) == {
        "cwd": str(tmp_path),
        "umask": 0o022,
        "stdin": "",
        "fds": [0, 1, 2],
        # Python's own.
        "ignored": [signal.SIGPIPE, signal.SIGXFSZ],
        "blocked": 0,
        "own group": True,
        "session": True,
        # The three, and the one that lists them.
        "open": 4,
    }


def test_a_home_that_is_not_there_does_not_stop_a_command(yard: Yard) -> None:
    run = yard.run_with({"HOME": "/nowhere/at/all"}, "pwd")
    assert yard.log(run) == b"/\n"


# -- how it ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status", "reason", "exit_status"),
    [
        ("exit 0", "completed", None, 0),
        ("exit 1", "failed", "exit_nonzero", 1),
        ("exit 137", "failed", "exit_nonzero", 137),
        ("exit 255", "failed", "exit_nonzero", 255),
        ("kill -KILL $$", "failed", "killed", 137),
        ("kill -SEGV $$", "failed", "killed", 139),
        ("kill -TERM $$", "failed", "killed", 143),
    ],
)
def test_how_a_command_ends_is_recorded(
    script: str, status: str, reason: str | None, exit_status: int, yard: Yard
) -> None:
    run = yard.run("sh", "-c", f"ulimit -c 0; {script}")
    assert (run.status, run.failure_reason, run.exit_status) == (status, reason, exit_status)
    assert run.completed_at is not None


def unrunnable(folder: Path) -> dict[str, str]:
    plain, empty = folder / "plain", folder / "empty"
    plain.write_text("#!/bin/sh\n")
    empty.write_text("no shebang, no ELF\n")
    empty.chmod(0o755)
    return {
        "no-such-program-anywhere": "No such file",
        "/no/such/file": "No such file",
        str(plain): "Permission denied",
        str(folder): "Permission denied",
        str(empty): "Exec format error",
    }


def test_a_program_that_cannot_be_run_is_a_launch_failure_that_names_it(yard: Yard, tmp_path: Path) -> None:
    for number, (program, why) in enumerate(unrunnable(tmp_path).items()):
        claimed = yard.ready(program, "argument", job_id=f"job-{number}")
        assert yard.spawn(claimed).wait(timeout=30) == 0
        run = yard.row(claimed.run.run_id)
        assert (run.status, run.failure_reason, run.exit_status) == ("failed", "launch_failed", None)
        assert program in (run.result_summary or "")
        assert why in (run.result_summary or "")


@pytest.mark.parametrize("argv", [(), ("",), ("true", "a\0b")])
def test_an_argv_that_cannot_be_one_is_a_launch_failure(argv: tuple[str, ...], yard: Yard) -> None:
    assert yard.run(*argv).failure_reason == "launch_failed"


def test_a_job_that_was_removed_meanwhile_is_a_launch_failure(yard: Yard) -> None:
    claimed = yard.ready("true")
    with yard.store.write() as tx:
        tx.delete_job("nightly")
    assert yard.spawn(claimed).wait(timeout=30) == 0
    assert yard.row(claimed.run.run_id).failure_reason == "launch_failed"


# -- the result file ---------------------------------------------------------------------------------------------

DEEP = "[" * 60_000


@pytest.mark.parametrize(
    ("content", "code", "expected"),
    [
        ('{"turns": 12, "summary": "all good"}', 0, ("completed", None, 12, "all good")),
        ('{"failure_reason": "rate_limited", "turns": 3}', 0, ("failed", "rate_limited", 3, "last line")),
        (
            '{"failure_reason": "turn_limit_exceeded"}',
            4,
            ("failed", "turn_limit_exceeded", None, "last line"),
        ),
        ('{"failure_reason": "no idea", "summary": "s"}', 0, ("failed", "sdk_error", None, "s")),
        (
            '{"failure_reason": "no idea"}',
            0,
            ("failed", "sdk_error", None, "unknown failure reason 'no idea'"),
        ),
        ('{"failure_reason": ""}', 0, ("completed", None, None, "last line")),
        ('{"failure_reason": 5, "turns": -1, "summary": 3}', 0, ("completed", None, None, "last line")),
        ('{"turns": true}', 0, ("completed", None, None, "last line")),
        ('{"turns": 1e3}', 0, ("completed", None, None, "last line")),
        ('{"turns": 99999999999999999999}', 0, ("completed", None, None, "last line")),
        ('{"summary": "a\\u001b[31mb\\ud800c\\u0000\\nd"}', 0, ("completed", None, None, "a[31mbc\nd")),
        ("[]", 0, ("completed", None, None, "last line")),
        ("", 3, ("failed", "exit_nonzero", None, "last line")),
        ("not json", 0, ("completed", None, None, "last line")),
        (DEEP, 0, ("completed", None, None, "last line")),
        ('{"summary": "' + "x" * 66_000 + '"}', 0, ("completed", None, None, "last line")),
        ('{"summary": "' + "y" * 3000 + '"}', 0, ("completed", None, None, "y" * 2000)),
    ],
)
def test_the_result_file_says_what_the_exit_code_cannot(
    content: str, code: int, expected: tuple[object, ...], yard: Yard, tmp_path: Path
) -> None:
    (tmp_path / "result").write_text(content)
    run = yard.run(
        "sh", "-c", f'cp "$0" "$CAROL_RESULT_FILE"; echo last line; exit {code}', str(tmp_path / "result")
    )
    assert (run.status, run.failure_reason, run.turn_count, run.result_summary) == expected
    assert os.listdir(yard.home / "results") == []


@pytest.mark.parametrize("make", ["ln -s /etc/hostname", "mkfifo", "mkdir"])
def test_a_result_that_is_no_plain_file_is_not_read(make: str, yard: Yard) -> None:
    run = yard.run("sh", "-c", f'{make} "$CAROL_RESULT_FILE" && echo done')
    assert (run.status, run.result_summary) == ("completed", "done")


def test_the_result_file_lies_in_a_private_folder_and_none_is_needed(yard: Yard) -> None:
    run = yard.run("true")
    assert (run.status, run.turn_count, run.result_summary) == ("completed", None, None)
    assert stat.S_IMODE((yard.home / "results").stat().st_mode) == 0o700


# -- output ------------------------------------------------------------------------------------------------------


def test_the_output_is_kept_in_order_and_in_private(yard: Yard) -> None:
    run = yard.run("sh", "-c", "echo one; echo two >&2; printf '\\033[1mthr\\303\\251e\\033[0m\\n\\n  \\n'")
    assert yard.log(run) == b"one\ntwo\n\x1b[1mthr\xc3\xa9e\x1b[0m\n\n  \n"
    assert run.result_summary == "thrée"
    log = yard.home / "logs" / "run-1-1.log"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (log, log.parent)] == [0o600, 0o700]


def test_the_output_can_be_read_while_the_run_goes_on(yard: Yard) -> None:
    claimed = yard.ready("sh", "-c", "echo begun; sleep 60")
    yard.spawn(claimed)
    yard.until_status("running", claimed.run.run_id)
    until(lambda: yard.log(claimed.run) == b"begun\n")


def test_of_too_much_output_the_beginning_and_the_end_are_kept(yard: Yard) -> None:
    set_log_cap(yard, 4)
    run = yard.run(*python("for n in range(100_000): print(f'line {n:6}')"))
    log = yard.log(run)
    head, mark, tail = log.partition(b" bytes left out ...]\n")
    assert len(log) <= 4096
    assert head.startswith(b"line      0\nline      1\n")
    assert tail.endswith(b"line  99998\nline  99999\n")
    assert tail.startswith(b"line ")
    missing = int(head.rpartition(b"[... ")[2])
    kept_head = head.rpartition(b"\n[... ")[0]
    assert len(kept_head) + missing + len(tail) == 100_000 * 12
    assert len(kept_head) == 2048
    assert len(tail) > 900
    assert mark
    assert run.result_summary == "line  99999"


def set_log_cap(yard: Yard, kib: int) -> None:
    with yard.store.write() as tx:
        tx.set_setting("logs.max_kib", str(kib), now=clock.now())


def test_a_disk_that_takes_no_output_does_not_fail_the_run(yard: Yard) -> None:
    (yard.home / "logs").write_text("in the way")
    run = yard.run("sh", "-c", "yes | head -c 1000000; echo; echo said")
    assert (run.status, run.result_summary) == ("completed", "said")


# -- the tree ----------------------------------------------------------------------------------------------------


def test_what_a_command_leaves_behind_ends_with_it(yard: Yard) -> None:
    background = "sleep 60 & (sleep 60 &) ; (trap '' TERM; sleep 60) & exit 3"
    claimed = yard.ready("sh", "-c", background)
    supervisor = yard.spawn(claimed)
    assert supervisor.wait(timeout=30) == 0
    run = yard.row(claimed.run.run_id)
    assert (run.failure_reason, run.exit_status) == ("exit_nonzero", 3)
    assert yard.session_of(supervisor.pid) == set()


def test_output_held_open_by_a_runaway_does_not_hold_the_run(yard: Yard) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    print("runaway", os.getpid(), flush=True)
    time.sleep(60)
else:
    time.sleep(0.3)"""
    began = time.monotonic()
    run = yard.run(*python(code))
    assert time.monotonic() - began < 10
    assert run.status == "completed"
    os.kill(int(yard.log(run).split()[1]), signal.SIGKILL)


def test_after_the_death_of_a_supervisor_its_session_is_buried(yard: Yard) -> None:
    claimed = yard.ready("sh", "-c", "(trap '' TERM; sleep 60) & sleep 60 & wait")
    supervisor = yard.spawn(claimed)
    yard.until_status("running", claimed.run.run_id)
    until(lambda: len(yard.session_of(supervisor.pid)) >= 4)
    supervisor.kill()
    supervisor.wait()
    run = yard.row(claimed.run.run_id)
    assert probe(run) == "dead"
    assert yard.session_of(supervisor.pid)
    launch.bury([run])
    assert yard.session_of(supervisor.pid) == set()


# -- being stopped -----------------------------------------------------------------------------------------------

POLITE = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"


def running(yard: Yard, script: str, lease_sec: int = 60) -> tuple[Claimed, subprocess.Popen[bytes]]:
    """A run whose script has said that it is ready."""
    claimed = yard.ready("sh", "-c", script, lease_sec=lease_sec)
    supervisor = yard.spawn(claimed)
    until(lambda: b"ready" in yard.log(claimed.run))
    return claimed, supervisor


def test_a_stopped_command_that_exits_zero_is_aborted_not_completed(yard: Yard) -> None:
    claimed, supervisor = running(yard, POLITE)
    launch.stop([yard.row(claimed.run.run_id)])
    assert supervisor.wait(timeout=30) == 0
    run = yard.row(claimed.run.run_id)
    assert (run.status, run.failure_reason, run.exit_status) == ("failed", "aborted", 0)


TWO_GROUPS = """
import os, signal, sys, time
name = "child" if os.fork() == 0 else "parent"
if name == "child":
    os.setpgid(0, 0)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(os.write(1, f"asked {name}\\n".encode())))
print("ready", flush=True)
while not asked:
    time.sleep(0.02)
time.sleep(0.3)
"""


def test_everyone_in_the_session_is_asked_to_end_and_nobody_twice(yard: Yard) -> None:
    claimed = yard.ready(*python(TWO_GROUPS))
    supervisor = yard.spawn(claimed)
    until(lambda: yard.log(claimed.run).count(b"ready") == 2)
    launch.stop([yard.row(claimed.run.run_id)])
    assert supervisor.wait(timeout=9) == 0
    assert sorted(yard.log(claimed.run).splitlines()[2:]) == [b"asked child", b"asked parent"]


def test_a_recorded_stop_reason_stands_above_the_exit_code(yard: Yard) -> None:
    claimed, supervisor = running(yard, POLITE)
    with yard.store.write() as tx:
        tx.set_stop_reason(claimed.run.run_id, claimed.run.claim_no, "cancelled", now=clock.now())
    launch.stop([yard.row(claimed.run.run_id)])
    assert supervisor.wait(timeout=30) == 0
    run = yard.row(claimed.run.run_id)
    assert (run.status, run.failure_reason, run.exit_status) == ("cancelled", None, 0)


def test_a_stop_reaches_also_a_command_that_was_suspended(yard: Yard) -> None:
    claimed, supervisor = running(yard, "echo ready; kill -STOP $$")
    until(
        lambda: any(
            process.state == "T" for process in owner.process_table() if process.session == supervisor.pid
        )
    )
    launch.stop([yard.row(claimed.run.run_id)])
    assert supervisor.wait(timeout=9) == 0
    assert yard.row(claimed.run.run_id).exit_status == 143


def test_the_lease_ends_a_run_and_all_of_its_tree(yard: Yard) -> None:
    claimed, supervisor = running(yard, f"sleep 60 & {POLITE}", lease_sec=2)
    assert supervisor.wait(timeout=9) == 0
    run = yard.row(claimed.run.run_id)
    assert (run.status, run.failure_reason, run.exit_status) == ("failed", "lease_expired", 0)
    assert run.completed_at is not None
    assert run.lease_expires_at is not None
    assert run.completed_at >= run.lease_expires_at
    assert yard.session_of(supervisor.pid) == set()


@pytest.mark.slow
def test_a_command_that_does_not_listen_is_killed_after_its_grace(yard: Yard) -> None:
    deaf = "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; while :; do sleep 0.1; done"
    claimed, supervisor = running(yard, deaf)
    began = time.monotonic()
    launch.stop([yard.row(claimed.run.run_id)])
    time.sleep(1)
    assert yard.row(claimed.run.run_id).status == "running"
    assert supervisor.wait(timeout=30) == 0
    assert 9.5 < time.monotonic() - began < 20
    run = yard.row(claimed.run.run_id)
    assert (run.failure_reason, run.exit_status) == ("aborted", 137)
    assert yard.session_of(supervisor.pid) == set()


def test_a_lease_that_ran_out_before_the_start_runs_nothing(yard: Yard) -> None:
    yard.queue(builders.job("late", manual=True, argv=("touch", str(yard.home / "ran"))))
    claimed = yard.claim(lease_sec=5, claimed_ago_ms=6000)[0]
    assert yard.spawn(claimed).wait(timeout=30) == 0
    assert yard.row(claimed.run.run_id).failure_reason == "lease_expired"
    assert not (yard.home / "ran").exists()


def test_under_a_pinned_clock_the_lease_still_passes_in_real_time(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:00Z")
    claimed = yard.ready("sleep", "60", lease_sec=1)
    began = time.monotonic()
    assert yard.spawn(claimed, CAROL_NOW="2026-01-01T00:00:00Z").wait(timeout=30) == 0
    assert 0.9 < time.monotonic() - began < 15
    run = yard.row(claimed.run.run_id)
    assert (run.failure_reason, run.completed_at) == ("lease_expired", builders.T0)


# -- finish ------------------------------------------------------------------------------------------------------


def test_the_queue_moves_on_without_a_tick(yard: Yard) -> None:
    ids = yard.queue(*(builders.job(f"job-{n}", manual=True, argv=("true",)) for n in range(4)))
    first = yard.claim(cap=1)
    assert [one.run.run_id for one in first] == ids[:1]
    yard.spawn(*first, SCHEDULE_MAX_CONCURRENT="1")
    yard.until_status("completed", *ids)
    starts = [run.started_at for run in yard.rows()]
    ends = [run.completed_at for run in yard.rows()]
    assert all(a is not None and b is not None and a <= b for a, b in zip(ends, starts[1:], strict=False))


def test_an_end_that_the_locked_store_does_not_take_goes_to_the_spool(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(yard.home))
    claimed = yard.ready("sh", "-c", f"while [ ! -e {yard.home}/go ]; do sleep 0.02; done; echo over; exit 5")
    supervisor = yard.spawn(claimed, CAROL_BUSY_TIMEOUT_MS="50")
    yard.until_status("running", claimed.run.run_id)
    with closing(sqlite3.connect(yard.home / "scheduler.db", isolation_level=None)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        (yard.home / "go").touch()
        assert supervisor.wait(timeout=30) == 0
    assert yard.row(claimed.run.run_id).status == "running"
    (file,) = spool.pending()
    assert (file.outcome.run_id, file.outcome.exit_status, file.outcome.summary) == (1, 5, "over")


@pytest.mark.parametrize(
    ("point", "status"), [("runner-before-finish", "running"), ("runner-after-finish", "failed")]
)
def test_a_supervisor_that_dies_at_its_end_is_found_dead(point: str, status: str, yard: Yard) -> None:
    claimed = yard.ready("false")
    assert yard.spawn(claimed, CAROL_FAILPOINT=point).wait(timeout=30) == -signal.SIGKILL
    run = yard.row(claimed.run.run_id)
    assert run.status == status
    assert probe(run) == "dead"


def test_a_store_that_is_locked_at_the_start_leaves_the_claim_to_a_sweep(yard: Yard) -> None:
    claimed = yard.ready("touch", str(yard.home / "ran"))
    with closing(sqlite3.connect(yard.home / "scheduler.db", isolation_level=None)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        assert yard.spawn(claimed, CAROL_BUSY_TIMEOUT_MS="50").wait(timeout=30) == 75
    assert yard.row(claimed.run.run_id) == claimed.run
    assert not (yard.home / "ran").exists()


def test_a_command_is_run_without_a_heavy_import(yard: Yard) -> None:
    yard.ready("true")
    code = """
import sys
from carolctl.runner import main
code = main(["command", "1", "1"])
print(sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)"""
    done = subprocess.run(
        python(code),
        env=yard.carol.environment(),
        start_new_session=True,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert yard.row(1).status == "completed"
    for heavy in ("typer", "rich", "requests", "tenacity", "croniter", "asyncio", "ssl"):
        assert f"'{heavy}'".encode() not in done.stdout
