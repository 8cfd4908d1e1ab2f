"""What every check of the doctor works with: what was asked, what was found out beforehand, and a finding.

The store is looked at once, without a trace (see `store.examine`), and left before anything else is done: a check
works on values and holds no snapshot open.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from carolctl import clock, config, global_pause
from carolctl.errors import CarolError, NotFound
from carolctl.lockguard import require_unlocked
from carolctl.model import OCCUPYING, Job, Millis, Run
from carolctl.store.examine import Anatomy, anatomy, look, migrated_tables, oldest_mark
from carolctl.store.jobs import DamagedJob
from carolctl.store.tx import ReadTx

Status = Literal["ok", "warn", "fail", "skipped"]

_LOCKS_WATCH_SEC = 0.3
_LOCKS_DEADLINE_SEC = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: `hint` says what to do, `figures` are for programs."""

    status: Status
    detail: str
    hint: str = ""
    figures: Mapping[str, object] = field(default_factory=dict)


def ok(detail: str, **figures: object) -> Finding:
    """All is well."""
    return Finding(status="ok", detail=detail, figures=figures)


def warn(detail: str, hint: str, **figures: object) -> Finding:
    """Something that a person should know."""
    return Finding(status="warn", detail=detail, hint=hint, figures=figures)


def fail(detail: str, hint: str, **figures: object) -> Finding:
    """Something is wrong."""
    return Finding(status="fail", detail=detail, hint=hint, figures=figures)


def skipped(detail: str) -> Finding:
    """It could not be looked at, or there is nothing to look at."""
    return Finding(status="skipped", detail=detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is to be examined, and the world as the command line found it."""

    now: Millis
    db: str
    planner_db: str | None
    environ: Mapping[str, str]
    deadline_ms: int
    host: str = field(default_factory=clock.hostname)
    boot_id: str = field(default_factory=clock.boot_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the job store says of itself."""

    store_uuid: str
    paused_until: str | None
    settings: Mapping[str, str]
    jobs: list[Job]
    damaged: list[DamagedJob]
    live: list[Run]
    pending: int
    oldest_pending: Millis | None
    legacy_tables: list[str]

    @property
    def occupying(self) -> list[Run]:
        """The runs that hold a slot."""
        return [run for run in self.live if run.status in OCCUPYING]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found out before the checks."""

    place: Place
    #: Why the store could not be opened.
    problem: CarolError | None = None
    anatomy: Anatomy | None = None
    snapshot: Snapshot | None = None
    #: What ``carolctl locks`` says of the store.
    locks: Mapping[str, Any] | None = None

    @property
    def no_store(self) -> bool:
        """Whether there is no job store at all."""
        return isinstance(self.problem, NotFound) or (self.anatomy is not None and self.anatomy.empty)

    def settings(self) -> config.Settings:
        """The settings in force; bad values are passed over in silence."""
        table = self.snapshot.settings if self.snapshot else {}
        return config.resolve(table, self.place.environ, lambda _: None)

    def paused(self) -> bool:
        """Whether everything is paused."""
        return self.snapshot is not None and global_pause.in_force(self.snapshot.paused_until, self.place.now)


def gather(place: Place, *, current_version: int, application_id: int) -> Evidence:
    """Look at everything once. Never raises because of what is wrong with the store."""
    # The child comes first: while we read, it would find us among the readers.
    locks = _ask_locks(place) if os.path.isfile(place.db) else None
    try:
        body = anatomy(place.db, deadline_ms=place.deadline_ms)
    except CarolError as problem:
        return Evidence(place=place, problem=problem, locks=locks)
    if (body.application_id, body.version) != (application_id, current_version):
        return Evidence(place=place, anatomy=body, locks=locks)
    try:
        snapshot = look(place.db, _snapshot, deadline_ms=place.deadline_ms)
    except CarolError as problem:
        return Evidence(place=place, anatomy=body, problem=problem, locks=locks)
    return Evidence(place=place, anatomy=body, snapshot=snapshot, locks=locks)


def _snapshot(tx: ReadTx) -> Snapshot:
    return Snapshot(
        store_uuid=tx.store_uuid(),
        paused_until=tx.meta(global_pause.KEY),
        settings=tx.settings_table(),
        jobs=tx.jobs(),
        damaged=tx.damaged_jobs(),
        live=tx.live_runs(),
        pending=tx.ledger_pending(),
        oldest_pending=oldest_mark(tx),
        legacy_tables=migrated_tables(tx),
    )


def _ask_locks(place: Place) -> Mapping[str, Any] | None:
    """``carolctl locks``, always as a child: it opens files that this process is about to lock.

    It is told of no data home, so that it writes no notes of its own.
    """
    import subprocess

    require_unlocked("asking who holds a lock")
    words = [sys.executable, "-I", "-m", "carolctl", "locks", "--json"]
    words += ["--watch-sec", str(_LOCKS_WATCH_SEC), "--", place.db]
    nowhere = {"CAROL_DATA_DIR": os.devnull + "/nothing"}
    try:
        done = subprocess.run(
            words,
            env={**place.environ, **nowhere},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOCKS_DEADLINE_SEC,
            check=False,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found if isinstance(found, dict) and "verdict" in found else None


def age_words(milliseconds: int) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    seconds = milliseconds // 1000
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{seconds // size} {unit}"
    return f"{seconds // 86400} d"


def named(things: list[str], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more
