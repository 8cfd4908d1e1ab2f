"""backup and restore: whole copies under an identity of their own, made beside writers, killed anywhere."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl.errors import StoreBusy
from carolctl.store.db import Store
from tests import builders
from tests.builders import Carol, Result, job

Inside = Callable[..., Result]
NOW = "2026-03-01T12:00:00Z"


@pytest.fixture
def filled(home: Path) -> Path:
    """A data home with two jobs."""
    builders.add_jobs(home, job("nightly"), job("digest"))
    return home


def meta(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT key, value FROM meta"))


def jobs_of(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT * FROM scheduled_jobs ORDER BY job_id").fetchall()


def audit_of(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [command for (command,) in connection.execute("SELECT command FROM audit_log")]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def queue_run(home: Path, *, running: bool = False) -> int:
    with closing(builders.store(home)) as store, store.write() as tx:
        run_id = tx.insert_run("nightly", source="manual", now=builders.T0)
        assert run_id is not None
        if running:
            tx._connection.execute(
                "UPDATE runs SET status = 'running', claim_no = 1, slot_claimed_at = 1, lease_expires_at = 2,"
                " host = 'h', boot_id = 'of another boot', pid = 1, pid_start = 1"
            )
    return run_id


def untouched(path: Path) -> tuple[int, ...] | None:
    """What changes about a file when it is written to or replaced; not the time of the last reading."""
    if not os.path.lexists(path):
        return None
    facts = path.lstat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode


# -- backup ----


def test_a_backup_is_whole_private_and_has_an_identity_of_its_own(filled: Path, carol: Carol) -> None:
    made = carol("backup", "--json", CAROL_NOW=NOW).json()
    copy = filled / "backups" / "carolctl-20260301T120000Z.db"
    assert made["backup"] == str(copy)
    assert (made["bytes"], made["integrity"], made["removed"]) == (copy.stat().st_size, "ok", [])
    assert names(copy.parent) == [copy.name]
    assert (stat.S_IMODE(copy.stat().st_mode), stat.S_IMODE(copy.parent.stat().st_mode)) == (0o600, 0o700)
    assert jobs_of(copy) == jobs_of(filled / "scheduler.db")
    live = meta(filled / "scheduler.db")
    assert meta(copy) == live | {"store_uuid": made["store_uuid"], "restored_from": live["store_uuid"]}
    assert made["backup_of"] == live["store_uuid"] != made["store_uuid"]
    assert audit_of(copy)[-1] == audit_of(filled / "scheduler.db")[-1] == "backup"


def test_in_a_folder_the_newest_stay_and_nothing_else_is_touched(filled: Path, inside: Inside) -> None:
    folder = filled.parent / "kept"
    folder.mkdir()
    old = [folder / f"carolctl-2025010{day}T000000Z.db" for day in range(1, 5)]
    others = [folder / "carolctl-2025.db", folder / "mine-20250101T000000Z.db", folder / "notes.txt"]
    for path in (*old, *others):
        path.write_text("")
    made = inside("backup", str(folder), "--keep", "3", "--json").json()
    assert made["removed"] == [str(path) for path in reversed(old[:2])]
    assert names(folder) == sorted([Path(made["backup"]).name, *(p.name for p in [*old[2:], *others])])


def test_a_file_may_be_named_and_an_older_backup_of_that_name_is_replaced(
    filled: Path, inside: Inside
) -> None:
    target = filled.parent / "one.db"
    target.touch()
    first = inside("backup", str(target), "--json").json()["store_uuid"]
    assert inside("backup", str(target)).code == 0
    assert meta(target)["store_uuid"] != first
    assert inside("backup", str(target), "--keep", "2").code == 1


@pytest.mark.parametrize("kind", ["live", "link", "wal", "foreign", "text", "fifo"])
def test_a_backup_is_never_written_over_anything_else(filled: Path, inside: Inside, kind: str) -> None:
    store = filled / "scheduler.db"
    target = filled.parent / "there.db"
    if kind == "live":
        target = store
    elif kind == "link":
        target.symlink_to(store)
    elif kind == "wal":
        target = filled / "scheduler.db-wal"
    elif kind == "foreign":
        with closing(sqlite3.connect(target)) as connection:
            connection.execute("CREATE TABLE theirs (x)")
    elif kind == "text":
        target.write_text("a letter")
    else:
        os.mkfifo(target)
    before = untouched(target)
    refused = inside("backup", str(target))
    assert (refused.code, "nothing was written" in refused.err) == (1, True), refused
    assert untouched(target) == before
    assert not list(target.parent.glob("*.partial*"))


def test_without_a_job_store_there_is_nothing_to_back_up(inside: Inside, home: Path, tmp_path: Path) -> None:
    assert inside("backup", str(tmp_path / "x.db")).code == 66
    assert inside("backup", str(tmp_path / "no" / "x.db")).code == 66
    assert names(tmp_path) == []


def test_a_damaged_store_gives_no_backup(filled: Path, inside: Inside) -> None:
    damage(filled / "scheduler.db")
    refused = inside("backup", "--json")
    assert refused.code == 65
    assert "scheduler.db is a damaged database" in refused.error()["message"]
    assert names(filled / "backups") == []


def damage(path: Path) -> None:
    """Overwrite every page but the first."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_is_said_and_leaves_nothing_half_written(filled: Path, carol: Carol) -> None:
    disk = filled.parent / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        full = carol("backup", str(disk), "--json")
        assert (full.code, full.error()["error"]) == (75, "disk_full")
        assert names(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_copies_made_beside_writers_are_each_one_snapshot_and_nobody_waits(
    filled: Path, carol: Carol, store: Callable[..., Store]
) -> None:
    writing, failures = threading.Event(), []

    def write() -> None:
        with closing(builders.store(filled)) as opened:
            number = 0
            while not writing.is_set():
                number += 1
                try:
                    with opened.write() as tx:
                        tx.set_meta("one", str(number))
                        tx.set_meta("other", str(number))
                except StoreBusy as problem:
                    failures.append(problem)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        made = [carol("backup", "--json").json() for _ in range(4)]
    finally:
        writing.set()
        thread.join()
    assert failures == []
    found = [meta(Path(one["backup"])) for one in made]
    assert all(one["one"] == one["other"] for one in found if "one" in one)
    assert any("one" in one for one in found)


def test_a_backup_is_made_while_somebody_holds_the_write_lock(filled: Path, carol: Carol) -> None:
    with closing(sqlite3.connect(filled / "scheduler.db", isolation_level=None)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        hog.execute("DELETE FROM scheduled_jobs")
        made = carol("backup", "--json", CAROL_BUSY_TIMEOUT_MS="50")
    assert made.code == 0
    assert "its audit entry is not written" in made.err
    assert len(jobs_of(Path(made.json()["backup"]))) == 2


# -- restore ----


def test_a_restored_store_has_its_jobs_and_goes_on_under_a_new_identity(filled: Path, carol: Carol) -> None:
    store = filled / "scheduler.db"
    lost = meta(store)["store_uuid"]
    made = carol("backup", "--json").json()
    before = jobs_of(store)
    carol("remove-job", "nightly")
    done = carol("backup", "--restore", made["backup"], "--json", CAROL_NOW=NOW).json()
    assert jobs_of(store) == before
    assert len({lost, made["store_uuid"], done["store_uuid"]}) == 3
    assert meta(store)["store_uuid"] == done["store_uuid"]
    assert done["restored_from"] == meta(store)["restored_from"] == lost
    aside = f"{store}.before-restore-20260301T120000Z"
    assert (done["set_aside"][0], done["live_runs"]) == (aside, 0)
    assert (len(jobs_of(Path(aside))), meta(Path(aside))["paused_until"]) == (1, "forever")
    assert audit_of(store)[-1] == audit_of(Path(aside))[-1] == "restore"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    ticked = carol("tick", "--json", CAROL_NOW="2026-01-01T03:00:00Z").json()
    assert len(ticked["fired"]) == 2
    again = carol("backup", "--restore", made["backup"], "--yes", "--json").json()
    assert again["store_uuid"] not in {lost, made["store_uuid"], done["store_uuid"]}


def test_run_ids_go_on_above_those_of_the_lost_store(filled: Path, inside: Inside) -> None:
    queue_run(filled)
    made = inside("backup", "--json").json()["backup"]
    for _ in range(3):
        queue_run(filled)
    assert inside("backup", "--restore", made).code == 0
    assert queue_run(filled) == 5


def test_a_store_that_is_too_damaged_to_be_asked_is_set_aside_and_run_ids_leap(
    filled: Path, inside: Inside
) -> None:
    queue_run(filled)
    made = inside("backup", "--json").json()["backup"]
    (filled / "scheduler.db").write_bytes(b"noise" * 5000)
    done = inside("backup", "--restore", made, "--json")
    assert (done.code, "is not a SQLite database" in done.err) == (0, True)
    assert Path(done.json()["set_aside"][0]).read_bytes().startswith(b"noise")
    assert queue_run(filled) > 100_000


def test_a_lost_store_is_restored_where_there_is_nothing(filled: Path, inside: Inside) -> None:
    made = filled.parent / "safe.db"
    inside("backup", str(made))
    shutil.rmtree(filled)
    done = inside("backup", "--restore", str(made), "--json").json()
    assert (done["set_aside"], len(jobs_of(filled / "scheduler.db"))) == ([], 2)


def test_a_store_in_which_runs_are_under_way_is_restored_over_only_on_demand(
    filled: Path, carol: Carol
) -> None:
    queue_run(filled, running=True)
    made = carol("backup", "--json").json()["backup"]
    refused = carol("backup", "--restore", made, "--json")
    assert (refused.code, "1 runs are under way" in refused.error()["message"]) == (1, True)
    assert "paused_until" not in meta(filled / "scheduler.db")
    done = carol("backup", "--restore", made, "--yes", "--json").json()
    assert done["live_runs"] == 1
    # Its owner was on another host, of which nothing can be known: the lease tells.
    assert carol("reap", "--json").json()["leases"] != []


def test_a_store_that_somebody_has_open_is_restored_over_only_on_demand(filled: Path, carol: Carol) -> None:
    made = carol("backup", "--json").json()["backup"]
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(filled / "scheduler.db")], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        other.stdout.readline()
        refused = carol("backup", "--restore", made)
        assert (refused.code, f"is open in process {other.pid}" in refused.err) == (1, True)
        done = carol("backup", "--restore", made, "--yes", "--json").json()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    # What the other one had not checkpointed went along with its store.
    assert any(path.endswith("-wal") for path in done["set_aside"])
    assert meta(Path(done["set_aside"][0]))["theirs"] == "1"
    assert "theirs" not in meta(filled / "scheduler.db")


_HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("INSERT INTO meta VALUES ('theirs', '1')")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "kind, code",
    [("missing", 66), ("noise", 65), ("damaged", 65), ("foreign", 65), ("newer", 65), ("live", 1)],
)
def test_what_is_no_sound_backup_changes_nothing(filled: Path, inside: Inside, kind: str, code: int) -> None:
    store, file = filled / "scheduler.db", filled.parent / "b.db"
    inside("backup", str(file))
    if kind == "missing":
        file.unlink()
    elif kind == "noise":
        file.write_bytes(b"noise" * 1000)
    elif kind == "damaged":
        damage(file)
    elif kind == "live":
        file = store
    else:
        pragma = "application_id = 1" if kind == "foreign" else "user_version = 999"
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(f"PRAGMA {pragma}")
    before = store.read_bytes(), file.read_bytes() if file.exists() else None
    refused = inside("backup", "--restore", str(file))
    assert (refused.code, len(refused.err.splitlines())) == (code, 1), refused
    assert before == (store.read_bytes(), file.read_bytes() if file.exists() else None)
    assert names(filled) == ["scheduler.db", "scheduler.db-gate"]


@pytest.mark.parametrize(
    "arguments",
    [("--restore", "a.db", "--keep", "1"), ("x.db", "--restore", "a.db"), ("--yes",), ("--keep", "0")],
)
def test_options_that_make_no_sense_together_are_refused(inside: Inside, arguments: tuple[str, ...]) -> None:
    assert inside("backup", *arguments).code == 2


# -- death ----

#: Runs a command and dies at its n-th step that touches a file.
_MORTAL = textwrap.dedent(
    """
    import os, signal, sys

    left = int(sys.argv[1])

    def hook(event, details):
        global left
        if event in ("os.rename", "os.link", "os.remove", "sqlite3.connect") or (
            event == "open" and isinstance(details[0], str) and "scheduler" in details[0] + "carolctl-"
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    from carolctl.cli.entry import run
    import carolctl.cli.upkeep_commands, carolctl.backup, carolctl.restore
    os.umask(0o077)
    sys.addaudithook(hook)
    os._exit(run(sys.argv[2:]))
    """
)


def _die_at(step: int, carol: Carol, *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _MORTAL, str(step), *arguments],
        env=carol.environment(CAROL_NOW=NOW),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_backup_that_dies_anywhere_leaves_a_whole_copy_or_none(filled: Path, carol: Carol) -> None:
    deaths = 0
    while _die_at(deaths + 1, carol, "backup", "--keep", "1"):
        deaths += 1
        for path in (filled / "backups").glob("*.db") if (filled / "backups").exists() else ():
            assert len(jobs_of(path)) == 2
            assert "restored_from" in meta(path)
            path.unlink()
    assert deaths >= 6
    left = list((filled / "backups").glob("*.partial*"))
    assert left
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    carol("backup")
    assert not list((filled / "backups").glob("*.partial*"))


def test_a_restore_that_dies_anywhere_is_finished_by_the_next_one(filled: Path, carol: Carol) -> None:
    made = filled.parent / "safe.db"
    carol("backup", str(made))
    builders.add_jobs(filled, job("young"))
    pattern = filled.parent / "pattern"
    shutil.copytree(filled, pattern)
    deaths = without = 0
    while _die_at(deaths + 1, carol, "backup", "--restore", str(made)):
        deaths += 1
        without += not (filled / "scheduler.db").exists()
        assert sum(_has_young(path) for path in _stores(filled)) == 1, "nothing that was there is lost"
        assert carol("backup", "--restore", str(made)).code == 0
        assert len(jobs_of(filled / "scheduler.db")) == 2
        shutil.rmtree(filled)
        shutil.copytree(pattern, filled)
    assert deaths >= 8
    assert without >= 1


def _stores(home: Path) -> list[Path]:
    found = [home / "scheduler.db", *home.glob("scheduler.db.before-restore-*Z")]
    return [path for path in found if path.exists()]


def _has_young(path: Path) -> bool:
    return any(row[0] == "young" for row in jobs_of(path))
