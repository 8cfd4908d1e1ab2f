"""What systemd is asked for, word by word, and what is read from its answers; no manager is needed for that."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carolctl import clock, foreign_spool, unit_finish
from carolctl.launch import LaunchFailure, choose, handover, refusals, service_manager
from carolctl.launch.exec_line import carried
from carolctl.launch.process import ProcessLauncher
from carolctl.launch.refusals import is_surely_missing
from carolctl.launch.service_manager import parsed_units
from carolctl.launch.supervisor import STOP_GRACE_SEC
from carolctl.launch.systemd import SystemdLauncher, command_line, doubled, properties_of
from carolctl.launch.unit_names import described, store_tag, tag_of
from carolctl.model import (
    Claimed,
    CommandAction,
    Millis,
    Run,
    action_document,
    action_from_document,
)
from carolctl.store.runs import Claimant
from tests import builders
from tests.builders import T0, job

_LISTING = """\
carolctl-http-7-2.service loaded active running carolctl: HTTP runs 7:2
carolctl-run-1-1.service loaded activating start start carolctl: run 1 of active inactive dead
● carolctl-run-2-1.service loaded failed failed carolctl: run 2 of x
carolctl-run-3-1.service loaded inactive dead carolctl: run 3 of x
carolctl-run-4-1.service loaded deactivating stop-post carolctl: run 4 of x [0123abcd]
"""


def test_a_unit_lives_until_it_is_inactive_or_failed() -> None:
    assert parsed_units(_LISTING) == {
        "carolctl-http-7-2.service": None,
        "carolctl-run-1-1.service": None,
        "carolctl-run-4-1.service": "0123abcd",
    }


def test_a_store_has_one_tag_by_whatever_way_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    tag = store_tag(f"{tmp_path}/a/scheduler.db")
    assert store_tag(f"{tmp_path}/b/scheduler.db") == tag != store_tag(f"{tmp_path}/scheduler.db")
    assert tag_of(described("run 1 of x", tag)) == tag


@pytest.mark.parametrize("word", ["$HOME", "${X}", "$$", "a$", "%n", "'", '"', "\\", "", "ümläut", "\n"])
def test_only_the_dollar_of_an_argument_is_written_in_another_way(word: str) -> None:
    assert doubled(word).replace("$$", "$") == word


@pytest.mark.parametrize(
    "word", ["$", ";", "a; b", "=", "=3B", "$$", "\udcff\udc80", "ü;", "", "\n;", "\\;", '";"', "';'", "%;%n"]
)
def test_a_word_that_a_reload_would_spoil_is_spelt_without_what_it_spoils(word: str) -> None:
    line = carried(CommandAction(argv=("printf", "%s|", "$", word)))
    assert not any(char in argument for argument in line for char in "$;")
    done = subprocess.run(line, capture_output=True, check=True)
    assert done.stdout == b"$|" + os.fsencode(word) + b"|"


def test_a_command_that_survives_as_it_is_is_left_so() -> None:
    assert carried(CommandAction(argv=("echo", "%n", "'", '"', "\\", "\n", ""))) == (
        "echo",
        "%n",
        "'",
        '"',
        "\\",
        "\n",
        "",
    )
    assert carried(CommandAction(argv=("/no/such/program", "$"))) == ("/no/such/program", "$")


def test_a_hook_is_quoted_so_that_any_path_is_one_word() -> None:
    line = command_line(["/opt/my venv/py", 'a"b', "c\\d", "$x", "new\nline"])
    assert line == r'''"/opt/my venv/py" "a\"b" "c\\d" "$$x" "new\x0aline"'''
    assert shlex.split(line)[:3] == ["/opt/my venv/py", 'a"b', "c\\d"]


def test_what_was_said_of_a_command_is_stored_with_it_and_nothing_else_is() -> None:
    plain = CommandAction(argv=("true",))
    assert action_document(plain) == {"argv": ["true"]}
    rich = replace(plain, run_as="agent", load_credential=("key:/etc/key",), memory_max="1G", sandbox=False)
    assert action_from_document("command", action_document(rich)) == rich
    assert action_from_document("command", {"argv": ["true"]}) == plain


def test_every_option_has_its_property() -> None:
    action = CommandAction(
        argv=("true",),
        run_as="agent",
        working_directory="/srv",
        environment_file="/etc/job.env",
        load_credential=("a:/a", "b:/b"),
        memory_max="512M",
        cpu_quota="50%",
        sandbox=False,
    )
    assert properties_of(action, "carolctl-run-1-1.service") == [
        "User=agent",
        "PermissionsStartOnly=yes",
        "WorkingDirectory=/srv",
        "EnvironmentFile=/etc/job.env",
        "MemoryMax=512M",
        "CPUQuota=50%",
        "RuntimeDirectory=carolctl-run-1-1",
        "RuntimeDirectoryMode=0700",
        "LoadCredential=a:/a",
        "LoadCredential=b:/b",
    ]
    assert properties_of(CommandAction(argv=("true",)), "u.service") == ["NoNewPrivileges=yes"]


# -- launches ----

_SYSTEMD_RUN = """#!/bin/sh
printf '%s\\n' "$@" >>"$CALLS"
printf 'end\\n' >>"$CALLS"
case "$SAYS" in "") exit 0;; esac
echo "$SAYS" >&2; exit 1
"""
_SYSTEMCTL = """#!/bin/sh
echo "LoadState=$LOADED"
"""


class Fake:
    """``systemd-run`` and ``systemctl`` as the launcher finds them, and what they were called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls = folder / "calls"
        self._monkeypatch = monkeypatch
        (folder / "bin").mkdir()
        for name, script in (("systemd-run", _SYSTEMD_RUN), ("systemctl", _SYSTEMCTL)):
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("CALLS", str(self._calls))
        self.says("", loaded="not-found")

    def says(self, complaint: str, *, loaded: str) -> None:
        self._monkeypatch.setenv("SAYS", complaint)
        self._monkeypatch.setenv("LOADED", loaded)

    def replace(self, name: str, script: str) -> None:
        program = self._calls.parent / "bin" / name
        program.write_text(script)
        program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        if not self._calls.exists():
            return []
        return [call.splitlines() for call in self._calls.read_text().split("end\n")[:-1]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def claims(home: Path, store: Any, *jobs: Any) -> list[Claimed]:
    """The runs of those jobs, claimed."""
    builders.add_jobs(home, *jobs)
    opened = store(home)
    with opened.write() as tx:
        for one in jobs:
            tx.insert_run(one.job_id, source="manual", now=T0)
        claimant = Claimant(now=T0, boottime_ms=None, host="here", boot_id="b", lease_sec=100)
        return list(tx.claim(claimant, cap=50))


@pytest.fixture
def launcher(home: Path, monkeypatch: pytest.MonkeyPatch) -> SystemdLauncher:
    monkeypatch.setenv("CAROL_NOW", "2026-01-01T00:00:40Z")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    monkeypatch.setenv("SCHEDULE_MAX_CONCURRENT", "7")
    return SystemdLauncher(db=str(home / "scheduler.db"), home=str(home), manager="system")


def test_a_command_becomes_a_unit_with_what_is_left_of_its_lease(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher
) -> None:
    one = claims(home, store, job(argv=("echo", "%n", "")))
    assert launcher.launch(one) == []
    [call] = fake.calls
    assert {"--no-block", "--collect", "--unit=carolctl-run-1-1.service", "--slice=carolctl.slice"} <= {*call}
    assert "--property=RuntimeMaxSec=60000ms" in call
    assert {"--setenv=CAROL_RUN_ID=1", "--setenv=CAROL_CLAIM=1", "--setenv=SCHEDULE_MAX_CONCURRENT=7"} <= {
        *call
    }
    assert call[call.index("--") :] == ["--", "echo", "%n", ""]
    hooks = [word for word in call if "unit_hook" in word]
    assert [hook.split("=")[1] for hook in hooks] == ["ExecCondition", "ExecStopPost"]
    assert all('"-I" "-m" "carolctl.unit_hook"' in hook and f'"1" "1" "{home}"' in hook for hook in hooks)
    assert "hush" not in " ".join(call)


def test_http_runs_share_a_unit_and_are_handed_the_environment_in_a_private_file(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = claims(home, store, job("a", url="http://h/a"), job("b", url="http://h/b"))
    assert launcher.launch(both) == []
    [call] = fake.calls
    assert call[call.index("--") + 1 :][1:] == ["-I", "-m", "carolctl.runner", "http", "1:1", "2:1"]
    assert "hush" not in " ".join(call)
    [file] = (home / "units").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.delenv("SECRET_TOKEN")
    handover.take("carolctl-http-1-1.service", str(home))
    assert os.environ["SECRET_TOKEN"] == "hush"
    assert not file.exists()


def hook_of(call: list[str], name: str) -> list[str]:
    """The command of a hook, as the manager would run it."""
    [line] = [word.split("=", 2)[2] for word in call if word.startswith(f"--property={name}=")]
    return [word.replace("$$", "$") for word in shlex.split(line)]


@pytest.mark.parametrize(
    "poison",
    [{"PATH": "/nowhere"}, {"CAROL_SCHEDULER_DB": "/no/such/db", "CAROL_DATA_DIR": "/nowhere"},
     {"CAROL_NOW": "yesterday", "SCHEDULE_MAX_CONCURRENT": "many"}],
)  # fmt: skip
def test_a_hook_goes_by_its_arguments_whatever_a_jobs_own_file_of_variables_says(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, poison: dict[str, str]
) -> None:
    action = CommandAction(argv=("true",), environment_file="/etc/hostname")
    launcher.launch(claims(home, store, job(action=action)))
    [call] = fake.calls
    started = subprocess.run(hook_of(call, "ExecCondition"), env=poison, check=False, capture_output=True)
    assert started.returncode == 0, started.stderr
    ended = poison | {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "7"}
    done = subprocess.run(hook_of(call, "ExecStopPost"), env=ended, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    with store(home).read() as tx:
        run = tx.run(1)
    assert (run.status, run.failure_reason, run.exit_status) == ("failed", "exit_nonzero", 7)


def test_a_hook_looks_for_the_tools_of_systemd_where_they_are_and_else_where_its_manager_does(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher
) -> None:
    action = CommandAction(argv=("true",), environment_file="/etc/hostname")
    for one in claims(home, store, job("a", action=action), job("b")):
        launcher.launch([one])
    with_file, without = fake.calls
    assert any(word.startswith("PATH=/usr/local/sbin:") for word in hook_of(with_file, "ExecStopPost"))
    assert not any(word.startswith("PATH=") for word in hook_of(without, "ExecStopPost"))


def test_what_arms_failpoints_is_for_hooks_alone(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_FAILPOINT", "no-such-point")
    launcher.launch(claims(home, store, job()))
    [call] = fake.calls
    assert "CAROL_FAILPOINT=no-such-point" in hook_of(call, "ExecStopPost")
    assert not any(word.startswith("--setenv=CAROL_FAILPOINT") for word in call)


def test_an_end_is_recorded_in_time_though_neither_manager_nor_journal_answers(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher
) -> None:
    launcher.launch(claims(home, store, job()))
    [call] = fake.calls
    for name in ("systemctl", "journalctl"):
        fake.replace(name, "#!/bin/sh\nexec sleep 60\n")
    told = dict(os.environ) | {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "7"}
    subprocess.run(hook_of(call, "ExecCondition"), env=told, check=True)
    # The manager kills it then.
    subprocess.run(hook_of(call, "ExecStopPost"), env=told, check=True, timeout=STOP_GRACE_SEC)
    with store(home).read() as tx:
        assert tx.run(1).failure_reason == "exit_nonzero"


@pytest.mark.parametrize(("by_wall", "by_boot", "past"), [(50, 50, False), (50, 100, True), (100, 50, True)])
def test_where_the_manager_does_not_say_a_lease_is_over_by_either_clock(
    home: Path, store: Any, monkeypatch: pytest.MonkeyPatch, by_wall: int, by_boot: int, past: bool
) -> None:
    [one] = claims(home, store, job())
    monkeypatch.setattr(clock, "now", lambda: Millis(T0 + by_wall * 1000))
    began = (clock.boottime_ms() or 0) - by_boot * 1000
    run = replace(one.run, claimed_boottime_ms=began, boot_id=clock.boot_id())
    assert unit_finish._is_past_lease(run) == past


def test_a_name_that_another_store_has_taken_is_no_silent_launch(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.says(
        "Failed to start transient service unit: Unit u was already loaded",
        loaded="x\nDescription=y [00000000]",
    )
    assert launcher.launch(claims(home, store, job())) == []
    assert "carolctl-run-1-1.service is another data home's just now" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("complaint", "loaded", "fails"),
    [
        ("Failed to find executable x: No such file or directory", "not-found", True),
        ("Failed to start transient service unit: Unknown assignment: X=1", "not-found", True),
        ("Failed to start transient service unit: Unit u was already loaded or has a fragment file.", "loaded", False),
        ("Failed to start transient service unit: something else", "loaded", False),
        ("Failed to connect to bus: No such file or directory", "", False),
        ("Failed to start transient service unit: Connection timed out", "not-found", False),
        ("Failed to start transient service unit: Transaction for x is destructive", "not-found", False),
    ],
)  # fmt: skip
def test_only_what_was_refused_for_certain_is_a_failed_launch(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, complaint: str, loaded: str, fails: bool
) -> None:
    fake.says(complaint, loaded=loaded)
    failures = launcher.launch(claims(home, store, job()))
    assert [failure.message for failure in failures] == ([f"systemd-run: {complaint}"] if fails else [])


@pytest.mark.parametrize(
    ("manager", "said", "message"),
    [
        ("user", {"run_as": "root"}, "--run-as needs the system manager: run the tick as root"),
        ("system", {"run_as": "nobody-at-all"}, "no such user: nobody-at-all"),
        ("system", {"run_as": "99999"}, "no such user: 99999"),
        ("system", {"run_as": "9" * 30}, "no such user: " + "9" * 30),
        ("system", {"working_directory": "/no/such"}, "no such folder: /no/such"),
        ("system", {"environment_file": "/no/such"}, "no such file: /no/such"),
        ("system", {"working_directory": "/etc/passwd"}, "not a folder: /etc/passwd"),
        ("system", {"environment_file": "/etc"}, "not a file: /etc"),
        ("system", {"run_as": "root", "environment_file": "/dev/null"},
         "/dev/null and the folders above it must belong to root and be writable by nobody else,"
         " for a job with --run-as"),
    ],
)  # fmt: skip
def test_what_systemd_would_only_find_when_nobody_listens_is_refused_before(
    home: Path, store: Any, fake: Fake, manager: Any, said: dict[str, Any], message: str
) -> None:
    launcher = SystemdLauncher(db=str(home / "scheduler.db"), home=str(home), manager=manager)
    [one] = claims(home, store, job(action=CommandAction(argv=("true",), **said)))
    assert launcher.launch([one]) == [LaunchFailure(run_id=1, claim_no=1, message=message)]
    assert fake.calls == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"working_directory": "/root"}, "/root may not be entered by this user"),
        ({"environment_file": "/etc/shadow"}, "/etc/shadow may not be read by this user"),
        ({"environment_file": "/root/any"}, "/root/any may not be used: Permission denied"),
        ({"working_directory": "/"}, None),
        ({"environment_file": "/etc/passwd"}, None),
    ],
)
def test_what_the_user_may_not_use_is_refused_before(given: dict[str, str], refusal: str | None) -> None:
    before = os.getgroups()
    os.setgroups([])
    os.seteuid(65534)
    try:
        assert refusals._of_files(CommandAction(argv=("true",), **given)) == refusal
    finally:
        os.seteuid(0)
        os.setgroups(before)


_SANDBOX = """\
61 45 0:21 /systemd/inaccessible/dir /home ro,nosuid shared:1 - tmpfs tmpfs ro
62 45 0:22 / /root rw - tmpfs tmpfs rw
63 45 0:23 / /run/user/1000 rw - tmpfs tmpfs rw
64 45 8:1 /tmp/systemd-private-0a-carolctl-tick.service-x/tmp /tmp rw - ext4 /dev/sda1 rw
65 45 0:24 / /var/tmp rw - tmpfs tmpfs rw
"""


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We seem to be in a sandbox that hides homes and has a /tmp of its own."""
    (tmp_path / "mounts").write_text(_SANDBOX)
    monkeypatch.setattr(refusals, "_MOUNTS", str(tmp_path / "mounts"))


@pytest.mark.parametrize("place", ["/home/agent/no/such", "/root/no-such", "/tmp/no-such"])
def test_what_a_sandbox_hides_is_left_to_the_unit_to_find(tmp_path: Path, sandbox: None, place: str) -> None:
    (tmp_path / "link").symlink_to(place)
    assert not is_surely_missing(place)
    assert not is_surely_missing(str(tmp_path / "link"))


@pytest.mark.parametrize("place", ["/srv/no-such", "/var/tmp/no-such", "/run/user/1000/no-such", "/homeless"])
def test_what_no_sandbox_hides_is_missing(sandbox: None, place: str) -> None:
    assert is_surely_missing(place)


@pytest.mark.parametrize("place", ["/home/agent/no/such", "/root/no-such", "/tmp/no-such"])
def test_without_a_sandbox_everything_is_seen(place: str) -> None:
    assert is_surely_missing(place)


@pytest.mark.parametrize("spoil", ["file", "folder", "way"])
def test_a_file_for_another_user_is_nobody_elses_to_replace(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, tmp_path: Path, spoil: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The tests themselves may lie below a folder that everybody writes to.
    ways = refusals._with_folders
    monkeypatch.setattr(
        refusals, "_with_folders", lambda path: (one for one in ways(path) if one.startswith(str(tmp_path)))
    )
    for name in ("folder", "way"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "folder" / "file").touch(mode=0o600)
    (tmp_path / "way" / "link").symlink_to("../folder/file")
    action = CommandAction(argv=("true",), run_as="root", environment_file=str(tmp_path / "way" / "link"))
    one = claims(home, store, job(action=action))
    assert launcher.launch(one) == []
    {"file": tmp_path / "folder" / "file"}.get(spoil, tmp_path / spoil).chmod(0o777)
    [failure] = launcher.launch(one)
    assert "must belong to root" in failure.message


def test_a_file_for_another_user_that_cannot_be_looked_at_is_refused(
    home: Path, store: Any, fake: Fake, launcher: SystemdLauncher, sandbox: None
) -> None:
    action = CommandAction(argv=("true",), run_as="root", environment_file="/root/no/such")
    [failure] = launcher.launch(claims(home, store, job(action=action)))
    assert failure.message.startswith("/root/no/such cannot be looked at from here")


@pytest.mark.parametrize(
    "action",
    [CommandAction(argv=("/root/no-such", "$x")), CommandAction(argv=("no-such-tool",)),
     CommandAction(argv=("./no-such",), working_directory="/tmp/no-such"), CommandAction(argv=("/etc/passwd",))],
)  # fmt: skip
def test_a_program_that_is_not_to_be_seen_here_is_looked_for_in_the_unit(
    action: CommandAction, tmp_path: Path, sandbox: None
) -> None:
    line, result = carried(action), tmp_path / "result.json"
    assert line[0] == sys.executable
    done = subprocess.run(line, capture_output=True, env={"CAROL_RESULT_FILE": str(result)}, check=False)
    assert done.returncode == 203
    said = json.loads(result.read_text())
    assert said["failure_reason"] == "launch_failed"
    assert said["summary"].encode() + b"\n" == done.stderr
    assert said["summary"].split(" cannot be run: ")[1] in ("No such file or directory", "Permission denied")


def test_a_program_in_the_folder_of_its_job_is_run_from_there(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("#!/bin/sh\n")
    (tmp_path / "x.sh").chmod(0o755)
    action = CommandAction(argv=("./x.sh", "a"), working_directory=str(tmp_path))
    assert carried(action) == (str(tmp_path / "x.sh"), "a")


def test_a_run_whose_job_is_gone_is_refused(home: Path, store: Any, fake: Fake) -> None:
    launcher = SystemdLauncher(db=str(home / "scheduler.db"), home=str(home), manager="system")
    [one] = claims(home, store, job())
    assert len(launcher.launch([replace(one, action=None)])) == 1


def test_the_process_launcher_is_chosen_where_no_manager_answers(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "_BOOTED", "/no/such/folder")
    assert isinstance(choose("auto", db=str(home / "scheduler.db"), home=str(home)), ProcessLauncher)


# -- proof of death ----


def _running(store: Any, home: Path, unit: str) -> Run:
    claims(home, store, job())
    with store(home).write() as tx:
        started = tx.start(1, 1, now=T0, pid=None, pid_start=None, unit=unit)
    assert started is not None
    run: Run = started.run
    return run


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("carolctl-run-1-1.service loaded active running x\n", "alive"),
        ("carolctl-run-1-1.service loaded failed failed x\n", "dead"),
        ("", "dead"),
        (None, "unknown"),
        # Another store's, under the same name.
        ("carolctl-run-1-1.service loaded active running carolctl: run 1 of x [00000000]\n", "unknown"),
    ],
)
def test_a_unit_is_dead_only_when_the_manager_says_so(
    home: Path, store: Any, monkeypatch: pytest.MonkeyPatch, listing: str | None, expected: str
) -> None:
    asked: list[tuple[str, ...]] = []

    def answer(_manager: str, *words: str) -> str | None:
        asked.append(words)
        return listing

    monkeypatch.setattr(service_manager, "systemctl", answer)
    run = _running(store, home, "carolctl-run-1-1.service")
    db = str(home / "scheduler.db")
    found = service_manager.probe([run, replace(run, run_id=2)], db=db, host="here", boot_id="b")
    assert found == {1: expected, 2: expected}
    assert len(asked) == 1, "one question however many"
    assert service_manager.probe([run], db=db, host="elsewhere", boot_id="b") == {1: "unknown"}
    assert service_manager.probe([run], db=db, host="here", boot_id="another") == {1: "dead"}
    assert service_manager.probe([run], db="/no/such/db", host="here", boot_id="b") == {1: "unknown"}


def test_a_pool_is_told_and_a_command_is_stopped(
    home: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    others = "carolctl-run-4-1.service loaded active running carolctl: run 4 of x [00000000]\n"

    def answer(_manager: str, verb: str, *words: str) -> str:
        if verb != "list-units":
            asked.append((verb, *words))
        return others

    monkeypatch.setattr(service_manager, "systemctl", answer)
    monkeypatch.setattr(service_manager.clock, "hostname", lambda: "here")
    monkeypatch.setattr(service_manager.clock, "boot_id", lambda: "b")
    run = _running(store, home, "carolctl-run-1-1.service")
    pool = replace(run, run_id=2, unit="carolctl-http-2-1.service")
    elsewhere = replace(run, host="elsewhere", unit="x")
    another_stores = replace(run, run_id=4, unit="carolctl-run-4-1.service")
    service_manager.stop([run, pool, replace(pool, run_id=3), elsewhere, another_stores])
    assert asked == [
        ("kill", "--kill-who=main", "--signal=TERM", "carolctl-http-2-1.service"),
        ("stop", "--no-block", "carolctl-run-1-1.service"),
    ]
    service_manager.kill([another_stores])
    assert len(asked) == 2


# -- events of another user ----


def _event(run_id: int, event_id: str) -> str:
    return f'{{"kind":"event","event_id":"{event_id}","run_id":{run_id},"event_kind":"turns","emitted_at":1}}'


def test_only_plain_events_about_the_run_itself_are_brought_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    away = tmp_path / "away" / "spool" / "new"
    away.mkdir(parents=True)
    (away / "event-good.json").write_text(_event(5, "good"))
    (away / "event-other.json").write_text(_event(6, "other"))
    (away / "finish-5-1.json").write_text(_event(5, "x"))
    (away / "event-noise.json").write_text("{")
    (tmp_path / "secret").write_text(_event(5, "secret"))
    (away / "event-link.json").symlink_to(tmp_path / "secret")
    (away / "event-hard.json").hardlink_to(tmp_path / "secret")
    os.mkfifo(away / "event-fifo.json")
    assert foreign_spool.bring_home(str(tmp_path / "away"), 5) == 1
    [log] = (home / "spool" / "new").iterdir()
    assert [json.loads(line)["event_id"] for line in log.read_text().splitlines()] == ["good"]


def test_many_events_are_brought_home_in_one_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    away = tmp_path / "away" / "spool" / "new"
    away.mkdir(parents=True)
    for n in range(600):
        (away / f"event-{n}.json").write_text(_event(5, f"e{n}").replace(",", ",\n"))
    assert foreign_spool.bring_home(str(tmp_path / "away"), 5) == 600
    [log] = (home / "spool" / "new").iterdir()
    assert len(log.read_text().splitlines()) == 600


def test_of_a_log_too_long_to_be_read_whole_the_end_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.setattr(foreign_spool, "_MOST_BYTES", 1000)
    away = tmp_path / "away" / "spool" / "new"
    away.mkdir(parents=True)
    (away / "events.jsonl").write_text("".join(f"{_event(5, f'e{n}')}\n" for n in range(100)))
    assert 5 < foreign_spool.bring_home(str(tmp_path / "away"), 5) < 20
    [log] = (home / "spool" / "new").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["event_id"] == "e99"
    assert "more events than are taken in" in capsys.readouterr().err


def test_events_that_our_spool_does_not_take_are_said_to_be_lost(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    (home / "spool").mkdir(parents=True)
    (home / "spool" / "tmp").write_text("no folder")
    away = tmp_path / "away" / "spool" / "new"
    away.mkdir(parents=True)
    (away / "event-a.json").write_text(_event(5, "a"))
    assert foreign_spool.bring_home(str(tmp_path / "away"), 5) == 0
    assert "1 events of it are lost" in capsys.readouterr().err


def test_a_link_in_place_of_the_spool_is_not_followed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    (tmp_path / "other" / "new").mkdir(parents=True)
    (tmp_path / "other" / "new" / "event-a.json").write_text(_event(5, "a"))
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "spool").symlink_to(tmp_path / "other")
    assert foreign_spool.bring_home(str(tmp_path / "away"), 5) == 0


# -- the options of a job ----


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--memory-max", "12Q"), "memory_max"),
        (("--memory-max", "32M"), "memory_max"),
        (("--cpu-quota", "half"), "cpu_quota"),
        (("--cpu-quota", "1%"), "cpu_quota"),
        (("--run-as", "a b"), "run_as"),
        (("--working-directory", "relative"), "working_directory"),
        (("--environment-file", "../x"), "environment_file"),
        (("--load-credential", "key"), "load_credential"),
    ],
)
def test_a_value_that_systemd_would_refuse_is_refused_where_it_is_typed(
    inside: Any, words: tuple[str, ...], field: str
) -> None:
    done = inside("add-job", "x", "--manual", *words, "--json", "--", "true")
    assert done.code == 2
    assert field in done.error()["message"].replace("-", "_")


def test_options_of_a_command_are_kept_changed_and_taken_away(inside: Any) -> None:
    words = ("--run-as", "agent", "--memory-max", "1G", "--no-sandbox", "--load-credential", "k:/k")
    assert inside("add-job", "x", "--manual", *words, "--", "true").code == 0
    assert inside("edit-job", "x", "--memory-max", "none", "--load-credential", "none", "--sandbox").code == 0
    shown = inside("show-job", "x", "--json").json()["action"]
    assert shown == {"kind": "command", "argv": ["true"], "run_as": "agent"}
    assert inside("edit-job", "x", "--", "false").code == 0
    assert inside("show-job", "x", "--json").json()["action"] == shown | {"argv": ["false"]}
    assert inside("add-job", "y", "--manual", "--url", "http://h/", "--run-as", "agent").code == 2
