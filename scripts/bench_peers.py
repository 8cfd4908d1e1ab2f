"""The same work by carolctl, huey and APScheduler, side by side; and what an outsider feels meanwhile.

First, 1,000 due jobs, from the start of a process until the last is recorded. Every dispatch is one POST to an
endpoint that answers at once, at most 32 at a time. Rows without HTTP show what each does at its own cheapest: the
peers call an empty function in their own process, carolctl starts a supervised process for every job (100 of them,
since that takes longest). Ticks come when nothing has moved for two seconds, as the timer's would.

Second, a one-row write to the scheduler's own database, 50 times a second for eight seconds, by a program that is
not the scheduler, while 27 dispatches wait for endpoints that take five seconds; in turns with the same write to
a database of its own.

What is kept durably: carolctl commits the firing, the claim, the start and the outcome of every run, with
synchronous=FULL. huey (its SQLite storage with ``fsync=True``, which its documentation gives for durability, and
results on) stores the task, its way through schedule and queue, and its result. APScheduler (its SQLAlchemy job
store on SQLite's defaults, which flush) stores the next time of each job, and no outcome.
Every time includes the start of the processes that do the work; preparing the due jobs is not counted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

JOBS = 1_000
COMMANDS = 100
AT_ONCE = 32
POSTS = "one POST a job"
AGENTS = 27
ANSWER_SEC = 5.0
WINDOW_SEC = 8.0
DEADLINE_SEC = 5.0

# -- the peers: each prepares its due jobs in one process, and works through them in another ------------------


def dispatch(url: str) -> int:
    """One job of a peer: a POST, or nothing."""
    if url:
        import requests

        requests.post(url, json={"payload": None}, timeout=60)
    return 1


def huey_prepare(database: str, url: str, count: int) -> None:
    """`count` tasks in the schedule, due now."""
    from datetime import datetime

    huey, task = _huey(database)
    due = datetime.now()  # noqa: DTZ005 - what huey compares with
    for _ in range(count):
        huey.add_schedule(task.s(url, eta=due))


def huey_work(database: str, _url: str, count: int) -> None:
    """Its consumer, until every result is stored."""
    huey, _ = _huey(database)
    consumer = huey.create_consumer(workers=AT_ONCE, worker_type="thread")
    consumer.start()
    while huey.result_count() < count:
        time.sleep(0.01)
    os._exit(0)


def _huey(database: str):
    from huey import SqliteHuey

    huey = SqliteHuey("bench", filename=database, fsync=True)
    return huey, huey.task(name="dispatch")(dispatch)


def apscheduler_prepare(database: str, url: str, count: int) -> None:
    """`count` hourly jobs, due now."""
    from datetime import UTC, datetime

    scheduler = _apscheduler(database)
    scheduler.start(paused=True)
    for number in range(count):
        scheduler.add_job(
            dispatch,
            "interval",
            hours=1,
            args=[url],
            id=f"job-{number:04}",
            next_run_time=datetime.now(UTC),
            misfire_grace_time=None,
        )
    # Not by its shutdown(), which would process what is due on the way out.
    os._exit(0)


def apscheduler_work(database: str, _url: str, count: int) -> None:
    """Its scheduler, until every job has run and has its next time."""
    from datetime import UTC, datetime

    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED

    ended: list[str] = []
    scheduler = _apscheduler(database)
    scheduler.add_listener(lambda event: ended.append(event.job_id), EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.start()
    while len(ended) < count:
        time.sleep(0.01)
    while any(job.next_run_time <= datetime.now(UTC) for job in scheduler.get_jobs()):
        time.sleep(0.01)
    os._exit(0)


def _apscheduler(database: str):
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.background import BackgroundScheduler

    return BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=f"sqlite:///{database}")},
        executors={"default": ThreadPoolExecutor(AT_ONCE)},
        timezone="UTC",
    )


def incident_prepare(database: str, _url: str, count: int) -> None:
    """Jobs in a table, as the planner had them."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE jobs (job_id INTEGER PRIMARY KEY, last_run_at REAL)")
        connection.executemany("INSERT INTO jobs (job_id) VALUES (?)", [(number,) for number in range(count)])


def incident_work(database: str, url: str, count: int) -> None:
    """The way that made this program: one transaction round every dispatch."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(count):
            connection.execute("UPDATE jobs SET last_run_at = ? WHERE job_id = ?", (time.time(), number))
            dispatch(url)
        connection.execute("COMMIT")


PEERS: dict[str, Callable[[str, str, int], None]] = {
    name: action
    for name, action in globals().items()
    if name.endswith(("_prepare", "_work")) and not name.startswith("_")
}


def as_peer(name: str, *arguments: str) -> list[str]:
    """The argument list that runs one of `PEERS` in a process of its own."""
    return [sys.executable, __file__, "--peer", name, *arguments]


if len(sys.argv) == 6 and sys.argv[1] == "--peer":
    # Before anything of the benchmark itself is imported: only the peer's own start counts.
    PEERS[sys.argv[2]](sys.argv[3], sys.argv[4], int(sys.argv[5]))
    sys.exit()

import bench_outsider  # noqa: E402
from bench_outsider import Felt  # noqa: E402
from bench_scale import store_of  # noqa: E402
from bench_stats import (  # noqa: E402
    Goal,
    Home,
    arguments,
    brief,
    endpoint,
    machine_line,
    percentile,
    print_table,
    spread,
    temporary_home,
    verdict,
)

# -- 1,000 due jobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A row of the first table: what was done with how many jobs, and the seconds until all was recorded."""

    name: str
    jobs: int = JOBS
    work: Callable[[], float]


def contests(url: str, http: Home, command: Home) -> list[Contest]:
    """Everybody."""
    return [
        Contest(name="carolctl, the tick alone: fired, queued, committed", work=lambda: tick_only(http)),
        Contest(name=f"carolctl, {POSTS}", work=lambda: until_recorded(http, JOBS)),
        *(
            Contest(name=f"{peer}, {work}", work=lambda peer=peer, to=to: peer_whole(peer, to))  # type: ignore[misc]
            for peer in ("huey", "APScheduler")
            for work, to in ((POSTS, url), ("an empty function in its process", ""))
        ),
        Contest(
            name="carolctl, a supervised process `true` a job",
            jobs=COMMANDS,
            work=lambda: until_recorded(command, COMMANDS),
        ),
    ]


def hold(url: str, runs: int) -> dict[str, list[float]]:
    """Milliseconds a job of every contest, in turns; what takes longest only once."""
    taken: dict[str, list[float]] = {}
    with (
        store_of(JOBS, due=JOBS, action=("--url", url)) as http,
        store_of(COMMANDS, due=COMMANDS, action=("--", "true")) as command,
    ):
        for turn in range(runs):
            for contest in contests(url, http, command):
                if turn == 0 or contest.jobs == JOBS:
                    taken.setdefault(contest.name, []).append(contest.work() * 1000 / contest.jobs)
    return taken


def tick_only(pattern: Home) -> float:
    """Seconds of the process of one tick that fires everything and launches one run, whose end is not waited for."""
    with temporary_home(SCHEDULE_MAX_CONCURRENT="1") as home:
        shutil.copy(pattern.database, home.database)
        began = time.perf_counter()
        report = home.carolctl("tick")
        seconds = time.perf_counter() - began
        assert len(report["fired"]) == JOBS
        return seconds


def until_recorded(pattern: Home, count: int) -> float:
    """Seconds from the start of the first tick until the last run is recorded as completed."""
    with temporary_home(SCHEDULE_MAX_CONCURRENT=str(AT_ONCE)) as home:
        shutil.copy(pattern.database, home.database)
        began = time.perf_counter()
        home.carolctl("tick")
        completed, moved = 0, time.perf_counter()
        with closing(
            sqlite3.connect(f"file:{home.database}?mode=ro", uri=True, isolation_level=None)
        ) as watcher:
            while completed < count:
                time.sleep(0.02)
                now = watcher.execute("SELECT count(*) FROM runs WHERE status = 'completed'").fetchone()[0]
                if now > completed:
                    completed, moved = now, time.perf_counter()
                elif time.perf_counter() - moved > 2:
                    home.carolctl("tick")
                    moved = time.perf_counter()
                if time.perf_counter() - began > 120:
                    raise RuntimeError(f"carolctl recorded {completed} of {count} runs in two minutes")
        return time.perf_counter() - began


def peer_whole(peer: str, url: str) -> float:
    """Seconds from the start of the peer's process until it has recorded everything."""
    with tempfile.TemporaryDirectory(prefix="carolctl-bench-") as folder:
        database = str(Path(folder) / "peer.db")
        run_peer(f"{peer.lower()}_prepare", database, url, JOBS)
        began = time.perf_counter()
        run_peer(f"{peer.lower()}_work", database, url, JOBS)
        return time.perf_counter() - began


def run_peer(name: str, database: str, url: str, count: int) -> None:
    """One of `PEERS` in a process of its own, to its end. RuntimeError if it fails or takes over a minute."""
    argv = as_peer(name, database, url, str(count))
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: exit {done.returncode}: {done.stderr[-400:]}")


# -- outside writes ----------------------------------------------------------------------------------------


def outsiders(url: str) -> dict[str, Felt]:
    """What the outside writer feels beside each scheduler."""
    with store_of(AGENTS, due=AGENTS, action=("--url", url)) as home:
        home.env["SCHEDULE_MAX_CONCURRENT"] = str(AGENTS)
        bench_outsider.prepare(home.database)
        home.carolctl("tick")
        ours = bench_outsider.feel(home.database, WINDOW_SEC)
    peers = {"huey": "huey", "APScheduler": "APScheduler", "incident": "a lock held across the dispatch"}
    return {"carolctl": ours} | {name: _felt_beside(peer, url) for peer, name in peers.items()}


def _felt_beside(peer: str, url: str) -> Felt:
    with tempfile.TemporaryDirectory(prefix="carolctl-bench-") as folder:
        database = str(Path(folder) / "peer.db")
        run_peer(f"{peer.lower()}_prepare", database, url, AGENTS)
        bench_outsider.prepare(database)
        worker = subprocess.Popen(
            as_peer(f"{peer.lower()}_work", database, url, str(AGENTS)), stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(0.3)
            return bench_outsider.feel(database, WINDOW_SEC)
        finally:
            worker.kill()
            worker.wait()


# -- the tables --------------------------------------------------------------------------------------------


def main() -> int:
    options = arguments(__doc__, runs=2)
    print(machine_line())
    print(f"{_version('huey')}, {_version('APScheduler')}, {_version('SQLAlchemy')}\n")
    with endpoint() as url:
        held = hold(url(0), options.runs)
        felt = outsiders(url(ANSWER_SEC))
    ours = statistics.median(held[f"carolctl, {POSTS}"])
    print_table(
        [
            f"due jobs, at most {AT_ONCE} at once",
            "ms a job (least-most)",
            f"s per {JOBS:,}",
            "x carolctl's POSTs",
        ],
        [
            [name, spread(taken), brief(statistics.median(taken)), brief(statistics.median(taken) / ours)]
            for name, taken in held.items()
        ],
        markdown=options.markdown,
    )
    header = ["writes", "failed", "ms p50", "p95", "p99", "most", "idle p50", "x idle"]
    print_table(
        [f"a one-row write beside {AGENTS} dispatches of {ANSWER_SEC:g} s", *header],
        [
            [
                name,
                str(len(one.beside)),
                str(one.locked),
                *(brief(percentile(one.beside, share)) for share in (0.5, 0.95, 0.99)),
                brief(max(one.beside)),
                brief(percentile(one.alone, 0.5)),
                brief(_factor(one)),
            ]
            for name, one in felt.items()
        ],
        markdown=options.markdown,
    )
    return verdict(_goals(felt["carolctl"]), report=options.report)


def _factor(felt: Felt) -> float:
    """The median write as a multiple of the median write beside nobody."""
    return percentile(felt.beside, 0.5) / percentile(felt.alone, 0.5)


def _goals(ours: Felt) -> list[Goal]:
    """The first table is a report: three programs that keep different promises have no common goal."""
    return [
        Goal(name="outside writes that failed beside carolctl", value=ours.locked, most=0, unit=""),
        Goal(name="outside write beside carolctl and beside nobody, p50", value=_factor(ours), most=2),
    ]


def _version(package: str) -> str:
    from importlib.metadata import version

    with contextlib.suppress(Exception):
        return f"{package} {version(package)}"
    raise SystemExit(
        f"{package} is missing: pip install APScheduler huey sqlalchemy, for this benchmark only"
    )


if __name__ == "__main__":
    sys.exit(main())
