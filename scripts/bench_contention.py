"""How long a one-row write takes when many processes want the same lock: carolctl's wait beside SQLite's own.

64 and 200 writers at once; 22 beside a foreign program that holds the lock nine tenths of the time; and, on a disk
whose every fsync takes 5 ms longer, an outsider's writes while a tick of 27 jobs is dispatched to slow endpoints,
beside the same writes to a database that nobody else uses. Every write is durable (synchronous=FULL). The writers
are processes of their own, forked before they open anything, and begin together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import bench_outsider
import slow_fsync
from bench_outsider import DEADLINE_SEC, Felt
from bench_scale import AGENTS, store_of
from bench_stats import Goal, brief, endpoint, machine_line, percentile, print_table, verdict

from carolctl.errors import StoreBusy
from carolctl.store.db import open_store

THINK_SEC = 0.02
HOG_ON_SEC, HOG_OFF_SEC = 0.09, 0.01
SLOWER_MS = 5
#: How long an outsider writes on the slow disk, and how long the endpoints take that a tick calls meanwhile.
OUTSIDE_SEC, ANSWER_SEC = 12.0, 5.0
OURS, PLAIN = "carolctl", "busy_timeout"

#: Makes one durable one-row write; false if the lock was not to be had.
Write = Callable[[int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Some writers, perhaps a hog, and what is asked of carolctl: milliseconds."""

    key: str
    name: str
    writers: int
    hog: bool = False
    p99_ms: float
    most_ms: float | None = None


CONTESTS = (
    Contest(key="64", name="64 writers", writers=64, p99_ms=50, most_ms=250),
    Contest(key="200", name="200 writers", writers=200, p99_ms=500),
    Contest(key="hog", name="22 writers and a hog", writers=22, hog=True, p99_ms=400),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One round: the milliseconds of all writes, those that failed included, and how many each writer made."""

    milliseconds: list[float]
    failed: int
    by_writer: list[int]


# -- the writers -------------------------------------------------------------------------------------------


def ours(path: str) -> Write:
    store = open_store(path, deadline_ms=DEADLINE_SEC * 1000)

    def write(number: int) -> bool:
        try:
            with store.write() as tx:
                tx.set_meta(f"writer {os.getpid()}", str(number))
        except StoreBusy:
            return False
        return True

    return write


def plain(path: str) -> Write:
    connection = sqlite3.connect(path, isolation_level=None, timeout=DEADLINE_SEC)
    connection.execute("PRAGMA synchronous = FULL")

    def write(number: int) -> bool:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"writer {os.getpid()}", str(number))
            )
            connection.execute("COMMIT")
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return False
        return True

    return write


WAYS: dict[str, Callable[[str], Write]] = {OURS: ours, PLAIN: plain}


def compete(contest: Contest, way: str, seconds: float) -> Taken:
    """One round in a database of its own."""
    with tempfile.TemporaryDirectory(prefix="carolctl-bench-") as folder:
        path = os.path.join(folder, "scheduler.db")
        open_store(path, deadline_ms=1000, create=True).close()
        with hog(path) if contest.hog else nullcontext():
            return race(contest.writers, lambda: WAYS[way](path), seconds)


def race(writers: int, prepare: Callable[[], Write], seconds: float) -> Taken:
    """Fork the writers, let them begin together, and gather what each of them took."""
    ready, gate = os.pipe(), os.pipe()
    pipes: dict[int, int] = {}
    for _ in range(writers):
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate[1])
            _be_a_writer(prepare, seconds, ready[1], gate[0], send)
        os.close(send)
        pipes[receive] = pid
    try:
        for _ in range(writers):
            if not select.select([ready[0]], [], [], 60)[0] or not os.read(ready[0], 1):
                raise RuntimeError("a writer does not come up")
        os.close(gate[1])
        return _gathered(pipes, seconds + 60)
    finally:
        for descriptor in (*ready, gate[0], *pipes):
            os.close(descriptor)
        for pid in pipes.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _be_a_writer(prepare: Callable[[], Write], seconds: float, ready: int, gate: int, send: int) -> None:
    """The life of one forked writer; it never returns."""
    try:
        write = prepare()
        os.write(ready, b".")
        os.read(gate, 1)
        milliseconds, failed = _write_until(write, seconds)
        text = struct.pack(f"=II{len(milliseconds)}d", len(milliseconds), failed, *milliseconds)
        while text:
            text = text[os.write(send, text) :]
    finally:
        os._exit(0)


def _write_until(write: Write, seconds: float) -> tuple[list[float], int]:
    chance = random.Random(os.getpid())
    until = time.perf_counter() + seconds
    milliseconds: list[float] = []
    failed = 0
    while True:
        time.sleep(chance.uniform(0, 2 * THINK_SEC))
        began = time.perf_counter()
        if began >= until:
            return milliseconds, failed
        failed += not write(len(milliseconds))
        milliseconds.append((time.perf_counter() - began) * 1000)


def _gathered(pipes: dict[int, int], within_sec: float) -> Taken:
    texts = dict.fromkeys(pipes, b"")
    waiting, give_up = set(pipes), time.monotonic() + within_sec
    while waiting:
        readable = select.select(list(waiting), [], [], max(0, give_up - time.monotonic()))[0]
        if not readable:
            raise RuntimeError("a writer does not end")
        for receive in readable:
            part = os.read(receive, 1 << 16)
            texts[receive] += part
            if not part:
                waiting.remove(receive)
    return _unpacked(list(texts.values()))


def _unpacked(texts: Sequence[bytes]) -> Taken:
    milliseconds: list[float] = []
    counts, failed = [], 0
    for text in texts:
        if len(text) < 8:
            raise RuntimeError("a writer died")
        count, failures = struct.unpack_from("=II", text)
        milliseconds += struct.unpack_from(f"={count}d", text, 8)
        counts.append(count)
        failed += failures
    return Taken(milliseconds=milliseconds, failed=failed, by_writer=counts)


_HOG = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("PRAGMA synchronous = FULL")
on, off = map(float, sys.argv[2:])
while True:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('hog', '')")
    time.sleep(on)
    connection.execute("COMMIT")
    time.sleep(off)
"""


@contextmanager
def hog(path: str) -> Iterator[None]:
    """A foreign program that holds the lock for 90 ms, lets go for 10, and takes it again."""
    words = [sys.executable, "-I", "-S", "-c", _HOG, path, str(HOG_ON_SEC), str(HOG_OFF_SEC)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


# -- contests ----------------------------------------------------------------------------------------------


def contest_goals(contest: Contest, runs: int, seconds: float, *, markdown: bool) -> list[Goal]:
    """Both ways in turns; the median round counts, but every failure and the longest wait of all rounds."""
    rounds: dict[str, list[Taken]] = {OURS: [], PLAIN: []}
    for turn in range(runs):
        for way in (OURS, PLAIN) if turn % 2 == 0 else (PLAIN, OURS):
            rounds[way].append(compete(contest, way, seconds))
    header = [contest.name, "writes/s", "failed", "ms p50", "p95", "p99", "most", "least/most served"]
    print_table(header, [_row(way, taken, seconds) for way, taken in rounds.items()], markdown=markdown)
    mine = rounds[OURS]
    goals = [
        Goal(name=f"{contest.name}, failed", value=sum(one.failed for one in mine), most=0, unit=""),
        Goal(name=f"{contest.name}, p99", value=_median(mine, 0.99), most=contest.p99_ms, unit="ms"),
    ]
    if contest.most_ms is not None:
        most = max(max(one.milliseconds) for one in mine)
        goals.append(Goal(name=f"{contest.name}, most", value=most, most=contest.most_ms, unit="ms"))
    return goals


def _row(way: str, rounds: Sequence[Taken], seconds: float) -> list[str]:
    rate = statistics.median(len(one.milliseconds) / seconds for one in rounds)
    served = statistics.median(min(one.by_writer) / max(max(one.by_writer), 1) for one in rounds)
    return [
        way,
        f"{rate:,.0f}",
        str(sum(one.failed for one in rounds)),
        *(brief(_median(rounds, share)) for share in (0.5, 0.95, 0.99)),
        brief(max(max(one.milliseconds) for one in rounds)),
        f"{served:.0%}",
    ]


def _median(rounds: Sequence[Taken], share: float) -> float:
    return statistics.median(percentile(one.milliseconds, share) for one in rounds)


# -- a slow disk -------------------------------------------------------------------------------------------


def slow_disk(runs: int, *, markdown: bool) -> list[Goal]:
    """An outsider beside dispatching ticks; nothing, and why, where the disk cannot be made slower."""
    with tempfile.TemporaryDirectory(prefix="carolctl-bench-") as folder, endpoint() as url:
        try:
            shim = slow_fsync.build(Path(folder), SLOWER_MS)
        except slow_fsync.Unbuildable as reason:
            print(f"left out, every fsync {SLOWER_MS} ms slower: {reason}\n")
            return []
        rounds = [_felt_beside_a_tick(url(ANSWER_SEC), shim, OUTSIDE_SEC) for _ in range(runs)]
    beside = [one for felt in rounds for one in felt.beside]
    alone = [one for felt in rounds for one in felt.alone]
    locked = sum(felt.locked for felt in rounds)
    header = [
        f"a one-row write, every fsync {SLOWER_MS} ms slower",
        "writes",
        "locked",
        "ms p50",
        "p95",
        "p99",
        "most",
    ]
    rows = [
        _felt_row(
            f"{OUTSIDE_SEC:g} s beside a tick of {AGENTS} HTTP jobs of {ANSWER_SEC:g} s", beside, locked
        ),
        _felt_row("to a database that nobody else uses", alone, 0),
    ]
    print_table(header, rows, markdown=markdown)
    ratio = percentile(beside, 0.99) / percentile(alone, 0.99)
    return [
        Goal(name="slow disk, outside writes that found it locked", value=locked, most=0, unit=""),
        Goal(name="slow disk, outside write beside a dispatch and alone, p99", value=ratio, most=1.25),
    ]


def _felt_row(name: str, taken: Sequence[float], locked: int) -> list[str]:
    figures = [brief(percentile(taken, share)) for share in (0.5, 0.95, 0.99)]
    return [name, str(len(taken)), str(locked), *figures, brief(max(taken))]


def _felt_beside_a_tick(url: str, shim: Path, seconds: float) -> Felt:
    """An outsider that writes for `seconds`, and half a second into that a tick that fires everything."""
    with store_of(AGENTS, due=AGENTS, action=("--url", url)) as home:
        bench_outsider.prepare(home.database)
        slow = slow_fsync.environment(shim)
        home.env |= {"SCHEDULE_MAX_CONCURRENT": str(AGENTS), **slow}
        words = [sys.executable, bench_outsider.__file__, home.database, str(seconds)]
        with closing_process(
            subprocess.Popen(words, env=os.environ | slow, stdout=subprocess.PIPE)
        ) as outsider:
            time.sleep(0.5)
            fired = home.carolctl("tick")["fired"]
            assert len(fired) == AGENTS, "the tick must dispatch them all"
            text, _ = outsider.communicate(timeout=seconds + 60)
        return Felt(**json.loads(text))


@contextmanager
def closing_process(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End it, whatever happens."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# -- the tables --------------------------------------------------------------------------------------------


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="rounds of each contest (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=6, help="of each round of writers (default: %(default)s)"
    )
    parser.add_argument("--only", choices=[*(c.key for c in CONTESTS), "disk"], help="just this one")
    parser.add_argument("--report", action="store_true", help="exit 0 even if a goal is missed")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser.parse_args()


def main() -> int:
    options = _options()
    print(machine_line(), end="\n\n")
    goals: list[Goal] = []
    for contest in CONTESTS:
        if options.only in (None, contest.key):
            goals += contest_goals(contest, options.runs, options.seconds, markdown=options.markdown)
    if options.only in (None, "disk"):
        goals += slow_disk(options.runs, markdown=options.markdown)
    return verdict(goals, report=options.report)


if __name__ == "__main__":
    sys.exit(main())
