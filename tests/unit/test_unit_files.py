"""The unit files: what the shipped templates become, what systemd says of them, and what is read back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from carolctl import doctor_checks_units, installed_units, places, timers_install, unit_files
from carolctl.doctor_checks import Evidence, Place
from carolctl.errors import BadConfig, Refused
from carolctl.model import Millis
from carolctl.unit_files import Layout, Scope
from tests.builders import HOUR, T0

PYTHON = "/opt/carolctl/bin/python"
PACKAGE = "/opt/carolctl/lib/python3.11/site-packages/carolctl"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


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
    assert settings(tick, "StartLimitIntervalSec") == ["0"], "also when it is started by hand in between"
    assert settings(tick, "ExecStart") == [f"{PYTHON} -I -S {PACKAGE}/__main__.py tick"]


def test_a_backup_that_has_to_be_tried_again_is_a_failed_night() -> None:
    nightly = unit_files.render(layout())["carolctl-nightly.service"]
    assert settings(nightly, "SuccessExitStatus") == []
    assert [line.split()[-1] for line in settings(nightly, "ExecStart")] == ["14", "prune", "doctor"]
    assert settings(nightly, "OnFailure") == ["carolctl-alert@%N.service"]


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


def test_a_planner_database_of_another_user_gets_what_it_needs_and_homes_stay_in_sight() -> None:
    theirs = layout(planner_db="/srv/planner/p.db", planner_is_foreign=True)
    for unit in ("tick", "drain", "nightly"):
        text = unit_files.render(theirs)[f"carolctl-{unit}.service"]
        assert settings(text, "CapabilityBoundingSet") == ["CAP_DAC_OVERRIDE CAP_CHOWN"]
        assert settings(text, "SystemCallFilter")[-1] == "fchown"
        assert settings(text, "RestrictAddressFamilies") == ["AF_UNIX"]
        assert settings(text, "ProtectHome") == ["read-only"]
    plain = unit_files.render(layout(planner_db="/srv/planner/p.db"))["carolctl-tick.service"]
    assert settings(plain, "CapabilityBoundingSet") == [""]
    assert settings(plain, "SystemCallFilter") == ["@system-service", "~@privileged @resources"]


@needs_root
@pytest.mark.parametrize(("owner", "mode", "is_foreign"), [((0, 0), 0o666, False), ((0, 7), 0o644, False),
    ((0, 7), 0o660, True), ((7, 0), 0o600, True)])  # fmt: skip
def test_a_planner_database_is_foreign_if_another_user_may_write_it(
    owner: tuple[int, int], mode: int, is_foreign: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _user_units(tmp_path, monkeypatch)
    path = tmp_path / "planner" / "p.db"
    path.parent.mkdir(0o755)
    path.touch()
    path.chmod(mode)
    os.chown(path, *owner)
    monkeypatch.setattr(unit_files, "check", lambda _: None)
    wanted = timers_install.planned("system", data_home="/var/lib/carolctl-not-there", planner_db=str(path))
    assert wanted.planner_is_foreign is is_foreign


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


def test_a_data_home_that_was_lost_is_replaced_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _system_units(tmp_path, monkeypatch)
    lost = str(tmp_path / "lost")
    (folder / installed_units.TICK).write_text(
        unit_files.render(layout(data_home=lost))[installed_units.TICK]
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.data_home() == lost
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert places.data_home() == str(tmp_path / "state/carolctl"), (
        "that of the system is not an ordinary user's"
    )


def test_the_planner_database_of_the_installed_tick_is_the_default_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    assert places.planner_db() is None
    mirrored = layout("user", data_home="/srv/home", planner_db="/srv/p 100%.db")
    (folder / installed_units.TICK).write_text(unit_files.render(mirrored)[installed_units.TICK])
    assert places.planner_db() == "/srv/p 100%.db"
    for name in ("CAROL_DATA_DIR", "CAROL_SCHEDULER_DB"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/srv/other")
            assert places.planner_db() is None
    monkeypatch.setenv("CAROL_PLANNER_DB", "/srv/mine.db")
    assert places.planner_db() == "/srv/mine.db"
    monkeypatch.setenv("CAROL_PLANNER_DB", "")
    assert places.planner_db() is None


def test_a_planner_database_stays_as_installed_until_it_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    mirrored = layout("user", data_home="/srv/home", planner_db="/srv/p.db")
    (folder / installed_units.TICK).write_text(unit_files.render(mirrored)[installed_units.TICK])
    # The interpreter of the tests may lie where no unit sees it.
    monkeypatch.setattr(unit_files, "check", lambda _: None)
    assert timers_install.planned("user").planner_db == "/srv/p.db"
    assert timers_install.planned("user", planner_db="").planner_db is None


@pytest.mark.parametrize("scope", ["system", "user"])
def test_a_data_home_that_others_may_write_is_refused(scope: Scope, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(BadConfig, match="may be written by other users"):
        timers_install.refuse_unsafe(scope, str(home))


@needs_root
@pytest.mark.parametrize("there", [True, False])
def test_a_data_home_that_somebody_else_could_replace_is_refused_for_the_system(
    tmp_path: Path, there: bool
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "roots").mkdir(parents=True, mode=0o755)
    (theirs / "roots/home").mkdir(mode=0o700) if there else None
    home = str(theirs / "roots/home")
    timers_install.refuse_unsafe("system", home)
    os.chown(theirs, 7, 7)
    with pytest.raises(BadConfig, match=f"whoever may write {theirs}"):
        timers_install.refuse_unsafe("system", home)
    os.chown(theirs, 0, 0)
    theirs.chmod(0o777)
    with pytest.raises(BadConfig, match=f"whoever may write {theirs}"):
        timers_install.refuse_unsafe("system", home)
    (tmp_path / "link").symlink_to(theirs / "roots")
    with pytest.raises(BadConfig, match=f"whoever may write {theirs}"):
        timers_install.refuse_unsafe("system", str(tmp_path / "link/home"))
    theirs.chmod(0o1777)
    timers_install.refuse_unsafe("system", home)


@needs_root
def test_a_program_that_another_user_could_replace_is_found(tmp_path: Path) -> None:
    python = tmp_path / "theirs/bin/python"
    python.parent.mkdir(parents=True)
    chosen = layout(python=str(python))
    assert timers_install.replaceable(chosen) is None
    os.chown(tmp_path / "theirs", 7, 7)
    assert timers_install.replaceable(chosen) == str(tmp_path / "theirs")
    assert timers_install.replaceable(layout("user", python=str(python))) is None


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


# -- what the doctor says ----


def test_the_doctor_names_files_of_somebody_else_as_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _user_units(tmp_path, monkeypatch)
    monkeypatch.setattr(unit_files, "check", lambda _: None)
    for name, text in unit_files.render(timers_install.planned("user", data_home="/srv/home")).items():
        (folder / name).write_text(text)
    assert doctor_checks_units.units(_at(T0)).status == "ok"
    (folder / "carolctl.slice").write_text("[Slice]\n")
    found = doctor_checks_units.units(_at(T0))
    assert (found.status, found.figures["foreign"]) == ("fail", [str(folder / "carolctl.slice")])
    assert found.hint is not None
    assert found.hint.startswith("move them away")


def test_the_doctor_misses_a_backup_after_two_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = _user_units(tmp_path, monkeypatch), tmp_path / "home"
    assert doctor_checks_units.backups(_at(T0)).status == "skipped"
    for name, text in unit_files.render(of_user(str(home))).items():
        (folder / name).write_text(text)
        os.utime(folder / name, (T0 / 1000,) * 2)
    assert doctor_checks_units.backups(_at(T0 + 48 * HOUR)).status == "ok"
    never = doctor_checks_units.backups(_at(T0 + 51 * HOUR))
    assert (never.status, never.detail) == ("warn", "there is none yet")
    made = home / "backups/carolctl-20260101T031700Z.db"
    made.parent.mkdir(parents=True)
    made.touch()
    os.utime(made, ((T0 + 50 * HOUR) / 1000,) * 2)
    assert doctor_checks_units.backups(_at(T0 + 99 * HOUR)).status == "ok"
    assert doctor_checks_units.backups(_at(T0 + 101 * HOUR)).status == "warn"


def _at(now: int) -> Evidence:
    return Evidence(place=Place(now=Millis(now), db="/none", planner_db=None, environ={}, deadline_ms=100))


def _system_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the system's units; an ordinary user has none."""
    _user_units(tmp_path, monkeypatch)
    folder = tmp_path / "system"
    folder.mkdir()
    of_user = installed_units.folder("user")
    monkeypatch.setattr(
        installed_units, "folder", lambda scope: str(folder) if scope == "system" else of_user
    )
    return folder


def _user_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's units, and no other place that could say anything."""
    for name in ("CAROL_DATA_DIR", "CAROL_SCHEDULER_DB", "CAROL_PLANNER_DB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "config/systemd/user"
    folder.mkdir(parents=True)
    return folder
