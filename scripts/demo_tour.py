"""The tour behind ./scripts/demo: the real program on a data home of its own, step by step, in plain words."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
CAROLCTL = [str(Path(sys.executable).parent / "carolctl")]


class Endpoint(BaseHTTPRequestHandler):
    """An agent that says how many turns it took."""

    def do_POST(self) -> None:
        run = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"turns": 7, "summary": f"did the work of {run['job_id']}"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: object) -> None:
        """The tour does the talking."""


def say(*lines: str) -> None:
    print()
    for line in lines:
        print(f"\033[1m# {line}\033[0m" if sys.stdout.isatty() else f"# {line}", flush=True)


def carolctl(*arguments: str, quiet: bool = False) -> str:
    if not quiet:
        print("$ carolctl " + shlex.join(arguments), flush=True)
    done = subprocess.run([*CAROLCTL, *arguments], stdout=None if not quiet else subprocess.PIPE, text=True)
    if done.returncode:
        print(f"(exit code {done.returncode})", flush=True)
    return done.stdout or ""


def wait_until_quiet(seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while json.loads(carolctl("monitor", "--json", quiet=True)) and time.monotonic() < until:
        time.sleep(0.2)


def prepare(home: Path, url: str) -> Path:
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(mode=0o700)
    for name in [n for n in os.environ if n.startswith(("CAROL_", "SCHEDULE_"))]:
        del os.environ[name]
    planner = home / "plangenerator.db"
    os.environ |= {"CAROL_DATA_DIR": str(home), "CAROL_PLANNER_DB": str(planner)}
    subprocess.run(
        [sys.executable, str(SCRIPTS / "make_planner_db.py"), str(planner), "--endpoint", url], check=True
    )
    return planner


def tour(home: Path, url: str) -> None:
    planner = prepare(home, url)
    say(
        f"A legacy planner database with 27 jobs lies in {planner}. They move into a store of",
        "their own in one transaction, are read back and proved equal by checksum. The source is only read.",
    )
    print(f"$ export CAROL_DATA_DIR={home} CAROL_PLANNER_DB={planner}")
    carolctl("migrate-jobs")
    carolctl("list-jobs")
    say("The job list is ours now: an edit lands even while somebody holds the planner's write lock.")
    lock = sqlite3.connect(planner, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    carolctl("edit-job", "gen-tasks-01", "--daily-at", "00:05")
    lock.close()

    say("Three jobs of our own, due at the same moment: two commands and a call to a local endpoint.")
    due = datetime.now(UTC) + timedelta(seconds=3)
    at = due.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    carolctl("add-job", "hello", "--at", at, "--", "sh", "-c", 'echo "hello from run $CAROL_RUN_ID"')
    carolctl("add-job", "work", "--at", at, "--", "sleep", "1")
    carolctl("add-job", "agent", "--at", at, "--url", url + "/agent")
    say("A tick before they are due finds nothing to do. A timer would tick every 30 s.")
    carolctl("tick")
    time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()) + 0.1)
    say("Now they are due. First what a tick would do, by the same code, rolled back; then the tick itself.")
    carolctl("tick", "--dry-run")
    carolctl("tick")
    say("The cap is 2: two run, the third waits, and gets its slot when one ends, without another tick.")
    wait_until_quiet()
    carolctl("list-runs")

    say("Now a run dies: its supervisor is killed with SIGKILL, so nobody can say how it ended.")
    carolctl("add-job", "doomed", "--manual", "--", "sleep", "300")
    run_id = json.loads(carolctl("run-job", "doomed", "--json", quiet=True))["run_id"]
    pid = wait_for_pid(run_id)
    carolctl("monitor")
    print(f"$ kill -9 {pid}", flush=True)
    os.kill(pid, signal.SIGKILL)
    say(
        "The next tick looks: the pid, its start time and the boot say that it is gone. Its slot is free",
        "again, and whatever it had started is gone with it.",
    )
    carolctl("tick")
    carolctl("show-run", str(run_id))
    carolctl("monitor")


def wait_for_pid(run_id: int) -> int:
    while True:
        run = json.loads(carolctl("show-run", str(run_id), "--json", quiet=True))
        if run["status"] == "running" and run["pid"]:
            return int(run["pid"])
        time.sleep(0.1)


def main() -> None:
    home = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tour(home, f"http://127.0.0.1:{server.server_port}")
        wait_until_quiet()
    finally:
        server.shutdown()
    program = os.path.relpath(CAROLCTL[0])
    say("That was the tour. To go on in its data home:")
    print(f"  export CAROL_DATA_DIR={home} PATH={Path(CAROLCTL[0]).parent}:$PATH")
    print("  carolctl list-jobs; carolctl next '0 9 * * MON-FRI' --timezone Europe/Berlin")
    print("  carolctl run-job hello --wait && carolctl logs 2")
    print(f"  rm -r {home}        # when you are done; {program} --help lists the rest")


if __name__ == "__main__":
    main()
