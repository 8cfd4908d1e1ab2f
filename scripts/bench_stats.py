"""What the benchmarks share: runs in turn with their reference, percentiles, tables, and the verdict on each goal.

Wall clock is `time.perf_counter` round a spawn and its `wait4`; CPU time and peak memory are what `wait4` says of
the process that ended. Everything is compared within one run of a script: a ratio between two programs that took
turns on one machine means something tomorrow and elsewhere, a millisecond does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
            [sys.executable, "-I", "-S", "-c", _METER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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

        The samples of one round stand at the same place of every list.
        """
        samples: dict[str, list[Sample]] = {command.name: [] for command in commands}
        for command in commands:
            for _ in range(warm_up):
                self.run(command)
        for turn in range(runs):
            shift = turn % len(commands)
            for command in (*commands[shift:], *commands[:shift]):
                samples[command.name].append(self.run(command))
        return samples


def _complaint(command: Command) -> str:
    done = subprocess.run(
        command.argv, env=dict(command.env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return f"a second time exit {done.returncode}, {(done.stderr or done.stdout).strip()[-400:]}"


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
    import time

    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)
