"""The doctor's checks of the work: does the timer fire, does anything hang, does anything wait for nobody."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial, wraps

from carolctl import clock, global_pause, launch, places
from carolctl.doctor_checks import Evidence, Finding, Snapshot, age_words, fail, named, ok, skipped, warn
from carolctl.store.examine import look, tables_of
from carolctl.store.side_files import owned_by_others

_LATE_MS = 90_000
_DEAD_MS = 600_000
_LEFTOVER_MS = 3_600_000
_PLANNER_DEADLINE_MS = 1500
_TIMER = "is the timer on? carolctl tick does one by hand"

_WithSnapshot = Callable[[Evidence, Snapshot], Finding]


def _of_the_store(check: _WithSnapshot) -> Callable[[Evidence], Finding]:
    """A check of rows: skipped where they could not be read."""

    @wraps(check)
    def checked(evidence: Evidence) -> Finding:
        if evidence.snapshot is None:
            return skipped("no job store to look at" if evidence.no_store else "the store cannot be read")
        return check(evidence, evidence.snapshot)

    return checked


def _by_age(age: int, detail: str, hint: str, **figures: object) -> Finding:
    """Late after 90 s, wrong after ten minutes."""
    if age > _DEAD_MS:
        return fail(detail, hint, **figures)
    return warn(detail, hint, **figures) if age > _LATE_MS else ok(detail, **figures)


def tick(evidence: Evidence) -> Finding:
    """How long ago the last tick was."""
    try:
        stamped = round(os.stat(places.tick_stamp()).st_mtime * 1000)
    except OSError:
        return warn("there was none yet", _TIMER)
    age = evidence.place.now - stamped
    figures = {"age_sec": age // 1000, "at": clock.iso(stamped)}
    if age < -_LATE_MS:
        return warn(f"the last one lies {age_words(-age)} ahead", "was the clock set back?", **figures)
    return _by_age(age, f"the last one {age_words(max(age, 0))} ago", _TIMER, **figures)


@_of_the_store
def pause(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Whether the fleet stands still on purpose."""
    if not evidence.paused():
        return ok("nothing is paused as a whole")
    end = global_pause.ends_at(snapshot.paused_until or "")
    until = clock.iso(end) or "somebody resumes it"
    return warn(f"everything is paused until {until}", "carolctl resume", until=clock.iso(end))


@_of_the_store
def jobs(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Jobs that stepped aside: rows that cannot be read, and streaks of failures."""
    damaged = [one.job_id for one in snapshot.damaged]
    settings = evidence.settings()
    stopped = [
        job.job_id
        for job in snapshot.jobs
        if job.status == "paused"
        and (
            job.failure_streak >= settings.failure_pause
            or job.turn_budget_breach_streak >= settings.breach_pause
        )
    ]
    figures = {"jobs": len(snapshot.jobs), "damaged": damaged, "paused_by_streak": stopped}
    if damaged:
        hint = "carolctl remove-job, then add it again; or restore a backup"
        return fail(f"cannot be read: {named(damaged)}", hint, **figures)
    if stopped:
        hint = "carolctl show-job tells why; carolctl resume JOB"
        return warn(f"paused after failures in a row: {named(stopped)}", hint, **figures)
    return ok(f"{len(snapshot.jobs)} jobs, none set aside", **figures)


@_of_the_store
def owners(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Live runs whose process is gone."""
    place = evidence.place
    liveness = launch.probe(snapshot.occupying, host=place.host, boot_id=place.boot_id)
    dead = [
        run for run in snapshot.occupying if liveness.get(run.run_id) == "dead" and run.status == "running"
    ]
    figures = {"live": len(snapshot.live), "dead": [run.run_id for run in dead]}
    if dead:
        words = named([f"{run.run_id} ({run.job_id})" for run in dead])
        hint = "the next tick records it; carolctl reap does so now"
        return fail(f"the process is gone of run {words}", hint, **figures)
    return ok(f"{len(snapshot.live)} live runs, none of a dead process", **figures)


@_of_the_store
def leases(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Live runs past the end of their lease."""
    past = [
        (evidence.place.now - run.lease_expires_at, run)
        for run in snapshot.occupying
        if run.lease_expires_at is not None and run.lease_expires_at < evidence.place.now
    ]
    if not past:
        return ok("none past its end")
    age = max(one for one, _ in past)
    words = named([f"{run.run_id} ({run.job_id})" for _, run in past])
    detail = f"past its end for {age_words(age)}: run {words}"
    hint = "the next tick stops it; carolctl reap does so now"
    figures = {"runs": [run.run_id for _, run in past], "oldest_sec": age // 1000}
    return (fail if age > _LATE_MS else warn)(detail, hint, **figures)


# -- the spool ----


def spool(evidence: Evidence) -> Finding:
    """Outcomes and events that wait to be taken in."""
    ages = _ages("new", evidence)
    left = [age for age in _ages("tmp", evidence) if age > _LEFTOVER_MS]
    figures = {"waiting": len(ages), "oldest_sec": max(ages, default=0) // 1000, "left_in_tmp": len(left)}
    if ages and max(ages) > _LATE_MS:
        detail = f"{len(ages)} wait, the oldest for {age_words(max(ages))}"
        return _by_age(max(ages), detail, "carolctl drain brings them in", **figures)
    if left:
        return warn(f"{len(left)} left half-written in tmp", "carolctl prune removes them", **figures)
    return ok(f"{len(ages)} wait" if ages else "empty", **figures)


def spool_bad(evidence: Evidence) -> Finding:
    """What lay in the spool and could not be used."""
    names = sorted(name for name, _ in _entries("bad") if not name.endswith(".reason"))
    if names:
        folder = os.path.join(places.spool(), "bad")
        hint = f"look at them in {folder}; remove what is of no use"
        return fail(f"{len(names)} could not be used: {named(names, 3)}", hint, count=len(names), names=names)
    return ok("nothing was turned away", count=0)


def _ages(folder: str, evidence: Evidence) -> list[int]:
    return [evidence.place.now - modified for _, modified in _entries(folder)]


def _entries(folder: str) -> list[tuple[str, int]]:
    """Names and modification times, one level of folders deep."""
    found: list[tuple[str, int]] = []
    pending = [os.path.join(places.spool(), folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode) and folder != "bad":
                pending.append(entry.path)
            else:
                found.append((entry.name, round(facts.st_mtime * 1000)))
    return found


# -- the planner database ----


def planner(evidence: Evidence) -> Finding:
    """Whether the legacy planner database can be read."""
    path = evidence.place.planner_db
    if path is None:
        return skipped("none is set (CAROL_PLANNER_DB)")
    # Before it is opened: root's SQLite gives them back by that.
    stuck = owned_by_others(path)
    tables = tables_of(path, deadline_ms=_PLANNER_DEADLINE_MS)
    if "droid_runs" not in tables:
        return fail("it has no table droid_runs", "is it the right database?", tables=len(tables))
    if stuck:
        detail = f"its owner may be unable to write: not theirs are {named(stuck)}"
        return fail(detail, f"chown --reference={path} {' '.join(stuck)}", tables=len(tables), stuck=stuck)
    return ok("it can be read", tables=len(tables), stuck=[])


@_of_the_store
def ledger(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Runs whose present state has not reached the legacy ledger."""
    if evidence.place.planner_db is None and not snapshot.pending:
        return skipped("runs are not mirrored: no planner database is set")
    if evidence.place.planner_db is None:
        detail = f"{snapshot.pending} runs are marked for a planner database, and none is set"
        return warn(
            detail, "carolctl install-timers --planner-db PATH, or CAROL_PLANNER_DB", pending=snapshot.pending
        )
    since = snapshot.oldest_pending
    age = 0 if since is None else evidence.place.now - since
    figures = {"pending": snapshot.pending, "oldest_sec": age // 1000}
    if not snapshot.pending:
        return ok("nothing waits to be mirrored", **figures)
    detail = f"{snapshot.pending} runs wait to be mirrored, the oldest for {age_words(age)}"
    return _by_age(
        age, detail, "carolctl tick publishes; carolctl locks PLANNER-DB shows who is in the way", **figures
    )


@_of_the_store
def orphans(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Rows of the ledger that say ``running`` with nobody behind them."""
    path = evidence.place.planner_db
    if path is None:
        return skipped("no planner database is set")
    from carolctl import orphans as mirror

    threshold = evidence.settings().orphan_threshold_min
    found = mirror.find_orphans(
        path,
        now=evidence.place.now,
        threshold_min=threshold,
        store_uuid=snapshot.store_uuid,
        busy=look(evidence.place.db, mirror.busy_droids, deadline_ms=evidence.place.deadline_ms),
    )
    figures = {"orphans": len(found.orphans), "young": len(found.young), "undated": len(found.undated)}
    if found.orphans:
        detail = f"{len(found.orphans)} rows run for more than {threshold} min with no process"
        return fail(detail, "the next tick ends them; carolctl reap does so now", **figures)
    if found.undated:
        detail = f"{len(found.undated)} rows say running since nobody knows when"
        return warn(detail, "mend their started_at, or end them by hand", **figures)
    return ok(f"none; {len(found.young)} foreign rows run", **figures)


@_of_the_store
def legacy(evidence: Evidence, snapshot: Snapshot) -> Finding:
    """Jobs in the legacy table that were left behind, or changed since they were brought over."""
    path = evidence.place.planner_db
    if not snapshot.legacy_tables:
        return skipped("no job was migrated from a legacy table")
    if path is None:
        return skipped("no planner database is set")
    left, changed = _differences(evidence, path, snapshot.legacy_tables)
    figures = {"left_behind": left, "changed": changed}
    hint = "carolctl migrate-jobs --dry-run shows more"
    if left:
        return fail(f"in the legacy table and not here: {named(left)}", hint, **figures)
    if changed:
        return fail(f"changed in the legacy table since: {named(changed)}", hint, **figures)
    return ok("as it was when the jobs were brought over", **figures)


def _differences(evidence: Evidence, path: str, tables: list[str]) -> tuple[list[str], list[str]]:
    from carolctl.migrate_jobs import differences
    from carolctl.store.legacy import read_table

    place = evidence.place
    left: list[str] = []
    changed: list[str] = []
    for table in tables:
        shape, rows = read_table(path, table, deadline_ms=_PLANNER_DEADLINE_MS)
        compare = partial(differences, shape=shape, rows=rows, now=place.now)
        found = look(place.db, compare, deadline_ms=place.deadline_ms)
        left += found.left_behind
        changed += [one.job_id for one in found.conflicts if one.why == "changed_there"]
    return left, changed
