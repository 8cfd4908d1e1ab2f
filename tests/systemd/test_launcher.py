"""Runs as units of a real systemd: started once, ended and recorded in every way that there is."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.systemd.boot import CAROL, PYTHON, USER, Machine

HOME = "/var/lib/carolctl-launcher"
OTHER = "/var/lib/carolctl-other"
ENV = {"CAROL_DATA_DIR": HOME, "CAROL_LAUNCHER": "systemd", "SCHEDULE_MAX_CONCURRENT": "60"}
_SLOW = 30.0


class Place:
    """One data home inside the machine, of root or of the ordinary user."""

    def __init__(self, machine: Machine, env: dict[str, str], user: str | None = None) -> None:
        self.machine, self.env, self.user = machine, env, user
        self._jobs = 0

    def carol(self, *words: str, check: bool = True, **env: str) -> Any:
        """What a command says as JSON; with `check` off, whatever it says."""
        done = self.machine.run(
            CAROL, *words, *_json(words), check=check, env=self.env | env, user=self.user, timeout=60
        )
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done

    def job(self, *words: str) -> str:
        """Add a job that only fires by hand; its id."""
        self._jobs += 1
        job_id = f"job{self._jobs}-{time.monotonic_ns()}"
        options, command = words[: words.index("--")], words[words.index("--") :]
        self.carol("add-job", job_id, "--manual", "--json", *options, *command)
        return job_id

    def launch(self, *words: str) -> int:
        """Run a new job of these words; the id of its run."""
        return int(self.carol("run-job", self.job(*words))["run_id"])

    def run(self, run_id: int) -> dict[str, Any]:
        """The row of a run."""
        shown: dict[str, Any] = self.carol("show-run", str(run_id))
        return shown

    def until(self, run_id: int, *statuses: str) -> dict[str, Any]:
        """The row of a run as soon as it has one of the statuses."""
        deadline = time.monotonic() + _SLOW
        while (row := self.run(run_id))["status"] not in statuses:
            assert time.monotonic() < deadline, row
            time.sleep(0.05)
        return row

    def fire(self, jobs: dict[str, tuple[str, ...]], *unit_options: str, **env: str) -> list[int]:
        """Add those jobs, and have one tick fire all of them, in a unit with those options; their runs."""
        for name, words in jobs.items():
            cut = words.index("--") if "--" in words else len(words)
            self.carol("add-job", name, "--every", "1d", "--json", *words[:cut], *words[cut:])
        tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400 + 5))
        launched: list[int] = self.tick(*unit_options, CAROL_NOW=tomorrow, **env)["launched"]
        assert len(launched) == len(jobs)
        return launched

    def tick(self, *unit_options: str, **env: str) -> Any:
        """What a tick reports; with options, one in a unit that has them."""
        told = self.env | env
        unit = ["systemd-run", "--quiet", "--wait", "--pipe", *unit_options] if unit_options else []
        unit += [f"--setenv={name}={value}" for name, value in told.items()] if unit else []
        return json.loads(self.machine.run(*unit, CAROL, "tick", "--json", env=told, user=self.user).stdout)

    def polite(self, *options: str) -> int:
        """Launch a command that ends at SIGTERM with exit status 0; its run, as soon as it is able to."""
        run_id = self.launch(*options, "--", "sh", "-c", _POLITE)
        self.until(run_id, "running")
        self.machine.sh(f"until test -e /srv/ready-{run_id}; do sleep 0.05; done")
        return run_id

    def ended(self, *words: str) -> dict[str, Any]:
        """The row of a run of a new job of these words, after its end; a failed launch counts as one."""
        self.carol("run-job", job := self.job(*words), check=False)
        [row] = self.carol("list-runs", "--job", job)["runs"]
        return self.until(row["run_id"], "completed", "failed", "cancelled")


def _json(words: tuple[str, ...]) -> tuple[str, ...]:
    return () if "--json" in words else ("--json",)


@pytest.fixture(scope="module")
def place(machine: Machine) -> Iterator[Place]:
    """Root's data home, with the system manager."""
    place = Place(machine, ENV)
    place.job("--", "true")
    yield place
    machine.run("systemctl", "stop", "carolctl.slice", check=False)


def unit(run_id: int, claim: int = 1) -> str:
    return f"carolctl-run-{run_id}-{claim}.service"


def how(row: dict[str, Any]) -> tuple[str, str | None, int | None]:
    return row["status"], row["failure_reason"], row["exit_status"]


# -- every kind of end -----------------------------------------------------------------------------------------

_POLITE = 'trap "exit 0" TERM; touch /srv/ready-$CAROL_RUN_ID; while :; do sleep 0.1; done'


@pytest.mark.parametrize(
    ("words", "status", "reason", "exit_status"),
    [
        (("--", "true"), "completed", None, 0),
        (("--", "sh", "-c", "exit 7"), "failed", "exit_nonzero", 7),
        (("--", "sh", "-c", "echo 429 Too Many Requests; echo bye; exit 7"), "failed", "rate_limited", 7),
        (("--", "sh", "-c", "sleep 0.1; exit 203"), "failed", "exit_nonzero", 203),
        (("--", "sh", "-c", "kill -KILL $$"), "failed", "killed", 137),
        (("--", "sh", "-c", "kill -TERM $$"), "failed", "killed", 143),
        (("--", "sh", "-c", "ulimit -c 0; kill -SEGV $$"), "failed", "killed", 139),
        (("--max-run-duration", "1s", "--", "sleep", "60"), "failed", "lease_expired", 143),
        (("--", "no-such-tool"), "failed", "launch_failed", 203),
        (("--run-as", "99999", "--", "true"), "failed", "launch_failed", None),
        (("--", "sh", "-c", "setsid sleep 60 & exit 0"), "completed", None, 0),
        (("--", "sh", "-c", 'echo \'{"failure_reason":"auth_failed"}\' >"$CAROL_RESULT_FILE"'),
         "failed", "auth_failed", 0),
        (("--", "/no/such/program"), "failed", "launch_failed", None),
        (("--", "/etc/passwd"), "failed", "launch_failed", 203),
        (("--run-as", "nobody-at-all", "--", "true"), "failed", "launch_failed", None),
        (("--working-directory", "/no/such/folder", "--", "true"), "failed", "launch_failed", None),
        (("--environment-file", "/no/such/file", "--", "true"), "failed", "launch_failed", None),
        (("--load-credential", "key:/no/such/file", "--", "true"), "failed", "launch_failed", 243),
    ],
)  # fmt: skip
def test_every_end_of_a_command_is_recorded_with_its_class(
    place: Place, words: tuple[str, ...], status: str, reason: str | None, exit_status: int | None
) -> None:
    assert how(place.ended(*words)) == (status, reason, exit_status)


def test_a_command_that_is_stopped_by_an_operator_counts_as_aborted_however_politely_it_ends(
    place: Place,
) -> None:
    run_id = place.polite()
    place.machine.run("systemctl", "stop", unit(run_id))
    assert how(place.run(run_id)) == ("failed", "aborted", 0)


def test_a_command_that_is_cancelled_is_stopped_and_then_its_slot_is_freed(place: Place) -> None:
    run_id = place.polite()
    assert place.carol("cancel-run", str(run_id)) == {"cancelled": [], "stopping": [run_id]}
    assert place.until(run_id, "cancelled")["failure_reason"] is None


def test_a_run_that_is_cut_short_is_not_taken_for_done_by_a_clock_that_stands_still(place: Place) -> None:
    job = place.job("--max-run-duration", "2s", "--", "sh", "-c", _POLITE)
    run_id = place.carol("run-job", job, CAROL_NOW=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))[
        "run_id"
    ]
    assert how(place.until(run_id, "completed", "failed")) == ("failed", "lease_expired", 0)


def test_a_jobs_own_file_of_variables_does_not_reach_its_hooks(place: Place) -> None:
    place.machine.sh("mkdir -p /srv/tools && ln -sf /bin/sleep /bin/touch /srv/tools")
    place.machine.write("/etc/job.env", "PATH=/srv/tools\nCAROL_SCHEDULER_DB=/no/such/db\n")
    run_id = place.polite("--environment-file", "/etc/job.env")
    place.machine.run("systemctl", "stop", unit(run_id))
    assert how(place.run(run_id)) == ("failed", "aborted", 0)


def test_a_user_folder_or_file_that_is_only_missed_by_systemd_is_launched_three_times_and_then_given_up(
    place: Place,
) -> None:
    private_tmp = ("-p", "PrivateTmp=yes")
    missing = ("--working-directory", "/tmp/no/such/folder", "--", "true")
    [run_id] = place.fire({"hopeless": missing}, *private_tmp)
    started = time.time() + 86_400 + 10
    for minute in range(1, 4):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started + 61 * minute))
        time.sleep(0.3)
        place.tick(*private_tmp, CAROL_NOW=now)
    row = place.run(run_id)
    assert (row["failure_reason"], row["launches"], row["claim_no"]) == ("launch_failed", 3, 3)


# -- what reaches the command ----------------------------------------------------------------------------------

_HOSTILE = [
    "$HOME", "${PATH}", "$$", "a$", "%n %h %%", "%", "'", '"', "\\", "\\n", "new\nline", "\t", "", " ", ";", "; rm",
    "*", "ümläut", "日本", "--", "-p", "@x", "+x", "!x", "#", "\x01", "\x7f",
]  # fmt: skip
_SAY = "import os, sys; print([os.fsencode(word).hex() for word in sys.argv[1:]])"


def test_arguments_reach_the_command_byte_for_byte(place: Place) -> None:
    row = place.ended("--", "python3", "-c", _SAY, *_HOSTILE)
    said = place.carol("logs", str(row["run_id"]))["text"]
    assert said.strip() == str([word.encode().hex() for word in _HOSTILE])


def test_a_reload_before_the_command_is_run_spoils_no_argument(place: Place) -> None:
    job_id = place.job("--", "python3", "-c", _SAY, *_HOSTILE)
    # The start hook waits for the lock, and the command for the hook.
    claim = (
        "from carolctl.run_now import run_now\n"
        "from carolctl.session import open_session\n"
        "from carolctl.launch import choose_configured\n"
        "import sqlite3, subprocess, time\n"
        "session = open_session()\n"
        f"one = run_now(session, {job_id!r}, force=True, reason='test', requester=None)\n"
        "db = sqlite3.connect(session.store.path, isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "assert choose_configured().launch([one]) == []\n"
        "time.sleep(0.5)\n"
        "subprocess.run(['systemctl', 'daemon-reload'], check=True)\n"
        "db.execute('ROLLBACK')\n"
    )
    place.machine.run(PYTHON, "-I", "-c", claim, env=place.env)
    [row] = place.carol("list-runs", "--job", job_id)["runs"]
    row = place.until(row["run_id"], "completed", "failed")
    said = place.carol("logs", str(row["run_id"]))["text"]
    assert said.strip() == str([word.encode().hex() for word in _HOSTILE])


def test_bytes_that_are_no_utf_8_reach_the_command(place: Place) -> None:
    script = f"job=$({CAROL} add-job raw --manual -- python3 -c '{_SAY}' $'\\xff\\xfe$x') && {CAROL} run-job raw --wait"
    exports = " ".join(f"{name}={value}" for name, value in ENV.items())
    place.machine.sh(f"export {exports}; {script}")
    [row] = place.carol("list-runs", "--job", "raw")["runs"]
    assert place.carol("logs", str(row["run_id"]))["text"].strip() == "['fffe2478']"


def test_a_command_is_told_about_its_run_and_nothing_else_of_ours_is_left_of_it(place: Place) -> None:
    row = place.ended("--max-turns", "9", "--", "sh", "-c", "env | grep ^CAROL_ | sort; sleep 0.3")
    said = place.carol("logs", str(row["run_id"]))["text"].splitlines()
    assert f"CAROL_RUN_ID={row['run_id']}" in said
    assert {
        "CAROL_CLAIM=1",
        f"CAROL_JOB_ID={row['job_id']}",
        "CAROL_MAX_TURNS=9",
        f"CAROL_DATA_DIR={HOME}",
    } <= {*said}
    assert row["pid"] is None
    assert row["unit"] == unit(row["run_id"])


def test_no_process_of_ours_lives_while_a_command_runs(place: Place) -> None:
    run_id = place.launch("--", "sleep", "60")
    place.until(run_id, "running")
    cgroup = place.machine.show(unit(run_id), "ControlGroup", "TasksCurrent")["ControlGroup"]
    time.sleep(0.3)
    processes = place.machine.sh("ps -eo pid,args --no-headers")
    ours = [line for line in processes.splitlines() if "carolctl" in line]
    assert ours == [], processes
    assert "sleep 60" in processes
    assert cgroup == f"/carolctl.slice/{unit(run_id)}"
    place.carol("cancel-run", str(run_id))
    place.until(run_id, "cancelled")


def test_a_job_of_another_user_leaves_its_result_and_its_events(place: Place) -> None:
    script = (
        f'echo "$(id -un)"; {CAROL} emit "$CAROL_RUN_ID" --kind turns --turns 4; {CAROL} emit 1 --kind progress;'
        ' echo \'{"turns": 5, "summary": "mine"}\' >"$CAROL_RESULT_FILE"'
    )
    row = place.ended("--run-as", USER, "--", "sh", "-c", script)
    assert (row["status"], row["turn_count"], row["result_summary"]) == ("completed", 5, "mine")
    assert place.carol("logs", str(row["run_id"]))["text"].splitlines()[0] == USER
    place.carol("tick")
    assert [event["turns"] for event in place.run(row["run_id"])["events"]] == [4]
    assert place.run(1)["events"] == [], "an event about somebody else's run"
    assert place.machine.run("ls", f"/run/carolctl-run-{row['run_id']}-1", check=False).returncode != 0


_SANDBOX = (
    "ProtectHome=yes", "PrivateTmp=yes", "ProtectSystem=strict", "NoNewPrivileges=yes",
    f"ReadWritePaths={HOME}", "CapabilityBoundingSet=CAP_DAC_OVERRIDE",
)  # fmt: skip


def test_a_tick_in_a_sandbox_launches_what_it_does_not_see_and_jobs_of_another_user(place: Place) -> None:
    place.machine.write("/root/bin/job.sh", "#!/bin/sh\necho root\n", mode=0o755)
    place.machine.write("/tmp/bin/tool", "#!/bin/sh\necho tool\n", mode=0o755)
    place.machine.write(f"/home/{USER}/e.env", "PATH=/tmp/bin:/usr/bin:/bin\n")
    script = f'{CAROL} emit "$CAROL_RUN_ID" --kind turns --turns 4; echo \'{{"turns": 5}}\' >"$CAROL_RESULT_FILE"; pwd'
    home = f"/home/{USER}"
    jobs = {
        "/root": ("--", "/root/bin/job.sh"),
        "/tmp": ("--working-directory", "/tmp", "--", "./bin/tool"),
        "tool": ("--environment-file", f"{home}/e.env", "--", "tool"),
        "other": ("--run-as", USER, "--working-directory", home, "--", "sh", "-c", script),
        "missing": ("--", "/root/bin/no-such"),
    }
    names = {f"sandboxed-{n}": words for n, words in enumerate(jobs.values())}
    launched = place.fire(names, *(word for line in _SANDBOX for word in ("-p", line)))
    rows = [place.until(run_id, "completed", "failed") for run_id in launched]
    said = {row["job_id"]: (row["status"], row["failure_reason"]) for row in rows}
    assert list(said.values()) == [("completed", None)] * 4 + [("failed", "launch_failed")], rows
    logs = [place.machine.journal(f"_SYSTEMD_UNIT={row['unit']}", "_TRANSPORT=stdout") for row in rows[:4]]
    assert [log.splitlines()[-1] for log in logs] == ["root", "tool", "tool", home]
    assert rows[3]["turn_count"] == 5
    assert "no-such cannot be run: No such file" in rows[4]["result_summary"]
    place.carol("tick")
    assert [event["turns"] for event in place.run(rows[3]["run_id"])["events"]] == [4]


def test_options_of_a_job_become_properties_of_its_unit(place: Place) -> None:
    run_id = place.launch(
        "--memory-max", "256M", "--cpu-quota", "50%", "--working-directory", "/usr", "--no-sandbox", "--", "sleep", "60"
    )  # fmt: skip
    place.until(run_id, "running")
    shown = place.machine.show(
        unit(run_id), "MemoryMax", "CPUQuotaPerSecUSec", "WorkingDirectory", "NoNewPrivileges", "Slice"
    )
    assert shown == {
        "MemoryMax": "268435456",
        "CPUQuotaPerSecUSec": "500ms",
        "WorkingDirectory": "/usr",
        "NoNewPrivileges": "no",
        "Slice": "carolctl.slice",
    }
    place.carol("cancel-run", str(run_id))
    place.until(run_id, "cancelled")


# -- started once, and left alone ------------------------------------------------------------------------------


def test_twenty_launches_of_one_run_at_once_start_it_once(place: Place) -> None:
    counted = "/srv/counted"
    place.machine.sh(f"rm -f {counted}")
    job_id = place.job("--", "sh", "-c", f"echo x >>{counted}; sleep 1")
    again = (
        "import sys\n"
        "from carolctl import clock\n"
        "from carolctl.launch import choose_configured\n"
        "from carolctl.run_now import run_now\n"
        "from carolctl.session import open_session\n"
        "import os\n"
        "session = open_session()\n"
        f"one = run_now(session, {job_id!r}, force=True, reason='test', requester=None)\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        print(choose_configured().launch([one]), flush=True)\n"
        "        os._exit(0)\n"
        "for _ in range(20):\n"
        "    os.wait()\n"
    )
    said = place.machine.run(PYTHON, "-I", "-c", again, env=place.env).stdout
    [row] = place.carol("list-runs", "--job", job_id)["runs"]
    assert place.until(row["run_id"], "completed", "failed")["status"] == "completed"
    assert place.machine.sh(f"cat {counted}") == "x\n"
    assert said.count("[]") == 20


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_a_reload_of_the_manager_leaves_a_run_alone_and_its_end_is_known(place: Place, verb: str) -> None:
    run_id = place.launch("--", "sh", "-c", "sleep 1; exit 3")
    place.until(run_id, "running")
    place.machine.run("systemctl", verb)
    assert place.carol("tick")["reaped"] == []
    assert how(place.until(run_id, "failed")) == ("failed", "exit_nonzero", 3)


def test_a_unit_that_vanished_without_a_word_is_lost_at_the_next_tick(place: Place) -> None:
    run_id = place.launch("--", "sleep", "60")
    place.until(run_id, "running")
    # The hook that would have told is taken away.
    place.machine.sh(
        f"sed -i /ExecStopPost/d /run/systemd/transient/{unit(run_id)}; systemctl daemon-reload;"
        f" systemctl stop {unit(run_id)}"
    )
    assert place.run(run_id)["status"] == "running"
    assert place.carol("tick")["reaped"] == [run_id]
    assert place.run(run_id)["failure_reason"] == "process_lost"


@pytest.mark.parametrize(
    ("point", "soon", "in_the_end"),
    [
        ("unit-before-start", ("failed", "launch_failed"), ("failed", "launch_failed")),
        ("unit-after-start", ("failed", "launch_failed"), ("failed", "launch_failed")),
        ("unit-before-finish", ("running", None), ("failed", "process_lost")),
        ("finish-settled", ("running", None), ("failed", "process_lost")),
        ("unit-recorded", ("completed", None), ("completed", None)),
    ],
)
def test_a_hook_that_is_killed_loses_no_run_and_runs_none_twice(
    place: Place, point: str, soon: tuple[str, str | None], in_the_end: tuple[str, str | None]
) -> None:
    place.machine.sh("rm -f /srv/marks")
    job_id = place.job("--", "sh", "-c", "echo x >>/srv/marks")
    run_id = place.carol("run-job", job_id, CAROL_FAILPOINT=f"{point}:kill")["run_id"]
    place.machine.sh(f"while systemctl list-units --all | grep -q {unit(run_id)}; do sleep 0.05; done")
    assert (place.run(run_id)["status"], place.run(run_id)["failure_reason"]) == soon
    place.carol("tick")
    assert (place.run(run_id)["status"], place.run(run_id)["failure_reason"]) == in_the_end
    marks = place.machine.run("cat", "/srv/marks", check=False).stdout
    assert marks == ("" if "start" in point else "x\n")


def test_a_run_that_ends_while_the_database_is_locked_comes_home_by_the_spool(place: Place) -> None:
    run_id = place.launch("--", "sh", "-c", "sleep 2; exit 4")
    place.until(run_id, "running")
    spooled = f"{HOME}/spool/new/finish-{run_id}-1.json"
    lock = (
        "import os, sqlite3, time\n"
        f"db = sqlite3.connect('{HOME}/scheduler.db', isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "for _ in range(400):\n"
        f"    if os.path.exists('{spooled}'): raise SystemExit(0)\n"
        "    time.sleep(0.05)\n"
        "raise SystemExit('nothing was spooled')\n"
    )
    place.machine.run(PYTHON, "-I", "-c", lock)
    place.carol("tick")
    assert how(place.run(run_id)) == ("failed", "exit_nonzero", 4)


# -- many at once ----------------------------------------------------------------------------------------------

_MANY = 50
_BARE = f"""
import subprocess, time
began = time.monotonic()
for n in range({_MANY}):
    subprocess.run(["systemd-run", "--quiet", "--no-block", f"--unit=bare-{{time.monotonic_ns()}}", "true"], check=True)
print(time.monotonic() - began)
"""


def test_fifty_commands_of_one_tick_are_launched_about_as_fast_as_systemd_starts_fifty_units(
    machine: Machine,
) -> None:
    many = Place(machine, ENV | {"CAROL_DATA_DIR": "/var/lib/carolctl-many"})
    words = "['add-job', f'many{n}', '--every', '1d', '--', 'true']"
    script = f"from carolctl.cli import entry\nfor n in range({_MANY}): entry.run({words})"
    machine.run(PYTHON, "-I", "-c", script, env=many.env)
    ratios = []
    for day in (1, 2, 3):
        bare = float(machine.run(PYTHON, "-I", "-c", _BARE).stdout)
        machine.sh("while systemctl list-units --all --no-legend 'bare-*' | grep -q .; do sleep 0.1; done")
        then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + day * 86_400 + 60))
        began = time.monotonic()
        report = many.carol("tick", CAROL_NOW=then)
        ratios.append((time.monotonic() - began) / bare)
        assert len(report["launched"]) == _MANY
        many.until(report["launched"][-1], "completed")
        machine.sh("while systemctl list-units --no-legend 'carolctl-run-*' | grep -q .; do sleep 0.1; done")
        ended = many.carol("list-runs", "--limit", str(_MANY))["runs"]
        assert {row["status"] for row in ended} == {"completed"}
    print(f"ratios: {ratios}")
    assert statistics.median(ratios) <= 1.3, ratios


# -- HTTP ------------------------------------------------------------------------------------------------------

_ENDPOINT = """
import http.server, json, time
class Endpoint(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(float(self.path[1:] or 0))
        body = json.dumps({"turns": len(self.headers.get("X-Token", ""))}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Endpoint).serve_forever()
"""


@pytest.fixture(scope="module")
def endpoint(machine: Machine) -> Iterator[str]:
    """An endpoint that answers after as many seconds as its path says, with the length of the token as turns."""
    machine.write("/srv/endpoint.py", _ENDPOINT)
    machine.run("systemd-run", "--quiet", "--unit=endpoint", "python3", "/srv/endpoint.py")
    machine.sh("until (echo >/dev/tcp/127.0.0.1/8099) 2>/dev/null; do sleep 0.05; done")
    yield "http://127.0.0.1:8099"
    machine.run("systemctl", "stop", "endpoint", check=False)


def _calls(place: Place, endpoint: str, *paths: str) -> list[int]:
    """Jobs that call those paths, fired together by one tick; their runs."""
    secret = ("--header", "X-Token: ${env:TOKEN}")
    names = [f"call-{path}-{time.monotonic_ns()}" for path in paths]
    jobs = {name: ("--url", f"{endpoint}/{path}", *secret) for name, path in zip(names, paths, strict=True)}
    return place.fire(jobs, TOKEN="four")


def test_http_runs_that_are_launched_together_share_a_unit_which_is_told_no_secret(
    place: Place, endpoint: str
) -> None:
    quick, slow = _calls(place, endpoint, "0", "20")
    assert place.until(quick, "completed", "failed")["turn_count"] == len("four")
    row = place.until(slow, "running")
    assert row["unit"].startswith("carolctl-http-")
    assert row["unit"] == place.run(quick)["unit"]
    assert "four" not in place.machine.run("systemctl", "show", row["unit"]).stdout
    assert place.machine.sh(f"ls -A {HOME}/units") == ""
    assert place.carol("monitor")[0]["liveness"] == "alive"
    place.machine.run("systemctl", "kill", "--signal=KILL", row["unit"])
    place.machine.sh(f"while systemctl is-active --quiet {row['unit']}; do sleep 0.05; done")
    place.carol("tick")
    assert place.run(slow)["failure_reason"] == "outcome_unknown"


def test_a_call_that_takes_a_place_from_a_shell_waits_for_the_secret_of_the_tick(
    place: Place, endpoint: str
) -> None:
    one = Place(place.machine, ENV | {"CAROL_DATA_DIR": f"{HOME}-one", "SCHEDULE_MAX_CONCURRENT": "1"})
    hand = one.launch("--", "sleep", "2")
    one.carol("add-job", "call", "--manual", "--url", f"{endpoint}/0", "--header", "X-Token: ${env:TOKEN}")
    queued = one.carol("trigger", "call", "--event-id", "e", "--kind", "k", TOKEN="four")["run_id"]
    assert one.run(queued)["status"] == "queued"
    one.until(hand, "completed")
    assert one.run(queued)["status"] == "queued"
    one.carol("tick", TOKEN="four")
    assert one.until(queued, "completed", "failed")["turn_count"] == len("four")


def test_an_http_run_is_cancelled_by_a_word_to_its_pool(place: Place, endpoint: str) -> None:
    [slow] = _calls(place, endpoint, "20")
    place.until(slow, "running")
    place.carol("cancel-run", str(slow))
    assert place.until(slow, "cancelled")["status"] == "cancelled"


# -- logs ------------------------------------------------------------------------------------------------------


def test_logs_come_from_the_journal_without_a_word_of_ours(place: Place) -> None:
    row = place.ended("--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert place.carol("logs", str(row["run_id"]))["text"] == "out\nerr\n"
    told = place.machine.journal("-t", "carolctl", f"CAROL_RUN_ID={row['run_id']}", "-p", "warning")
    assert told == f"run={row['run_id']} claim=1 job={row['job_id']} failed exit_nonzero\n"


def test_of_a_flood_of_output_nothing_is_lost(place: Place) -> None:
    row = place.ended("--", "seq", "1", "60000")
    said = place.carol("logs", str(row["run_id"]))["text"].splitlines()
    assert (len(said), said[-1]) == (60000, "60000")


def test_a_store_of_the_same_user_with_a_run_of_the_same_number_is_another_matter(place: Place) -> None:
    run_id = place.launch("--", "sh", "-c", "echo of the one; exec sleep 60")
    place.until(run_id, "running")
    other = Place(place.machine, ENV | {"CAROL_DATA_DIR": OTHER})
    job_id = other.job("--", "true")
    # As far as another store may have come.
    next_one = f"INSERT OR REPLACE INTO sqlite_sequence (name, seq) VALUES ('runs', {run_id - 1})"
    code = f"import sqlite3, sys; db = sqlite3.connect('{OTHER}/scheduler.db'); db.execute(sys.argv[1]); db.commit()"
    place.machine.run(PYTHON, "-I", "-c", code, next_one)
    done = place.machine.run(CAROL, "run-job", job_id, env=other.env)
    assert "is another data home's just now" in done.stderr
    assert other.run(run_id)["status"] == "claimed"
    assert "of the one" not in str(other.carol("logs", str(run_id), check=False))
    started = f"UPDATE runs SET status = 'running', started_at = queued_at, unit = '{unit(run_id)}'"
    place.machine.run(PYTHON, "-I", "-c", code, started)
    assert other.carol("monitor")[0]["liveness"] == "unknown"
    other.carol("cancel-run", str(run_id))
    assert place.carol("logs", str(run_id))["text"] == "of the one\n"
    assert place.run(run_id)["status"] == "running"
    place.carol("cancel-run", str(run_id))
    place.until(run_id, "cancelled")


def test_logs_follow_a_run_to_its_end(place: Place) -> None:
    run_id = place.launch("--", "sh", "-c", "for n in 1 2 3; do echo line $n; sleep 0.4; done")
    done = place.machine.run(CAROL, "logs", str(run_id), "--follow", env=place.env)
    assert done.stdout == "line 1\nline 2\nline 3\n"


# -- an ordinary user ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lingering(machine: Machine) -> Iterator[Place]:
    """The ordinary user's data home, with a manager of its own."""
    machine.run("loginctl", "enable-linger", USER)
    machine.sh(
        "for n in $(seq 100); do test -S /run/user/4242/systemd/private && exit; sleep 0.1; done; exit 1"
    )
    yield Place(machine, {"SCHEDULE_MAX_CONCURRENT": "60"}, USER)
    machine.run("loginctl", "disable-linger", USER)
    machine.sh("while systemctl is-active --quiet user@4242; do sleep 0.1; done")


def test_without_a_manager_a_user_is_told_about_linger(machine: Machine) -> None:
    own = Place(machine, {"CAROL_LAUNCHER": "systemd", "CAROL_DATA_DIR": f"/home/{USER}/other"}, USER)
    job = own.job("--", "true")
    done = own.carol("run-job", job, check=False)
    assert done.returncode == 69
    assert "loginctl enable-linger" in done.stderr


def test_the_same_ends_are_recorded_under_the_manager_of_a_user(lingering: Place) -> None:
    row = lingering.ended("--", "sh", "-c", "echo mine; exit 7")
    assert how(row) == ("failed", "exit_nonzero", 7)
    assert row["unit"] == unit(row["run_id"])
    assert lingering.carol("logs", str(row["run_id"]))["text"] == "mine\n"
    assert how(lingering.ended("--max-run-duration", "1s", "--", "sleep", "60")) == (
        "failed",
        "lease_expired",
        143,
    )
    assert lingering.ended("--run-as", "root", "--", "true")["failure_reason"] == "launch_failed"


def test_http_runs_of_a_user_share_a_unit_of_that_users_manager(lingering: Place, endpoint: str) -> None:
    one, other = _calls(lingering, endpoint, "0", "0.5")
    rows = [lingering.until(run_id, "completed", "failed") for run_id in (one, other)]
    assert [(row["status"], row["turn_count"]) for row in rows] == [("completed", len("four"))] * 2
    assert rows[0]["unit"] == rows[1]["unit"] == f"carolctl-http-{one}-1.service"


def test_root_does_not_take_the_runs_of_a_user_for_dead(lingering: Place) -> None:
    run_id = lingering.launch("--", "sleep", "60")
    lingering.until(run_id, "running")
    root = Place(lingering.machine, {"CAROL_DATA_DIR": f"/home/{USER}/.local/state/carolctl"})
    assert root.carol("reap") == {"leases": [], "lost": [], "orphans": []}
    lingering.carol("cancel-run", str(run_id))
    assert lingering.until(run_id, "cancelled")


# -- the power ---- (last: it takes the machine down)


@pytest.fixture
def three(place: Place) -> Callable[[], list[int]]:
    """Commands that run: a plain one, a polite one, an idempotent one that may be tried twice."""

    def begin() -> list[int]:
        runs = [
            place.launch("--", "sleep", "100"),
            place.polite("--max-attempts", "3"),
            place.launch("--max-attempts", "3", "--idempotent", "--", "sleep", "100"),
        ]
        for run_id in runs:
            place.until(run_id, "running")
        return runs

    return begin


def test_an_orderly_reboot_is_recorded_as_aborted_and_only_an_idempotent_job_is_tried_again(
    place: Place, three: Callable[[], list[int]]
) -> None:
    plain, polite, idempotent = three()
    place.machine.reboot()
    assert how(place.run(plain)) == ("failed", "aborted", 143)
    assert how(place.run(polite)) == ("failed", "aborted", 0)
    again = place.run(idempotent)
    assert (again["status"], again["attempt"]) == ("queued", 2)
    place.carol("cancel-run", str(idempotent))


def test_after_a_power_failure_the_first_tick_finds_what_was_lost(
    place: Place, three: Callable[[], list[int]]
) -> None:
    plain, polite, idempotent = three()
    place.machine.kill()
    place.machine.start()
    assert place.run(plain)["status"] == "running"
    assert place.carol("tick")["reaped"] == [plain, polite, idempotent]
    assert [place.run(run_id)["failure_reason"] for run_id in (plain, polite)] == ["process_lost"] * 2
    assert place.run(idempotent)["status"] == "queued"
