"""install-timers before it touches anything: what it refuses, warns about, and leaves unmade then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl import installed_units, places, service_calls, timers_install, unit_files
from tests.builders import Result, add_jobs, job

Inside = Callable[..., Result]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="--system needs root")


@pytest.fixture
def install(inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """``install(...)`` where no service manager answers, nothing is installed, and no variable of ours is set."""
    monkeypatch.delenv("CAROL_DATA_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(installed_units, "folder", lambda scope: str(tmp_path / "units" / scope))
    monkeypatch.setattr(timers_install, "SYSTEM_HOME", str(tmp_path / "lib/carolctl"))
    monkeypatch.setattr(service_calls, "answers", lambda scope: False)
    # The interpreter and the folders of a test may lie where no unit sees them.
    monkeypatch.setattr(unit_files, "check", lambda layout: None)
    return lambda *words: inside("install-timers", *words)


def test_what_is_refused_leaves_nothing_behind(install: Inside, tmp_path: Path) -> None:
    assert install("--user").code == 69
    foreign = tmp_path / "units/user/carolctl.slice"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Slice]\n")
    assert install("--user", "--dry-run").code == 1
    assert not (tmp_path / "state").exists()


@needs_root
def test_jobs_that_the_units_would_not_fire_stop_it_until_a_data_home_is_chosen(
    install: Inside, tmp_path: Path
) -> None:
    own, units = Path(places.default_data_home()), tmp_path / "lib/carolctl"
    add_jobs(own, job("nightly", manual=True))
    refused = install("--system", "--json")
    assert refused.code == 1
    assert refused.error()["message"].startswith(f"1 job in {own} would not be fired")
    assert f"--data-dir {own} keeps them" in refused.error()["hint"]
    # 69: past that check.
    assert install("--system", "--data-dir", str(own)).code == 69
    assert install("--system", "--data-dir", str(units)).code == 69
    assert install("--user").code == 69
    assert not units.exists()


@needs_root
def test_jobs_beside_an_established_data_home_are_only_warned_about(install: Inside, tmp_path: Path) -> None:
    add_jobs(tmp_path / "lib/carolctl", job("nightly", manual=True))
    assert install("--system").err.count("would not be fired") == 0
    add_jobs(Path(places.default_data_home()), job("nightly", manual=True))
    done = install("--system")
    assert (done.code, done.err.count("would not be fired")) == (69, 1)


def test_what_is_no_database_is_no_planner_database(install: Inside, tmp_path: Path) -> None:
    path = tmp_path / "planner.db"
    path.write_text("root:x:0:0:")
    refused = install("--user", "--dry-run", "--planner-db", str(path), "--json")
    assert (refused.code, refused.error()["error"]) == (65, "bad_data")


def test_jobs_of_the_data_home_that_the_units_had_are_not_left_without_a_word(
    install: Inside, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    add_jobs(old, job("nightly", manual=True))
    unit = tmp_path / "units/user/carolctl-tick.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f'{unit_files.MARK}\n[Service]\nEnvironment="CAROL_DATA_DIR={old}"\n')
    done = install("--user", "--dry-run", "--data-dir", str(tmp_path / "new"))
    assert f"the timers fire nothing of {old} any more, which holds 1 job" in done.err
    assert "any more" not in install("--user", "--dry-run", "--data-dir", str(old)).err


def test_a_planner_database_that_is_not_there_is_warned_about(install: Inside, tmp_path: Path) -> None:
    path = tmp_path / "planner.db"
    words = ("--user", "--dry-run", "--planner-db", str(path))
    done = install(*words)
    assert (done.code, f"there is no planner database {path}" in done.err) == (0, True)
    assert f'Environment="CAROL_PLANNER_DB={path}"' in done.out
    path.touch()
    assert install(*words).err == ""
    assert "CAROL_PLANNER_DB" not in install("--user", "--dry-run", "--planner-db", "").out
