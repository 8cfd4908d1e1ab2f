"""What a command imports, seen from the outside: the idle tick next to nothing, the timer's path no heavy library."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from carolctl.store.runs import RunFilter
from tests import builders
from tests.builders import Carol, job

HEAVY = {"typer", "rich", "requests", "urllib3", "tenacity", "croniter"}
COSTLY = {
    "json",
    "dataclasses",
    "enum",
    "typing",
    "re",
    "zoneinfo",
    "inspect",
    "logging",
    "subprocess",
    "argparse",
}

FIRES = "2026-01-01T01:00:00Z"


def _modules(complaints: str) -> set[str]:
    """The names in what ``-X importtime`` writes to standard error."""
    lines = [line for line in complaints.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines[1:]}


@functools.cache
def bare() -> frozenset[str]:
    """What Python imports for a package that does nothing, this environment's own start-up included."""
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-c", "import runpy, carolctl"],
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(_modules(done.stderr))


def imported(carol: Carol, *arguments: str, code: int = 0, **env: str) -> set[str]:
    """What the program imports for a command, beyond what any program does."""
    command = carol.command(*arguments)
    command[1:1] = ["-X", "importtime"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=carol.environment(**env), timeout=60
    )
    assert done.returncode == code, done.stderr[-2000:]
    return _modules(done.stderr) - bare()


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.fixture
def quiet(home: Path) -> Path:
    """A data home with a job that is not due, after a tick."""
    builders.add_jobs(home, job(next_fire_at=None))
    (home / "tick.stamp").touch()
    return home


def test_the_look_from_outside_sees_what_is_imported(quiet: Path, carol: Carol) -> None:
    assert {"typer", "json"} <= top(imported(carol, "tick", "--help"))
    assert not top(set(bare())) & (HEAVY | COSTLY - {"re", "enum", "typing"})


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_idle_tick_imports_a_database_and_nothing_else(
    quiet: Path, carol: Carol, options: tuple[str, ...]
) -> None:
    found = imported(carol, "tick", *options)
    assert not top(found) & (HEAVY | COSTLY)
    ours = {name for name in found if name.startswith("carolctl")}
    assert ours <= {
        "carolctl", "carolctl.__main__", "carolctl.store", "carolctl.store.idle", "carolctl.store.migrate",
        "carolctl.places", "carolctl.errors",
    }  # fmt: skip
    assert "sqlite3" in top(found)


def test_an_idle_tick_says_so_and_leaves_its_stamp(quiet: Path, carol: Carol) -> None:
    os.utime(quiet / "tick.stamp", (time.time() - 60,) * 2)
    assert carol("tick").out == "nothing to do\n"
    assert abs((quiet / "tick.stamp").stat().st_mtime - time.time()) < 30


def test_the_idle_answer_has_the_members_of_the_whole_one(quiet: Path, carol: Carol) -> None:
    idle = carol("tick", "--json").json()
    whole = carol("tick", "--json", CAROL_NOW="2026-01-01T00:00:00Z").json()
    assert list(idle) == list(whole)
    numbers = {"write_lock_ms", "elapsed_ms"}
    assert {k: v for k, v in idle.items() if k not in numbers} == {
        k: v for k, v in whole.items() if k not in numbers
    }


@pytest.mark.parametrize(
    "expr", [{"cron": "0 * * * *"}, {"daily_at": "01:00"}, {"every": "1h"}, {"once_at": FIRES}]
)
def test_a_tick_that_fires_imports_no_heavy_library(home: Path, carol: Carol, expr: dict[str, str]) -> None:
    builders.add_jobs(home, job(**expr))  # type: ignore[arg-type]
    found = imported(carol, "tick", "--json", CAROL_NOW=FIRES)
    assert not top(found) & HEAVY
    with closing(builders.store(home)) as store, store.read() as tx:
        assert [run.job_id for run in tx.runs(RunFilter())] == ["nightly"]


@pytest.mark.parametrize(
    "command", [("reap", "--json"), ("drain",), ("prune", "--json"), ("tick", "--dry-run")]
)
def test_what_timers_call_imports_no_heavy_library(
    home: Path, carol: Carol, command: tuple[str, ...]
) -> None:
    builders.add_jobs(home, job())
    assert not top(imported(carol, *command, CAROL_NOW=FIRES)) & HEAVY


@pytest.mark.parametrize(
    "command",
    [("list-jobs", "--json"), ("list-runs", "--json"), ("monitor", "--json"), ("show-job", "nightly", "--json"),
     ("config", "list", "--json"), ("pause", "nightly")],
    ids=lambda command: command[0],
)  # fmt: skip
def test_json_is_written_without_the_means_to_draw_tables(
    home: Path, carol: Carol, command: tuple[str, ...]
) -> None:
    builders.add_jobs(home, job())
    assert not top(imported(carol, *command)) & (HEAVY - {"typer"})


def test_a_table_is_drawn_by_the_library_for_it(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    assert "requests" not in top(imported(carol, "list-jobs"))


def test_adding_a_job_parses_its_expression_and_reaches_for_no_network(home: Path, carol: Carol) -> None:
    found = top(imported(carol, "add-job", "nightly", "--cron", "0 3 * * *", "--", "true"))
    assert found & HEAVY <= {"typer", "croniter"}


@pytest.mark.parametrize(
    "module",
    [
        "carolctl.runner",
        "carolctl.tick",
        "carolctl.finish",
        "carolctl.sweep",
        "carolctl.unit_start",
        "carolctl.unit_finish",
    ],
)
def test_what_runs_a_run_starts_on_the_standard_library(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not top(_modules(done.stderr)) & HEAVY
