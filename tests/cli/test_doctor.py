"""doctor: every check has something real that it finds, and nothing is touched by looking."""

from __future__ import annotations

import hashlib
import os
import shutil
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

from carolctl import clock, doctor
from carolctl.launch import owner
from tests import builders, planner
from tests.builders import MINUTE, Carol, Result, job

Inside = Callable[..., Result]


@pytest.fixture
def healthy(home: Path) -> Path:
    """A data home with a job, a tick just past, and a spool."""
    builders.add_jobs(home, job())
    for name in ("tmp", "new", "bad"):
        (home / "spool" / name).mkdir(parents=True, mode=0o700)
    (home / "spool").chmod(0o700)
    (home / "tick.stamp").touch(0o600)
    return home


def sql(home: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection, connection:
        connection.execute(statement, values)


def checks(result: Result) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in result.err
    return {check["name"]: check for check in result.json()["checks"]}


def test_a_healthy_home_is_well_in_every_respect(healthy: Path, carol: Carol) -> None:
    done = carol("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    found = checks(done)
    assert list(found) == list(doctor.CHECKS)
    assert {check["status"] for check in found.values()} <= {"ok", "skipped"}, found
    assert done.json()["verdict"] == "ok"
    assert found["wal"]["figures"]["verdict"] == "free"


# -- what is wrong ----


def _stamp(home: Path, age_sec: float) -> None:
    os.utime(home / "tick.stamp", (time.time() - age_sec,) * 2)


def _old_file(home: Path, folder: str, name: str, age_sec: float) -> None:
    path = home / "spool" / folder / name
    path.write_text("{}")
    os.utime(path, (time.time() - age_sec,) * 2)


def _live_run(home: Path, *, lease_ends: int, pid: int | None = None, pid_start: int | None = None) -> None:
    now = clock.now()
    with closing(builders.store(home)) as store, store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=now)
    sql(
        home,
        "UPDATE runs SET status = 'running', claim_no = 1, slot_claimed_at = ?, lease_expires_at = ?, host = ?,"
        " boot_id = ?, pid = ?, pid_start = ? WHERE run_id = ?",
        now - MINUTE, now + lease_ends, clock.hostname(), clock.boot_id(), pid, pid_start, run_id,
    )  # fmt: skip


def _dead_owner(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = owner.start_time(process.pid)
    _live_run(home, lease_ends=10 * MINUTE, pid=process.pid, pid_start=started)
    process.kill()
    process.wait()


def _corrupt_page(home: Path) -> None:
    with (home / "scheduler.db").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 4096)


WRONG: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a corrupt page": ("integrity", "fail", _corrupt_page),
    "noise": ("integrity", "fail", lambda home: (home / "scheduler.db").write_bytes(b"noise" * 2000)),
    "a foreign file": ("integrity", "fail", lambda home: sql(home, "PRAGMA application_id = 7")),
    "a newer schema": ("schema", "fail", lambda home: sql(home, "PRAGMA user_version = 999")),
    "an older schema": ("schema", "warn", lambda home: sql(home, "PRAGMA user_version = 0")),
    "no WAL": ("journal", "fail", lambda home: sql(home, "PRAGMA journal_mode = DELETE")),
    "a late tick": ("tick", "warn", lambda home: _stamp(home, 120)),
    "no tick": ("tick", "fail", lambda home: _stamp(home, 700)),
    "never a tick": ("tick", "warn", lambda home: (home / "tick.stamp").unlink()),
    "a tick to come": ("tick", "warn", lambda home: _stamp(home, -700)),
    "a pause": ("pause", "warn", lambda home: sql(home, "INSERT INTO meta VALUES ('paused_until', 'forever')")),
    "a damaged job": ("jobs", "fail", lambda home: sql(home, "UPDATE scheduled_jobs SET action = '{}'")),
    "a streak": (
        "jobs", "warn", lambda home: sql(home, "UPDATE scheduled_jobs SET status = 'paused', failure_streak = 3")
    ),
    "a dead owner": ("owners", "fail", _dead_owner),
    "a lease just past": ("leases", "warn", lambda home: _live_run(home, lease_ends=-30_000)),
    "a lease long past": ("leases", "fail", lambda home: _live_run(home, lease_ends=-5 * MINUTE)),
    "a late outcome": ("spool", "warn", lambda home: _old_file(home, "new", "finish-1-1.json", 120)),
    "an old outcome": ("spool", "fail", lambda home: _old_file(home, "new", "finish-1-1.json", 700)),
    "a half file": ("spool", "warn", lambda home: _old_file(home, "tmp", "finish-1-1.json.4", 7200)),
    "a bad file": ("spool_bad", "fail", lambda home: _old_file(home, "bad", "x\x1b[31m.json", 0)),
    "a loose store": ("modes", "fail", lambda home: (home / "scheduler.db").chmod(0o640)),
    "a loose folder": ("modes", "fail", lambda home: (home / "spool" / "new").chmod(0o755)),
    "a loose home": ("modes", "fail", lambda home: home.chmod(0o711)),
    "an unknown zone": (
        "zones", "fail", lambda home: sql(home, "UPDATE scheduled_jobs SET timezone = 'Mars/Olympus'")
    ),
    "a bad setting": (
        "settings", "warn",
        lambda home: sql(home, "INSERT INTO settings VALUES ('schedule.max_concurrent', 'many', 0)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_it_finds(healthy: Path, inside: Inside, what: str) -> None:
    name, status, breaks = WRONG[what]
    breaks(healthy)
    done = inside("doctor", "--json")
    check = checks(done)[name]
    assert (check["status"], bool(check["hint"])) == (status, True), check
    assert done.code == (1 if status == "fail" or "fail" in done.json()["verdict"] else 0)
    assert name in done.json()["failed" if status == "fail" else "warned"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_it_finds_a_file_of_another_owner(healthy: Path, inside: Inside) -> None:
    os.chown(healthy / "spool", 12345, 12345)
    assert checks(inside("doctor", "--json"))["modes"]["figures"]["other_owners"] == ["spool"]


def test_a_warning_alone_fails_only_when_asked_to(healthy: Path, inside: Inside) -> None:
    _stamp(healthy, 120)
    assert inside("doctor").code == 0
    assert inside("doctor", "--strict").code == 1


def test_it_finds_what_the_environment_says_wrongly(healthy: Path, carol: Carol) -> None:
    wrong = {"SCHEDULE_MAX_CONCURRENT": "many", "CAROL_BUSY_TIMEOUT_MS": "1_0", "CAROL_LAUNCHER": "rocket"}
    found = checks(carol("doctor", "--json", CAROL_NOW=str(clock.iso(clock.now())), **wrong))
    assert [found[name]["status"] for name in ("settings", "launcher", "clock")] == ["warn"] * 3
    assert len(found["settings"]["figures"]["ignored"]) == 2


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize(
    "options, status", [("size=7m", "fail"), ("size=40m", "warn"), ("size=80m,nr_inodes=60", "fail")]
)
def test_it_finds_a_disk_with_little_room(home: Path, carol: Carol, options: str, status: str) -> None:
    with mounted(home, options + ",mode=700"):
        builders.add_jobs(home, job())
        assert checks(carol("doctor", "--json"))["space"]["status"] == status


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_it_examines_a_home_that_nobody_can_write_to(home: Path, carol: Carol) -> None:
    with mounted(home, "size=100m,mode=700"):
        builders.add_jobs(home, job())
        (home / "tick.stamp").touch(0o600)
        subprocess.run(["mount", "-o", "remount,ro", home], check=True)
        done = carol("doctor", "--json")
        assert (done.code, checks(done)["jobs"]["figures"]["jobs"]) == (1, 1)
        assert "cannot be written" in checks(done)["modes"]["detail"]


_PROCESS = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2]).fetchone()
if len(sys.argv) > 3:
    connection.execute(sys.argv[3]).fetchall()
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(path: Path, *statements: str) -> Iterator[int]:
    """A process that has `path` open, after one or two statements."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROCESS, str(path), *statements], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_names_who_holds_the_write_lock(healthy: Path, carol: Carol) -> None:
    with another_process(healthy / "scheduler.db", "BEGIN IMMEDIATE") as pid:
        check = checks(carol("doctor", "--json"))["wal"]
    assert check["status"] == "fail"
    assert str(pid) in check["detail"]


def test_it_names_a_reader_that_pins_the_log(healthy: Path, carol: Carol) -> None:
    with another_process(healthy / "scheduler.db", "BEGIN", "SELECT count(*) FROM meta") as pid:
        for number in range(5):
            sql(healthy, "INSERT INTO meta VALUES (?, '')", str(number))
        check = checks(carol("doctor", "--json"))["wal"]
    assert (check["status"], str(pid) in check["detail"]) == ("warn", True), check


def test_it_finds_a_process_that_writes_into_a_removed_store(healthy: Path, carol: Carol) -> None:
    store = healthy / "scheduler.db"
    with another_process(store, "SELECT count(*) FROM meta") as pid:
        shutil.copy(store, healthy / "copy")
        store.unlink()
        (healthy / "copy").rename(store)
        assert checks(carol("doctor", "--json"))["replaced"]["figures"]["pids"] == [pid]


# -- the planner database ----


@pytest.fixture
def migrated(healthy: Path, carol: Carol, tmp_path: Path) -> Path:
    """A planner database with two jobs, migrated into the home."""
    rows = [planner.PLAIN | {"job_id": name} for name in ("one", "two words")]
    path = planner.planner(tmp_path / "planner.db", *rows)
    moved = carol(
        "migrate-jobs",
        "--planner-db",
        str(path),
        "--rename",
        "two words=two",
        CAROL_NOW="2026-01-01T00:00:00Z",
    )
    assert moved.code == 0, moved.err
    return path


def with_planner(inside: Inside, path: Path) -> dict[str, dict[str, Any]]:
    return checks(inside("doctor", "--json", "--planner-db", str(path)))


def test_what_was_migrated_and_left_alone_is_well(migrated: Path, inside: Inside) -> None:
    found = with_planner(inside, migrated)
    names = ("planner", "orphans", "legacy")
    assert [found[name]["status"] for name in names] == ["ok"] * 3, found


def test_it_finds_jobs_that_were_changed_or_left_behind_in_the_legacy_table(
    migrated: Path, inside: Inside
) -> None:
    planner.change(migrated, "UPDATE scheduled_jobs SET daily_at = '05:55' WHERE job_id = 'two words'")
    assert with_planner(inside, migrated)["legacy"]["figures"] == {"left_behind": [], "changed": ["two"]}
    planner.change(
        migrated,
        "INSERT INTO scheduled_jobs (job_id, droid_name, schedule_type, daily_at, endpoint_url)"
        " VALUES ('late', 'd', 'daily_at', '01:00', 'http://127.0.0.1:9/')",
    )
    legacy = with_planner(inside, migrated)["legacy"]
    assert (legacy["status"], legacy["figures"]["left_behind"]) == ("fail", ["late"])


def test_an_edit_here_is_no_difference_there(migrated: Path, inside: Inside) -> None:
    assert inside("edit-job", "one", "--priority", "5").code == 0
    assert with_planner(inside, migrated)["legacy"]["status"] == "ok"


def test_it_finds_orphans_in_the_ledger(migrated: Path, inside: Inside) -> None:
    started = clock.iso(clock.now() - 31 * MINUTE)
    planner.change(
        migrated,
        "INSERT INTO droid_runs (droid_name, status, started_at) VALUES ('d', 'running', ?)",
        started,
    )
    orphans = with_planner(inside, migrated)["orphans"]
    assert (orphans["status"], orphans["figures"]["orphans"]) == ("fail", 1)


@pytest.mark.parametrize("age_sec, status", [(30, "ok"), (120, "warn"), (700, "fail")])
def test_it_finds_runs_that_wait_to_be_mirrored(
    healthy: Path, inside: Inside, migrated: Path, age_sec: int, status: str
) -> None:
    with closing(builders.store(healthy)) as store, store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=clock.now() - age_sec * 1000)  # type: ignore[arg-type]
    sql(healthy, "INSERT OR REPLACE INTO ledger_outbox VALUES (?, 1)", run_id)
    ledger = with_planner(inside, migrated)["ledger"]
    assert (ledger["status"], ledger["figures"]["pending"]) == (status, 1)


@pytest.mark.parametrize("kind", ["missing", "noise", "without tables", "job store"])
def test_it_finds_a_planner_database_that_is_none(
    healthy: Path, inside: Inside, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "planner.db"
    if kind == "noise":
        path.write_bytes(b"noise" * 1000)
    elif kind == "without tables":
        path.touch()
    elif kind == "job store":
        path = healthy / "scheduler.db"
    assert with_planner(inside, path)["planner"]["status"] == "fail"


# -- without a trace ----


def tree(folder: Path) -> dict[str, Any]:
    """Everything about every file below `folder` that its owner could notice.

    Not the time of the inode: as root, SQLite gives the side files that it opens to the owner of the database, who
    owns them already.
    """
    return {
        str(path.relative_to(folder)): (
            facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted([folder, *folder.rglob("*")])
        for facts in [path.lstat()]
    }  # fmt: skip


def _leave_side_files(home: Path) -> None:
    """As a process leaves them that does not close its connection; the WAL holds rows."""
    with another_process(home / "scheduler.db", "INSERT INTO meta VALUES ('late', '')") as pid:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("state", ["at rest", "side files", "missing", "empty", "noise", "corrupt"])
def test_looking_leaves_no_trace(healthy: Path, carol: Carol, state: str) -> None:
    store = healthy / "scheduler.db"
    if state == "side files":
        _leave_side_files(healthy)
        assert (healthy / "scheduler.db-wal").stat().st_size
    elif state == "missing":
        store.unlink()
    elif state in ("empty", "noise"):
        store.write_bytes(b"noise" * 2000 if state == "noise" else b"")
    elif state == "corrupt":
        _corrupt_page(healthy)
    before = tree(healthy.parent)
    done = carol("doctor", "--json")
    assert tree(healthy.parent) == before
    assert done.code == {"at rest": 0, "side files": 0, "missing": 66, "empty": 66}.get(state, 1)
    assert len(done.json()["checks"]) == len(doctor.CHECKS)


def test_looking_beside_a_process_at_work_leaves_no_trace(healthy: Path, carol: Carol) -> None:
    with another_process(healthy / "scheduler.db", "INSERT INTO meta VALUES ('late', '')"):
        before = tree(healthy.parent)
        done = carol("doctor", "--json")
        assert tree(healthy.parent) == before
    assert (done.code, checks(done)["jobs"]["figures"]["jobs"]) == (0, 1)


def test_where_the_index_of_the_log_is_gone_sqlite_makes_it_and_nothing_else(
    healthy: Path, carol: Carol
) -> None:
    _leave_side_files(healthy)
    (healthy / "scheduler.db-shm").unlink()
    before = tree(healthy)
    assert carol("doctor", "--json").code == 0
    after = tree(healthy)
    assert set(after) - set(before) == {"scheduler.db-shm"}
    assert {name for name in before if before[name] != after[name]} == {"."}


# -- people ----


def test_without_a_store_the_rest_is_examined(home: Path, inside: Inside) -> None:
    done = inside("doctor", "--json")
    assert (done.code, home.exists()) == (66, False)
    found = checks(done)
    assert [found[name]["status"] for name in ("integrity", "jobs", "sqlite", "space")] == [
        "fail", "skipped", "ok", "ok",
    ]  # fmt: skip


def test_people_see_a_line_for_each_check_and_a_verdict_in_80_columns(healthy: Path, carol: Carol) -> None:
    _old_file(healthy, "bad", "\x1b[31mred\u202e[bold]" + "x" * 90, 0)
    shown = carol("doctor", COLUMNS="80")
    lines = shown.out.splitlines()
    table = lines[: lines.index("")]
    assert [line.split()[1] for line in table[1:]] == list(doctor.CHECKS)
    assert max(map(len, table)) <= 80
    assert lines[-1].startswith("fail: 1 wrong")
    assert any(line.startswith("fail spool_bad: 1 could not be used") for line in lines)
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
