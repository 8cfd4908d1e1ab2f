"""The unit files: what the shipped templates become, what systemd says of them, and what is read back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from carolctl import installed_units, places, timers_install, unit_files
from carolctl.errors import BadConfig, Refused
from carolctl.unit_files import Layout, Scope

PYTHON = "/opt/carolctl/bin/python"
PACKAGE = "/opt/carolctl/lib/python3.11/site-packages/carolctl"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def layout(
    scope: Scope = "system",
    data_home: str = "/var/lib/carolctl",
    planner_db: str | None = None,
    python: str = PYTHON,
    planner_is_foreign: bool = False,
) -> Layout:
    return Layout(
        scope=scope,
        data_home=data_home,
        planner_db=planner_db,
        python=python,
        package=PACKAGE,
        planner_is_foreign=planner_is_foreign,
    )


def of_user(data_home: str = "/home/agent/.local/state/carolctl") -> Layout:
    return layout("user", data_home=data_home)


LAYOUTS = {
    "system": (layout(), 1.6),
    "a planner of another user": (
        layout(planner_db="/srv/planner/plangenerator.db", planner_is_foreign=True),
        2.0,
    ),
    "a planner and the interpreter in a home": (
        layout(planner_db="/home/p/a b.db", python="/root/v/bin/python", planner_is_foreign=True),
        2.0,
    ),
    "user": (of_user(), 1.4),
}


def settings(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.fixture(params=sorted(LAYOUTS))
def installed_as(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Layout, float, Path]:
    """A layout, the exposure it may have, and a folder with its unit files."""
    chosen, most = LAYOUTS[request.param]
    for name, text in unit_files.render(chosen).items():
        (tmp_path / name).write_text(text)
    return chosen, most, tmp_path


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_units(installed_as: tuple[Layout, float, Path]) -> None:
    chosen, _, folder = installed_as
    # The interpreter of the layout is not on this machine.
    for path in folder.glob("*.service"):
        path.write_text(re.sub(r"^(ExecStart=)\S*/python ", r"\1/bin/true ", path.read_text(), flags=re.M))
    files = sorted(map(str, folder.iterdir()))
    words = timers_install.verification(chosen.scope, files)
    done = subprocess.run(words, capture_output=True, text=True, env=_runtime(folder), check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", ["tick", "drain", "nightly"])
def test_the_exposure_of_the_units_stays_below_its_bound(
    installed_as: tuple[Layout, float, Path], unit: str
) -> None:
    chosen, most, folder = installed_as
    scope = "--user" if chosen.scope == "user" else "--system"
    path = str(folder / f"carolctl-{unit}.service")
    done = subprocess.run(
        ["systemd-analyze", scope, "security", "--offline=true", "--no-pager", path],
        capture_output=True,
        text=True,
        env=_runtime(folder),
        check=False,
    )
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= most


def _runtime(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}


def test_the_tick_comes_every_thirty_seconds_whatever_the_wall_clock_does() -> None:
    timer = unit_files.render(layout())["carolctl-tick.timer"]
    assert settings(timer, "OnCalendar") == ["*-*-* *:*:00/30 UTC"]
    assert settings(timer, "OnUnitActiveSec") == ["45s"]
    assert settings(timer, "OnBootSec") == ["10s"]
    assert settings(timer, "AccuracySec") == ["1s"]


@needs_systemd
def test_the_calendar_of_the_tick_goes_on_through_the_repeated_hour() -> None:
    timer = unit_files.render(layout())["carolctl-tick.timer"]
    words = ["systemd-analyze", "calendar", "--iterations=3", "--base-time=2026-10-25 00:59:31 UTC"]
    berlin = {"PATH": os.environ["PATH"], "TZ": "Europe/Berlin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [*words, *settings(timer, "OnCalendar")], capture_output=True, text=True, env=berlin, check=True
    )
    # Without UTC the next one would be at 02:00:00 UTC, an hour later.
    assert re.findall(r"\b(01:0\d:\d\d) UTC", done.stdout) == ["01:00:00", "01:00:30", "01:01:00"]


def test_the_tick_ends_before_the_next_and_a_busy_store_is_no_failure() -> None:
    tick = unit_files.render(layout())["carolctl-tick.service"]
    assert settings(tick, "TimeoutStartSec") == ["25s"]
    assert settings(tick, "SuccessExitStatus") == ["75"]
    assert settings(tick, "ExecStart") == [f"{PYTHON} -I -S {PACKAGE}/__main__.py tick"]


def test_the_path_unit_can_run_into_no_limit() -> None:
    files = unit_files.render(layout())
    path = files["carolctl-drain.path"]
    assert settings(path, "PathChanged") == ["/var/lib/carolctl/spool/new"]
    assert "DirectoryNotEmpty=/" not in path
    assert settings(path, "StartLimitIntervalSec") == settings(path, "TriggerLimitIntervalSec") == ["0"]
    assert settings(files["carolctl-drain.service"], "StartLimitIntervalSec") == ["0"]


def test_no_placeholder_and_no_line_of_the_other_manager_is_left() -> None:
    for one, _ in LAYOUTS.values():
        for name, text in unit_files.render(one).items():
            assert not re.search(r"@[a-zA-Z]+@", text), name
            assert text.startswith(installed_units.MARK)


def test_only_what_is_needed_may_be_written() -> None:
    tick = unit_files.render(layout(planner_db="/srv/planner/p.db"))["carolctl-tick.service"]
    assert settings(tick, "ReadWritePaths") == ['-"/srv/planner"']
    assert settings(tick, "StateDirectory") == ["carolctl"]
    assert settings(tick, "ProtectHome") == ["yes"]
    tick = unit_files.render(layout(data_home="/home/x/c"))["carolctl-tick.service"]
    assert settings(tick, "ReadWritePaths") == ['"/home/x/c"']
    assert settings(tick, "ProtectHome") == ["read-only"]


@pytest.mark.parametrize("home", ["/srv/a b", '/srv/a"b', "/srv/100%", "/srv/back\\slash", "/srv/ümlaut"])
def test_the_data_home_of_the_installed_tick_is_the_default_of_the_command_line(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    assert places.data_home() == str(tmp_path / "state/carolctl")
    (folder / installed_units.TICK).write_text(unit_files.render(of_user(home))[installed_units.TICK])
    assert places.data_home() == home
    monkeypatch.setenv("CAROL_SCHEDULER_DB", "/srv/other/scheduler.db")
    assert places.data_home() == str(tmp_path / "state/carolctl")
    monkeypatch.setenv("CAROL_DATA_DIR", "/srv/mine")
    assert places.data_home() == "/srv/mine"


def test_a_tick_unit_that_is_not_ours_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    (folder / installed_units.TICK).write_text('[Service]\nEnvironment="CAROL_DATA_DIR=/srv/x"\n')
    assert places.data_home() == str(tmp_path / "state/carolctl")


def test_files_of_somebody_else_are_in_the_way_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    (folder / "carolctl-drain.path").write_text("[Path]\n")
    (folder / "carolctl.slice").symlink_to("/dev/null")
    (folder / "carolctl-mine.service").write_text("[Service]\n")
    with pytest.raises(Refused, match=r"carolctl-drain\.path.*carolctl\.slice"):
        timers_install.rehearse(of_user())
    assert timers_install.uninstall("user").left_alone == [
        str(folder / "carolctl-drain.path"),
        str(folder / "carolctl.slice"),
    ]
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("home", ["/tmp/x", "/srv/a\nb", "/srv/$HOME"])
def test_a_path_that_a_unit_cannot_use_is_refused(home: str) -> None:
    with pytest.raises(BadConfig):
        unit_files.check(layout(data_home=home))


def _user_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's units, and no other place that could say anything."""
    for name in ("CAROL_DATA_DIR", "CAROL_SCHEDULER_DB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "config/systemd/user"
    folder.mkdir(parents=True)
    return folder
