"""Dirty marks in the job store, and what publishing and sweeping do to a planner database: no row lost, none twice."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl import ledger, orphans
from carolctl.errors import BadData, CarolError, NotFound, StoreBusy
from carolctl.legacy_cells import RawText
from carolctl.model import Millis, Outcome
from carolctl.session import Session
from carolctl.store import db
from carolctl.store import ledger as planner_sql
from carolctl.store.db import Store
from carolctl.store.ledger import Deadline, opened
from carolctl.store.runs import Claimant
from tests.builders import HOUR, MINUTE, T0, job
from tests.planner import Raw, change, insert, locked, planner

PLAIN_TABLE = """
CREATE TABLE droid_runs (id INTEGER PRIMARY KEY AUTOINCREMENT, execution_id, droid_name TEXT NOT NULL, initiative_id,
  event_id TEXT, trigger_kind TEXT, status TEXT NOT NULL, started_at{started}, completed_at, result_summary TEXT{more})
"""


@pytest.fixture(params=["WAL", "DELETE"])
def journal(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A planner database without rows."""
    return planner(tmp_path / "planner.db")


@pytest.fixture
def open_store(home: Path) -> Iterator[Callable[..., Store]]:
    """An opener of the job store, by default of a process that mirrors."""
    stores: list[Store] = []

    def opener(*, mirrored: bool = True) -> Store:
        stores.append(
            db.open_store(str(home / "scheduler.db"), deadline_ms=5000, create=True, mirrored=mirrored)
        )
        return stores[-1]

    yield opener
    for one in stores:
        one.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    opened_store = open_store()
    with opened_store.write() as tx:
        tx.insert_jobs([job(overlap="allow")])
    return opened_store


def session(store: Store, now: int = T0 + HOUR) -> Session:
    return Session(store=store, now=Millis(now), actor="tester")


def queue(store: Store, job_id: str = "nightly") -> int:
    with store.write() as tx:
        run_id = tx.insert_run(job_id, source="manual", now=T0)
    assert run_id is not None
    return run_id


def claim(store: Store) -> None:
    who = Claimant(now=T0, boottime_ms=None, host="here", boot_id="boot", lease_sec=1200)
    with store.write() as tx:
        assert tx.claim(who, cap=99)


def start(store: Store, run_id: int, claim_no: int = 1) -> None:
    with store.write() as tx:
        assert tx.start(run_id, claim_no, now=Millis(T0 + 1500), pid=None, pid_start=None, unit=None)


def end(store: Store, run_id: int, claim_no: int = 1, **values: Any) -> None:
    done: dict[str, Any] = {"status": "completed", "completed_at": Millis(T0 + MINUTE), "summary": "12 tasks"}
    with store.write() as tx:
        assert tx.end_run(Outcome(run_id=run_id, claim_no=claim_no, **(done | values)))


def running(store: Store) -> int:
    run_id = queue(store)
    claim(store)
    start(store, run_id)
    return run_id


def marks(store: Store) -> dict[int, int]:
    with store.read() as tx:
        return dict(tx.ledger_marks())


def shown(path: Path, columns: str = "status") -> list[Any]:
    """Those columns of the ledger, oldest first; of one column the values alone."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        rows = connection.execute(f"SELECT {columns} FROM droid_runs ORDER BY id").fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def with_table(path: Path, started: str = " TEXT", more: str = "") -> Path:
    return planner(path, schema=PLAIN_TABLE.format(started=started, more=more))


def add(path: Path, **values: Any) -> int:
    """A row of somebody else's that runs since T0."""
    row = {"droid_name": "crawler", "status": "running", "started_at": "2026-01-01 00:00:00"} | values
    with closing(sqlite3.connect(path)) as connection, connection:
        insert(connection, row, "droid_runs")
        return int(connection.execute("SELECT max(id) FROM droid_runs").fetchone()[0])


# -- dirty marks ----


def test_a_run_is_marked_when_it_starts_ends_goes_back_or_is_cancelled_and_not_before(store: Store) -> None:
    run_id, waiting = queue(store), queue(store)
    assert marks(store) == {}
    with store.write() as tx:
        assert tx.cancel_queued(waiting, now=T0, summary="no")
    claim(store)
    assert set(marks(store)) == {waiting}
    versions = set()
    start(store, run_id)
    versions.add(marks(store)[run_id])
    with store.write() as tx:
        failed = Outcome(
            run_id=run_id, claim_no=1, status="failed", failure_reason="timeout", completed_at=T0
        )
        assert tx.requeue_run(failed, not_before=T0)
    versions.add(marks(store)[run_id])
    claim(store)
    start(store, run_id, 2)
    end(store, run_id, 2)
    versions.add(marks(store)[run_id])
    assert len(versions) == 3


def test_what_changes_nothing_leaves_no_mark(store: Store) -> None:
    run_id = queue(store)
    claim(store)
    with store.write() as tx:
        assert tx.start(run_id, 7, now=T0, pid=None, pid_start=None, unit=None) is None
        assert not tx.end_run(Outcome(run_id=run_id, claim_no=7, status="completed", completed_at=T0))
        assert not tx.cancel_queued(run_id, now=T0, summary="no")
    assert marks(store) == {}


def test_a_store_that_mirrors_nothing_marks_nothing_until_it_is_told_and_then_what_runs_too(
    store: Store, open_store: Callable[..., Store]
) -> None:
    other = open_store(mirrored=False)
    first = running(other)
    assert marks(other) == {}
    with other.write() as tx:
        assert not tx.ledger_is_mirrored()
        tx.mirror_runs()
        assert tx.ledger_is_mirrored()
    assert set(marks(other)) == {first}
    with other.write() as tx:
        tx.clear_ledger_marks(list(tx.ledger_marks()))
    end(open_store(mirrored=False), first)
    assert set(marks(other)) == {first}


def test_a_mark_is_cleared_only_in_the_version_that_was_read(store: Store) -> None:
    run_id = running(store)
    [old] = marks(store).items()
    end(store, run_id)
    [new] = marks(store).items()
    with store.write() as tx:
        assert tx.clear_ledger_marks([old]) == 0
        assert tx.clear_ledger_marks([new]) == 1
    assert marks(store) == {}


def test_a_rolled_back_end_leaves_no_mark(store: Store) -> None:
    run_id = queue(store)
    claim(store)
    with store.write(dry_run=True) as tx:
        assert tx.start(run_id, 1, now=T0, pid=None, pid_start=None, unit=None)
        assert tx.ledger_pending() == 1
    assert marks(store) == {}


# -- publishing ----


def test_a_run_is_one_row_that_follows_it_from_start_to_end(store: Store, path: Path) -> None:
    run_id = running(store)
    assert ledger.publish(session(store), str(path)).written == 1
    columns = "event_id, droid_name, trigger_kind, status, started_at, completed_at, result_summary"
    with store.read() as tx:
        key = f"{tx.store_uuid()}:{run_id}"
    begun = (key, "nightly", "carolctl:manual", "running", "2026-01-01 00:00:01", None, None)
    assert shown(path, columns) == [begun]
    end(store, run_id)
    assert ledger.publish(session(store), str(path)) == ledger.Published(written=1, pending=0)
    assert shown(path, columns) == [(*begun[:3], "completed", begun[4], "2026-01-01 00:01:00", "12 tasks")]
    assert ledger.publish(session(store), str(path)).written == 0


def test_published_twice_is_one_row(store: Store, path: Path) -> None:
    run_id = running(store)
    for _ in range(2):
        with store.write() as tx:
            tx.mirror_runs()
        assert marks(store)
        assert ledger.publish(session(store), str(path)).written == 1
    assert len(shown(path)) == 1
    assert run_id == 1


def test_two_publishers_at_once_leave_one_row_a_run(
    store: Store, open_store: Callable[..., Store], path: Path, journal: str
) -> None:
    change(path, f"PRAGMA journal_mode = {journal}")
    runs = [queue(store) for _ in range(40)]
    with store.write() as tx:
        for run_id in runs:
            tx.cancel_queued(run_id, now=T0, summary="no")
    before = marks(store)
    stores = [open_store() for _ in range(4)]
    at_once = threading.Barrier(4)

    def publish(own: Store) -> None:
        at_once.wait()
        ledger.publish(session(own), str(path))

    threads = [threading.Thread(target=publish, args=(own,)) for own in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(before) == 40
    ledger.publish(session(store), str(path))
    assert len(shown(path, "event_id")) == len(set(shown(path, "event_id"))) == 40
    assert marks(store) == {}


def test_a_row_that_another_publisher_has_added_since_the_look_is_not_added_again(
    store: Store, path: Path
) -> None:
    running(store)
    with store.read() as tx:
        run, store_uuid = tx.live_runs()[0], tx.store_uuid()
    row = ledger.ledger_row(run, None, store_uuid)
    with opened(str(path), Deadline(5000)) as late:
        found = late.find([row.event_id])
        ledger.publish(session(store), str(path))
        assert late.publish([row], found).done == [run.run_id]
    assert len(shown(path)) == 1


def test_a_late_publisher_cannot_undo_a_terminal_state(store: Store, path: Path) -> None:
    run_id = running(store)
    ledger.publish(session(store), str(path))
    with store.read() as tx:
        row = ledger.ledger_row(tx.runs_by_id([run_id])[0], None, tx.store_uuid())
    with opened(str(path), Deadline(5000)) as late:
        found = late.find([row.event_id])
        end(store, run_id)
        ledger.publish(session(store), str(path))
        late.publish([row], found)
    assert shown(path, "status, completed_at") == [("completed", "2026-01-01 00:01:00")]


def test_a_row_that_somebody_deleted_is_written_again(store: Store, path: Path) -> None:
    run_id = running(store)
    ledger.publish(session(store), str(path))
    change(path, "DELETE FROM droid_runs")
    end(store, run_id)
    ledger.publish(session(store), str(path))
    assert shown(path) == ["completed"]


@pytest.mark.parametrize(
    ("trigger", "refusal"),
    [
        ("SELECT RAISE(ABORT, 'not this one')", "not this one"),
        ("SELECT RAISE(ROLLBACK, 'not this one')", "not this one"),
        ("SELECT RAISE(IGNORE)", "ignores"),
    ],
)
def test_a_row_that_the_table_refuses_steps_aside_and_does_not_stop_the_others(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str], trigger: str, refusal: str
) -> None:
    runs = [running(store) for _ in range(3)]
    change(
        path,
        f"CREATE TRIGGER refuses BEFORE INSERT ON droid_runs WHEN NEW.event_id LIKE '%:{runs[1]}'"
        f" BEGIN {trigger}; END",
    )
    report = ledger.publish(session(store), str(path))
    assert (report.written, report.pending) == (2, 1)
    assert refusal in capsys.readouterr().err
    assert len(shown(path)) == 2
    assert set(marks(store)) == {runs[1]}
    change(path, "DROP TRIGGER refuses")
    assert ledger.publish(session(store), str(path)) == ledger.Published(written=1, pending=0)


def test_more_marks_than_one_batch_all_come_over(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_BATCH", 3)
    for _ in range(8):
        running(store)
    assert ledger.publish(session(store), str(path)).written == 8


def test_columns_that_the_table_lacks_are_left_out(store: Store, tmp_path: Path) -> None:
    small = planner(
        tmp_path / "small.db",
        schema="CREATE TABLE droid_runs (id INTEGER PRIMARY KEY, EVENT_ID TEXT, status TEXT,"
        " twice TEXT AS (status || status))",
    )
    running(store)
    assert ledger.publish(session(store), str(small)).written == 1
    assert shown(small, "status, twice") == [("running", "runningrunning")]


@pytest.mark.parametrize(
    ("schema", "trouble"),
    [
        ("CREATE TABLE other (x)", "no table droid_runs"),
        ("CREATE VIEW droid_runs AS SELECT 1 AS id, 'x' AS status, 'y' AS event_id", "no table droid_runs"),
        ("CREATE TABLE droid_runs (id TEXT PRIMARY KEY, event_id TEXT, status TEXT)", "INTEGER PRIMARY KEY"),
        ("CREATE TABLE droid_runs (id INTEGER PRIMARY KEY, status TEXT)", "no column event_id"),
        ("CREATE TABLE droid_runs (id INTEGER PRIMARY KEY, event_id TEXT)", "no column status"),
        (PLAIN_TABLE.format(started="", more=", tenant TEXT NOT NULL"), "tenant"),
        (PLAIN_TABLE.format(started="", more=", tenant TEXT NOT NULL DEFAULT 'x'"), None),
    ],
)
def test_a_table_of_another_shape_is_a_clear_trouble_and_the_marks_stay(
    store: Store, tmp_path: Path, schema: str, trouble: str | None
) -> None:
    running(store)
    report = ledger.publish(session(store), str(planner(tmp_path / "p.db", schema=schema)))
    assert (trouble or "") in (report.trouble or "")
    assert report.pending == (1 if trouble else 0)


def test_a_planner_database_that_is_missing_damaged_or_read_only_is_warned_about_and_the_marks_stay(
    store: Store, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running(store)
    (tmp_path / "noise.db").write_bytes(os.urandom(9000))
    places: list[Path | None] = [tmp_path / "none.db", tmp_path / "noise.db", tmp_path, None]
    if os.geteuid() != 0:
        path.chmod(0o400)
        places.append(path)
    for place in places:
        report = ledger.publish(session(store), str(place) if place else None)
        assert (report.written, report.pending) == (0, 1)
        assert "wait to be mirrored" in capsys.readouterr().err


def test_under_a_foreign_lock_publishing_gives_up_soon_and_the_marks_stay(store: Store, path: Path) -> None:
    running(store)
    with locked(path, "BEGIN EXCLUSIVE"):
        report = ledger.publish(session(store), str(path))
    assert (report.written, report.pending) == (0, 1)
    assert "locked" in (report.trouble or "")
    assert ledger.publish(session(store), str(path)).written == 1


def test_a_search_that_takes_too_long_is_cut_off_before_the_lock_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_sql, "_PROGRESS_STEPS", 1)

    def search() -> None:
        deadline = Deadline(60_000)
        with opened(str(path), deadline) as late:
            deadline._end = 0.0
            late.find(["x"] * 100)

    with pytest.raises(StoreBusy, match="looked through"):
        search()


def test_a_publication_that_is_cut_off_is_a_trouble_that_ends_nothing(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(store)
    monkeypatch.setattr(planner_sql, "_PROGRESS_STEPS", 1)
    monkeypatch.setattr(ledger, "DEADLINE_MS", 0)
    report = ledger.publish(session(store), str(path))
    assert report.pending == 1
    assert "looked through" in (report.trouble or "")


def test_what_the_job_came_with_from_there_goes_back_there(store: Store, path: Path) -> None:
    legacy = {"droid_name": "Crawler", "execution_id": 42, "initiative_id": "LAUNCH-7 \ud83d"}
    with store.write() as tx:
        tx.insert_jobs([job("j", legacy=legacy), job("odd", legacy={"droid_name": {"blob": "AAE="}})])
    for name in ("j", "odd"):
        queue(store, name)
    claim(store)
    for run_id in (1, 2):
        start(store, run_id)
    ledger.publish(session(store), str(path))
    assert shown(path, "droid_name, execution_id, initiative_id") == [
        ("Crawler", 42, "LAUNCH-7 ?"),
        ("odd", None, None),
    ]


@pytest.mark.parametrize(
    ("summary", "shown_as"),
    [(None, "timeout"), ("", "timeout"), ("after 5 s", "timeout: after 5 s"), ("a timeout", "a timeout")],
)
def test_the_class_of_a_failure_stands_in_front_of_a_summary_that_does_not_say_it(
    store: Store, path: Path, summary: str | None, shown_as: str
) -> None:
    end(store, running(store), status="failed", failure_reason="timeout", summary=summary)
    ledger.publish(session(store), str(path))
    assert shown(path, "status, result_summary") == [("failed", shown_as)]


# -- foreign rows ----


def find(path: Path, *, now: int = T0 + HOUR, busy: dict[str, Millis] | None = None) -> orphans.ForeignRuns:
    return orphans.find_orphans(
        str(path), now=Millis(now), threshold_min=30, store_uuid="ours", busy=busy or {}
    )


def ids(rows: tuple[Any, ...]) -> list[int]:
    return [row.id for row in rows]


def test_rows_that_cannot_be_dated_are_left_alone_and_told_apart(path: Path) -> None:
    odd = [None, "", "soon", "2026-02-30 00:00:00", b"\x00\x01", Raw("CAST(X'ff31' AS TEXT)"), "9" * 40]
    for value in odd:
        add(path, started_at=value)
    orphan = add(path)
    found = find(path)
    assert ids(found.orphans) == [orphan]
    assert len(found.undated) == len(odd)
    assert found.young == ()


def test_our_own_rows_and_rows_that_do_not_run_are_no_orphans(path: Path) -> None:
    add(path, event_id="ours:17")
    add(path, status="completed")
    add(path, status="RUNNING")
    other = add(path, event_id="others:17")
    assert ids(find(path).orphans) == [other]


def test_a_live_process_protects_its_row_and_a_reused_id_does_not(tmp_path: Path) -> None:
    path = with_table(tmp_path / "p.db", more=", pid INTEGER, pid_start INTEGER")
    me, mine = os.getpid(), int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    add(path, pid=me, pid_start=mine)
    add(path, pid=me)
    dead = [
        add(path, pid=me, pid_start=mine + 1),
        add(path, pid=2**22 - 1),
        add(path, pid=2**62),
        add(path, pid=-1),
        add(path, pid=0),
        add(path, pid="none"),
        add(path),
    ]
    assert ids(find(path).orphans) == dead


def test_a_row_that_a_droid_wrote_while_a_run_of_ours_keeps_it_busy_belongs_to_that_run(path: Path) -> None:
    add(path, started_at="2026-01-01 00:00:00")
    before = add(path, started_at="2025-12-31 23:59:58")
    other = add(path, droid_name="writer")
    found = find(path, busy={"crawler": Millis(T0 + 61_000 - 2000)})
    assert ids(found.orphans) == [before, other]


def test_the_droids_that_runs_keep_busy_are_told_by_their_legacy_names(store: Store) -> None:
    with store.write() as tx:
        tx.insert_jobs([job("j", legacy={"droid_name": "Crawler"})])
    queue(store, "j")
    claim(store)
    queue(store)
    with store.read() as tx:
        assert orphans.busy_droids(tx) == {"Crawler": T0}


@pytest.mark.parametrize(
    "value",
    ["2026-01-01 00:00:00", 1_767_225_600, 1_767_225_600.5, Raw("CAST(X'ff31' AS TEXT)"), b"\x01", None],
)
def test_a_row_is_ended_only_as_it_was_looked_at_types_and_all(tmp_path: Path, value: Any) -> None:
    path = with_table(tmp_path / "p.db", started="")
    row_id = add(path, started_at=value)
    with opened(str(path), Deadline(5000)) as found:
        row = found.row(row_id)
        assert row is not None
        ending = planner_sql.Ending(row=row, completed_at="now", result_summary="x")
        change(path, "UPDATE droid_runs SET started_at = 'moved'")
        assert found.end([ending]).done == []
        change(path, "UPDATE droid_runs SET started_at = CAST(? AS TEXT)", "1767225600")
        assert found.end([ending]).done == []
        restored = value if not isinstance(value, Raw) else b"\xff1"
        cast = "CAST(? AS TEXT)" if isinstance(value, Raw) else "?"
        change(path, f"UPDATE droid_runs SET started_at = {cast}", restored)
        assert found.end([ending]).done == [row_id]
        assert found.end([ending]).done == []
    assert shown(path, "status, completed_at") == [("failed", "now")]


def test_an_orphan_whose_end_the_table_refuses_does_not_stop_the_others(
    store: Store, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = add(path), add(path)
    change(
        path,
        f"CREATE TRIGGER t BEFORE UPDATE ON droid_runs WHEN NEW.id = {first}"
        " BEGIN SELECT RAISE(ABORT, 'stays'); END",
    )
    swept = orphans.sweep_orphans(session(store), str(path), threshold_min=30, dry_run=False)
    assert swept == [second]
    assert "stays" in capsys.readouterr().err


def test_two_sweeps_of_the_same_orphan_end_it_once(store: Store, path: Path) -> None:
    orphan = add(path)
    [row] = find(path).orphans
    assert row.id == orphan
    assert orphans.sweep_orphans(session(store), str(path), threshold_min=30, dry_run=False) == [orphan]
    with opened(str(path), Deadline(5000)) as late:
        ending = planner_sql.Ending(row=row, completed_at="later", result_summary="x")
        assert late.end([ending]).done == []
    assert shown(path, "completed_at") == ["2026-01-01 01:00:00"]


def test_a_sweep_writes_one_audit_entry_with_the_ids(store: Store, path: Path) -> None:
    rows = [add(path), add(path)]
    orphans.sweep_orphans(session(store), str(path), threshold_min=30, dry_run=False)
    orphans.sweep_orphans(session(store), str(path), threshold_min=30, dry_run=False)
    with store.read() as tx:
        [entry] = tx.audit_entries()
    assert (entry["command"], entry["actor"]) == ("orphan_sweep", "carolctl")
    assert str(rows).replace(" ", "") in entry["after"]


@pytest.mark.parametrize("problem", [NotFound, BadData])
def test_looking_for_orphans_says_what_is_in_the_way(
    tmp_path: Path, problem: type[CarolError], path: Path
) -> None:
    if problem is BadData:
        change(path, "ALTER TABLE droid_runs DROP COLUMN started_at")
    with pytest.raises(problem):
        find(path if problem is BadData else tmp_path / "none.db")


def test_a_text_of_bad_bytes_comes_as_it_is(path: Path) -> None:
    row_id = add(path, droid_name=Raw("CAST(X'ff31' AS TEXT)"))
    with opened(str(path), Deadline(5000), read_only=True) as found:
        row = found.row(row_id)
        assert row is not None
        assert row.droid_name == RawText(b"\xff1")
        assert found.row(row_id + 1) is None
