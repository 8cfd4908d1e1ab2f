"""The legacy ledger through the program: runs mirrored, orphans ended, row 924 cleared, under whatever locks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from carolctl.model import Millis, Outcome
from carolctl.store.db import Store
from carolctl.store.runs import Claimant
from tests.builders import HOUR, MINUTE, T0, Carol, Result, add_jobs, job
from tests.builders import store as open_home
from tests.endpoint import Endpoint, Reply
from tests.planner import change, demo_planner, digest, insert, locked, planner

NOW = "2026-02-01T00:00:00Z"
#: NOW in epoch seconds.
EPOCH = 1_769_904_000
TAG = "[orphan-watchdog] reaped — running >30min with no live process"

Inside = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A planner database without rows."""
    return planner(tmp_path / "planner.db")


@pytest.fixture
def here(inside: Inside, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """``inside``, at NOW, with a job store and the planner database."""
    add_jobs(home, job(manual=True))
    monkeypatch.setenv("CAROL_NOW", NOW)
    monkeypatch.setenv("CAROL_PLANNER_DB", str(path))
    return inside


def add(path: Path, **values: Any) -> int:
    """A row of somebody else's that runs since long ago."""
    row = {"droid_name": "crawler", "status": "running", "started_at": "2026-01-30 23:00:00"} | values
    with closing(sqlite3.connect(path)) as connection, connection:
        insert(connection, row, "droid_runs")
        return int(connection.execute("SELECT max(id) FROM droid_runs").fetchone()[0])


def shown(path: Path, columns: str = "status", where: str = "1") -> list[Any]:
    """Those columns of the ledger, oldest first; of one column the values alone."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        rows = connection.execute(f"SELECT {columns} FROM droid_runs WHERE {where} ORDER BY id").fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)
    return found


def nothing_lives(home: Path) -> bool:
    with closing(open_home(home)) as store, store.read() as tx:
        return tx.count_live() == (0, 0)


# -- orphans ----


@pytest.mark.parametrize(
    ("old", "edge", "young", "now"),
    [
        ("2026-01-31 23:29:00", "2026-01-31 23:30:00", "2026-01-31 23:31:00", "2026-02-01 00:00:00"),
        ("2026-01-31T23:29:00Z", "2026-01-31T23:30:00Z", "2026-01-31T23:31:00Z", "2026-02-01T00:00:00Z"),
        ("2026-02-01T00:29:00+01:00", "2026-02-01T00:30:00+01:00", "2026-02-01T00:31:00+01:00",
         "2026-02-01T00:00:00+00:00"),
        ("2026-01-31T23:29:00.5", "2026-01-31T23:30:00.0", "2026-01-31T23:31:00", "2026-02-01T00:00:00"),
        (str(EPOCH - 31 * 60), str(EPOCH - 30 * 60), str(EPOCH - 29 * 60), str(EPOCH)),
        (EPOCH - 31 * 60, EPOCH - 30 * 60, EPOCH - 29 * 60, EPOCH),
        ((EPOCH - 31 * 60) * 1000, (EPOCH - 30 * 60) * 1000, (EPOCH - 29 * 60) * 1000, EPOCH * 1000),
    ],
    ids=["text", "iso", "iso with an offset", "iso without", "digits", "epoch seconds", "epoch milliseconds"],
)  # fmt: skip
def test_after_31_minutes_a_row_is_reaped_and_after_29_or_exactly_30_it_is_untouched(
    here: Inside, path: Path, old: Any, edge: Any, young: Any, now: Any
) -> None:
    change(path, "DROP TABLE droid_runs")
    untyped = (
        "id INTEGER PRIMARY KEY AUTOINCREMENT, droid_name, status, started_at, completed_at, result_summary"
    )
    change(path, f"CREATE TABLE droid_runs ({untyped}, event_id)")
    orphan, *others = (add(path, started_at=value) for value in (old, edge, young))
    done = here("tick", "--json")
    assert done.code == 0
    assert done.json()["orphans"] == [orphan]
    assert shown(path, "id, status, started_at, completed_at, result_summary") == [
        (orphan, "failed", old, now, TAG),
        (others[0], "running", edge, None, None),
        (others[1], "running", young, None, None),
    ]
    assert here("reap", "--json").json() == {"leases": [], "lost": [], "orphans": []}


def test_a_row_of_epoch_seconds_in_a_column_of_text_is_dated_too(here: Inside, path: Path) -> None:
    orphan = add(path, started_at=EPOCH - 31 * 60)
    add(path, started_at=EPOCH - 29 * 60)
    assert here("reap", "--json").json()["orphans"] == [orphan]
    assert shown(path, "completed_at") == [str(EPOCH), None]


@pytest.mark.parametrize("where", ["environment", "settings"])
def test_the_number_in_the_tag_follows_the_threshold(
    here: Inside, path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("ORPHAN_THRESHOLD_MIN", "45")
    else:
        assert here("config", "set", "reap.orphan_threshold_min", "45").code == 0
    orphan = add(path, started_at="2026-01-31 23:14:00")
    add(path, started_at="2026-01-31 23:16:00")
    assert here("tick", "--json").json()["orphans"] == [orphan]
    assert shown(path, "result_summary") == [
        "[orphan-watchdog] reaped — running >45min with no live process",
        None,
    ]


def test_nothing_is_swept_while_everything_is_paused_and_publishing_goes_on(
    here: Inside, home: Path, path: Path
) -> None:
    orphan = add(path)
    assert here("tick").code == 0
    change(path, "UPDATE droid_runs SET status = 'running'")
    finished_run(home)
    assert here("pause").code == 0
    report = here("tick", "--json").json()
    assert (report["paused"], report["orphans"], report["ledger"]) == (True, [], {"written": 1, "pending": 0})
    assert here("reap", "--json").json()["orphans"] == []
    assert shown(path) == ["running", "completed"]
    assert here("reap", "--ledger-id", str(orphan), "--json").json()["orphans"] == [orphan]
    assert shown(path) == ["failed", "completed"]


def finished_run(home: Path) -> int:
    """A run that has ended, by hands that know nothing of a planner database; the store mirrors already."""
    with closing(open_home(home)) as store:
        with store.write() as tx:
            run_id = tx.insert_run("nightly", source="manual", now=T0)
        claimed(store)
    assert run_id is not None
    with closing(open_home(home)) as store, store.write() as tx:
        tx.start(run_id, 1, now=T0, pid=None, pid_start=None, unit=None)
        done = Outcome(run_id=run_id, claim_no=1, status="completed", completed_at=Millis(T0 + MINUTE))
        assert tx.end_run(done)
    return run_id


def claimed(store: Store) -> None:
    who = Claimant(now=T0, boottime_ms=None, host="elsewhere", boot_id="boot", lease_sec=10**9)
    with store.write() as tx:
        tx.claim(who, cap=9)


# -- row 924 ----


def test_row_924_is_cleared_by_hand_and_monitor_shows_nothing_that_does_not_truly_run(
    here: Inside, path: Path
) -> None:
    path.unlink()
    demo_planner(path)
    assert here("monitor", "--json").json() == []
    assert here("reap", "--ledger-id", "924", "--json").json() == {"leases": [], "lost": [], "orphans": [924]}
    assert shown(path, "status, completed_at, result_summary", "id = 924") == [
        ("failed", "2026-02-01 00:00:00", TAG)
    ]
    assert shown(path, "count(*)", "status = 'running'") == [0]
    assert here("monitor", "--json").json() == []


def test_a_row_reaped_by_hand_may_be_young_and_is_audited_with_the_actor(
    here: Inside, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    young = add(path, started_at="2026-01-31 23:59:00")
    undated = add(path, started_at=None)
    for row_id in (young, undated):
        assert here("reap", "--ledger-id", str(row_id)).code == 0
    assert shown(path, "status, result_summary") == [("failed", "[orphan-watchdog] reaped by hand")] * 2
    with closing(open_home(home)) as store, store.read() as tx:
        entries = tx.audit_entries()
    assert [(entry["actor"], entry["command"], entry["subject"]) for entry in entries] == [
        ("alice", "reap", "droid_runs")
    ] * 2


def test_what_cannot_be_reaped_by_hand_is_refused_with_its_exit_code(
    here: Inside, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = add(path, status="completed")
    with closing(open_home(home)) as store, store.read() as tx:
        ours = add(path, event_id=f"{tx.store_uuid()}:17")
    for row_id, code, word in ((99, 66, "no row 99"), (ended, 1, "not running"), (ours, 1, "run 17 of ours")):
        refused = here("reap", "--ledger-id", str(row_id), "--json")
        assert refused.code == code
        assert word in refused.error()["message"]
    assert "cancel-run 17" in here("reap", "--ledger-id", str(ours), "--json").error()["hint"]
    with locked(path, "BEGIN EXCLUSIVE"):
        monkeypatch.setenv("CAROL_BUSY_TIMEOUT_MS", "50")
        assert here("reap", "--ledger-id", str(ours)).code == 75
    monkeypatch.delenv("CAROL_PLANNER_DB")
    assert here("reap", "--ledger-id", "924").code == 78
    assert here("reap", "--ledger-id", "9x").code == 2
    assert here("reap", "--ledger-id", "99", "--planner-db", str(path)).code == 66


# -- dry runs ----


def test_a_dry_run_says_what_would_be_swept_and_writes_nothing(here: Inside, home: Path, path: Path) -> None:
    orphan = add(path)
    young = add(path, started_at="2026-01-31 23:59:00")
    assert here("tick", "--json").json()["orphans"] == [orphan]
    change(path, "UPDATE droid_runs SET status = 'running', completed_at = NULL, result_summary = NULL")
    finished_run(home)
    before, audit = digest(path), contents(home)
    dry = here("tick", "--dry-run", "--json").json()
    assert (dry["orphans"], dry["ledger"]) == ([orphan], {"written": 0, "pending": 1})
    assert here("reap", "--dry-run", "--json").json()["orphans"] == [orphan]
    by_hand = here("reap", "--ledger-id", str(young), "--dry-run", "--json").json()
    assert (by_hand["orphans"], by_hand["dry_run"]) == ([young], True)
    assert here("reap", "--ledger-id", "99", "--dry-run").code == 66
    assert (digest(path), contents(home)) == (before, audit)


def contents(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return list(connection.iterdump())


# -- a planner database of another user ----

OWNER = 4242
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def theirs(path: Path, home: Path, tmp_path: Path) -> Path:
    """The planner database in WAL mode, another user's, whom nothing keeps from it; nobody has it open."""
    add_jobs(home, job(manual=True))
    folder = tmp_path / "theirs"
    folder.mkdir()
    moved = path.rename(folder / path.name)
    change(moved, "PRAGMA journal_mode = WAL")
    for one in (folder, moved):
        os.chown(one, OWNER, OWNER)
    for above in folder.parents:
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o001)
    return moved


def tick_of_root(carol: Carol, path: Path, *limits: str) -> Result:
    """A tick that is about to look at the ledger, and nothing else."""
    words = ["setpriv", *limits, *carol.command("tick", "--json")]
    environment = carol.environment(CAROL_PLANNER_DB=str(path))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def written_by_owner(path: Path) -> str:
    """Why the owner cannot write; empty if they can."""
    os.setegid(OWNER)
    os.seteuid(OWNER)
    try:
        change(path, "DELETE FROM droid_runs")
    except sqlite3.OperationalError as problem:
        return str(problem)
    finally:
        os.seteuid(0)
        os.setegid(0)
    return ""


@needs_root
def test_what_a_tick_of_root_leaves_beside_a_planner_database_is_its_owners(
    carol: Carol, theirs: Path
) -> None:
    for _ in range(2):
        done = tick_of_root(carol, theirs)
        assert (done.code, done.err) == (0, "")
        assert {one.stat().st_uid for one in theirs.parent.iterdir()} == {OWNER}
        assert written_by_owner(theirs) == ""


@needs_root
def test_root_that_may_not_give_files_away_leaves_a_foreign_planner_database_alone(
    carol: Carol, theirs: Path
) -> None:
    for _ in range(2):
        done = tick_of_root(carol, theirs, "--bounding-set=-chown")
        assert done.code == 0
        assert "belongs to another user" in done.err
        assert [one.name for one in theirs.parent.iterdir()] == [theirs.name]
    assert written_by_owner(theirs) == ""


@needs_root
def test_files_that_its_owner_cannot_use_are_found_and_the_next_tick_gives_them_back(
    carol: Carol, theirs: Path
) -> None:
    tick_of_root(carol, theirs)
    stuck = [theirs.with_name(f"{theirs.name}{suffix}") for suffix in ("-wal", "-shm")]
    for one in stuck:
        os.chown(one, 0, 0)
    assert "readonly" in written_by_owner(theirs)

    report = carol("doctor", "--json", "--planner-db", str(theirs)).json()
    [found] = [one for one in report["checks"] if one["name"] == "planner"]
    assert (found["status"], found["figures"]["stuck"]) == ("fail", list(map(str, stuck)))
    for one in stuck:
        os.chown(one, 0, 0)
    tick_of_root(carol, theirs)
    assert written_by_owner(theirs) == ""


# -- mirroring ----


def test_a_tick_without_the_planner_database_that_was_taken_back_says_nothing_and_doctor_does(
    here: Inside, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here("tick").code == 0
    finished_run(home)
    monkeypatch.setenv("CAROL_PLANNER_DB", "")
    monkeypatch.delenv("CAROL_NOW")
    ticked = here("tick", "--json")
    assert (ticked.json()["ledger"], ticked.err) == ({"written": 0, "pending": 1}, "")
    [found] = [one for one in here("doctor", "--json").json()["checks"] if one["name"] == "ledger"]
    assert (found["status"], found["figures"]["pending"]) == ("warn", 1)


def test_the_first_tick_that_is_given_a_planner_database_turns_the_mirror_on(
    here: Inside, home: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_mirrored() -> bool:
        with closing(open_home(home)) as store, store.read() as tx:
            return tx.ledger_is_mirrored()

    monkeypatch.delenv("CAROL_PLANNER_DB")
    assert here("tick").code == 0
    assert not is_mirrored()
    assert here("tick", "--dry-run", "--planner-db", str(path)).code == 0
    assert not is_mirrored()
    assert here("tick", "--planner-db", str(path)).code == 0
    assert is_mirrored()


def test_a_finish_by_an_agent_that_knows_no_planner_database_is_mirrored_by_the_next_tick(
    carol: Carol, home: Path, path: Path
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    with Endpoint() as endpoint:
        endpoint.on("/agent", Reply(status=202))
        add_jobs(home, job("agent", manual=True, url=endpoint.url("/agent")))
        assert carol("tick", **known).code == 0
        run_id = carol("run-job", "agent", "--json").json()["run_id"]
        wait_until(lambda: carol("show-run", str(run_id), "--json").json()["http_status"] == 202)
    assert carol("tick", "--json", **known).json()["ledger"] == {"written": 1, "pending": 0}
    assert shown(path, "droid_name, status, trigger_kind") == [("agent", "running", "carolctl:manual")]
    done = carol("finish-run", str(run_id), "--claim", "1", "--status", "failed", "--reason", "rate_limited")
    assert done.code == 0, done.err
    assert carol("tick", "--json", **known).json()["ledger"] == {"written": 1, "pending": 0}
    assert shown(path, "status, result_summary") == [("failed", "rate_limited")]
    with closing(open_home(home)) as store, store.read() as tx:
        assert shown(path, "event_id") == [f"{tx.store_uuid()}:{run_id}"]


def test_a_tick_under_a_foreign_write_lock_ends_well_and_soon_and_the_next_one_mirrors(
    carol: Carol, home: Path, path: Path
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, job(manual=True))
    assert carol("tick", **known).code == 0
    finished_run(home)
    orphan = add(path)
    with locked(path, "BEGIN IMMEDIATE"):
        began = time.monotonic()
        held = carol("tick", "--json", **known)
        assert time.monotonic() - began < 25
    assert held.code == 0
    assert (held.json()["ledger"], held.json()["orphans"]) == ({"written": 0, "pending": 1}, [])
    assert "locked" in held.err
    after = carol("tick", "--json", **known).json()
    assert (after["ledger"], after["orphans"]) == ({"written": 1, "pending": 0}, [orphan])


@pytest.mark.parametrize(
    "point", ["ledger-read", "ledger-found", "ledger-before-commit", "ledger-committed", "ledger-cleared"]
)
def test_a_publisher_that_is_killed_leaves_one_row_and_no_mark_behind_once_the_next_has_been(
    carol: Carol, home: Path, path: Path, point: str
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, job(manual=True))
    assert carol("tick", **known).code == 0
    finished_run(home)
    assert carol("tick", CAROL_FAILPOINT=point, **known).code == -9
    assert carol("tick", "--json", **known).json()["ledger"]["pending"] == 0
    assert shown(path) == ["completed"]


# -- a hog ----

_HOG = """
import sqlite3, sys, time
path, journal, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
connection = sqlite3.connect(path, timeout=30, isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {journal}")
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
until = time.monotonic() + seconds
while time.monotonic() < until:
    connection.execute("UPDATE executions SET state = 'x'")
    time.sleep(0.05)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
connection.execute("COMMIT")
"""


@contextmanager
def hog(path: Path, journal: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds the write lock without a gap that anybody could use."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _HOG, str(path), journal, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate(timeout=60)


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_hog_on_the_planner_database_delays_no_run_and_loses_none(
    carol: Carol, home: Path, path: Path, journal: str
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, *(job(f"j{n}", every="1h") for n in range(2)))
    launched, pending = [], []
    with hog(path, journal, 8) as process:
        for hour in range(1, 100):
            done = carol(
                "tick", "--json", CAROL_NOW=f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z", **known
            )
            assert done.code == 0, done.err
            launched.append(done.json()["launched"])
            pending.append(done.json()["ledger"]["pending"])
            wait_until(lambda: nothing_lives(home))
            if process.poll() is not None:
                break
    assert all(len(runs) == 2 for runs in launched)
    assert any(pending)
    later = carol("tick", "--json", CAROL_NOW="2026-01-01T01:00:00Z", **known)
    assert later.json()["ledger"]["pending"] == 0
    assert shown(path, "status") == ["completed"] * sum(map(len, launched))


# -- monitor ----


def test_monitor_shows_ours_and_the_young_of_others_and_none_of_ours_twice(
    here: Inside, home: Path, path: Path
) -> None:
    young = add(path, droid_name="writer", started_at="2026-01-31 23:59:00", initiative_id="LAUNCH-7")
    add(path)
    add(path, started_at=None)
    assert here("tick").code == 0
    with closing(open_home(home)) as store:
        with store.write() as tx:
            run_id = tx.insert_run("nightly", source="manual", now=T0)
        claimed(store)
        with store.write() as tx:
            assert run_id is not None
            tx.start(run_id, 1, now=T0, pid=None, pid_start=None, unit=None)
    assert here("tick", "--json").json()["ledger"]["written"] == 1
    ours, theirs = here("monitor", "--json").json()
    assert (ours["run_id"], ours["job_id"]) == (run_id, "nightly")
    assert theirs == {
        "source": "ledger",
        "id": young,
        "droid_name": "writer",
        "initiative_id": "LAUNCH-7",
        "event_id": None,
        "trigger_kind": None,
        "status": "running",
        "started_at": "2026-01-31T23:59:00Z",
        "completed_at": None,
        "result_summary": None,
    }
    table = here("monitor").out
    assert "nightly" in table
    assert "writer" in table
    assert "crawler" not in table


def test_monitor_shows_ours_when_the_planner_database_cannot_be_read(here: Inside, path: Path) -> None:
    path.write_bytes(b"noise" * 2000)
    done = here("monitor", "--json")
    assert (done.code, done.json()) == (0, [])
    assert "not shown" in done.err


# -- the idle tick ----


def ago(seconds: float, style: str = "%Y-%m-%d %H:%M:%S") -> str:
    return time.strftime(style, time.gmtime(time.time() - seconds))


def answered_at_once(carol: Carol, **env: str) -> bool:
    """Whether the look alone answers: what it does not import, the whole tick does."""
    command = carol.command("tick")
    command[1:1] = ["-X", "importtime"]
    done = subprocess.run(command, env=carol.environment(**env), capture_output=True, text=True, check=True)
    return "carolctl.tick" not in done.stderr


def test_the_look_of_the_idle_tick_tells_what_is_surely_young(carol: Carol, home: Path, path: Path) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, job(manual=True))
    assert not answered_at_once(carol, **known)
    assert answered_at_once(carol, **known)
    add(path, status="completed", started_at=None)
    for style in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%s"):
        add(path, started_at=ago(60, style) if style != "%s" else int(time.time()) - 60)
    assert answered_at_once(carol, **known)
    assert answered_at_once(carol)
    for value in (None, "", "soon", b"\x00", ago(60, "%Y-%m-%dT%H:%M:%S+02:00"), "2999-01-01 00:00:00",
                  ago(3 * HOUR / 1000), int(time.time()) - 7200):  # fmt: skip
        row_id = add(path, started_at=value)
        assert not answered_at_once(carol, **known), value
        change(path, "DELETE FROM droid_runs WHERE id = ?", row_id)
    assert answered_at_once(carol, **known)


def test_the_look_of_the_idle_tick_goes_by_the_threshold_in_force(
    carol: Carol, home: Path, path: Path
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, job(manual=True))
    assert carol("tick", **known).code == 0
    add(path, started_at=ago(600))
    assert answered_at_once(carol, **known)
    for odd in ("5", " 30", "", "thirty"):
        assert not answered_at_once(carol, ORPHAN_THRESHOLD_MIN=odd, **known), odd
        change(path, "UPDATE droid_runs SET status = 'running'")
    assert carol("config", "set", "reap.orphan_threshold_min", "5").code == 0
    assert not answered_at_once(carol, **known)
    assert shown(path) == ["failed"]


def test_an_idle_tick_never_answers_for_a_planner_database_that_it_cannot_look_into(
    carol: Carol, home: Path, path: Path
) -> None:
    known: dict[str, Any] = {"CAROL_PLANNER_DB": str(path)}
    add_jobs(home, job(manual=True))
    assert carol("tick", **known).code == 0
    assert answered_at_once(carol, **known)
    with locked(path, "BEGIN EXCLUSIVE"):
        assert not answered_at_once(carol, **known)
    os.unlink(path)
    assert not answered_at_once(carol, **known)
