"""The units as an operator installs them, under a real systemd: what fires, in which sandbox, and what goes wrong."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests import planner
from tests.systemd.boot import CAROL, PYTHON, UID, USER, Machine
from tests.systemd.desk import (
    HOME,
    UNITS,
    USER_HOME,
    USER_UNITS,
    Desk,
    exposure,
    pass_by,
    probed,
    soon,
    until,
)

PERIOD_SEC = 30


@pytest.fixture(scope="module")
def root(machine: Machine) -> Iterator[Desk]:
    """Root, who has just installed the timers. Ticks come every 30 seconds, or by hand."""
    desk = Desk(machine)
    desk.carol("install-timers")
    yield desk
    machine.run(CAROL, "uninstall-timers", "--system", check=False)


@pytest.fixture(scope="module")
def agent(machine: Machine) -> Iterator[Desk]:
    """The ordinary user, who lingers and has just installed timers of their own."""
    desk = Desk(machine, USER)
    machine.run("loginctl", "enable-linger", USER)
    until(lambda: _user_is_up(machine), "no manager of the user")
    desk.carol("install-timers")
    yield desk
    machine.run(CAROL, "uninstall-timers", "--user", user=USER, check=False)


def _user_is_up(machine: Machine) -> bool:
    done = machine.run("systemctl", "--user", "is-system-running", user=USER, check=False)
    return done.stdout.strip() in ("running", "degraded")


@pytest.fixture
def drop_in(root: Desk) -> Iterator[Callable[[str, str], None]]:
    """``drop_in(unit, text)`` changes one of root's units as ``systemctl edit`` would; undone after the test."""
    made: list[str] = []

    def make(unit: str, text: str) -> None:
        made.append(f"{UNITS}/{unit}.d")
        root.machine.write(f"{made[-1]}/test.conf", text)
        root.systemctl("daemon-reload")

    yield make
    root.machine.run("rm", "-rf", *made)
    root.systemctl("daemon-reload")
    root.machine.run("systemctl", "reset-failed", "carolctl*", check=False)


@pytest.fixture
def hog(root: Desk) -> Iterator[Callable[[], None]]:
    """``hog()``: somebody takes the job store's write lock and keeps it, until ``systemctl stop hog``."""
    holds = "/srv/the-hog-holds"
    # A tick may have it at that moment.
    words = f"""
import sqlite3, time
connection = sqlite3.connect('{HOME}/scheduler.db', timeout=30)
connection.execute('BEGIN IMMEDIATE')
open('{holds}', 'w').close()
time.sleep(600)
"""

    def begin() -> None:
        root.machine.run("rm", "-f", holds)
        root.machine.run("systemd-run", "--quiet", "--collect", "--unit=hog", PYTHON, "-I", "-c", words)
        until(
            lambda: not root.machine.run("test", "-e", holds, check=False).returncode, "the hog has no lock"
        )

    yield begin
    root.machine.run("systemctl", "stop", "hog.service", check=False)


def test_the_shipped_timers_are_on_in_a_machine_that_is_left_alone_meanwhile(clockwork: Machine) -> None:
    assert clockwork.run("systemctl", "is-active", "carolctl-tick.timer").stdout == "active\n"


# -- installing ------------------------------------------------------------------------------------------------


def test_installed_units_are_on_and_name_the_data_home_of_the_command_line(root: Desk) -> None:
    active = root.systemctl(
        "is-active", "carolctl-tick.timer", "carolctl-drain.path", "carolctl-nightly.timer"
    )
    assert active.split() == ["active"] * 3
    assert root.carol("doctor")["database"] == f"{HOME}/scheduler.db"
    assert root.machine.run("stat", "-c", "%a %U", HOME).stdout == "700 root\n"
    checks = root.checks()
    assert (checks["units"], checks["timers"], checks["launcher"]) == ("ok", "ok", "ok")


def test_to_install_again_changes_nothing(root: Desk) -> None:
    again = root.carol("install-timers")
    assert (again["written"], again["removed"]) == ([], [])
    assert again["data_home"] == HOME


def test_an_older_version_is_replaced_and_drop_ins_stay(root: Desk) -> None:
    old = "# Made by carolctl 0.0.1 install-timers\n[Unit]\nDescription=old\n"
    root.machine.write(f"{UNITS}/carolctl-old.timer", old + "[Timer]\nOnCalendar=daily\n")
    root.machine.run("sed", "-i", "1s/carolctl [0-9.]*/carolctl 0.0.1/", f"{UNITS}/carolctl-tick.service")
    root.machine.write(f"{UNITS}/carolctl-tick.timer.d/mine.conf", "[Timer]\nAccuracySec=2s\n")
    assert root.checks()["units"] == "warn"
    upgrade = root.carol("install-timers")
    assert (upgrade["written"], upgrade["removed"]) == (["carolctl-tick.service"], ["carolctl-old.timer"])
    checks = root.checks()
    assert (checks["units"], checks["timers"]) == ("ok", "warn"), (
        "a drop-in that makes the timer late is named"
    )
    root.machine.run("rm", "-r", f"{UNITS}/carolctl-tick.timer.d")
    root.systemctl("daemon-reload")
    root.systemctl("stop", "carolctl-drain.path")
    assert root.checks()["timers"] == "fail"
    root.carol("install-timers")
    assert root.checks()["timers"] == "ok"


def test_systemd_verifies_what_is_installed(root: Desk) -> None:
    done = root.machine.run("sh", "-c", f"systemd-analyze verify --man=no {UNITS}/carolctl*", check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["tick", "drain", "nightly"])
def test_the_exposure_of_the_loaded_units(root: Desk, unit: str) -> None:
    assert exposure(root, unit) <= 1.6


# -- firing ----------------------------------------------------------------------------------------------------

_ENDPOINT = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def endpoint(machine: Machine) -> Iterator[str]:
    """The address of a service on the machine's loopback."""
    machine.run("systemd-run", "--quiet", "--collect", "--unit=endpoint", PYTHON, "-I", "-c", _ENDPOINT)
    knock = "import socket; socket.create_connection(('127.0.0.1', 8099))"
    until(lambda: machine.run(PYTHON, "-I", "-c", knock, check=False).returncode == 0, "no endpoint")
    yield "http://127.0.0.1:8099/run"
    machine.run("systemctl", "stop", "endpoint.service", check=False)


AS_AGENT = """printf '{"summary": "by %s"}' "$(id -u)" >"$CAROL_RESULT_FILE" """


def test_a_tick_in_its_sandbox_fires_due_jobs_of_both_kinds(root: Desk, endpoint: str) -> None:
    root.carol("config", "set", "schedule.max_concurrent", "3")
    at = soon(root)
    root.add("of-agent", "--at", at, "--run-as", USER, "--", "sh", "-c", AS_AGENT)
    root.add("command", "--at", at, "--", "sh", "-c", "grep . /proc/self/cgroup; exec sleep 1")
    root.add("call", "--at", at, "--url", endpoint)
    pass_by(at)
    root.systemctl("start", "carolctl-tick.service")
    assert root.ended("command")["status"] == root.ended("call")["status"] == "completed"
    row = root.last("command")
    assert row["unit"] == f"carolctl-run-{row['run_id']}-1.service"
    assert f"/carolctl.slice/{row['unit']}" in root.machine.run(CAROL, "logs", str(row["run_id"])).stdout
    row = root.ended("of-agent")
    assert (row["status"], row["result_summary"]) == ("completed", "by 4242")


EVERYTHING = {
    "sqlite": True, "loopback": True, "locks": True, "pressure": True, "init": True, "closed": True,
    "no_new_privileges": True, "doctor": [],
}  # fmt: skip


def test_in_the_sandbox_of_the_tick_everything_works_and_nothing_else(root: Desk, endpoint: str) -> None:
    found = probed(root, UNITS, HOME)
    assert found.pop("boot") == root.machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    assert found.pop("run") == root.last("inside")["run_id"]
    assert found == EVERYTHING


PLANNER = "/srv/planner/plangenerator.db"
_WRITER = f"""
import select, sqlite3, sys
done, problems = 0, []
while True:
    connection = sqlite3.connect("{PLANNER}")
    try:
        connection.execute("INSERT INTO notes VALUES (1)")
        connection.commit()
        done += 1
    except sqlite3.Error as problem:
        problems.append(str(problem))
    connection.close()
    if sys.stdin in select.select([sys.stdin], [], [], 0.02)[0]:
        break
print(done, problems[:3])
"""


@pytest.fixture(scope="module")
def theirs(root: Desk, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The desk of the owner of a planner database in WAL mode, which nobody has open; root's units know it."""
    path = planner.planner(tmp_path_factory.mktemp("planner") / "plangenerator.db")
    for statement in ("CREATE TABLE notes (n)", "PRAGMA journal_mode = WAL"):
        planner.change(path, statement)
    target = root.machine.root / PLANNER[1:]
    target.parent.mkdir()
    target.write_bytes(path.read_bytes())
    root.machine.sh(f"chown -R {USER}:{USER} /srv/planner; chmod 700 /srv/planner; chmod 640 {PLANNER}")
    root.carol("install-timers", "--planner-db", PLANNER)
    return Desk(root.machine, USER)


def _write(owner: Desk) -> str:
    return owner.machine.run(PYTHON, "-I", "-c", _WRITER, user=USER, stdin="\n").stdout


def _of_whom(owner: Desk) -> set[str]:
    return set(owner.machine.sh("stat -c '%U %G %a' /srv/planner/*").splitlines())


def test_a_tick_leaves_the_planner_database_of_another_user_to_its_owner(root: Desk, theirs: Desk) -> None:
    assert exposure(root, "tick") <= 2.0
    assert _write(theirs) == "1 []\n"
    for _ in range(2):
        # The second one is idle.
        root.systemctl("start", "carolctl-tick.service")
        assert root.show("carolctl-tick.service", "Result")["Result"] == "success"
        assert _of_whom(theirs) == {f"{USER} {USER} 640"}
        assert _write(theirs) == "1 []\n"


def test_beside_it_runs_are_mirrored_and_jobs_in_homes_and_calls_are_launched(
    root: Desk, theirs: Desk, endpoint: str
) -> None:
    machine = root.machine
    machine.write("/home/agent/bin/job.sh", "#!/bin/sh\nsleep 0.2\n", 0o755)
    machine.write("/root/bin/job.sh", "#!/bin/sh\nsleep 0.2\n", 0o700)
    machine.write("/home/agent/job.env", "WORD=found\n", 0o600)
    root.carol("config", "set", "schedule.max_concurrent", "4")
    at = soon(root)
    there = ("--working-directory", f"/home/{USER}", "--environment-file", f"/home/{USER}/job.env")
    root.add(
        "there", "--at", at, *there, "--", "sh", "-c", 'test "$PWD $WORD" = "/home/agent found"; exit $?'
    )
    root.add("agents", "--at", at, "--", f"/home/{USER}/bin/job.sh")
    root.add("of-root", "--at", at, "--", "/root/bin/job.sh")
    root.add("called", "--at", at, "--url", endpoint)
    words = [*machine.way_in(USER, {}), PYTHON, "-I", "-c", _WRITER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        pass_by(at)
        root.systemctl("start", "carolctl-tick.service")
        runs = [root.ended(job) for job in ("there", "agents", "of-root", "called")]
        assert [run["status"] for run in runs] == ["completed"] * 4, [run["result_summary"] for run in runs]
        root.systemctl("start", "carolctl-tick.service")
        said = writer.communicate("\n", timeout=20)[0]
    done, problems = said.split(maxsplit=1)
    assert (int(done) > 50, problems) == (True, "[]\n")
    query = "SELECT event_id, status FROM droid_runs"
    code = f"import sqlite3; print(sqlite3.connect('{PLANNER}').execute('{query}').fetchall())"
    mirror = machine.run(PYTHON, "-I", "-c", code, user=USER).stdout
    for run in runs:
        assert re.search(rf":{run['run_id']}', 'completed'", mirror), mirror
    assert _of_whom(theirs) == {f"{USER} {USER} 640"}
    assert root.checks()["planner"] == "ok", "of the installed units, without being told"


def test_the_nightly_upkeep_leaves_a_backup_and_finds_nothing_wrong(root: Desk, theirs: Desk) -> None:
    root.systemctl("start", "carolctl-nightly.service")
    assert root.show("carolctl-nightly.service", "Result")["Result"] == "success"
    assert root.machine.run("sh", "-c", f"ls {HOME}/backups/*.db").stdout
    assert root.checks()["backups"] == "ok"
    assert _of_whom(theirs) == {f"{USER} {USER} 640"}
    assert root.carol("install-timers", "--planner-db", "")["planner_db"] is None
    assert exposure(root, "tick") <= 1.6


def test_without_room_for_a_backup_the_night_has_failed_and_nothing_is_pruned(root: Desk) -> None:
    root.machine.sh(f"mkdir -pm 700 {HOME}/backups; mount -t tmpfs -o size=64k,mode=700 full {HOME}/backups")
    root.systemctl("start", "carolctl-nightly.service", code=1)
    shown = root.show("carolctl-nightly.service", "Result", "ExecMainStatus")
    root.machine.run("umount", f"{HOME}/backups")
    root.systemctl("reset-failed", "carolctl-nightly.service")
    assert shown == {"Result": "exit-code", "ExecMainStatus": "75"}
    alerts = root.machine.journal("-t", "carolctl-alert", "-p", "alert")
    assert "carolctl-nightly.service failed" in alerts


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_a_tick_killed_by_its_timeout_leaves_its_jobs_running_and_the_next_one_goes_on(
    root: Desk, drop_in: Callable[[str, str], None], hog: Callable[[], None]
) -> None:
    root.add("due", "--at", at := soon(root), "--", "true")
    root.add("long", "--manual", "--", "sleep", "12")
    run = root.carol("run-job", "long")["run_id"]
    until(lambda: root.last("long")["status"] == "running", "it does not start")
    drop_in("carolctl-tick.service", "[Service]\nTimeoutStartSec=500ms\n")
    pass_by(at)
    hog()
    root.systemctl("start", "carolctl-tick.service", code=1)
    assert root.show("carolctl-tick.service", "Result")["Result"] == "timeout"
    alert = until(lambda: root.machine.journal("-t", "carolctl-alert", "-p", "alert"), "nobody was alerted")
    assert "carolctl-tick.service failed" in alert
    assert root.systemctl("is-active", f"carolctl-run-{run}-1.service") == "active\n"
    drop_in("carolctl-tick.service", "[Service]\nEnvironment=CAROL_BUSY_TIMEOUT_MS=50\n")
    root.systemctl("start", "carolctl-tick.service")
    shown = root.show("carolctl-tick.service", "Result", "ExecMainStatus")
    assert shown == {"Result": "success", "ExecMainStatus": "75"}, "a busy store is no failure of the unit"
    root.systemctl("stop", "hog.service")
    drop_in("carolctl-tick.service", "")
    root.systemctl("start", "carolctl-tick.service")
    assert root.ended("due")["status"] == "completed"
    assert (row := root.ended("long"))["status"] == "completed", row


def test_a_spool_that_cannot_be_drained_does_not_kill_the_path_unit(root: Desk) -> None:
    new = f"{HOME}/spool/new"
    # In its sandbox root has no power over a folder of another user.
    root.machine.sh(f"chown {USER} {new}; chmod 755 {new}")
    before = len(root.machine.starts("carolctl-drain.service"))

    def woken() -> int:
        root.machine.sh(f"for n in 1 2 3 4; do touch {new}/event-$n-$RANDOM.json; sleep 0.2; done")
        return len(root.machine.starts("carolctl-drain.service")) - before

    until(lambda: woken() > 6, "more starts are wanted than a start limit allows")
    assert "event-1" in root.machine.run("ls", new).stdout, "it was drained after all"
    assert "limit" not in root.machine.journal("-u", "carolctl-drain.service", "-u", "carolctl-drain.path")
    shown = root.show("carolctl-drain.path", "ActiveState", "Result")
    assert shown == {"ActiveState": "active", "Result": "success"}
    root.machine.sh(f"chown root {new}; chmod 700 {new}; touch {new}/event-5.json")
    until(lambda: not root.machine.run("ls", new).stdout, "the spool stays full")


# -- a user of their own ---------------------------------------------------------------------------------------


def test_without_a_manager_of_their_own_a_user_is_told_about_linger(machine: Machine) -> None:
    machine.run("loginctl", "disable-linger", USER)
    until(lambda: not machine.run("ls", "/run/user").stdout, "the user's manager stays")
    problem = Desk(machine, USER).carol("install-timers", code=69)
    assert "enable-linger" in problem["hint"]
    assert Desk(machine, USER).carol("install-timers", "--system", code=77)["error"] == "not_permitted"


def test_the_chain_of_an_ordinary_user_from_the_timer_to_the_end_of_the_run(agent: Desk) -> None:
    every_5_s = "[Timer]\nOnCalendar=\nOnCalendar=*:*:00/5 UTC\n"
    agent.machine.write(f"{USER_UNITS}/carolctl-tick.timer.d/5s.conf", every_5_s)
    agent.systemctl("daemon-reload")
    agent.systemctl("restart", "carolctl-tick.timer")
    # The journal learns whose line it is from the process that wrote it, if that still lives.
    agent.add("mine", "--at", soon(agent), "--", "sh", "-c", "echo $(id -u); sleep 0.5")
    row = agent.ended("mine")
    assert (row["status"], row["source"]) == ("completed", "scheduled")
    assert str(UID) in agent.machine.journal(f"_SYSTEMD_USER_UNIT={row['unit']}").split("\n")
    gone = agent.show(row["unit"], "LoadState") == {"LoadState": "not-found"}
    assert gone, "of an ended run no unit stays"
    checks = agent.checks()
    assert (checks["units"], checks["timers"], checks["linger"], checks["tick"]) == ("ok",) * 4
    assert agent.carol("doctor")["database"] == f"{USER_HOME}/scheduler.db"


def test_in_the_sandbox_of_a_users_tick_everything_works_and_nothing_else(agent: Desk, endpoint: str) -> None:
    found = probed(agent, USER_UNITS, USER_HOME)
    assert found.pop("boot") == agent.machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    assert found.pop("run") == agent.last("inside")["run_id"]
    assert found == EVERYTHING
    assert exposure(agent, "tick") <= 1.4


# -- the end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["root", "agent"])
def test_uninstalling_leaves_nothing_behind_but_what_runs(who: str, request: pytest.FixtureRequest) -> None:
    desk: Desk = request.getfixturevalue(who)
    folder = UNITS if who == "root" else USER_UNITS
    desk.add("last", "--manual", "--", "sleep", "2")
    desk.carol("run-job", "last")
    told = desk.machine.run(CAROL, "uninstall-timers", user=desk.user).stdout
    assert f"{folder}: 8 removed\n" in told
    assert f"data home {HOME if who == 'root' else USER_HOME} stays" in told
    moved = "commands use /root/.local/state/carolctl from now on" in told
    assert moved == (who == "root"), "a user's commands look where the units did"
    desk.machine.run("rm", "-rf", f"{folder}/carolctl-tick.timer.d")
    assert desk.machine.run("find", folder, "-name", "*carolctl*").stdout == ""
    words = ("systemctl", *(["--user"] if desk.user else []), "list-unit-files", "--no-legend", "carolctl*")
    # Its exit code is 1 once the job's own unit is gone as well.
    listed = desk.machine.run(*words, user=desk.user, check=False).stdout.splitlines()
    assert [line for line in listed if "transient" not in line] == []
    assert desk.carol("uninstall-timers")["removed"] == []
    variable = f"CAROL_DATA_DIR={HOME if who == 'root' else USER_HOME}"
    shown = ("env", variable, CAROL, "list-runs", "--job", "last", "--json")
    until(lambda: '"completed"' in desk.machine.run(*shown, user=desk.user).stdout, "the job was taken along")


# -- on time ---------------------------------------------------------------------------------------------------


def test_the_shipped_timer_fires_three_times_less_than_a_second_late(clockwork: Machine) -> None:
    shown = clockwork.run("systemctl", "show", "-p", "UserspaceTimestampMonotonic", "--value").stdout
    booted = time.time() - time.monotonic() + int(shown) / 1e6

    def beats() -> list[float]:
        # One comes ten seconds after the boot, wherever in the half minute that is.
        return [moment for moment in clockwork.starts("carolctl-tick.service") if moment > booted + 15]

    moments = until(lambda: len(found := beats()) >= 3 and found, "it does not fire", 3.7 * PERIOD_SEC)
    late = [round(moment % PERIOD_SEC, 3) for moment in moments]
    numbers = [int(moment // PERIOD_SEC) for moment in moments]
    assert numbers == list(range(numbers[0], numbers[0] + len(moments))), "a beat is missing, or came twice"
    assert max(late) < 1, late
    assert clockwork.show("carolctl-tick.service", "Result")["Result"] == "success"

    def kinds() -> set[tuple[str, str]]:
        runs = Desk(clockwork).carol("list-runs", "--job", "beat")["runs"]
        return {(run["source"], run["status"]) for run in runs}

    # There may be one alone, and the newest may have begun just now.
    until(lambda: kinds() == {("scheduled", "completed")}, "the beat's runs do not all end", 20)
