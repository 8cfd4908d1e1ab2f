"""An operator's desk at the machine: commands without any variable of ours, the units, and a probe of the sandbox."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.systemd.boot import CAROL, PYTHON, USER, Machine

HOME = "/var/lib/carolctl"
UNITS = "/etc/systemd/system"
USER_HOME = f"/home/{USER}/.local/state/carolctl"
USER_UNITS = f"/home/{USER}/.config/systemd/user"
_PATIENCE_SEC = 40


def until(answer: Callable[[], Any], what: str, patience: float = _PATIENCE_SEC) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + patience
    while not (found := answer()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


class Desk:
    """An operator of the machine: root, or the ordinary user. No variable of ours is set."""

    def __init__(self, machine: Machine, user: str | None = None) -> None:
        self.machine = machine
        self.user = user

    def carol(self, *words: str, code: int = 0) -> Any:
        """What a command says, as JSON; of one that fails what it says about that."""
        done = self.machine.run(CAROL, *words, "--json", user=self.user, check=False)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout or done.stderr)

    def add(self, job: str, *words: str) -> None:
        """Add a job, its command behind ``--``."""
        done = self.machine.run(CAROL, "add-job", job, *words, user=self.user, check=False)
        assert done.returncode == 0, done.stderr

    def systemctl(self, *words: str, code: int = 0) -> str:
        """What systemctl prints."""
        manager = ["--user"] if self.user else []
        done = self.machine.run("systemctl", *manager, *words, user=self.user, check=False)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stderr}"
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        return self.machine.show(unit, *names, user=self.user)

    def last(self, job: str) -> dict[str, Any]:
        """The newest run of a job; an empty row when there is none."""
        runs = self.carol("list-runs", "--job", job)["runs"]
        return runs[0] if runs else {}

    def ended(self, job: str) -> dict[str, Any]:
        """The newest run of a job, once it has ended."""
        return until(lambda: (row := self.last(job)).get("completed_at") and row, f"{job} does not end")  # type: ignore[no-any-return]

    def checks(self) -> dict[str, str]:
        """The doctor's findings: status by name."""
        done = self.machine.run(CAROL, "doctor", "--json", user=self.user, check=False)
        return {one["name"]: one["status"] for one in json.loads(done.stdout)["checks"]}


def soon(desk: Desk, seconds: int = 5) -> str:
    """An instant to come, far enough away for a slow machine to add a few jobs before."""
    return desk.machine.run("date", "-u", "-d", f"+{seconds} sec", "+%Y-%m-%dT%H:%M:%SZ").stdout.strip()


def pass_by(at: str) -> None:
    """Until that instant is over; the machine has our clock."""
    left = datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() - time.time()
    time.sleep(max(0.0, left) + 0.2)


def exposure(desk: Desk, unit: str) -> float:
    manager = "--user" if desk.user else "--system"
    done = desk.machine.run(
        "systemd-analyze", manager, "security", "--no-pager", f"carolctl-{unit}.service", user=desk.user
    )
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found
    return float(found[1])


_PROBE = """
import json, os, socket, sqlite3, subprocess, sys
from carolctl import clock
home = sys.argv[1]
def refused(path):
    try: open(path, "w").close()
    except OSError: return True
store = sqlite3.connect(home + "/probe.db")
for statement in ("PRAGMA journal_mode = WAL", "CREATE TABLE IF NOT EXISTS t (n)", "INSERT INTO t VALUES (1)"):
    store.execute(statement)
found = {
    "sqlite": store.commit() is None,
    "loopback": socket.create_connection(("127.0.0.1", 8099), 5) is not None,
    "locks": any("POSIX" in line or "FLOCK" in line for line in open("/proc/locks")),
    "pressure": os.access("/proc/pressure/cpu", os.R_OK) or not os.path.exists("/proc/pressure"),
    "boot": clock.boot_id() + "\\n",
    "init": open("/proc/1/stat").read().split()[0] == "1",
    "closed": all(refused(path) for path in ("/etc/x", "/usr/x", "/var/lib/x", "/root/x", "/home/agent/x")),
    "no_new_privileges": "NoNewPrivs:\\t1" in open("/proc/self/status").read(),
}
def carol(*words):
    command = [sys.executable, "-I", "-m", "carolctl", *words, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
found["run"] = carol("run-job", "inside")["run_id"]
found["doctor"] = [one["name"] + ": " + one["detail"] for one in carol("doctor")["checks"] if one["status"] == "fail"]
print("PROBE" + json.dumps(found))
"""


def probed(desk: Desk, units: str, home: str) -> dict[str, Any]:
    """What a program finds in the very sandbox of the tick: its unit under another name, with another program."""
    machine = desk.machine
    machine.write("/srv/probe.py", _PROBE)
    text = machine.run("cat", f"{units}/carolctl-tick.service").stdout
    command = f"ExecStart={PYTHON} -I /srv/probe.py {home}"
    text = re.sub(r"^ExecStart=.*$", command, text, flags=re.M).replace("OnFailure=", "#")
    machine.write(f"{units}/probe.service", text.replace("# Made by", "# Not made by"))
    desk.systemctl("daemon-reload")
    desk.add("inside", "--manual", "--", "grep", "NoNewPrivs", "/proc/self/status")
    machine.run(
        "systemctl", *(["--user"] if desk.user else []), "start", "probe.service", user=desk.user, check=False
    )
    machine.run("rm", f"{units}/probe.service")
    said = machine.journal("_SYSTEMD_USER_UNIT=probe.service" if desk.user else "_SYSTEMD_UNIT=probe.service")
    found = re.findall(r"^PROBE(.*)$", said, re.MULTILINE)
    assert found, said
    result: dict[str, Any] = json.loads(found[-1])
    assert desk.ended("inside")["status"] == "completed"
    return result
