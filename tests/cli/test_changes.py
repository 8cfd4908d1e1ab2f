"""changes: the audit log as people read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl.model import Millis
from carolctl.store.records import AuditEntry
from tests.builders import HOUR, T0, Carol, Result, add_jobs, job
from tests.builders import store as open_builder_store

Inside = Callable[..., Result]


def entry(home: Path, **columns: object) -> None:
    opened = open_builder_store(home)
    with opened.write() as tx:
        tx.audit(AuditEntry(**{"at": T0, "actor": "ann", "command": "edit-job"} | columns))  # type: ignore[arg-type]
    opened.close()


def test_who_changed_what_when_and_why_newest_first(carol: Carol, home: Path) -> None:
    add_jobs(home, job("nightly"))
    carol(
        "edit-job", "nightly", "--max-turns", "5", "--reason", "it ran away", CAROL_NOW="2026-01-01T00:10:00Z"
    )
    carol("config", "set", "schedule.max_concurrent", "3", CAROL_NOW="2026-01-01T00:20:00Z")
    newest, edit = carol("changes", "--json").json()["changes"]
    assert (newest["command"], newest["subject"], newest["before"], newest["after"]) == (
        "config set", "schedule.max_concurrent", None, "3"
    )  # fmt: skip
    assert (edit["at"], edit["reason"]) == ("2026-01-01T00:10:00Z", "it ran away")
    assert (edit["before"]["max_turns"], edit["after"]["max_turns"]) == (None, 5)
    assert list(edit) == ["audit_id", "at", "actor", "command", "subject", "before", "after", "reason"]
    told = carol("changes", COLUMNS="160").out
    assert "max_turns none to 5" in told
    assert "it ran away" in told


def test_only_of_one_job_since_then_and_so_many(inside: Inside, home: Path) -> None:
    for number in range(5):
        entry(home, at=Millis(T0 + number * HOUR), subject=("a", "b")[number % 2], reason=str(number))

    def reasons(*words: str) -> list[str]:
        return [one["reason"] for one in inside("changes", "--json", *words).json()["changes"]]

    assert reasons() == ["4", "3", "2", "1", "0"]
    assert reasons("a") == ["4", "2", "0"]
    assert reasons("--since", "2026-01-01T02:00:00Z") == ["4", "3", "2"]
    assert reasons("a", "--since", "2026-01-01T02:00:00Z", "--limit", "1") == ["4"]
    assert inside("changes", "nobody").out == "no change is recorded\n"
    assert inside("changes", "--since", "yesterday").code == 2


def test_the_table_fits_80_columns_and_nothing_in_it_moves_the_terminal(
    inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    many = {f"column_{number}": "x" * 40 for number in range(9)}
    entry(home, subject="j" * 64, actor="\x1b[31m" + "a" * 60, before=many, after={}, reason="r" * 200)
    entry(home, command="tick_gap", after={"from": T0, "to": T0 + HOUR})
    entry(home, command="config set", subject="k", before="1", after="2")
    entry(home, after=["odd"])
    told = inside("changes").out
    assert max(map(len, told.splitlines())) <= 80
    assert "\x1b" not in told
    monkeypatch.setenv("COLUMNS", "160")
    told = inside("changes", "--limit", "3").out
    assert "from 2026-01-01T00:00:00Z, to 2026-01-01T01:00:00Z" in told
    assert "1 to 2" in told


def test_without_a_store_there_is_nothing_to_show(inside: Inside, home: Path) -> None:
    assert inside("changes").code == 66
    assert not home.exists()
