#!/usr/bin/env python3
"""Events of 200 agents: ours, through the spool, beside one insert an event straight into the database.

Both in turns in one run, on this disk and with every fsync made 5 ms slower: how long until an event is
acknowledged, how many are stored a second (until the last one is in the database), how many failed. Then agents are
killed with SIGKILL at random moments, run after run: every event that was acknowledged must be in the database.

The agents are forks that call what ``carolctl emit`` calls; as one command an event, Python's start would be all
that is seen. The direct writers keep one connection each, synchronous=FULL and a busy timeout of 5 s.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_stats import Goal, Home, arguments, brief, machine_line, percentile, print_table, spread, verdict
from slow_fsync import Unbuildable, build, environment

from carolctl.clock import now

AGENTS, EVENTS = 200, 20
KILL_RUNS = 20
_BUSY_TIMEOUT_SEC = 5.0
_LONGEST_SEC = 120.0
_DELAY_MS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run: `ack_p99_ms` over all events that were acknowledged, `stored_per_sec` until the last was stored."""

    ack_p50_ms: float
    ack_p99_ms: float
    ack_max_ms: float
    stored_per_sec: float
    failed: int


Emit = Callable[[str], None]
"""Stores one event by its id, or raises."""


# -- the two ways ----------------------------------------------------------------------------------------------


def spooling(_home: Path) -> Emit:
    """Ours."""
    from carolctl.emit import emit

    return lambda event_id: emit(run="1", kind="progress", event_id=event_id, now=now(), data='{"step": 1}')


def inserting(home: Path) -> Emit:
    """One transaction an event, straight into the database."""
    connection = sqlite3.connect(home / "scheduler.db", isolation_level=None, timeout=_BUSY_TIMEOUT_SEC)
    connection.execute("PRAGMA synchronous = FULL")

    def insert(event_id: str) -> None:
        connection.execute(
            "INSERT INTO events (event_id, run_id, kind, data, emitted_at, received_at) VALUES (?, 1, ?, ?, ?, ?)",
            (event_id, "progress", '{"step":1}', now(), now()),
        )

    return insert


WAYS: dict[str, Callable[[Path], Emit]] = {"spool": spooling, "direct": inserting}


# -- agents ----------------------------------------------------------------------------------------------------


def _agent(way: str, home: Path, number: int, start: int, report: int) -> None:
    """A forked agent: waits for the start, emits, and reports each acknowledged event and its milliseconds."""
    emit = WAYS[way](home)
    os.write(report, b"ready\n")
    os.read(start, 1)
    for event in range(EVENTS):
        event_id = f"agent-{number}-{event}"
        began = time.perf_counter()
        try:
            emit(event_id)
        except Exception:  # noqa: BLE001 - whatever it was, the event is not acknowledged
            os.write(report, b"failed\n")
        else:
            # One write below PIPE_BUF: it is there whole or not at all, whenever the agent is killed.
            os.write(report, f"{event_id} {(time.perf_counter() - began) * 1000:.4f}\n".encode())


class Agents:
    """`AGENTS` forked processes that start together; what they report is read as it comes."""

    def __init__(self, way: str, home: Path) -> None:
        self._start, self._go = os.pipe()
        self._reports, report = os.pipe()
        self.pids = [self._fork(way, home, number, report) for number in range(AGENTS)]
        os.close(report)
        self._text = b""
        while self._text.count(b"ready\n") < AGENTS:
            self._text += os.read(self._reports, 65536)
        self._text = b""

    def _fork(self, way: str, home: Path, number: int, report: int) -> int:
        pid = os.fork()
        if pid == 0:
            os.close(self._go)
            code = 1
            try:
                _agent(way, home, number, self._start, report)
                code = 0
            finally:
                os._exit(code)
        return pid

    def go(self) -> None:
        """Start them."""
        os.close(self._go)

    def listen(self, seconds: float) -> bool:
        """Read what they report for at most so long; whether any of them lives."""
        readable, _, _ = select.select([self._reports], [], [], seconds)
        if not readable:
            return True
        text = os.read(self._reports, 1 << 20)
        self._text += text
        return bool(text)

    def end(self) -> None:
        """Reap them all."""
        for pid in self.pids:
            os.waitpid(pid, 0)
        os.close(self._start)
        os.close(self._reports)

    @property
    def acknowledged(self) -> dict[str, float]:
        """Milliseconds until each acknowledged event was."""
        words = [line.split() for line in self._text.decode().splitlines() if " " in line]
        return {event_id: float(ms) for event_id, ms in words}

    @property
    def failed(self) -> int:
        return self._text.count(b"failed\n")


# -- one run ---------------------------------------------------------------------------------------------------


def one_run(way: str, home: Home) -> Figures:
    """All agents at once, until the last event is stored."""
    agents = Agents(way, home.folder)
    began = time.perf_counter()
    agents.go()
    drains = _Drains(home) if way == "spool" else None
    while agents.listen(0.01):
        if drains:
            drains.keep_going()
    if drains:
        drains.finish(len(agents.acknowledged))
    took = time.perf_counter() - began
    agents.end()
    latencies = list(agents.acknowledged.values())
    stored = _stored(home)
    if len(stored) != len(latencies):
        raise RuntimeError(f"{way}: {len(latencies)} events acknowledged, {len(stored)} stored")
    return Figures(
        ack_p50_ms=statistics.median(latencies),
        ack_p99_ms=percentile(latencies, 0.99),
        ack_max_ms=max(latencies),
        stored_per_sec=len(stored) / took,
        failed=agents.failed,
    )


class _Drains:
    """``carolctl drain``, as a process of its own, again and again, as a path unit would start it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._running: subprocess.Popen[bytes] | None = None

    def keep_going(self) -> None:
        """Start the next one when the last has ended."""
        if self._running is None or self._running.poll() is not None:
            self._running = subprocess.Popen(
                [sys.executable, "-I", "-m", "carolctl", "drain"],
                env=self._home.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def finish(self, count: int) -> None:
        """Go on until so many events are stored."""
        give_up = time.monotonic() + _LONGEST_SEC
        while time.monotonic() < give_up:
            if self._running is not None:
                self._running.wait()
            if len(_stored(self._home)) >= count:
                return
            self.keep_going()


def _stored(home: Home) -> set[str]:
    with closing(sqlite3.connect(home.database)) as connection:
        return {event_id for (event_id,) in connection.execute("SELECT event_id FROM events")}


def killed_run(home: Home, chance: random.Random) -> tuple[int, int]:
    """A run in which a random half of the agents is killed: events acknowledged, and how many of them are lost."""
    agents = Agents("spool", home.folder)
    agents.go()
    drains = _Drains(home)
    for pid in chance.sample(agents.pids, AGENTS // 2):
        time.sleep(chance.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        agents.listen(0)
        drains.keep_going()
    while agents.listen(0.01):
        drains.keep_going()
    agents.end()
    acknowledged = agents.acknowledged
    drains.finish(len(acknowledged))
    return len(acknowledged), len(acknowledged.keys() - _stored(home))


# -- a process for each run ------------------------------------------------------------------------------------


@contextmanager
def _temporary_home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="carolctl-ingest-"))
    try:
        home = Home(folder)
        home.carolctl("add-job", "agent", "--manual", "--", "true")
        yield home
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _child(way: str, folder: str) -> None:
    """One run in a process that was started with the delay or without it; its figures on standard output."""
    os.environ["CAROL_DATA_DIR"] = folder
    home = Home(Path(folder))
    home.env["LD_PRELOAD"] = os.environ.get("LD_PRELOAD", "")
    print(json.dumps(asdict(one_run(way, home))))


def _measured(way: str, felt: dict[str, str]) -> Figures:
    with _temporary_home() as home:
        done = subprocess.run(
            [sys.executable, __file__, "--child", way, str(home.folder)],
            env=home.env | felt,
            stdout=subprocess.PIPE,
            check=True,
        )
    return Figures(**json.loads(done.stdout))


def side_by_side(title: str, felt: dict[str, str], runs: int, *, markdown: bool) -> dict[str, list[Figures]]:
    """Both ways in turns; a table, and the figures by way."""
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way, figures in found.items():
            figures.append(_measured(way, felt))
    header = [title, "ack ms p50", "p99 (least-most)", "most", "stored/s (least-most)", "failed"]
    rows = [
        [
            way,
            brief(statistics.median(f.ack_p50_ms for f in figures)),
            spread([f.ack_p99_ms for f in figures]),
            brief(max(f.ack_max_ms for f in figures)),
            spread([f.stored_per_sec for f in figures]),
            f"{sum(f.failed for f in figures)} of {len(figures) * AGENTS * EVENTS}",
        ]
        for way, figures in found.items()
    ]
    print_table(header, rows, markdown=markdown)
    return found


def _ratio(found: dict[str, list[Figures]], name: str) -> float:
    """The median over the rounds of ours / direct."""
    pairs = zip(found["spool"], found["direct"], strict=True)
    return statistics.median(getattr(ours, name) / getattr(direct, name) for ours, direct in pairs)


def _slow_goals(runs: int, *, markdown: bool) -> list[Goal]:
    """The same on a disk that takes its time."""
    with tempfile.TemporaryDirectory(prefix="carolctl-slow-") as folder:
        try:
            felt = environment(build(Path(folder), _DELAY_MS))
        except Unbuildable as reason:
            print(f"left out, no slower disk: {reason}")
            return []
        slow = side_by_side(f"every fsync {_DELAY_MS} ms slower", felt, runs, markdown=markdown)
    return [
        Goal(name="failed, slow fsync", value=sum(f.failed for f in slow["spool"]), most=0, unit=""),
        Goal(name="ack p99 beside direct, slow fsync", value=_ratio(slow, "ack_p99_ms"), most=0.25),
        Goal(
            name="direct stored/s beside ours, slow fsync", value=1 / _ratio(slow, "stored_per_sec"), most=0.2
        ),
    ]


def _kill_goals(runs: int) -> list[Goal]:
    chance = random.Random(time.time_ns())
    acknowledged = lost = 0
    for _ in range(runs):
        with _temporary_home() as home:
            os.environ["CAROL_DATA_DIR"] = str(home.folder)
            told, gone = killed_run(home, chance)
            acknowledged, lost = acknowledged + told, lost + gone
    print(
        f"{runs} runs, {AGENTS // 2} agents killed in each: {acknowledged} events acknowledged, {lost} lost\n"
    )
    return [Goal(name=f"acknowledged events lost in {runs} runs with kills", value=lost, most=0, unit="")]


def main(words: Sequence[str]) -> int:
    """Measure, print, judge."""
    if words[:1] == ["--child"]:
        _child(*words[1:])
        return 0
    options = arguments(__doc__, runs=5)
    print(machine_line())
    here = side_by_side(f"{AGENTS} agents x {EVENTS} events", {}, options.runs, markdown=options.markdown)
    goals = [
        Goal(name="failed, through the spool", value=sum(f.failed for f in here["spool"]), most=0, unit=""),
        Goal(name="ack p99 beside direct", value=_ratio(here, "ack_p99_ms"), most=0.25),
        Goal(name="direct stored/s beside ours", value=1 / _ratio(here, "stored_per_sec"), most=1),
    ]
    goals += _slow_goals(options.runs, markdown=options.markdown)
    goals += _kill_goals(KILL_RUNS)
    return verdict(goals, report=options.report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
