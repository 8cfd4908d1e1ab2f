"""Claims made ready for runners, real runners for them, and the certain end of every process that came of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from carolctl import clock, launch
from carolctl.launch import owner
from carolctl.model import Claimed, HttpAction, Job, Millis, Run
from carolctl.store.runs import Claimant, RunFilter
from tests import builders
from tests.builders import Carol


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """The argv of a command that runs `code`."""
    return (sys.executable, "-I", "-c", code, *arguments)


def until(condition: Callable[[], object], timeout: float = 15.0) -> None:
    """Wait for `condition`; the test fails when it does not come true."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, "it did not come true in time"
        time.sleep(0.01)


def probe(run: Run) -> str:
    """Whether the owner of a run lives, as seen from this host and boot."""
    return launch.probe([run], host=clock.hostname(), boot_id=clock.boot_id())[run.run_id]


class Yard:
    """One data home with its job store, in which runs are queued, claimed and run."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.carol = Carol(home)
        self.store = builders.store(home)
        self._runners: list[subprocess.Popen[bytes]] = []

    def queue(self, *jobs: Job, max_turns: int | None = None) -> list[int]:
        """Add manual jobs with a queued run each; the ids of the runs."""
        now = clock.now()
        with self.store.write() as tx:
            tx.insert_jobs(jobs)
            ids = [tx.insert_run(job.job_id, source="manual", now=now, max_turns=max_turns) for job in jobs]
        return [run_id for run_id in ids if run_id is not None]

    def claim(self, *, cap: int = 100, lease_sec: int = 60, claimed_ago_ms: int = 0) -> list[Claimed]:
        """Claim what is queued, as of a moment ago."""
        boottime_ms = clock.boottime_ms()
        claimant = Claimant(
            now=Millis(clock.now() - claimed_ago_ms),
            boottime_ms=None if boottime_ms is None else boottime_ms - claimed_ago_ms,
            host=clock.hostname(),
            boot_id=clock.boot_id(),
            lease_sec=lease_sec,
        )
        with self.store.write() as tx:
            return tx.claim(claimant, cap=cap)

    def ready(
        self, *argv: str, job_id: str = "nightly", lease_sec: int = 60, max_turns: int | None = None
    ) -> Claimed:
        """A claimed run of a new command job."""
        self.queue(builders.job(job_id, manual=True, argv=argv), max_turns=max_turns)
        return self.claim(lease_sec=lease_sec)[0]

    def spawn(self, *claimed: Claimed, **env: str) -> subprocess.Popen[bytes]:
        """A runner of its own session for one command, or for any number of HTTP runs."""
        if isinstance(claimed[0].action, HttpAction):
            arguments = ["http", *(f"{one.run.run_id}:{one.run.claim_no}" for one in claimed)]
        else:
            arguments = ["command", str(claimed[0].run.run_id), str(claimed[0].run.claim_no)]
        return self.spawn_runner(arguments, **env)

    def spawn_runner(self, arguments: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """The same, by its arguments."""
        with open(self.home / "complaints", "ab") as complaints:
            runner = subprocess.Popen(
                [sys.executable, "-I", "-m", "carolctl.runner", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                start_new_session=True,
                env=self.carol.environment(**env),
            )
        self._runners.append(runner)
        return runner

    def run(self, *argv: str, lease_sec: int = 60, max_turns: int | None = None) -> Run:
        """Run a command to its end; its row. The runner itself must end well, and in silence."""
        return self.run_claimed(self.ready(*argv, lease_sec=lease_sec, max_turns=max_turns), {})

    def run_with(self, env: dict[str, str], *argv: str) -> Run:
        """The same with variables in the environment of the runner."""
        return self.run_claimed(self.ready(*argv), env)

    def run_claimed(self, claimed: Claimed, env: dict[str, str]) -> Run:
        """The same for a run that was claimed before."""
        assert self.spawn(claimed, **env).wait(timeout=30) == 0, self.complaints()
        assert self.complaints() == ""
        return self.row(claimed.run.run_id)

    def complaints(self) -> str:
        """What the runners of `spawn` said."""
        return (self.home / "complaints").read_text()

    def row(self, run_id: int) -> Run:
        """The present row of a run."""
        with self.store.read() as tx:
            run = tx.run(run_id)
        assert run is not None
        return run

    def rows(self) -> list[Run]:
        """All rows, oldest first."""
        with self.store.read() as tx:
            return tx.runs(RunFilter(limit=None))[::-1]

    def until_status(self, status: str, *run_ids: int, timeout: float = 15.0) -> None:
        """Wait until the runs have it."""
        until(lambda: all(self.row(run_id).status == status for run_id in run_ids), timeout)

    def log(self, run: Run) -> bytes:
        """The captured output of a run; empty while there is none."""
        path = self.home / "logs" / f"run-{run.run_id}-{run.claim_no}.log"
        return path.read_bytes() if path.exists() else b""

    def session_of(self, pid: int | None) -> set[int]:
        """The living members of a session."""
        return {member.pid for member in owner.members(owner.process_table(), [pid] if pid else [])}

    def close(self) -> None:
        """End every process that a runner of this yard may have left, and the store."""
        pids = {runner.pid for runner in self._runners} | {run.pid for run in self.rows() if run.pid}
        for member in owner.members(owner.process_table(), pids):
            owner.send(member.pid, signal.SIGKILL)
        for runner in self._runners:
            runner.wait(timeout=10)
        self.store.close()
