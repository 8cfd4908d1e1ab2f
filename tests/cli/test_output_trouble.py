"""When what a command says cannot be written: closed and full outputs, and work that must go on all the same."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from carolctl.notices import warn
from carolctl.store.gate import SUFFIX
from tests import builders
from tests.builders import Carol, job
from tests.yard import until


def call(carol: Carol, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Any:
    """Run a command with streams of our own."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        carol.command(*arguments), env=carol.environment() | (env or {}), timeout=60, check=False, **streams
    )


@contextmanager
def full() -> Iterator[int]:
    """A descriptor that never takes anything."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_warning_that_nothing_takes_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with full() as descriptor:
        monkeypatch.setattr(
            sys, "stderr", io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), write_through=True)
        )  # type: ignore[arg-type]
        warn("the disk is full")
        monkeypatch.undo()


def test_a_tick_fires_although_its_log_takes_nothing(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    now = {"CAROL_NOW": "2026-01-01T01:00:00Z", "SCHEDULE_MAX_CONCURRENT": "many"}
    with full() as nowhere:
        call(carol, "tick", env=now, stdout=subprocess.DEVNULL, stderr=nowhere)
    assert [run["job_id"] for run in carol("list-runs", "--json").json()["runs"]] == ["nightly"]


def test_an_outcome_reaches_the_spool_although_the_runners_log_takes_nothing(
    home: Path, carol: Carol
) -> None:
    builders.add_jobs(home, job(manual=True, argv=("sleep", "0.7")))
    (home / "logs").mkdir(mode=0o700)
    with mounted(home / "logs", "size=64k,mode=700"):
        assert carol("run-job", "nightly", CAROL_BUSY_TIMEOUT_MS="200").code == 0
        until(lambda: carol("show-run", "1", "--json").json()["status"] == "running")
        with closing(sqlite3.connect(home / "scheduler.db", isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")
            fill(home / "logs")
            until(lambda: any((home / "spool" / "new").glob("*")) if (home / "spool").exists() else False)
    assert carol("tick", "--json").code == 0
    assert carol("show-run", "1", "--json").json()["status"] == "completed"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if done.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError:
            return


# -- standard output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("run-job", "nightly"), ("pause", "nightly"), ("pause", "nightly", "--json")]
)
def test_work_that_is_done_and_cannot_be_shown_is_not_to_be_tried_again(
    home: Path, carol: Carol, arguments: tuple[str, ...]
) -> None:
    builders.add_jobs(home, job())
    with full() as nowhere:
        done = call(carol, *arguments, stdout=nowhere)
    assert done.returncode == 1
    assert (b"No space left on device" in done.stderr, b"do not try again" in done.stderr) == (True, True)
    assert len(done.stderr.splitlines()) == 1
    if arguments[0] == "pause":
        assert carol("show-job", "nightly", "--json").json()["status"] == "paused"
    else:
        assert len(carol("list-runs", "--json").json()["runs"]) == 1


def test_an_event_that_is_on_disk_was_emitted_whether_or_not_its_id_can_be_shown(
    home: Path, carol: Carol
) -> None:
    builders.add_jobs(home, job())
    with full() as nowhere:
        assert call(carol, "emit", "1", "--kind", "progress", stdout=nowhere).returncode == 0
    assert len(list((home / "spool" / "new").iterdir())) == 1


@pytest.mark.parametrize(
    "arguments", [("pause", "nightly"), ("tick",), ("emit", "1", "--kind", "a"), ("list-jobs",)]
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_no_trouble(
    home: Path, carol: Carol, arguments: tuple[str, ...], number: int
) -> None:
    builders.add_jobs(home, job())
    name = ("stdin", "stdout", "stderr")[number]
    done = call(carol, *arguments, preexec_fn=lambda: os.close(number), **{name: None})
    assert done.returncode == 0
    assert b"Traceback" not in (done.stderr or b"")
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("command", ["forecast", "collision-check"])
def test_a_picture_that_a_full_disk_does_not_take_is_one_line_with_its_path(
    home: Path, carol: Carol, tmp_path: Path, command: str
) -> None:
    builders.add_jobs(home, job())
    small = tmp_path / "small"
    small.mkdir()
    with mounted(small, "size=64k,mode=700"):
        fill(small)
        done = carol(command, "--plot", str(small / "day.svg"), "--json")
        assert (done.code, done.error()["error"], sorted(small.iterdir())) == (
            75,
            "disk_full",
            [small / "filler"],
        )
        assert str(small / "day.svg") in done.error()["message"]


# -- things in the way -----------------------------------------------------------------------------------------


def test_an_idle_tick_that_cannot_say_so_ends_like_any_other_command(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job(manual=True))
    assert carol("tick").out == carol("tick").out == "nothing to do\n"
    with full() as nowhere:
        done = call(carol, "tick", stdout=nowhere)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = call(carol, "tick", "--json", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_idle_tick_on_a_file_system_that_became_read_only_says_so(home: Path, carol: Carol) -> None:
    home.mkdir(mode=0o700)
    with mounted(home, "size=100m,mode=700"):
        builders.add_jobs(home, job(manual=True))
        assert carol("tick").code == 0
        subprocess.run(["mount", "-o", "remount,ro", home], check=True)
        done = carol("tick")
        assert (done.code, len(done.err.splitlines())) == (77, 1)


@pytest.mark.parametrize("command", ["tick", "drain"])
def test_a_file_in_the_place_of_the_spool_folder_is_one_line(home: Path, carol: Carol, command: str) -> None:
    builders.add_jobs(home, job(manual=True))
    (home / "spool").write_text("")
    done = carol(command)
    assert (done.code, len(done.err.splitlines())) == (65, 1)
    assert "bug" not in done.err


def test_a_database_that_is_redirected_into_locks_is_refused(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    with open(home / "scheduler.db", "rb") as given:
        done = call(carol, "locks", str(home / "scheduler.db"), stdin=given)
    assert (done.returncode, b"in this very process" in done.stderr) == (2, True)


def test_backups_of_one_second_do_not_take_each_others_place(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    made = [carol("backup", "--json", CAROL_NOW="2026-03-01T00:00:00Z").json() for _ in range(3)]
    assert len({one["backup"] for one in made}) == 3
    uuids = {}
    for path in (home / "backups").glob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            uuids[str(path)] = connection.execute(
                "SELECT value FROM meta WHERE key = 'store_uuid'"
            ).fetchone()[0]
    assert uuids == {one["backup"]: one["store_uuid"] for one in made}


# -- the line before the lock ----------------------------------------------------------------------------------


@contextmanager
def in_line(home: Path) -> Iterator[None]:
    """Somebody at the head of the line who does not move."""
    holder = subprocess.Popen(
        ["flock", str(home / f"scheduler.db{SUFFIX}"), "sleep", "60"], start_new_session=True
    )
    try:
        time.sleep(0.3)
        yield
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_caller_that_blocks_alarms_does_not_make_us_wait_for_ever(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    assert carol("pause", "nightly").code == 0
    blocked: Callable[[], object] = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # noqa: E731
    with in_line(home):
        done = call(carol, "resume", "nightly", preexec_fn=blocked, env={"CAROL_BUSY_TIMEOUT_MS": "1000"})
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_with_another_name_is_never_given_to_the_owner_of_the_database(
    home: Path, carol: Carol
) -> None:
    builders.add_jobs(home, job())
    victim = home.parent / "victim"
    victim.write_text("")
    gate = home / f"scheduler.db{SUFFIX}"
    gate.unlink(missing_ok=True)
    os.link(victim, gate)
    os.chown(home / "scheduler.db", 65534, 65534)
    assert carol("pause", "nightly").code == 0
    assert victim.stat().st_uid == 0


def test_json_says_what_could_not_be_shown(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    with full() as nowhere:
        done = call(carol, "resume", "--json", stdout=nowhere)
    assert json.loads(done.stderr)["error"] == "unshown"
