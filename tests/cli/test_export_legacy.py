"""export-legacy: what was migrated comes back byte for byte, and what changed since shows in its column."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carolctl.legacy_cells import Cell, RawText, text_cell, typed
from carolctl.store.legacy import literal
from tests.builders import T0, Carol, at
from tests.builders import job as job_of
from tests.planner import NOW, PLAIN, Opener, Raw, cells, change, demo_planner, digest, planner


@pytest.fixture
def demo(tmp_path: Path, carol: Carol) -> Path:
    """The planner database of 27 jobs, migrated."""
    path = demo_planner(tmp_path / "plangenerator.db")
    migrate(carol, path)
    return path


def migrate(carol: Carol, source: Path, *more: str) -> None:
    """Migrate, whatever it finds."""
    done = carol("migrate-jobs", "--planner-db", str(source), *more, **NOW)
    assert done.code in (0, 1), done.err


def exported(carol: Carol, path: Path, *more: str, code: int = 0) -> Any:
    """The JSON report of an export to `path`."""
    done = carol("export-legacy", "--output", str(path), "--json", *more, **NOW)
    assert done.code == code, done.err
    return done.json()


def applied(path: Path, script: str) -> Path:
    """A database on which a script was run."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def test_every_column_comes_back_by_type_and_value(carol: Carol, demo: Path, tmp_path: Path) -> None:
    report = exported(carol, tmp_path / "back.db")
    assert (report["rows"], report["left_out"], report["lossy"]) == (27, [], [])
    assert cells(tmp_path / "back.db") == cells(demo)


def test_the_table_is_made_as_the_source_was_made(carol: Carol, demo: Path, tmp_path: Path) -> None:
    exported(carol, tmp_path / "back.db")
    made = "SELECT sql FROM sqlite_schema WHERE name = 'scheduled_jobs'"
    statements = []
    for path in (demo, tmp_path / "back.db"):
        with closing(sqlite3.connect(path)) as connection:
            statements.append(connection.execute(made).fetchone())
    assert statements[0] == statements[1]


def test_a_script_to_standard_output_does_the_same(carol: Carol, demo: Path, tmp_path: Path) -> None:
    done = carol("export-legacy", **NOW)
    assert done.code == 0
    assert cells(applied(tmp_path / "back.db", done.out)) == cells(demo)
    document = carol("export-legacy", "--json", **NOW).json()
    assert document["script"] == done.out


def test_a_script_can_be_run_twice_and_replaces_its_rows(carol: Carol, demo: Path, tmp_path: Path) -> None:
    exported(carol, tmp_path / "back.sql")
    script = (tmp_path / "back.sql").read_text()
    before = cells(demo)
    change(demo, "UPDATE scheduled_jobs SET daily_at = '11:11'")
    applied(demo, script)
    applied(demo, script)
    assert cells(demo) == before


def test_odd_rows_come_back_too(carol: Carol, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"job_id": "broken", "description": Raw("CAST(X'ff00fe' AS TEXT)"), "payload_json": "{bad"},
        {"job_id": "Ünicode", "description": "'\u0000\n\r\t\u202e", "last_status": b"\x00"},
        {"job_id": "real", "last_run_at": 1769837400.1, "run_count": -9e999, "interval_sec": 2.5},
        {"job_id": "int", "last_run_at": -(2**63), "run_count": 2**63 - 1, "schedule_type": "weekly"},
    ]
    names = ", ".join(cells(demo_planner(tmp_path / "d.db"))["heartbeat"])
    source = planner(
        tmp_path / "odd.db",
        *(PLAIN | row for row in odd),
        schema=f"CREATE TABLE scheduled_jobs ({names}, extra)",
    )
    migrate(carol, source, "--rename", "Ünicode=unicode")
    exported(carol, tmp_path / "back.db")
    exported(carol, tmp_path / "back.sql")
    assert cells(tmp_path / "back.db") == cells(source)
    assert cells(applied(tmp_path / "script.db", (tmp_path / "back.sql").read_text())) == cells(source)


def test_edits_show_in_their_columns_and_the_rest_stays(carol: Carol, demo: Path, tmp_path: Path) -> None:
    edit = ("edit-job", "gen-tasks-02", "--daily-at", "00:05", "--max-turns", "7")
    assert carol(*edit, **NOW).code == 0
    assert carol("pause", "heartbeat", **NOW).code == 0
    report = exported(carol, tmp_path / "back.db")
    assert report["lossy"] == [{"job_id": "gen-tasks-02", "fields": ["max_turns"]}]
    there, back = cells(demo), cells(tmp_path / "back.db")
    changed = {
        (job_id, name): back[job_id][name]
        for job_id in there
        for name in there[job_id]
        if there[job_id][name] != back[job_id][name]
    }
    stamp, fires = b"2026-02-01 00:00:00", b"2026-02-01 23:05:00"
    assert changed == {
        ("gen-tasks-02", "daily_at"): (b"text", b"00:05"),
        ("gen-tasks-02", "next_run_at"): (b"text", fires),
        ("gen-tasks-02", "updated_at"): (b"text", stamp),
        ("heartbeat", "enabled"): (b"integer", 0),
        ("heartbeat", "updated_at"): (b"text", stamp),
    }


def test_a_job_that_was_added_here_goes_along_and_a_manual_one_is_reported(
    carol: Carol, demo: Path, tmp_path: Path, store: Opener
) -> None:
    with store(carol.home).write() as tx:
        tx.insert_jobs([job_of("mine", cron="0 5 * * *", agent_profile="me"), job_of("by-hand", manual=True)])
    report = exported(carol, tmp_path / "back.db", code=1)
    assert report["left_out"] == [{"job_id": "by-hand", "reason": "it has no schedule (manual)"}]
    mine = cells(tmp_path / "back.db")["mine"]
    assert (mine["cron_expr"], mine["command"], mine["droid_name"]) == (
        (b"text", b"0 5 * * *"), (b"text", b"true"), (b"text", b"me"),
    )  # fmt: skip


def test_jobs_that_were_never_migrated_fill_the_usual_table(
    carol: Carol, tmp_path: Path, store: Opener
) -> None:
    with store(carol.home).write() as tx:
        tx.insert_jobs(
            [job_of("a", every="15m", url="http://h/"), job_of("b", once_at="2026-05-01T09:00:00Z")]
        )
    exported(carol, tmp_path / "back.db")
    back = cells(tmp_path / "back.db")
    assert (back["a"]["interval_sec"], back["a"]["endpoint_url"]) == (
        (b"integer", 900),
        (b"text", b"http://h/"),
    )
    assert back["b"]["run_at"] == (b"text", b"2026-05-01 09:00:00")


def test_an_export_can_be_migrated_again(carol: Carol, demo: Path, tmp_path: Path) -> None:
    exported(carol, tmp_path / "back.db")
    again = Carol(tmp_path / "second-home")
    report = again("migrate-jobs", "--planner-db", str(tmp_path / "back.db"), "--json", **NOW).json()
    assert report["migrated"] == 27


def test_a_row_that_the_table_refuses_is_left_out_and_the_others_are_written(
    carol: Carol, tmp_path: Path
) -> None:
    schema = (
        "CREATE TABLE scheduled_jobs (job_id TEXT PRIMARY KEY, schedule_type TEXT CHECK (schedule_type = 'cron'),"
        " cron_expr TEXT, daily_at TEXT, command TEXT)"
    )
    row = {"schedule_type": "cron", "cron_expr": "0 5 * * *", "command": "true"}
    source = planner(tmp_path / "p.db", row | {"job_id": "a"}, row | {"job_id": "b"}, schema=schema)
    migrate(carol, source)
    assert carol("edit-job", "a", "--daily-at", "01:00", **NOW).code == 0
    report = exported(carol, tmp_path / "back.db", code=1)
    assert (report["rows"], report["left_out"][0]["job_id"]) == (1, "a")
    assert list(cells(tmp_path / "back.db")) == ["b"]
    assert "'a'" not in carol("export-legacy", **NOW).out


# -- where to ----


def test_an_existing_file_is_not_written_over_unless_told(carol: Carol, demo: Path, tmp_path: Path) -> None:
    for name in ("back.db", "back.sql"):
        exported(carol, tmp_path / name)
        before = digest(tmp_path / name)
        assert carol("export-legacy", "--output", str(tmp_path / name), **NOW).code == 1
        assert digest(tmp_path / name) == before
        exported(carol, tmp_path / name, "--overwrite")
    assert sorted(path.name for path in tmp_path.glob("*partial*")) == []


def test_a_database_with_other_tables_is_never_replaced(carol: Carol, demo: Path) -> None:
    before = digest(demo)
    for path in (demo, carol.home / "scheduler.db"):
        done = carol("export-legacy", "--output", str(path), "--overwrite", **NOW)
        assert (done.code, "--planner-db" in done.err) == (1, True)
    assert digest(demo) == before


def test_it_can_write_into_the_planner_database_itself_when_told_to(carol: Carol, demo: Path) -> None:
    assert carol("edit-job", "gen-tasks-01", "--daily-at", "00:05", **NOW).code == 0
    change(
        demo, "INSERT INTO scheduled_jobs (job_id, droid_name, schedule_type) VALUES ('theirs', 'd', 'once')"
    )
    into = ("export-legacy", "--planner-db", str(demo))
    assert carol(*into, **NOW).code == 1
    assert carol(*into, "--overwrite", **NOW).code == 0
    back = cells(demo)
    assert back["gen-tasks-01"]["daily_at"] == (b"text", b"00:05")
    assert "theirs" in back
    assert len(cells(demo, "droid_runs", "id")) == 5


def test_a_planner_database_that_is_locked_is_75_and_stays_as_it_is(carol: Carol, demo: Path) -> None:
    before = cells(demo)
    with closing(sqlite3.connect(demo, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = carol("export-legacy", "--planner-db", str(demo), "--overwrite", CAROL_BUSY_TIMEOUT_MS="200")
        other.execute("ROLLBACK")
    assert done.code == 75
    assert cells(demo) == before


def test_two_destinations_or_no_job_store_are_refused(carol: Carol, demo: Path, tmp_path: Path) -> None:
    assert carol("export-legacy", "--output", "x.db", "--planner-db", str(demo)).code == 2
    assert Carol(tmp_path / "nowhere")("export-legacy").code == 66
    assert carol("export-legacy", "--output", str(tmp_path / "no" / "folder.db")).code == 77


def test_the_job_store_is_only_read(carol: Carol, demo: Path, tmp_path: Path, store: Opener) -> None:
    with store(carol.home).read() as tx:
        before = (tx.jobs(), tx.audit_entries())
    exported(carol, tmp_path / "back.db")
    with store(carol.home).read() as tx:
        assert (tx.jobs(), tx.audit_entries()) == before


def test_a_job_that_ran_here_shows_it(carol: Carol, demo: Path, tmp_path: Path, store: Opener) -> None:
    with store(carol.home).write() as tx:
        tx.count_firings([("gen-tasks-01", 1, 0)], now=at("2026-02-02T00:00:00.500Z"))
        tx.set_job_columns("gen-tasks-01", {"last_status": "failed", "updated_at": T0})
    exported(carol, tmp_path / "back.db")
    back = cells(tmp_path / "back.db")["gen-tasks-01"]
    assert (back["run_count"], back["last_run_at"], back["last_status"]) == (
        (b"integer", 27), (b"text", b"2026-02-02 00:00:00.500"), (b"text", b"failed"),
    )  # fmt: skip


_CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9),
    st.floats(1e9, 2e9),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.binary().map(text_cell),
)


@given(_CELLS)
@example(-math.inf)
@example(-(2**63))
@example(1769837400.123)
@example(RawText(b"\xff\x00"))
def test_a_literal_means_the_cell_itself(cell: Cell) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.text_factory = text_cell
        [found] = connection.execute(f"SELECT {literal(cell)}").fetchone()
    assert literal(cell).isprintable()
    # SQLite keeps no negative zero.
    assert typed(found) == typed(0.0 if cell == 0 and isinstance(cell, float) else cell)
