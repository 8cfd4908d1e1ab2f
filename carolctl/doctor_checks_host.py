"""The doctor's checks of the host: modes, room, clock, zones, launcher, settings, the program itself."""

from __future__ import annotations

import os
import platform
import stat
import sys
from collections.abc import Iterator
from importlib import import_module

from carolctl import __version__, config, launch, places
from carolctl.doctor_checks import Evidence, Finding, fail, named, ok, skipped, warn

_MIB = 1024 * 1024
_LITTLE_ROOM, _NO_ROOM = 64 * _MIB, 8 * _MIB
_FEW_INODES, _NO_INODES = 1000, 100


def modes(evidence: Evidence) -> Finding:
    """Whether anybody else may read or change what is ours."""
    there = list(_private_paths(evidence.place.db))
    if not there:
        return skipped("nothing is there yet")
    owner = there[0][1].st_uid
    loose = [f"{_short(path)} {facts.st_mode & 0o7777:04o}" for path, facts in there if facts.st_mode & 0o077]
    strange = [_short(path) for path, facts in there if facts.st_uid != owner]
    me = os.geteuid()
    figures = {"checked": len(there), "loose": loose, "owner": owner, "other_owners": strange}
    if loose:
        return fail(f"open to others: {named(loose)}", "chmod go= them, recursively", **figures)
    if strange:
        return fail(f"of another owner: {named(strange)}", "chown them to the owner of the rest", **figures)
    if not os.access(places.data_home(), os.W_OK):
        return fail(
            "the data home cannot be written", "every tick fails: is its file system read-only?", **figures
        )
    if me not in (0, owner):
        return warn(f"all belong to user {owner}, and you are {me}", "run carolctl as that user", **figures)
    return ok(f"{len(there)} files and folders, closed to others", **figures)


def _private_paths(db: str) -> Iterator[tuple[str, os.stat_result]]:
    """What carolctl makes, as far as it is there; 0700 for folders, 0600 for files, links not followed."""
    spool = places.spool()
    paths = [
        db,
        db + "-wal",
        db + "-shm",
        places.data_home(),
        spool,
        *(os.path.join(spool, name) for name in ("tmp", "new", "bad")),
        places.logs(),
        places.results(),
        os.path.join(places.data_home(), "backups"),
        places.tick_stamp(),
    ]
    for path in paths:
        try:
            facts = os.lstat(path)
        except OSError:
            continue
        if not stat.S_ISLNK(facts.st_mode):
            yield path, facts


def _short(path: str) -> str:
    inside = os.path.relpath(path, places.data_home())
    return path if inside.startswith("..") else places.data_home() if inside == "." else inside


def space(evidence: Evidence) -> Finding:
    """Whether the disk has room, in bytes and in files."""
    folder = os.path.dirname(evidence.place.db)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    facts = os.statvfs(folder)
    free, inodes = facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else None
    figures = {"free_bytes": free, "free_inodes": inodes}
    detail = f"{free / _MIB:,.0f} MiB free"
    if inodes is not None and inodes < _FEW_INODES:
        detail = f"{inodes} more files may be made"
    full = free < _NO_ROOM or (inodes is not None and inodes < _NO_INODES)
    scarce = free < _LITTLE_ROOM or (inodes is not None and inodes < _FEW_INODES)
    hint = "free some space: what cannot be written down cannot be fired"
    if full:
        return fail(detail, hint, **figures)
    return warn(detail, hint, **figures) if scarce else ok(detail, **figures)


def clock(evidence: Evidence) -> Finding:
    """Whether time passes."""
    pinned = evidence.place.environ.get("CAROL_NOW")
    if pinned:
        return warn(f"it stands at {pinned}", "unset CAROL_NOW: it is for rehearsals", pinned=pinned)
    known = evidence.place.boot_id != "unknown"
    if not known:
        return warn("the boot has no identity: /proc hides it", "a sandbox? see ProcSubset=", boot_id=None)
    return ok("it runs")


def zones(evidence: Evidence) -> Finding:
    """Where the rules of the time zones come from, and whether the zones of all jobs are known."""
    import zoneinfo

    source, version = _zone_source(zoneinfo.TZPATH)
    if source is None:
        return fail("there is no zone data", "install tzdata", source=None)
    unknown = set()
    for name in {job.timezone for job in evidence.snapshot.jobs} if evidence.snapshot else ():
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            unknown.add(name)
    figures = {"source": source, "version": version, "unknown": sorted(unknown)}
    if unknown:
        return fail(f"unknown: {named(sorted(unknown))}", "install tzdata, or edit the jobs", **figures)
    return ok(f"{source}, version {version or 'unknown'}", **figures)


def _zone_source(path: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The system's data where Python finds it, else the tzdata package's; and its version."""
    for folder in path:
        if os.path.exists(os.path.join(folder, "UTC")):
            return folder, _zone_version(folder)
    try:
        return "tzdata (Python package)", str(import_module("tzdata").IANA_VERSION)
    except ImportError:
        return None, None


def _zone_version(folder: str) -> str | None:
    for name, prefix in (("+VERSION", ""), ("tzdata.zi", "# version ")):
        try:
            with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
                line = file.readline(200).strip()
        except OSError:
            continue
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    return None


def launcher(evidence: Evidence) -> Finding:
    """Whether what is claimed could be started."""
    said: list[str] = []
    name = config.launcher(evidence.place.environ, said.append)
    chosen = type(launch.choose(name, db=evidence.place.db)).__name__
    if said:
        return warn(said[0], "unset CAROL_LAUNCHER, or mend it", asked=name, chosen=chosen)
    return ok(f"{name}: {chosen}", asked=name, chosen=chosen)


def settings(evidence: Evidence) -> Finding:
    """Values that are passed over because they cannot be used."""
    said: list[str] = []
    table = evidence.snapshot.settings if evidence.snapshot else {}
    config.resolve(table, evidence.place.environ, said.append)
    config.busy_timeout_ms(evidence.place.environ, said.append)
    if said:
        return warn("; ".join(said), "mend or unset them; the next source is in force", ignored=said)
    return ok("every value can be used", ignored=[])


def program(_: Evidence) -> Finding:
    """What is asking."""
    python = platform.python_version()
    return ok(
        f"carolctl {__version__}, {platform.python_implementation()} {python}",
        carolctl=__version__,
        python=python,
        interpreter=sys.executable,
    )
