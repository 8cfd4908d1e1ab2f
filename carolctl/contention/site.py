"""Where the contention test works: a folder of its own on the file system of the live files, and programs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from carolctl import launch
from carolctl.errors import NotFound, NotPermitted
from carolctl.launch.owner import start_time
from carolctl.lockguard import require_unlocked
from carolctl.model import Job
from carolctl.store.db import Store, open_store
from carolctl.store.runs import RunFilter
from carolctl.store.scratch import make_planner, prepare_outside_table

PREFIX = "carolctl-contention-"
_OWNER = "owner"
_PROGRAM_SEC = 60.0
_LOOKS = 10
#: What would let the caller's world into the programs that are tried here.
_FOREIGN = ("CAROL_", "SCHEDULE_", "PYTHON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One scenario's data home with a job store, a planner database and an untouched twin of it."""

    folder: str
    deadline_ms: int
    environment: Mapping[str, str]

    @property
    def scheduler_db(self) -> str:
        """The scratch job store."""
        return os.path.join(self.folder, "scheduler.db")

    @property
    def planner_db(self) -> str:
        """The scratch planner database."""
        return os.path.join(self.folder, "planner.db")

    @property
    def idle_db(self) -> str:
        """A database that nobody but the outsider writes: what a write costs on this machine just now."""
        return os.path.join(self.folder, "idle.db")

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The scratch job store, opened."""
        with closing(open_store(self.scheduler_db, deadline_ms=self.deadline_ms)) as store:
            yield store

    def carolctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program itself, to its end."""
        require_unlocked("running a program")
        return subprocess.run(
            program(*arguments),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_SEC,
            check=False,
        )

    def wait_for_runs(self, *, timeout_sec: float) -> int:
        """Wait until no run is live; how many have completed."""
        give_up = time.monotonic() + timeout_sec
        with self.store() as store:
            while True:
                with store.read() as snapshot:
                    live = snapshot.live_runs()
                    completed = len(snapshot.runs(RunFilter(statuses=("completed",), limit=None)))
                if not live or time.monotonic() > give_up:
                    return completed
                time.sleep(0.05)

    def end_runs(self) -> None:
        """Kill what a tick launched here and is still at work, with the sessions that it leads."""
        with self.store() as store:
            for _ in range(_LOOKS):
                with store.read() as snapshot:
                    live = snapshot.live_runs()
                launch.kill(live)
                # One that has been launched and has not begun yet is not known by its process id.
                if not any(run.status == "claimed" for run in live):
                    return
                time.sleep(0.1)


def program(*arguments: str) -> list[str]:
    """The argument list of one call of this program."""
    return [os.path.abspath(sys.executable), "-I", "-m", "carolctl", *arguments]


def make_site(folder: str, *, deadline_ms: int, jobs: Sequence[Job] = (), cap: int = 2) -> Site:
    """Make `folder` with its databases; `jobs` are in the job store, of which `cap` may run at once."""
    os.mkdir(folder, 0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    site = Site(
        folder=folder,
        deadline_ms=deadline_ms,
        environment=kept
        | {
            "CAROL_DATA_DIR": folder,
            "CAROL_PLANNER_DB": os.path.join(folder, "planner.db"),
            "CAROL_LAUNCHER": "process",
            "CAROL_BUSY_TIMEOUT_MS": str(deadline_ms),
            "SCHEDULE_MAX_CONCURRENT": str(cap),
        },
    )
    with (
        closing(open_store(site.scheduler_db, deadline_ms=deadline_ms, create=True)) as store,
        store.write() as tx,
    ):
        tx.insert_jobs(jobs)
    for path in (site.scheduler_db, site.idle_db):
        prepare_outside_table(path)
    make_planner(site.planner_db)
    return site


@contextmanager
def scratch_folder(data_home: str, chosen: str | None) -> Iterator[str]:
    """A new folder in `chosen`, else beside the data home; removed at the end.

    Raises `NotFound` when `chosen` does not exist, `NotPermitted` when nothing can be made there.
    """
    parent = os.path.abspath(chosen) if chosen else _nearest(os.path.dirname(data_home))
    if not os.path.isdir(parent):
        raise NotFound(f"no such folder: {parent}", hint="--scratch takes a folder that exists")
    _clear_up_after_the_dead(parent)
    try:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    except OSError as problem:
        raise NotPermitted(
            f"no scratch folder can be made in {parent}: {problem.strerror}",
            hint="--scratch DIR takes another one; it should lie on the file system of the job store",
        ) from problem
    try:
        with open(os.path.join(folder, _OWNER), "w", encoding="ascii") as file:
            file.write(f"{os.getpid()} {start_time(os.getpid())}")
        yield folder
    finally:
        _remove(folder)


def _clear_up_after_the_dead(parent: str) -> None:
    """Remove what tests left here that were killed; never what names no owner or a living one."""
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not name.startswith(PREFIX) or os.path.islink(folder):
            continue
        with suppress(OSError, ValueError):
            with open(os.path.join(folder, _OWNER), encoding="ascii") as file:
                pid, started = file.read(64).split()
            if os.stat(folder).st_uid == os.geteuid() and f"{start_time(int(pid))}" != started:
                _remove(folder)


def _nearest(folder: str) -> str:
    """`folder`, or the closest one above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _remove(folder: str) -> None:
    # A run that was killed a moment ago may still have left a file behind the first pass.
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
