"""migrate-jobs: every job arrives intact, twice is once, conflicts stay, and the source is never touched."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carolctl.errors import BadData
from carolctl.migrate_jobs import Request, migrate, source_of
from carolctl.model import HttpAction
from carolctl.session import Session
from carolctl.store.db import open_store
from carolctl.store.legacy import read_table
from tests.builders import MINUTE, T0, Carol, Result, at
from tests.builders import job as job_of
from tests.planner import (
    NOW,
    PLAIN,
    Opener,
    Raw,
    cells,
    change,
    contents,
    demo_planner,
    digest,
    ids,
    jobs_in,
    locked,
    migrated,
    planner,
    refused,
)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The planner database of 27 jobs."""
    return demo_planner(tmp_path / "plangenerator.db")


# -- the whole of it ----


def test_all_27_jobs_are_migrated_intact_and_listed_from_the_new_database(carol: Carol, demo: Path) -> None:
    before = digest(demo)
    report = migrated(carol, demo)
    assert {name: report[name] for name in ("source_rows", "migrated", "unchanged", "conflicts", "dry_run")} == {
        "source_rows": 27, "migrated": 27, "unchanged": 0, "conflicts": 0, "dry_run": False,
    }  # fmt: skip
    assert report["source_checksum"] == report["target_checksum"]
    demo.rename(demo.with_name("moved-away.db"))
    listed = carol("list-jobs", "--json", **NOW).json()
    assert listed["count"] == 27
    assert sorted(ids(listed["jobs"])) == sorted(cells(demo.with_name("moved-away.db")))
    assert digest(demo.with_name("moved-away.db")) == before


def test_each_job_has_its_schedule_action_and_state(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    jobs = jobs_in(carol.home)
    first = jobs["gen-tasks-01"]
    assert (first.schedule_kind, first.schedule_expr, first.timezone) == ("daily_at", "00:00", "UTC")
    assert first.action == HttpAction(
        url="http://127.0.0.1:9/generate", payload={"kind": "tasks", "count": 12}
    )
    assert (first.agent_profile, first.last_status, first.firing_count) == ("planner", "completed", 26)
    assert first.last_fired_at == at("2026-01-31T00:00:02Z")
    assert first.last_scheduled_for == at("2026-02-01T00:00:00Z")
    assert first.next_fire_at == at("2026-02-02T00:00:00Z")
    assert jobs["gen-tasks-02"].next_fire_at == at("2026-02-01T05:30:00Z")
    assert jobs["triage-inbox"].schedule_expr == "300s"
    assert jobs["triage-inbox"].next_fire_at == at("2026-02-01T00:05:00Z")
    paused = {name for name, job in jobs.items() if job.status == "paused"}
    assert paused == {"paused-scan", "paused-crawl", "paused-shell"}


def test_the_report_says_that_command_lines_go_to_the_shell(carol: Carol, demo: Path) -> None:
    done = carol("migrate-jobs", "--planner-db", str(demo), **NOW)
    assert done.code == 0
    assert '8 command lines run as ["/bin/sh","-c",LINE]' in done.out
    assert "equal: every row was read back" in done.out
    assert "old-reminder: its one time has passed" in done.out


def test_a_migration_leaves_one_line_in_the_audit_log(carol: Carol, demo: Path, store: Opener) -> None:
    migrated(carol, demo)
    migrated(carol, demo)
    with store(carol.home).read() as tx:
        [entry] = tx.audit_entries()
    assert (entry["command"], entry["subject"]) == ("migrate-jobs", "scheduled_jobs")
    assert json.loads(entry["after"])["migrated"] == 27


def test_every_odd_cell_is_proved_equal(carol: Carol, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"job_id": "nulls", "droid_name": ""} | dict.fromkeys(("description", "http_method", "run_count")),
        {"job_id": "blobs", "description": b"\x00\xff", "last_status": b"", "created_at": b"2026"},
        {"job_id": "broken", "description": Raw("CAST(X'ff00fe' AS TEXT)"), "last_status": Raw("CAST(X'c3' AS TEXT)")},
        {"job_id": "unicode", "description": "\U0001f5de\ufe0f \u202e\u0000\x1b[31m\ufeff", "droid_name": "Привет"},
        {"job_id": "huge", "description": "ü" * 3_000_000, "payload_json": json.dumps("x" * 1_000_000)},
        {"job_id": "numbers", "description": 5, "last_status": 1.5, "run_count": 7.25, "last_run_at": 1e300},
        {"job_id": "infinite", "run_count": float("inf"), "updated_at": -9e999},
        {"job_id": "epochs", "last_run_at": 1700000000, "created_at": 1700000000.123, "updated_at": "1700000000"},
    ]  # fmt: skip
    schema = ", ".join(f'"{name}"' for name in cells(demo_planner(tmp_path / "d.db"))["gen-tasks-01"])
    source = planner(
        tmp_path / "odd.db", *(PLAIN | row for row in odd), schema=f"CREATE TABLE scheduled_jobs ({schema})"
    )
    report = migrated(carol, source)
    assert (report["migrated"], report["source_checksum"]) == (8, report["target_checksum"])
    assert len(jobs_in(carol.home)["huge"].description or "") == 3_000_000
    assert carol("list-jobs", **NOW).code == 0


def test_two_thousand_jobs_are_proved_as_well(carol: Carol, tmp_path: Path) -> None:
    rows = [PLAIN | {"job_id": f"job-{n}", "daily_at": f"{n % 24}:{n % 60:02}"} for n in range(2000)]
    report = migrated(carol, planner(tmp_path / "many.db", *rows))
    assert report["migrated"] == 2000
    assert migrated(carol, tmp_path / "many.db")["unchanged"] == 2000


# -- rows that cannot be used ----


def test_a_bad_schedule_is_imported_paused_with_its_reason_and_exit_1(carol: Carol, tmp_path: Path) -> None:
    bad = PLAIN | {"schedule_type": "cron", "cron_expr": "99 * * * *"}
    source = planner(tmp_path / "p.db", bad | {"job_id": "bad"}, PLAIN | {"job_id": "good"})
    report = migrated(carol, source, code=1)
    assert (report["migrated"], report["source_checksum"]) == (2, report["target_checksum"])
    [paused] = report["paused"]
    assert paused["job_id"] == "bad"
    assert "cron" in paused["reason"]
    job = jobs_in(carol.home)["bad"]
    assert (job.status, job.paused_reason) == ("paused", paused["reason"])
    assert migrated(carol, source, code=1)["unchanged"] == 2


@pytest.mark.parametrize("job_id", ["a b", "-a", "ü", "x" * 65, "", "a/b", "a\nb", None, b"blob"])
def test_an_id_that_cannot_be_one_is_65_and_nothing_is_written(
    carol: Carol, tmp_path: Path, job_id: object
) -> None:
    source = planner(tmp_path / "p.db", PLAIN | {"job_id": job_id}, PLAIN | {"job_id": "good"})
    error = refused(carol, source, code=65)
    assert "--rename" in error["hint"]
    assert not carol.home.exists()


def test_rename_gives_a_row_a_new_id_and_its_own_stays_on_record(carol: Carol, tmp_path: Path) -> None:
    source = planner(tmp_path / "p.db", PLAIN | {"job_id": "a b=c"}, PLAIN | {"job_id": "good"})
    report = migrated(carol, source, "--rename", "a b=c=a-b")
    assert report["source_checksum"] == report["target_checksum"]
    assert (jobs_in(carol.home)["a-b"].legacy or {})["job_id"] == "a b=c"
    assert migrated(carol, source, "--rename", "a b=c=a-b")["unchanged"] == 2


@pytest.mark.parametrize(
    ("renames", "code"),
    [(["a=b"], 65), (["a=x y"], 65), (["nobody=x"], 2), (["a"], 2), (["a=x", "a=y"], 2), (["=x"], 2)],
)
def test_a_rename_that_does_not_help_is_refused(
    carol: Carol, tmp_path: Path, renames: list[str], code: int
) -> None:
    source = planner(tmp_path / "p.db", PLAIN | {"job_id": "a"}, PLAIN | {"job_id": "b"})
    refused(carol, source, *(word for text in renames for word in ("--rename", text)), code=code)
    assert not carol.home.exists()


# -- other schemas ----

_OTHER = """CREATE TABLE tasks (id INTEGER PRIMARY KEY, kind TEXT, line TEXT, sh TEXT, owner TEXT, weight REAL,
  up GENERATED ALWAYS AS (id + 1))"""


def test_another_schema_is_mapped_by_column_and_the_rest_is_kept(carol: Carol, tmp_path: Path) -> None:
    source = planner(tmp_path / "p.db", schema=_OTHER)
    change(source, "INSERT INTO tasks VALUES (7, 'cron', '*/5 * * * *', 'date', 'ann', 2)")
    maps = [f"--map={pair}" for pair in ("job_id=ID", "schedule_type=kind", "cron_expr=line", "command=sh")]
    report = migrated(carol, source, "--table", "tasks", *maps)
    assert report["mapping"] == {
        "id": "job_id", "kind": "schedule_type", "line": "cron_expr", "sh": "command", "owner": None,
        "weight": None, "up": None,
    }  # fmt: skip
    job = jobs_in(carol.home)["7"]
    assert job.schedule_expr == "*/5 * * * *"
    assert {name: (job.legacy or {})[name] for name in ("id", "owner", "weight", "up")} == {
        "id": 7, "owner": "ann", "weight": 2.0, "up": 8,
    }  # fmt: skip


def test_a_table_without_the_columns_is_65_and_the_hint_names_map(carol: Carol, tmp_path: Path) -> None:
    source = planner(tmp_path / "p.db", schema=_OTHER)
    assert "--map" in refused(carol, source, "--table", "tasks", code=65)["hint"]
    refused(carol, source, "--table", "tasks", "--map", "job_id=nope", code=65)
    refused(carol, source, "--table", "tasks", "--map", "nope=id", code=2)


# -- the source ----


def test_no_planner_database_given_is_78(carol: Carol) -> None:
    done = carol("migrate-jobs", "--json")
    assert (done.code, done.error()["error"]) == (78, "configuration")


def test_the_planner_database_may_come_from_the_environment(carol: Carol, demo: Path) -> None:
    assert carol("migrate-jobs", "--json", CAROL_PLANNER_DB=str(demo)).json()["migrated"] == 27


def test_a_source_that_is_missing_foreign_or_damaged_has_its_own_exit_code(
    carol: Carol, tmp_path: Path
) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("not a database " * 500)
    open_store(str(tmp_path / "store.db"), deadline_ms=100, create=True).close()
    cases = {"missing.db": 66, ".": 66, "empty.db": 66, "text.db": 65, "store.db": 65}
    for name, code in cases.items():
        refused(carol, tmp_path / name, code=code)
    refused(carol, demo_planner(tmp_path / "p.db"), "--table", "jobs", code=66)
    assert not carol.home.exists()


def test_an_exclusively_locked_rollback_source_is_75_within_the_deadline(carol: Carol, demo: Path) -> None:
    with locked(demo, "BEGIN EXCLUSIVE"):
        error = refused(carol, demo, code=75, CAROL_BUSY_TIMEOUT_MS="300")
    assert error["error"] == "database_busy"
    assert not carol.home.exists()
    assert migrated(carol, demo)["migrated"] == 27


def test_a_wal_source_is_read_while_somebody_holds_its_write_lock(carol: Carol, demo: Path) -> None:
    change(demo, "PRAGMA journal_mode = WAL")
    with locked(demo, "BEGIN IMMEDIATE"):
        before = digest(demo)
        assert migrated(carol, demo)["migrated"] == 27
        assert digest(demo) == before


def test_what_still_lies_in_the_wal_is_migrated_too(carol: Carol, demo: Path) -> None:
    with closing(sqlite3.connect(demo)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("UPDATE scheduled_jobs SET daily_at = '03:33' WHERE job_id = 'gen-tasks-01'")
        other.commit()
        before = digest(demo)
        migrated(carol, demo)
        assert digest(demo) == before
    assert jobs_in(carol.home)["gen-tasks-01"].schedule_expr == "03:33"


# -- all or nothing ----


def test_a_dry_run_leaves_an_existing_store_as_it_is(carol: Carol, demo: Path, store: Opener) -> None:
    with store(carol.home).write() as tx:
        tx.insert_jobs([job_of("mine")])
    before = contents(carol.home)
    report = migrated(carol, demo, "--dry-run")
    assert (report["dry_run"], report["migrated"]) == (True, 27)
    assert report["source_checksum"] == report["target_checksum"]
    assert contents(carol.home) == before


def test_a_dry_run_makes_no_store(carol: Carol, demo: Path) -> None:
    report = migrated(carol, demo, "--dry-run")
    assert report["migrated"] == 27
    assert not carol.home.exists()
    assert report["source_checksum"] == migrated(carol, demo)["source_checksum"]


def test_death_before_the_commit_leaves_nothing_and_a_rerun_completes(carol: Carol, demo: Path) -> None:
    died = carol("migrate-jobs", "--planner-db", str(demo), CAROL_FAILPOINT="store-before-commit")
    assert died.code == -signal.SIGKILL
    assert jobs_in(carol.home) == {}
    assert migrated(carol, demo)["migrated"] == 27


def test_death_after_the_commit_leaves_everything(carol: Carol, demo: Path) -> None:
    died = carol("migrate-jobs", "--planner-db", str(demo), CAROL_FAILPOINT="store-after-commit")
    assert died.code == -signal.SIGKILL
    assert migrated(carol, demo)["unchanged"] == 27


def test_a_store_that_does_not_give_the_rows_back_is_found_out_and_rolled_back(
    carol: Carol, demo: Path, store: Opener
) -> None:
    store(carol.home)
    change(
        carol.home / "scheduler.db",
        "CREATE TRIGGER meddle AFTER INSERT ON scheduled_jobs WHEN NEW.job_id = 'backup-db' BEGIN"
        " UPDATE scheduled_jobs SET schedule_expr = '03:11' WHERE job_id = NEW.job_id; END",
    )
    error = refused(carol, demo, code=65)
    assert "backup-db" in error["message"]
    assert error["source_checksum"] != error["target_checksum"]
    assert jobs_in(carol.home) == {}


def test_a_second_run_needs_no_lock(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    with locked(carol.home / "scheduler.db", "BEGIN IMMEDIATE"):
        assert migrated(carol, demo, CAROL_BUSY_TIMEOUT_MS="200")["unchanged"] == 27


def test_a_job_store_that_is_locked_is_75_and_nothing_is_written(
    carol: Carol, demo: Path, store: Opener
) -> None:
    store(carol.home)
    with locked(carol.home / "scheduler.db", "BEGIN IMMEDIATE"):
        refused(carol, demo, code=75, CAROL_BUSY_TIMEOUT_MS="200")
    assert jobs_in(carol.home) == {}


def test_two_at_once_migrate_once(carol: Carol, demo: Path, store: Opener) -> None:
    store(carol.home)
    both = [carol.spawn("migrate-jobs", "--planner-db", str(demo), "--json", **NOW) for _ in range(2)]
    results = [Result(code=p.wait(), out=(p.communicate()[0]).decode(), err="") for p in both]
    assert {result.code for result in results} <= {0, 75}
    assert sum(result.json()["migrated"] for result in results if result.code == 0) == 27


def test_hostile_names_reach_the_terminal_harmless(carol: Carol, tmp_path: Path) -> None:
    hostile = 'x\x1b]52;c;aGk=\x07\u202e[red]"'
    column = hostile.replace('"', '""')
    schema = f'CREATE TABLE scheduled_jobs (job_id, schedule_type, command, cron_expr, "{column}")'
    row = {"job_id": hostile, "schedule_type": hostile, "command": "true"}
    source = planner(tmp_path / "p.db", row, schema=schema)
    for done in (
        carol("migrate-jobs", "--planner-db", str(source)),
        carol("migrate-jobs", "--planner-db", str(source), "--rename", f"{hostile}=ok"),
    ):
        assert done.code in (1, 65)
        assert not any(
            (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e" for c in done.out + done.err
        )


# -- any rows, through a real store ----

_CELL = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=6),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from(["cron", "0 5 * * *", "echo"]),
)  # fmt: skip
_COLUMNS = (
    "description",
    "schedule_type",
    "cron_expr",
    "timezone",
    "command",
    "payload_json",
    "enabled",
    "odd",
)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(_COLUMNS, _CELL)), max_size=6))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_rows_survive_the_store(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    numbered = [{"job_id": f"j{n}"} | row for n, row in enumerate(rows)]
    schema = f"CREATE TABLE scheduled_jobs (job_id, {', '.join(_COLUMNS)})"
    source = planner(folder / "p.db", *numbered, schema=schema)
    opened = open_store(str(folder / "s.db"), deadline_ms=1000, create=True)
    with closing(opened):
        shape, found = read_table(str(source), "scheduled_jobs", deadline_ms=1000)
        session = Session(store=opened, now=T0, actor="test")
        report = migrate(session, source_of(shape, found, Request()), Request())
        assert (report.migrated, report.source_checksum) == (len(rows), report.target_checksum)
        later = Session(store=opened, now=T0 + MINUTE, actor="test")  # type: ignore[arg-type]
        assert migrate(later, source_of(shape, found, Request()), Request()).unchanged == len(rows)


def test_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    source = planner(
        tmp_path / "p.db",
        {"job_id": "a"}, {"job_id": "a"},
        schema="CREATE TABLE scheduled_jobs (job_id, schedule_type, cron_expr, command)",
    )  # fmt: skip
    shape, rows = read_table(str(source), "scheduled_jobs", deadline_ms=100)
    with pytest.raises(BadData, match="more than once: a"):
        source_of(shape, rows, Request())
