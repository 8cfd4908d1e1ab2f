"""How long a command takes that does next to nothing: what every tick, every day, costs.

Each command takes turns with ``python -I -c 'import sqlite3'`` of the same interpreter, the least that a Python
program with a database can be; a ratio is the median over the rounds. The memory of runners is read while they
run a job.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench_stats import (
    Command,
    Goal,
    Home,
    Meter,
    Sample,
    arguments,
    endpoint,
    machine_line,
    memory_mib,
    paired_ratio,
    print_table,
    spread,
    temporary_home,
    verdict,
)

import carolctl

JOBS = 27
REFERENCE = "python -I -c 'import sqlite3'"
SCRIPT = "idle tick, console script"
UNIT = "idle tick, python -I -S .../carolctl/__main__.py"
DUE = "tick, one cron job due"

#: The most that each kind of command may be, as a multiple of the reference.
JSON_MOST, HELP_MOST, TABLE_MOST = 5.5, 5.0, 9.0
_FAILED = float("inf")


def idle_ticks(home: Home) -> list[Command]:
    """The same idle tick, by every line that a unit file might have."""
    main = str(Path(carolctl.__file__).with_name("__main__.py"))
    call = "from carolctl.__main__ import main; raise SystemExit(main())"
    lines = {
        UNIT: ["-I", "-S", main],
        "idle tick, python -I .../carolctl/__main__.py": ["-I", main],
        "idle tick, python -I -c '...main()'": ["-I", "-c", call],
        "idle tick, python -I -m carolctl": ["-I", "-m", "carolctl"],
    }
    return [
        home.command(SCRIPT, "tick"),
        home.command("idle tick, console script, --json", "tick", "--json"),
        *(
            Command(name=name, argv=[sys.executable, *line, "tick"], env=home.env)
            for name, line in lines.items()
        ),
    ]


def people() -> dict[str, float]:
    """The commands of people, and the most that each may take."""
    json = ["list-jobs", "show-job job-03", "list-runs", "monitor", "reap", "config list", "next @hourly"]
    helps = ["--help", "list-jobs --help", "add-job --help", "tick --help"]
    tables = ["list-jobs", "show-job job-03", "list-runs", "config list"]
    return {
        **{f"{line} --json": JSON_MOST for line in json},
        **dict.fromkeys(helps, HELP_MOST),
        **dict.fromkeys(tables, TABLE_MOST),
    }


def fill(home: Home) -> None:
    """As many jobs as the first fleet had, none of them due today or tomorrow's first hours, and a few runs."""
    far = (datetime.now(UTC) + timedelta(hours=12)).strftime("%H:%M")
    for number in range(JOBS):
        home.carolctl("add-job", f"job-{number:02}", "--daily-at", far, "--", "true")
    for number in range(3):
        home.carolctl("run-job", f"job-{number:02}", "--wait")
    home.carolctl("tick")


def measure(runs: int) -> dict[str, list[Sample]]:
    """Every command in turns with the reference."""
    with temporary_home() as home, temporary_home() as due_home, Meter() as meter:
        fill(home)
        make_due(due_home)
        reference = Command(name=REFERENCE, argv=[sys.executable, "-I", "-c", "import sqlite3"], env=home.env)
        bare = Command(name="python -I -c pass", argv=[sys.executable, "-I", "-c", "pass"], env=home.env)
        due = due_home.command(DUE, "tick", "--dry-run")
        samples = meter.in_turns([reference, bare, *idle_ticks(home)], runs)
        commands = [home.command(line, *line.split()) for line in people()]
        slower = meter.in_turns([reference, due, *commands], max(5, runs // 4), warm_up=1)
    # Two groups, each with a reference of its own rounds: the idle ticks need many more runs than the rest.
    again = slower.pop(REFERENCE)
    return samples | slower | {f"{REFERENCE}, again": again}


def make_due(home: Home) -> None:
    """One job whose slot of this minute waits; a dry run leaves it as it is."""
    home.carolctl("add-job", "due", "--cron", "* * * * *", "--", "true")
    _set_back(home, 60_000)


def _set_back(home: Home, by_ms: int) -> None:
    """Make every job of the home due, as if `by_ms` had passed."""
    with closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute(
            "UPDATE scheduled_jobs SET anchor_at = anchor_at - ?1, last_scheduled_for = last_scheduled_for - ?1,"
            " next_fire_at = next_fire_at - ?1",
            (by_ms,),
        )


def ratios(samples: dict[str, list[Sample]], name: str) -> tuple[float, float, float]:
    """Wall, CPU and memory of `name` as multiples of the reference of its own rounds."""
    if name not in samples:
        return _FAILED, _FAILED, _FAILED
    mine = samples[name]
    reference = samples[REFERENCE]
    if len(reference) != len(mine):
        reference = samples[f"{REFERENCE}, again"]
    figures: list[Callable[[Sample], float]] = [
        lambda sample: sample.wall_ms,
        lambda sample: sample.cpu_ms,
        lambda sample: sample.rss_mib,
    ]
    wall, cpu, rss = (paired_ratio([f(one) for one in mine], [f(one) for one in reference]) for f in figures)
    return wall, cpu, rss


def print_samples(samples: dict[str, list[Sample]], *, markdown: bool) -> None:
    """One row a command."""
    rows = []
    for name, taken in samples.items():
        wall, cpu, rss = ratios(samples, name)
        rows.append(
            [
                name,
                spread([one.wall_ms for one in taken]),
                spread([one.cpu_ms for one in taken]),
                f"{statistics.median(one.rss_mib for one in taken):.1f}",
                f"{wall:.2f}",
                f"{cpu:.2f}",
                f"{rss:.2f}",
            ]
        )
    header = [
        "command",
        "wall ms (least-most)",
        "CPU ms (least-most)",
        "peak MiB",
        "x wall",
        "x CPU",
        "x MiB",
    ]
    print_table(header, rows, markdown=markdown)


def goals(samples: dict[str, list[Sample]]) -> list[Goal]:
    """What a tick and a command may cost."""
    script, unit = ratios(samples, SCRIPT), ratios(samples, UNIT)
    found = [
        Goal(name="idle tick by the console script, wall", value=script[0], most=1.25),
        Goal(name="idle tick by the console script, CPU", value=script[1], most=1.25),
        Goal(name="idle tick by the unit's line, wall", value=unit[0], most=1.0),
        Goal(name="idle tick by the unit's line, CPU", value=unit[1], most=1.0),
        Goal(name="idle tick by the unit's line, memory", value=unit[2], most=1.1),
    ]
    return found + [
        Goal(name=name, value=ratios(samples, name)[0], most=most) for name, most in people().items()
    ]


def runner_memory(markdown: bool) -> None:
    """What a run costs while its job works: the supervisor of a command, and the process of HTTP runs."""
    rows = []
    with temporary_home(SCHEDULE_MAX_CONCURRENT="40") as home, endpoint() as url:
        home.carolctl("add-job", "command", "--manual", "--", "sleep", "1.5")
        for number in range(32):
            home.carolctl("add-job", f"http-{number:02}", "--every", "1h", "--url", url(1.5))
        home.carolctl("run-job", "command")
        rows.append(["supervisor of a running command", *_memory_of(home, "command")])
        home.carolctl("run-job", "http-00")
        rows.append(["runner of one HTTP run", *_memory_of(home, "http-00")])
        _wait_until_idle(home)
        _set_back(home, 3_600_000)
        home.carolctl("tick")
        rows.append(["runner of 32 HTTP runs, all waiting", *_memory_of(home, "http-31")])
        _wait_until_idle(home)
    print_table(["process", "MiB", "peak MiB"], rows, markdown=markdown)


def _memory_of(home: Home, job: str) -> list[str]:
    """The memory of the process that runs `job`, once it has settled down to waiting."""
    for _ in range(100):
        live = [run for run in home.carolctl("monitor") if run["job_id"] == job and run.get("pid")]
        if live:
            time.sleep(0.3)
            return [f"{memory_mib(live[0]['pid'], figure):.1f}" for figure in ("VmRSS", "VmHWM")]
        time.sleep(0.02)
    raise RuntimeError(f"{job} did not start")


def _wait_until_idle(home: Home) -> None:
    for _ in range(200):
        if not home.carolctl("monitor"):
            return
        time.sleep(0.05)
    raise RuntimeError("a run did not end")


def main() -> int:
    options = arguments(__doc__, runs=40)
    print(machine_line())
    print(f"carolctl {carolctl.__version__}; an installed copy starts faster than an editable one\n")
    samples = measure(options.runs)
    print_samples(samples, markdown=options.markdown)
    runner_memory(options.markdown)
    return verdict(goals(samples), report=options.report)


if __name__ == "__main__":
    sys.exit(main())
