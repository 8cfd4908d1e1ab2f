"""What the benchmarks share: runs in turn with their reference, percentiles, tables, and the verdict on each goal.

Wall clock is `time.perf_counter` round a spawn and its `wait4`; CPU time and peak memory are what `wait4` says of
the process that ended. Everything is compared within one run of a script: a ratio between two programs that took
turns on one machine means something tomorrow and elsewhere, a millisecond does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Runs one command a line and answers with its exit status and figures. A process of its own, and a bare one: a
#: child counts the memory of the process it was spawned from as its own peak, so the meter must be the smallest.
_METER = r"""
import os, sys, time
null = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
for line in sys.stdin:
    count, *words = line.rstrip("\n").split("\x1f")
    argv, pairs = words[: int(count)], words[int(count) :]
    env = dict(pair.split("=", 1) for pair in pairs)
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    print(code, wall * 1e3, (used.ru_utime + used.ru_stime) * 1e3, used.ru_maxrss / 1024, flush=True)
"""

#: Variables of the caller that would change what is measured.
_FOREIGN = ("CAROL_", "SCHEDULE_", "ORPHAN_", "PYTHON", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one command: milliseconds and MiB."""

    wall_ms: float
    cpu_ms: float
    rss_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command to be measured; `accepted` are the exit codes that count as success."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    accepted: tuple[int, ...] = (0,)


class Meter:
    """Runs commands one at a time and measures them: ``with Meter() as meter: meter.run(command)``."""

    def __enter__(self) -> Meter:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _METER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, command: Command) -> Sample:
        """One run. Raises RuntimeError for an exit code that is not accepted: a failure has no speed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [*command.argv, *(f"{name}={value}" for name, value in command.env.items())]
        self._process.stdin.write("\x1f".join([str(len(command.argv)), *words]) + "\n")
        self._process.stdin.flush()
        code, *figures = self._process.stdout.readline().split()
        if int(code) not in command.accepted:
            raise RuntimeError(f"{command.name}: exit {code}: {_complaint(command)}")
        return Sample(*map(float, figures))

    def in_turns(self, commands: Sequence[Command], runs: int, warm_up: int = 3) -> dict[str, list[Sample]]:
        """Run each command `runs` times, A B C A B C ..., each round from another start; the samples by name.

        The samples of one round stand at the same place of every list. A command that fails while it warms up
        is left out, and said so.
        """
        working = [command for command in commands if self._warms_up(command, warm_up)]
        samples: dict[str, list[Sample]] = {command.name: [] for command in working}
        for turn in range(runs):
            shift = turn % len(working)
            for command in (*working[shift:], *working[:shift]):
                samples[command.name].append(self.run(command))
        return samples

    def _warms_up(self, command: Command, times: int) -> bool:
        try:
            for _ in range(times):
                self.run(command)
        except RuntimeError as failure:
            print(f"left out: {failure}")
            return False
        return True


def _complaint(command: Command) -> str:
    done = subprocess.run(
        command.argv,
        env=dict(command.env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"a second time exit {done.returncode}, {(done.stderr or done.stdout).strip()[-400:]}"


# -- a place to measure in ---------------------------------------------------------------------------------


class Home:
    """A data home of one benchmark, with the environment and the ways to call the program in it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self.env = {
            **kept,
            "CAROL_DATA_DIR": str(folder),
            "CAROL_LAUNCHER": "process",
            **settings,
        }

    @property
    def database(self) -> str:
        return str(self.folder / "scheduler.db")

    def command(self, name: str, *arguments: str) -> Command:
        """A call through the console script, to be measured."""
        return Command(name=name, argv=[script(), *arguments], env=self.env)

    def carolctl(self, command: str, *arguments: str) -> Any:
        """Run a command with ``--json`` and return its document; RuntimeError if it fails."""
        done = subprocess.run(
            [script(), command, "--json", *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"carolctl {command}: exit {done.returncode}: {done.stderr.decode()}")
        return json.loads(done.stdout)

    def end_runners(self) -> None:
        """Kill every process that has this data home in its environment: its runners, and their jobs."""
        mark = f"CAROL_DATA_DIR={self.folder}".encode()
        while found := [pid for pid in map(int, _processes()) if _has(pid, mark)]:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def _processes() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdecimal())


def _has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def script() -> str:
    """The console script beside this interpreter."""
    path = Path(sys.executable).with_name("carolctl")
    if not path.exists():
        raise SystemExit(f"{path} is missing: install carolctl with the interpreter that runs this benchmark")
    return str(path)


@contextmanager
def temporary_home(**settings: str) -> Iterator[Home]:
    """A data home that goes when the block ends, with everything that still runs in it."""
    home = Home(Path(tempfile.mkdtemp(prefix="carolctl-bench-")), **settings)
    try:
        yield home
    finally:
        home.end_runners()
        shutil.rmtree(home.folder, ignore_errors=True)


#: Answers every request with an empty document after as many seconds as its path says. One thread, any number of
#: connections, a process of its own: it must not take its time from the measuring process.
_ENDPOINT = r"""
import asyncio

async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.decode("latin-1").split("\r\n")
            sizes = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
            await reader.readexactly(int(sizes[0]) if sizes else 0)
            await asyncio.sleep(float(lines[0].split(" ")[1].strip("/") or 0))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def endpoint() -> Iterator[Callable[[float], str]]:
    """An HTTP endpoint on the loopback; yields a function from seconds of delay to the URL that has it."""
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ENDPOINT], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        yield lambda seconds: f"http://127.0.0.1:{port}/{seconds:g}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def memory_mib(pid: int, figure: str = "VmHWM") -> float:
    """The peak (``VmHWM``) or present (``VmRSS``) memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(figure + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no {figure}")


# -- figures -----------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, by linear interpolation."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of value / reference: noise that lasts longer than a round cancels out."""
    return statistics.median(value / other for value, other in zip(values, reference, strict=True))


def spread(values: Sequence[float]) -> str:
    """``median (least-most)``."""
    return f"{brief(statistics.median(values))} ({brief(min(values))}-{brief(max(values))})"


def brief(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# -- tables and goals --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure and the most it may be."""

    name: str
    value: float
    most: float
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.value <= self.most

    def line(self) -> str:
        """``PASS  name  value (at most ...)``."""
        verdict = "PASS" if self.met else "FAIL"
        return f"{verdict}  {self.name}: {self.value:.3g} {self.unit} (at most {self.most:g})"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, markdown: bool = False) -> None:
    """Columns aligned, the first to the left; as a Markdown table on request."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    if markdown:
        marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, marks)
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
    print()


def verdict(goals: Sequence[Goal], *, report: bool) -> int:
    """Print every goal; the exit code: 1 when one is missed, unless only a `report` is wanted."""
    for goal in goals:
        print(goal.line())
    missed = sum(not goal.met for goal in goals)
    print(f"{len(goals) - missed} of {len(goals)} goals met")
    return 1 if missed and not report else 0


def machine_line() -> str:
    """What these figures were measured on."""
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} processors, load"
        f" {load:.1f}; {platform.python_implementation()} {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}; {_fsync_ms():.2f} ms for a 4 KiB write and fsync"
    )


def _fsync_ms(times: int = 20) -> float:
    """The median time of a small durable write, since every commit waits for at least one."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def arguments(text: str | None, *, runs: int) -> argparse.Namespace:
    """The options that every benchmark has; `runs` is the default of ``--runs``."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n\n")[0])
    parser.add_argument(
        "--runs", type=int, default=runs, help="how often each thing is measured (default: %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="exit 0 even if a goal is missed")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser.parse_args()
