"""migrate-jobs, again: what is the same stays unchanged, what differs is a conflict, and overwrite settles it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import T0, Carol, at
from tests.builders import job as job_of
from tests.planner import NOW, Opener, change, contents, demo_planner, jobs_in, migrated


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The planner database of 27 jobs."""
    return demo_planner(tmp_path / "plangenerator.db")


# -- twice ----


def test_a_second_run_finds_everything_unchanged_and_writes_nothing(carol: Carol, demo: Path) -> None:
    first = migrated(carol, demo)
    before = contents(carol.home)
    second = migrated(carol, demo, CAROL_NOW="2026-02-03T00:00:00Z")
    assert (second["migrated"], second["unchanged"], second["conflicts"]) == (0, 27, 0)
    assert second["source_checksum"] == first["source_checksum"] == second["target_checksum"]
    assert contents(carol.home) == before


def test_running_pausing_and_resuming_here_and_running_there_are_no_conflicts(
    carol: Carol, demo: Path, store: Opener
) -> None:
    migrated(carol, demo)
    assert carol("pause", "heartbeat", **NOW).code == 0
    assert carol("resume", "paused-scan", **NOW).code == 0
    with store(carol.home).write() as tx:
        tx.set_job_columns("triage-inbox", {"last_status": "failed", "failure_streak": 2, "updated_at": T0})
        tx.count_firings([("triage-inbox", 1, 0)], now=at("2026-02-01T00:05:00Z"))
    change(
        demo, "UPDATE scheduled_jobs SET last_run_at = 'now', run_count = 99, next_run_at = 1, updated_at = 2"
    )
    report = migrated(carol, demo)
    assert (report["unchanged"], report["conflicts"]) == (27, 0)
    jobs = jobs_in(carol.home)
    assert (jobs["heartbeat"].status, jobs["paused-scan"].status) == ("paused", "active")
    assert jobs["triage-inbox"].last_status == "failed"


def test_a_row_that_was_added_there_since_is_brought_over(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    change(demo, "INSERT INTO scheduled_jobs (job_id, droid_name, schedule_type, daily_at, command)"
                 " VALUES ('late', 'd', 'daily_at', '1:00', 'true')")  # fmt: skip
    report = migrated(carol, demo)
    assert (report["migrated"], report["unchanged"]) == (1, 27)


def test_a_column_that_was_added_there_since_is_no_conflict_while_it_is_empty(
    carol: Carol, demo: Path
) -> None:
    migrated(carol, demo)
    change(demo, "ALTER TABLE scheduled_jobs ADD COLUMN owner TEXT")
    assert migrated(carol, demo)["unchanged"] == 27


# -- conflicts ----


def test_a_job_that_was_edited_here_is_a_conflict_and_stays(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    assert carol("edit-job", "gen-tasks-01", "--daily-at", "00:05", **NOW).code == 0
    report = migrated(carol, demo, code=1)
    assert (report["conflicts"], report["unchanged"]) == (1, 26)
    assert report["conflict_jobs"] == [
        {"job_id": "gen-tasks-01", "why": "changed_here", "fields": ["schedule_expr"]}
    ]
    assert jobs_in(carol.home)["gen-tasks-01"].schedule_expr == "00:05"


def test_a_row_that_was_changed_there_is_a_conflict_and_the_job_stays(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    change(demo, "UPDATE scheduled_jobs SET daily_at = '04:44', enabled = 0 WHERE job_id = 'gen-tasks-01'")
    report = migrated(carol, demo, code=1)
    assert report["conflict_jobs"] == [
        {"job_id": "gen-tasks-01", "why": "changed_there", "fields": ["daily_at", "enabled"]}
    ]
    assert jobs_in(carol.home)["gen-tasks-01"].schedule_expr == "00:00"


def test_a_job_of_the_same_id_that_was_made_here_is_a_conflict(
    carol: Carol, demo: Path, store: Opener
) -> None:
    with store(carol.home).write() as tx:
        tx.insert_jobs([job_of("gen-tasks-01", daily_at="09:00")])
    report = migrated(carol, demo, code=1)
    assert (report["migrated"], report["conflicts"]) == (26, 1)
    assert report["conflict_jobs"][0]["why"] == "made_here"
    assert jobs_in(carol.home)["gen-tasks-01"].legacy is None


def test_a_job_that_was_removed_here_does_not_come_back_by_itself(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    assert carol("remove-job", "gen-tasks-01", "--yes", **NOW).code == 0
    report = migrated(carol, demo, code=1)
    assert report["conflict_jobs"] == [{"job_id": "gen-tasks-01", "why": "removed_here", "fields": []}]
    assert migrated(carol, demo, "--overwrite")["migrated"] == 1


def test_overwrite_gives_the_source_the_last_word_and_keeps_the_traces(
    carol: Carol, demo: Path, store: Opener
) -> None:
    migrated(carol, demo)
    with store(carol.home).write() as tx:
        tx.count_firings([("gen-tasks-01", 3, 0)], now=at("2026-02-01T00:00:00Z"))
    edit = ("--every", "1h", "--max-turns", "5", "--description", "mine")
    assert carol("edit-job", "gen-tasks-01", *edit, **NOW).code == 0
    report = migrated(carol, demo, "--overwrite", CAROL_NOW="2026-02-01T02:30:00Z")
    assert (report["migrated"], report["unchanged"], report["overwritten"]) == (1, 26, ["gen-tasks-01"])
    job = jobs_in(carol.home)["gen-tasks-01"]
    assert (job.schedule_kind, job.schedule_expr, job.max_turns) == ("daily_at", "00:00", None)
    assert (job.firing_count, job.schedule_rev) == (29, 3)
    [skipped] = carol("list-runs", "--json", **NOW).json()["runs"]
    assert (skipped["skip_reason"], skipped["coalesced"]) == ("edited", 2)
    assert migrated(carol, demo)["unchanged"] == 27


def test_a_damaged_job_here_is_a_conflict_and_overwrite_mends_it(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    change(carol.home / "scheduler.db", "UPDATE scheduled_jobs SET action = '[]' WHERE job_id = 'heartbeat'")
    assert migrated(carol, demo, code=1)["conflict_jobs"][0]["why"] == "damaged_here"
    assert migrated(carol, demo, "--overwrite")["migrated"] == 1
    assert "heartbeat" in jobs_in(carol.home)


def test_a_row_that_is_gone_there_is_said_and_its_job_stays(carol: Carol, demo: Path) -> None:
    migrated(carol, demo)
    change(demo, "DELETE FROM scheduled_jobs WHERE job_id = 'heartbeat'")
    assert migrated(carol, demo)["gone_there"] == ["heartbeat"]
    assert "heartbeat" in jobs_in(carol.home)
