"""Legacy rows become jobs, and every job gives its row back: by table, and for any row that SQLite can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carolctl import references
from carolctl.errors import BadData, UsageError
from carolctl.legacy import NO_ACTION, inexpressible, mark_of, to_job, to_source
from carolctl.legacy_cells import (
    Cell,
    RawText,
    Row,
    from_document,
    instant,
    row_digest,
    text_cell,
    to_document,
    typed,
)
from carolctl.legacy_columns import RUN_STATE, TARGETS, layout_of, standard_layout
from carolctl.model import CommandAction, HttpAction, Job
from carolctl.store.rows import JOB_COLUMNS, job_from_row, job_to_values
from tests.builders import DAY, T0, at
from tests.planner import PLAIN

LAYOUT = standard_layout("scheduled_jobs")


def row(**columns: Cell) -> Row:
    """A whole row: `PLAIN` with `columns`."""
    full: Row = dict.fromkeys(TARGETS)
    return full | {"job_id": "a", "enabled": 1, "run_count": 0} | PLAIN | columns


def imported(**columns: Cell) -> Job:
    """The job that `row` becomes, as the store gives it back."""
    return stored(to_job(row(**columns), LAYOUT, job_id="a", now=T0).job)


def stored(job: Job) -> Job:
    """`job` as it comes back from its columns."""
    values = job_to_values(job)
    return job_from_row([values[name] for name in JOB_COLUMNS])


def problem(**columns: Cell) -> str | None:
    """Why the row cannot be used."""
    return to_job(row(**columns), LAYOUT, job_id="a", now=T0).problem


def same(a: Row, b: Row) -> bool:
    """Whether two rows are equal by type and value."""
    return a.keys() == b.keys() and all(typed(a[name]) == typed(b[name]) for name in a)


# -- what a row says ----


@pytest.mark.parametrize(
    ("columns", "kind", "expr"),
    [
        ({"schedule_type": "daily_at", "daily_at": "7:05"}, "daily_at", "07:05"),
        ({"schedule_type": " Daily_At ", "daily_at": "07:05:00"}, "daily_at", "07:05"),
        ({"schedule_type": "interval", "interval_sec": 300}, "every", "300s"),
        ({"schedule_type": "interval", "interval_sec": "300"}, "every", "300s"),
        ({"schedule_type": "interval", "interval_sec": 300.0}, "every", "300s"),
        ({"schedule_type": "cron", "cron_expr": "*/5  9 * * mon-fri "}, "cron", "*/5 9 * * MON-FRI"),
        ({"schedule_type": "cron", "cron_expr": "@Daily"}, "cron", "@daily"),
        ({"schedule_type": "once", "run_at": "2026-05-01 09:00:00"}, "at", "2026-05-01T09:00:00Z"),
        ({"schedule_type": "once", "run_at": "2026-05-01T09:00:00+02:00"}, "at", "2026-05-01T07:00:00Z"),
        ({"schedule_type": "once", "run_at": 1777626000}, "at", "2026-05-01T09:00:00Z"),
        ({"schedule_type": "once", "run_at": "1777626000.5"}, "at", "2026-05-01T09:00:00.500Z"),
    ],
)
def test_each_kind_of_schedule_is_read_in_each_of_its_spellings(
    columns: dict[str, Cell], kind: str, expr: str
) -> None:
    job = imported(**columns)
    assert (job.schedule_kind, job.schedule_expr, job.status) == (kind, expr, "active")
    assert job.next_fire_at is not None
    assert job.next_fire_at > T0
    assert same(to_source(job), row(**columns))


def test_a_job_starts_from_now_and_not_from_its_last_run() -> None:
    job = imported(last_run_at="2024-01-01 00:00:00", next_run_at="2024-01-02 00:00:00", run_count=7)
    assert (job.last_scheduled_for, job.anchor_at, job.firing_count) == (T0, T0, 7)
    assert job.last_fired_at == at("2024-01-01T00:00:00Z")
    assert job.next_fire_at == at("2026-01-01T02:30:00Z")


def test_the_zone_of_a_job_counts_and_nothing_is_utc() -> None:
    assert imported(timezone="Europe/Berlin").next_fire_at == at("2026-01-01T01:30:00Z")
    assert [imported(timezone=zone).timezone for zone in (None, "", " utc ", "Z")] == ["UTC"] * 4


def test_a_single_time_that_has_passed_is_imported_active_and_will_not_fire() -> None:
    job = imported(schedule_type="once", run_at="2025-12-31 23:59:59")
    assert (job.status, job.next_fire_at) == ("active", None)


def test_a_call_is_read_with_its_method_and_payload() -> None:
    job = imported(http_method="put", payload_json='{"a": [1, 2.50, "ü"]}')
    assert job.action == HttpAction(
        url="http://127.0.0.1:9/x", method="PUT", headers={}, payload={"a": [1, 2.5, "ü"]}
    )
    assert imported(http_method=None).action == HttpAction(url="http://127.0.0.1:9/x")


def test_a_command_line_goes_to_the_shell() -> None:
    job = imported(endpoint_url=None, command="echo $HOME; date")
    assert job.action == CommandAction(argv=("/bin/sh", "-c", "echo $HOME; date"))


@pytest.mark.parametrize(
    "text", ["${env:HOME}", "${file:/etc/passwd}", "$${env:X}", "$$${", "${HOME} $${", "${"]
)
def test_what_looks_like_a_reference_is_sent_as_it_stood(text: str) -> None:
    job = imported(payload_json=f'{{"k": ["{text}"]}}')
    assert isinstance(job.action, HttpAction)
    assert references.resolve_document(job.action.payload) == {"k": [text]}
    assert same(to_source(job), row(payload_json=f'{{"k": ["{text}"]}}'))


def test_the_droid_becomes_the_agent_profile_and_stays_readable() -> None:
    job = imported(droid_name="planner")
    assert job.agent_profile == "planner"
    assert job.legacy is not None
    assert job.legacy["droid_name"] == "planner"


@pytest.mark.parametrize("enabled", [0, "0", "false", None, "", "no", 0.0])
def test_a_disabled_row_is_paused_with_the_reason(enabled: Cell) -> None:
    job = imported(enabled=enabled)
    assert (job.status, job.paused_reason, job.next_fire_at) == (
        "paused", "disabled in the planner database", None,
    )  # fmt: skip
    assert same(to_source(job), row(enabled=enabled))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2026-01-01 00:00:00", T0),
        ("2026-01-01T00:00:00Z", T0),
        ("2026-01-01T01:00:00+01:00", T0),
        ("2026-01-01 00:00:00 UTC", T0),
        ("2026-01-01", T0),
        (1767225600, T0),
        (1767225600.0, T0),
        ("1767225600", T0),
        ("1767225600.000", T0),
        (1767225600000, T0),
        ("2026-01-01T00:00:00.1239Z", T0 + 123),
        ("soon", None),
        ("", None),
        (None, None),
        (b"2026", None),
        (1e300, None),
        (float("inf"), None),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_times_are_read_as_utc_text_iso_or_epoch(cell: Cell, expected: int | None) -> None:
    assert instant(cell) == expected


# -- rows that cannot be used ----


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"schedule_type": "weekly"}, "schedule_type: 'weekly' is not one of"),
        ({"schedule_type": b"\x00"}, "schedule_type: '<blob>'"),
        ({"schedule_type": "cron", "cron_expr": "61 * * * *"}, "cron"),
        ({"schedule_type": "cron", "cron_expr": "0 0 30 2 *"}, "cron"),
        ({"schedule_type": "cron", "cron_expr": None}, "cron"),
        ({"schedule_type": "interval", "interval_sec": 0}, "every"),
        ({"schedule_type": "interval", "interval_sec": -5}, "every"),
        ({"daily_at": "25:00"}, "daily_at"),
        ({"daily_at": "07:05:30"}, "daily_at"),
        ({"schedule_type": "once", "run_at": "tomorrow"}, "at: "),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": RawText(b"\xff")}, "timezone"),
        ({"endpoint_url": None}, "neither endpoint_url nor command"),
        ({"command": "true"}, "both endpoint_url and command"),
        ({"endpoint_url": "ftp://example.org/"}, "http"),
        ({"endpoint_url": b"http://x/"}, "not readable text"),
        ({"endpoint_url": None, "command": RawText(b"\xff")}, "not readable text"),
        ({"endpoint_url": None, "command": "echo \0"}, "NUL"),
        ({"endpoint_url": None, "command": "x" * 200_000}, "longer than"),
        ({"http_method": "FETCH"}, "http_method"),
        ({"payload_json": "{bad"}, "payload_json"),
        ({"payload_json": "NaN"}, "payload_json"),
        ({"payload_json": "1e999"}, "payload_json"),
        ({"payload_json": "[" * 100_000}, "payload_json"),
        ({"payload_json": "[" * 500 + "]" * 500}, "payload_json"),
        ({"payload_json": b"\x00"}, "payload_json"),
        ({"payload_json": RawText(b'"\xff"')}, "payload_json"),
        ({"enabled": "perhaps"}, "enabled"),
    ],
)
def test_a_row_that_cannot_be_used_is_paused_with_its_reason_and_still_maps_back(
    columns: dict[str, Cell], reason: str
) -> None:
    job = imported(**columns)
    assert reason in (problem(**columns) or "")
    assert (job.status, job.next_fire_at) == ("paused", None)
    assert reason in (job.paused_reason or "")
    assert same(to_source(job), row(**columns))


def test_a_payload_that_is_no_json_is_kept_as_text() -> None:
    job = imported(payload_json="{bad")
    assert isinstance(job.action, HttpAction)
    assert job.action.payload == "{bad"


def test_a_schedule_that_cannot_be_read_becomes_manual_and_an_action_one_that_fails() -> None:
    job = imported(schedule_type="weekly", endpoint_url="")
    assert (job.schedule_kind, job.schedule_expr, job.action) == ("manual", "", NO_ACTION)
    assert inexpressible(job) is None


# -- the way back ----


def test_an_unusual_spelling_stands_until_its_column_is_edited() -> None:
    columns: dict[str, Cell] = {
        "daily_at": "2:30",
        "timezone": "",
        "http_method": None,
        "created_at": 1700000000,
    }
    job = imported(**columns)
    edited = to_source(replace(job, schedule_expr="00:05"))
    assert edited["daily_at"] == "00:05"
    assert {name: edited[name] for name in ("timezone", "http_method", "created_at")} == {
        "timezone": "", "http_method": None, "created_at": 1700000000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "column", "cell"),
    [
        ({"schedule_kind": "every", "schedule_expr": "15m"}, "interval_sec", 900),
        ({"schedule_kind": "every", "schedule_expr": "15m"}, "schedule_type", "interval"),
        ({"schedule_kind": "cron", "schedule_expr": "0 5 * * *"}, "cron_expr", "0 5 * * *"),
        ({"schedule_kind": "at", "schedule_expr": "2026-05-01T09:00:00Z"}, "run_at", "2026-05-01 09:00:00"),
        ({"timezone": "Asia/Tokyo"}, "timezone", "Asia/Tokyo"),
        ({"description": "new"}, "description", "new"),
        ({"agent_profile": "other"}, "droid_name", "other"),
        ({"agent_profile": None}, "droid_name", ""),
        ({"status": "paused", "paused_reason": "by hand"}, "enabled", 0),
        ({"action": HttpAction(url="http://h/", payload={"n": 1})}, "payload_json", '{"n": 1}'),
        ({"action": CommandAction(argv=("/bin/sh", "-c", "a b"))}, "command", "a b"),
        ({"action": CommandAction(argv=("echo", "a b"))}, "command", "echo 'a b'"),
        ({"action": CommandAction(argv=("echo", "a b"))}, "endpoint_url", None),
        ({"last_fired_at": T0 + 5, "firing_count": 3}, "last_run_at", "2026-01-01 00:00:00.005"),
        ({"last_fired_at": T0 + 5, "firing_count": 3}, "run_count", 3),
        ({"last_status": "failed"}, "last_status", "failed"),
        ({"next_fire_at": T0 + 2 * DAY}, "next_run_at", "2026-01-03 00:00:00"),
        ({"updated_at": T0 + DAY}, "updated_at", "2026-01-02 00:00:00"),
    ],
)
def test_what_changed_here_shows_in_its_column(edit: dict[str, Any], column: str, cell: Cell) -> None:
    job = imported(payload_json='{"n": true}', last_run_at=1700000000, updated_at="?", next_run_at="soon")
    assert to_source(replace(job, **edit))[column] == cell


def test_a_mapped_value_that_was_stored_wrongly_does_not_map_back() -> None:
    columns: dict[str, Cell] = {
        "daily_at": "2:30",
        "payload_json": '{"n":1}',
        "run_count": 4,
        "description": "d",
    }
    job = imported(**columns)
    assert isinstance(job.action, HttpAction)
    for wrong in (
        {"schedule_expr": "02:31"},
        {"timezone": "Europe/Berlin"},
        {"action": replace(job.action, payload={"n": True})},
        {"firing_count": 5},
        {"description": None},
        {"agent_profile": "x"},
        {"status": "paused"},
    ):
        assert not same(to_source(replace(job, **wrong)), row(**columns)), wrong


def test_a_job_that_was_added_here_fills_the_columns_that_it_speaks_of() -> None:
    job = replace(imported(), legacy=None)
    back = to_source(job, LAYOUT)
    assert (back["job_id"], back["schedule_type"], back["daily_at"]) == ("a", "daily_at", "02:30")
    assert "cron_expr" not in back
    assert inexpressible(replace(job, schedule_kind="manual")) == "it has no schedule (manual)"


# -- columns ----


def test_columns_are_matched_by_mapping_first_and_by_name_whatever_the_case() -> None:
    layout = layout_of(
        "t", ["ID", "Schedule_Type", "cron", "url", "description", "notes"],
        {"job_id": "id", "cron_expr": "cron", "endpoint_url": "url", "description": "notes"},
    )  # fmt: skip
    assert layout.columns == {
        "ID": "job_id", "Schedule_Type": "schedule_type", "cron": "cron_expr", "url": "endpoint_url",
        "description": None, "notes": "description",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "mapping", "error"),
    [
        (["id"], {}, BadData),
        (["job_id", "schedule_type", "cron_expr"], {}, BadData),
        ([*TARGETS, "$source"], {}, BadData),
        (TARGETS, {"job_id": "nowhere"}, BadData),
        (TARGETS, {"colour": "job_id"}, UsageError),
        (TARGETS, {"job_id": "command", "description": "command"}, UsageError),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    columns: list[str], mapping: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        layout_of("t", columns, mapping)


def test_the_definition_of_a_row_has_no_traces_of_running_in_it() -> None:
    before = row()
    running: Row = dict.fromkeys(RUN_STATE, "moved")
    assert LAYOUT.definition(before) == LAYOUT.definition(before | running)
    assert LAYOUT.definition(before) != LAYOUT.definition(before | {"enabled": 0})


# -- any row ----

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_ODD = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    _TEXT,
    st.binary(max_size=8),
    st.binary(max_size=8).map(text_cell),
)
_USUAL: dict[str, list[Cell]] = {
    "schedule_type": ["daily_at", "interval", "cron", "once", "CRON", "weekly", ""],
    "daily_at": ["02:30", "2:30", "23:59:00", "24:00"],
    "interval_sec": [60, "90", 3600.0, 0],
    "cron_expr": ["*/5 * * * *", "0 9 * * mon", "@daily", "99 * * * *"],
    "run_at": ["2026-05-01 09:00:00", "2027-01-01T00:00:00.123456Z", 1777626000, "1777626000", 1777626000.25],
    "timezone": ["UTC", "", "utc", "Europe/Berlin", "Nowhere/Land"],
    "endpoint_url": ["http://h/x", " https://h/y ", "", "mailto:x"],
    "http_method": ["POST", "get", "", "SPLICE"],
    "payload_json": [
        '{"a":1}',
        '{ "a": 1.0 }',
        "null",
        "",
        "[",
        '"${env:X}"',
        '{"a":1,"a":2}',
        "1e5",
        '"\\ud800"',
    ],
    "command": ["echo hi", "", "  ", "a\0b"],
    "enabled": [1, 0, "yes", 2, "maybe"],
    "run_count": [0, 12, "7", -1, 1e300],
    "created_at": ["2026-01-01 00:00:00", 1700000000, "never"],
    "updated_at": ["2026-01-01T00:00:00Z", 1700000000.5, "never"],
    "last_run_at": ["2026-01-01 00:00:00", "1700000000", "never"],
}
_ROWS = st.fixed_dictionaries(
    {name: st.one_of(st.sampled_from(_USUAL.get(name, [None, "x"])), st.none(), _ODD) for name in TARGETS}
)


@given(_ROWS)
@settings(max_examples=1500, deadline=None)
def test_any_row_comes_back_from_its_job_by_type_and_value(cells: Row) -> None:
    made = to_job(cells, LAYOUT, job_id="a", now=T0)
    back = to_source(stored(made.job))
    assert same(back, cells)
    assert row_digest(back, TARGETS) == row_digest(cells, TARGETS)
    assert (made.job.status == "active") <= (made.problem is None)


@given(_ROWS, st.dictionaries(_TEXT.filter(lambda name: name.lower() not in TARGETS), _ODD, max_size=4))
@settings(max_examples=300, deadline=None)
def test_columns_that_nobody_knows_are_kept(cells: Row, extra: Row) -> None:
    whole = cells | extra
    unknown: dict[str, str | None] = dict.fromkeys(extra)
    layout = replace(LAYOUT, columns=LAYOUT.columns | unknown)
    job = stored(to_job(whole, layout, job_id="a", now=T0).job)
    assert same(to_source(job), whole)
    assert mark_of(job) is not None


@given(_ODD)
def test_a_cell_survives_json(cell: Cell) -> None:
    assert typed(from_document(to_document(cell))) == typed(cell)
