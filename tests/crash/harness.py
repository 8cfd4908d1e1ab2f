"""A world in which processes die at any moment, and the list of what must hold in it all the same.

A `World` is one data home with the real program in it. Its commands write a line when they begin and one when they
end, so that a real double execution is seen whatever the database says. Its clock is ``CAROL_NOW``: minutes pass by
being announced. Whoever kills asks `World.processes`, which knows our own by the data home in their environment,
and nobody else is ever touched.

`World.drain` ticks until nothing lives any more; `World.violations` then says what does not hold. Some things are
watched all the time, by the triggers of invariants.sql.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import carolctl
from carolctl.clock import iso
from carolctl.model import Job, Millis
from tests import builders
from tests.builders import HOUR, T0
from tests.endpoint import Endpoint

PACKAGE = Path(carolctl.__file__).parent
LEASE_SEC = 200
TICK_MS = 61_000
"""One tick of a drain: a little more than a claim may stay unstarted."""

_POINT = re.compile(r'\bfailpoint\("([^"]+)"\)')
_INVARIANTS = Path(__file__).with_name("invariants.sql")
_LONGEST_DRAIN = 16
_IDLE_SEC = 30.0

#: begin, work, end, and the claim as the last line of the output, which becomes the summary of the run.
_WORK = (
    'echo "begin $CAROL_RUN_ID $CAROL_CLAIM $(date +%s%N)" >>"$1"; '
    'if [ -n "$3" ]; then n=0; while [ ! -e "$3" ] && [ $n -lt 1500 ]; do sleep 0.02; n=$((n+1)); done; fi; '
    'sleep "$2"; '
    'echo "end $CAROL_RUN_ID $CAROL_CLAIM $(date +%s%N)" >>"$1"; '
    'echo "claim $CAROL_CLAIM"'
)


def failpoints(package: Path = PACKAGE) -> set[str]:
    """The names of every failpoint in the source: a new one is found by itself.

    Without those of units, which are aimed at under a real service manager.
    """
    found = {name for file in package.rglob("*.py") for name in _POINT.findall(file.read_text("utf-8"))}
    return {name for name in found if not name.startswith("unit-")}


# -- the program under test ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to call the program, and its runner."""

    command: tuple[str, ...]
    runner: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


INSTALLED = Program(
    command=(sys.executable, "-I", "-m", "carolctl"),
    runner=(sys.executable, "-I", "-m", "carolctl.runner"),
)


class Patch(NamedTuple):
    """One textual replacement in one file of the package."""

    file: str
    old: str
    new: str


#: A copy is found by PYTHONPATH, which an isolated interpreter does not look at.
_HONOUR_THE_COPY = Patch(
    "launch/process.py",
    '[os.path.abspath(sys.executable), "-I", "-m", "carolctl.runner", *arguments]',
    '[os.path.abspath(sys.executable), "-m", "carolctl.runner", *arguments]',
)


def copied(folder: Path, *patches: Patch) -> Program:
    """A copy of the package with `patches`, each of which must fit exactly once."""
    shutil.copytree(PACKAGE, folder / "carolctl", ignore=shutil.ignore_patterns("__pycache__"))
    for patch in (_HONOUR_THE_COPY, *patches):
        file = folder / "carolctl" / patch.file
        text = file.read_text("utf-8")
        assert text.count(patch.old) == 1, f"{text.count(patch.old)} places in {patch.file} for: {patch.old}"
        file.write_text(text.replace(patch.old, patch.new), "utf-8")
    return Program(
        command=(sys.executable, "-m", "carolctl"),
        runner=(sys.executable, "-m", "carolctl.runner"),
        env={"PYTHONPATH": str(folder)},
    )


# -- processes -------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A living process of a world: ``tick`` (any command of ours), ``runner`` or ``job``."""

    pid: int
    role: str
    state: str

    @property
    def is_stopped(self) -> bool:
        return self.state in "Tt"


def processes_of(home: Path) -> list[Process]:
    """The living processes that have this data home in their environment."""
    mark = b"CAROL_DATA_DIR=" + os.fsencode(home) + b"\0"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            if mark not in environment + b"\0":
                continue
            line = Path(f"/proc/{name}/cmdline").read_bytes()
            text = Path(f"/proc/{name}/stat").read_text("utf-8", "replace")
        except OSError:
            continue
        state = text[text.rindex(")") + 2]
        if state not in "ZX":
            found.append(Process(int(name), _role(line), state))
    return found


def _role(line: bytes) -> str:
    if b"carolctl.runner\0" in line:
        return "runner"
    return "tick" if b"\0carolctl\0" in line else "job"


def send(pid: int, number: signal.Signals) -> bool:
    """A signal to one of ours; whether it was there to get it."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


# -- violations ------------------------------------------------------------------------------------------------


class Violation(NamedTuple):
    """Something that does not hold, and the circumstances."""

    what: str
    detail: str


class Mark(NamedTuple):
    """A line that a command wrote: it began or it ended; when is 0 if its clock was killed before it could say."""

    kind: str
    run_id: int
    claim_no: int
    at_ns: int


@dataclass(slots=True)
class Coverage:
    """What a test has been through, so that a pass without any is visible."""

    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    fired: set[str] = field(default_factory=set)

    def add(self, other: Coverage) -> None:
        self.kills += other.kills
        self.states += other.states
        self.fired |= other.fired

    def report(self) -> str:
        kills = ", ".join(f"{role} {count}" for role, count in sorted(self.kills.items()))
        lines = [
            f"signals: {sum(self.kills.values())} ({kills})",
            f"crash states reached: {len(self.states)}",
        ]
        lines += [f"  {count:5d}  {state}" for state, count in self.states.most_common()]
        if self.fired:
            lines.append(f"failpoints fired: {len(self.fired)}: {', '.join(sorted(self.fired))}")
        return "\n".join(lines)


# -- the world -------------------------------------------------------------------------------------------------


class World:
    """One data home, the real program in it, and a clock that is announced."""

    def __init__(self, folder: Path, program: Program = INSTALLED, *, cap: int = 2) -> None:
        folder.mkdir(parents=True)
        self.home = folder / "home"
        self.effects = folder / "effects.log"
        self.effects.touch()
        self.go = folder / "go"
        self.now = T0
        self.cap = cap
        self.coverage = Coverage()
        self._program = program
        #: A planner database that runs are mirrored into, from the moment that it is set.
        self.planner: Path | None = None
        #: The ids of events that somebody tried to emit, and of those that the program said were stored.
        self.emitted: set[str] = set()
        self.acknowledged: set[str] = set()
        self._codes: Counter[int] = Counter()
        self._noted: list[Violation] = []
        #: By run and claim: at how many ticks of a drain it still held its slot past its lease.
        self._overstays: Counter[tuple[int, int]] = Counter()
        self._ticking: list[subprocess.Popen[bytes]] = []
        self._carol = builders.Carol(self.home)
        opened = builders.store(self.home)
        with opened.write() as tx:
            for key, value in {
                "schedule.max_concurrent": cap,
                "schedule.max_run_duration_sec": LEASE_SEC,
                "streak.failure_pause": 100_000,
            }.items():
                tx.set_setting(key, str(value), now=T0)
        opened.close()
        with closing(sqlite3.connect(self.db)) as connection:
            connection.executescript(_INVARIANTS.read_text("utf-8"))

    @property
    def db(self) -> Path:
        return self.home / "scheduler.db"

    # -- jobs

    def work(self, *, seconds: float = 0.03, waits: bool = False) -> tuple[str, ...]:
        """The argument list of a command that leaves its marks; with `waits` it works until `go` is there."""
        go = str(self.go) if waits else ""
        return ("/bin/sh", "-c", _WORK, "work", str(self.effects), f"{seconds:g}", go)

    def add(self, *jobs: Job) -> None:
        builders.add_jobs(self.home, *jobs)

    # -- running the program

    def environment(self, **env: str) -> dict[str, str]:
        clock = {"CAROL_NOW": iso(self.now) or "", "CAROL_LAUNCHER": "process"}
        known = {"CAROL_PLANNER_DB": str(self.planner)} if self.planner else {}
        return self._carol.environment(**(self._program.env | clock | known | env))

    def spawn(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command; `finish` waits for it."""
        command = subprocess.Popen(
            [*self._program.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=self.environment(**env),
        )
        self._ticking.append(command)
        return command

    def finish(self, command: subprocess.Popen[bytes], *, timeout: float = 60) -> dict[str, Any] | None:
        """Wait for a command; its report, if it ended well. A way of ending that is none is a violation."""
        out, err = command.communicate(timeout=timeout)
        self._ticking.remove(command)
        if out.startswith(b'{"event_id"') and out.endswith(b"\n"):
            # Whatever became of it after that.
            self.acknowledged.add(json.loads(out)["event_id"])
        self._codes[command.returncode] += 1
        if command.returncode not in (0, 75, -signal.SIGKILL):
            self.note("a command failed", f"exit {command.returncode}: {err.decode(errors='replace')[-300:]}")
        return json.loads(out) if command.returncode == 0 and out.startswith(b"{") else None

    def run(self, *arguments: str, **env: str) -> dict[str, Any] | None:
        """Run a command to its end."""
        return self.finish(self.spawn(*arguments, **env))

    def tick(self, **env: str) -> dict[str, Any] | None:
        """One tick at this world's clock; its report, or None if it did not end well."""
        return self.run("tick", "--json", **env)

    def spawn_emit(
        self, *, turns: int | None = None, run: int = 1, arm: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start an emit of an event of its own; by the real clock, or it would not be the short way."""
        event_id = f"event-{len(self.emitted)}"
        self.emitted.add(event_id)
        said = () if turns is None else ("--turns", str(turns))
        words = ("--kind", "progress", "--event-id", event_id, "--json", *said)
        return self.spawn("emit", str(run), *words, **({"CAROL_NOW": ""} | (arm or {})))

    def emit(self, *, turns: int | None = None, run: int = 1) -> None:
        """Emit an event and wait for its acknowledgement."""
        report = self.finish(self.spawn_emit(turns=turns, run=run))
        assert report is not None

    def spawn_runner(self, *arguments: str, **env: str) -> None:
        """Start a runner as the launcher does, detached; `wait_idle` sees its end."""
        runner = subprocess.Popen(
            [*self._program.runner, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self.environment(**env),
            start_new_session=True,
        )
        self._ticking.append(runner)

    # -- looking

    def processes(self) -> list[Process]:
        """Everything of ours that lives; what has just been started may not show its environment yet."""
        # poll() reaps, so that what has ended is no zombie of ours.
        started = {command.pid for command in self._ticking if command.poll() is None}
        found = processes_of(self.home)
        return found + [Process(pid, "tick", "R") for pid in started - {process.pid for process in found}]

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows, read without the program."""
        with closing(sqlite3.connect(self.db, timeout=10)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def change(self, statement: str, *parameters: object) -> None:
        """A foreign hand in the store."""
        with closing(sqlite3.connect(self.db, timeout=10)) as connection, connection:
            connection.execute(statement, parameters)

    @contextmanager
    def locked(self, *, patience_sec: float = 10) -> Iterator[None]:
        """A foreign writer holds the write lock."""
        with closing(sqlite3.connect(self.db, timeout=patience_sec, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def statuses(self) -> list[str]:
        return [status for (status,) in self.query("SELECT status FROM runs ORDER BY run_id")]

    def marks(self) -> list[Mark]:
        found = []
        for line in self.effects.read_text("ascii").splitlines():
            kind, run_id, claim_no, *at_ns = line.split()
            found.append(Mark(kind, int(run_id), int(claim_no), int(at_ns[0]) if at_ns else 0))
        return found

    def spooled(self, folder: str = "new") -> list[str]:
        try:
            return sorted(os.listdir(self.home / "spool" / folder))
        except FileNotFoundError:
            return []

    def state(self) -> str:
        """The situation in words: which statuses there are, and what else lies about."""
        words = sorted(set(self.statuses()))
        words += [f"spool/{folder}" for folder in ("tmp", "new") if self.spooled(folder)]
        words += [f"{role} lives" for role in sorted({process.role for process in self.processes()})]
        return ", ".join(words) or "nothing yet"

    def wait_until(self, holds: Callable[[], object], *, timeout: float = 15, what: str = "it") -> None:
        """Wait for `holds`; an assertion failure when the time is up."""
        until = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < until, f"waited {timeout} s in vain for {what}: {self.state()}"
            time.sleep(0.01)

    def wait_idle(self, *, timeout: float = _IDLE_SEC) -> bool:
        """Wait until no process of ours is left, stopped ones apart; whether that came about.

        Looked at twice in a row: a process shows no environment in the moment of its exec.
        """
        until = time.monotonic() + timeout
        quiet = 0
        while quiet < 2:
            busy = any(not process.is_stopped for process in self.processes())
            quiet = 0 if busy else quiet + 1
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    # -- violence

    @staticmethod
    def send(pid: int, number: signal.Signals) -> bool:
        """A signal to one of ours; whether it was there to get it."""
        return send(pid, number)

    def kill(self, process: Process) -> bool:
        """SIGKILL to one of ours, counted with the state that it leaves behind."""
        if not send(process.pid, signal.SIGKILL):
            return False
        self.coverage.kills[process.role] += 1
        self.coverage.states[self.state()] += 1
        return True

    def kill_role(self, role: str) -> None:
        """SIGKILL to each of ours in that role, and none of them left when this returns."""
        for process in self.processes():
            if process.role == role:
                self.kill(process)
        self.wait_until(lambda: all(process.role != role for process in self.processes()), what=f"no {role}")

    def stop(self, process: Process) -> bool:
        """SIGSTOP to one of ours."""
        if not send(process.pid, signal.SIGSTOP):
            return False
        self.coverage.kills[f"stopped {process.role}"] += 1
        return True

    def resume_all(self) -> None:
        """SIGCONT to every stopped process of ours."""
        for process in self.processes():
            if process.is_stopped:
                send(process.pid, signal.SIGCONT)

    def kill_all(self) -> None:
        """End every process of ours, by its id."""
        until = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < until:
            for process in left:
                send(process.pid, signal.SIGKILL)
            time.sleep(0.01)

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill_all()
        for command in list(self._ticking):
            with suppress(subprocess.TimeoutExpired):
                command.communicate(timeout=5)
        self._ticking.clear()

    # -- coming to rest

    def note(self, what: str, detail: str) -> None:
        self._noted.append(Violation(what, detail))

    def drain(self) -> int:
        """Tick until nothing lives; how many ticks that took. What takes too long is a violation."""
        for count in range(_LONGEST_DRAIN + 1):
            self.resume_all()
            if not self.wait_idle():
                self.note("processes do not end", str(self.processes()))
                self.kill_all()
            self._collect()
            if self._is_quiet():
                return count
            self.now = Millis(self.now + TICK_MS)
            self.tick()
            self._note_overstayed()
        self.note("the world does not come to rest", self.state())
        return _LONGEST_DRAIN

    def _collect(self) -> None:
        """Take in the commands that have ended by themselves or been killed meanwhile."""
        for command in list(self._ticking):
            if command.poll() is None:
                continue
            if command.stdout is not None:
                self.finish(command)
            else:
                self._ticking.remove(command)

    def _is_quiet(self) -> bool:
        """Nothing lives, nothing is due, nothing waits in the spool."""
        live = self.query("SELECT 1 FROM runs WHERE status IN ('queued', 'claimed', 'running') LIMIT 1")
        due = self.query(
            "SELECT 1 FROM scheduled_jobs WHERE status = 'active' AND next_fire_at <= ?", self.now
        )
        return not live and not due and not self.spooled() and not self._ledger()

    def _note_overstayed(self) -> None:
        """Claimed or running after its lease and two ticks more."""
        for run_id, claim_no, status in self.query(
            "SELECT run_id, claim_no, status FROM runs"
            " WHERE status IN ('claimed', 'running') AND lease_expires_at <= ?",
            self.now,
        ):
            self._overstays[run_id, claim_no] += 1
            if self._overstays[run_id, claim_no] > 2:
                self.note("a run outlived its lease and two ticks", f"run {run_id} claim {claim_no} {status}")

    # -- what must hold

    def violations(
        self, *, slots: Sequence[int] = (), undisturbed: bool = False, endpoint: Endpoint | None = None
    ) -> list[Violation]:
        """What does not hold in a world at rest. `slots`: the due slots of every job in it. `undisturbed`: no
        runner and no job was killed, so that every run has to be a success."""
        found = list(self._noted)
        found += self._watched()
        found += self._sound_file()
        found += self._at_rest()
        found += self._every_slot(slots)
        found += self._bookkeeping()
        found += self._executions()
        found += self._concurrency()
        found += self._ledger()
        found += self._events()
        if undisturbed:
            found += [
                Violation("a success was not recorded", f"run {run_id}: {status} {reason}")
                for run_id, status, reason in self.query(
                    "SELECT run_id, status, failure_reason FROM runs WHERE status NOT IN ('completed', 'skipped')"
                )
            ]
        if endpoint is not None:
            found += self._requests(endpoint)
        return found

    def _watched(self) -> list[Violation]:
        rows = self.query("SELECT what, run_id, detail FROM violations ORDER BY id")
        return [Violation(what, f"run {run_id}: {detail}") for what, run_id, detail in rows]

    def _sound_file(self) -> list[Violation]:
        found = []
        if self.query("PRAGMA quick_check") != [("ok",)]:
            found.append(Violation("the database is damaged", str(self.query("PRAGMA quick_check")[:3])))
        if self.query("PRAGMA foreign_key_check"):
            found.append(Violation("a foreign key dangles", ""))
        log = self.home / "logs" / "runner.log"
        text = log.read_text("utf-8", "replace") if log.exists() else ""
        if "Traceback" in text:
            found.append(Violation("a runner crashed by itself", text[text.index("Traceback") :][-600:]))
        return found

    def _at_rest(self) -> list[Violation]:
        found = [
            Violation("a run is left live", f"run {run_id}: {status}")
            for run_id, status in self.query(
                "SELECT run_id, status FROM runs WHERE status IN ('queued', 'claimed', 'running')"
            )
        ]
        found += [
            Violation(f"a file is left in spool/{f}", n) for f in ("new", "bad") for n in self.spooled(f)
        ]
        found += [Violation("a process is left", str(process)) for process in self.processes()]
        found += [
            Violation("an end without a reason", f"run {run_id}")
            for (run_id,) in self.query(
                "SELECT run_id FROM runs WHERE (status = 'failed' AND failure_reason IS NULL)"
                " OR (status = 'skipped' AND skip_reason IS NULL) OR completed_at IS NULL"
            )
        ]
        return found

    def _every_slot(self, slots: Sequence[int]) -> list[Violation]:
        found = []
        for (job_id,) in self.query("SELECT job_id FROM scheduled_jobs"):
            rows = self.query(
                "SELECT slots_from, scheduled_for FROM runs WHERE job_id = ? AND source = 'scheduled'", job_id
            )
            for slot in slots:
                count = sum(first <= slot <= last for first, last in rows)
                if count != 1:
                    what = "a slot was lost" if count == 0 else "a slot has two rows"
                    found.append(Violation(what, f"{job_id} at {iso(slot)}"))
        return found

    def _bookkeeping(self) -> list[Violation]:
        """An end is written whole or not at all: metrics, counters and the job's last run go with it."""
        statements = {
            "an end has no metrics": "SELECT run_id FROM runs WHERE status IN ('completed', 'failed')"
            " AND NOT EXISTS (SELECT 1 FROM schedule_firing_metrics AS m"
            " WHERE m.run_id = runs.run_id AND m.attempt = runs.attempt)",
            "metrics without an attempt": "SELECT m.run_id FROM schedule_firing_metrics AS m"
            " JOIN runs AS r USING (run_id) WHERE m.attempt > r.attempt",
            "a firing was miscounted": "SELECT job_id FROM scheduled_jobs AS j WHERE firing_count <>"
            " (SELECT count(*) FROM runs AS r WHERE r.job_id = j.job_id AND source = 'scheduled'"
            " AND status <> 'skipped')",
            "a suppression was miscounted": "SELECT job_id FROM scheduled_jobs AS j WHERE suppression_count <>"
            " (SELECT coalesce(sum(coalesced), 0) FROM runs AS r WHERE r.job_id = j.job_id"
            " AND skip_reason = 'overlap')",
            "tried again what must not be": "SELECT m.run_id FROM schedule_firing_metrics AS m"
            " JOIN runs AS r USING (run_id) JOIN scheduled_jobs AS j ON j.job_id = r.job_id"
            " WHERE m.attempt < r.attempt AND j.idempotent = 0"
            " AND m.failure_reason IN ('process_lost', 'outcome_unknown', 'lease_expired', 'aborted')",
        }
        return [
            Violation(what, f"{subject}")
            for what, statement in statements.items()
            for (subject,) in self.query(statement)
        ]

    def _executions(self) -> list[Violation]:
        """What the commands themselves say, against what the database says."""
        found = []
        marks = self.marks()
        begun = Counter((mark.run_id, mark.claim_no) for mark in marks if mark.kind == "begin")
        ended = {(mark.run_id, mark.claim_no) for mark in marks if mark.kind == "end"}
        begun_runs = Counter(mark.run_id for mark in marks if mark.kind == "begin")
        rows = {
            row[0]: row[1:]
            for row in self.query(
                "SELECT run_id, r.status, claim_no, attempt, result_summary FROM runs AS r"
                " JOIN scheduled_jobs AS j USING (job_id) WHERE action_kind = 'command' AND action LIKE '%begin%'"
            )
        }
        for (run_id, claim_no), count in begun.items():
            if count > 1:
                found.append(Violation("a claim was executed twice", f"run {run_id} claim {claim_no}"))
            if run_id not in rows or claim_no > rows[run_id][1]:
                found.append(Violation("executed without a claim", f"run {run_id} claim {claim_no}"))
        for run_id, (status, claim_no, attempt, summary) in rows.items():
            where = f"run {run_id} claim {claim_no} attempt {attempt} {status}: {summary}"
            if begun_runs[run_id] > attempt:
                found.append(
                    Violation("a run was executed twice", f"{where}, begun {begun_runs[run_id]} times")
                )
            if status == "completed" and (run_id, claim_no) not in ended:
                found.append(Violation("completed, but the work was not done", where))
            if status == "skipped" and begun_runs[run_id]:
                found.append(Violation("skipped, but executed", where))
            if re.fullmatch(r"claim \d+", summary or "") and summary != f"claim {claim_no}":
                found.append(Violation("the outcome is of another claim", where))
        return found

    def _concurrency(self) -> list[Violation]:
        """Commands that really ran side by side; of those that were killed the end is not known."""
        timed = [mark for mark in self.marks() if mark.at_ns]
        began = {(m.run_id, m.claim_no): m.at_ns for m in timed if m.kind == "begin"}
        steps = []
        for mark in timed:
            if mark.kind == "end" and (mark.run_id, mark.claim_no) in began:
                steps += [(began[mark.run_id, mark.claim_no], 1), (mark.at_ns, -1)]
        running = most = 0
        for _, step in sorted(steps):
            running += step
            most = max(most, running)
        return [Violation("more ran at once than the cap allows", f"{most}")] if most > self.cap else []

    def _events(self) -> list[Violation]:
        """What was acknowledged is stored, once, and nothing is stored that nobody said."""
        stored = Counter(event_id for (event_id,) in self.query("SELECT event_id FROM events"))
        found = [
            Violation("an acknowledged event was lost", event_id)
            for event_id in sorted(self.acknowledged - stored.keys())
        ]
        found += [Violation("an event nobody emitted", name) for name in sorted(stored.keys() - self.emitted)]
        found += [Violation("an event was stored twice", name) for name, count in stored.items() if count > 1]
        return found

    def _ledger(self) -> list[Violation]:
        """Where runs are mirrored: one row a run, in its state, and nobody else's is left running."""
        if self.planner is None:
            return []
        with closing(sqlite3.connect(self.planner, timeout=10)) as connection:
            rows = connection.execute("SELECT event_id, status FROM droid_runs ORDER BY event_id").fetchall()
        ours = self.query(
            "SELECT m.value || ':' || run_id, status FROM runs, meta AS m"
            " WHERE m.key = 'store_uuid' AND status <> 'skipped' ORDER BY 1"
        )
        mirrored = [row for row in rows if row[0] is not None]
        found = [Violation("the ledger is not the runs", f"{mirrored}\n{ours}")] if mirrored != ours else []
        return found + [Violation("an orphan is left", str(row)) for row in rows if row[1] == "running"]

    def _requests(self, endpoint: Endpoint) -> list[Violation]:
        """What left the machine, against what the database says."""
        found = []
        rows = {row[0]: row[1:] for row in self.query("SELECT run_id, status, claim_no, attempt FROM runs")}
        # Half a request is none to the other side.
        whole = [seen for seen in endpoint.seen if seen.is_whole]
        sent = Counter((seen.json["run_id"], seen.json["claim"]) for seen in whole)
        sent_runs = Counter(seen.json["run_id"] for seen in whole)
        keys = {(seen.json["run_id"], seen.headers["idempotency-key"]) for seen in whole}
        if len(keys) != len(sent_runs):
            found.append(Violation("a run was sent under two keys", str(keys)))
        for (run_id, claim_no), count in sent.items():
            if count > 1:
                found.append(Violation("a claim was sent twice", f"run {run_id} claim {claim_no}"))
            if run_id not in rows or claim_no > rows[run_id][1]:
                found.append(Violation("sent without a claim", f"run {run_id} claim {claim_no}"))
            elif sent_runs[run_id] > rows[run_id][2]:
                found.append(Violation("a run was sent too often", f"run {run_id}: {sent_runs[run_id]}"))
            elif rows[run_id][0] == "skipped":
                found.append(Violation("skipped, but sent", f"run {run_id}"))
        http = self.query(
            "SELECT run_id, claim_no FROM runs JOIN scheduled_jobs USING (job_id)"
            " WHERE action_kind = 'http' AND runs.status = 'completed'"
        )
        found += [
            Violation("completed, but never sent", f"run {r} claim {c}") for r, c in http if not sent[r, c]
        ]
        return found


def hours(count: int) -> list[int]:
    """The first slots of an hourly job of `builders.job`."""
    return [T0 + number * HOUR for number in range(1, count + 1)]
