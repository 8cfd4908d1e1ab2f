"""install-timers and uninstall-timers: the unit files put in place, checked, switched on; and taken away again.

Nothing is written unless everything can be: files of somebody else's under our names, and units that
``systemd-analyze verify`` complains about, stop it before. To repeat it changes nothing; an older version is replaced.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from carolctl import installed_units, service_calls, unit_files
from carolctl.errors import BadConfig, BadData, Refused, Unavailable
from carolctl.launch import service_manager
from carolctl.lockguard import require_unlocked
from carolctl.store.side_files import is_foreign
from carolctl.unit_files import ENABLED, Layout, Scope

SYSTEM_HOME = "/var/lib/carolctl"
"""The data home of the system's units, unless another one is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What was done, or with `dry_run` would be: names of unit files."""

    scope: Scope
    folder: str
    data_home: str
    planner_db: str | None
    written: list[str]
    unchanged: list[str]
    #: Of an older version, and shipped no more.
    removed: list[str]
    enabled: list[str]
    #: Whether a user's timers run while they are not logged in; None for the system's.
    linger: bool | None
    dry_run: bool = False
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What was taken away; the data home, and files under our names that are somebody else's, stay."""

    scope: Scope
    folder: str
    #: The one that the units named; None where there were none.
    data_home: str | None
    removed: list[str]
    left_alone: list[str]


def planned(
    scope: Scope, *, data_home: str | None = None, planner_db: str | None = None, fallback: str | None = None
) -> Layout:
    """The layout that is asked for; what is not said stays as it is installed, then `fallback`, then the default.

    An empty `planner_db` means none. Raises `BadConfig` for what units could not use, or not safely.
    """
    home = data_home or installed_units.setting(scope, "CAROL_DATA_DIR") or fallback or SYSTEM_HOME
    if planner_db is None:
        planner_db = installed_units.setting(scope, "CAROL_PLANNER_DB")
    planner = os.path.abspath(planner_db) if planner_db else None
    if planner is not None:
        _refuse_other_file(planner)
    layout = Layout(
        scope=scope,
        data_home=os.path.abspath(home),
        planner_db=planner,
        planner_is_foreign=scope == "system" and planner is not None and _is_foreign(planner),
        kernel_log_is_file=os.path.isfile("/proc/kmsg"),
    )
    unit_files.check(layout)
    refuse_unsafe(scope, layout.data_home)
    return layout


def _refuse_other_file(planner: str) -> None:
    """Raise `BadData` for what is there and is no SQLite database."""
    if not os.path.isfile(planner):
        return
    try:
        with open(planner, "rb") as file:
            head = file.read(16)
    except OSError:
        # Not ours to read: the units' user may.
        return
    if head and head != b"SQLite format 3\0":
        raise BadData(f"{planner} is not a SQLite database", hint="give the path of the planner database")


def refuse_unsafe(scope: Scope, home: str) -> None:
    """Raise `BadConfig` for a data home that is, or could be made, somebody else's: a tick runs what is in it."""
    if os.path.isdir(home):
        facts = os.stat(home)
        if facts.st_uid != os.geteuid():
            hint = "install the timers as that user, with --user, or chown it"
            raise BadConfig(f"{home} belongs to user {facts.st_uid}", hint=hint)
        if facts.st_mode & 0o022:
            raise BadConfig(f"{home} may be written by other users", hint=f"chmod 700 {home}")
    if scope == "system":
        for folder in _above(home):
            if not _is_roots_alone(folder):
                hint = "choose a data home below folders of root's: --data-dir /var/lib/carolctl"
                raise BadConfig(f"{home} could be replaced by whoever may write {folder}", hint=hint)


def replaceable(layout: Layout) -> str | None:
    """A folder by way of which another user could replace what root's units run; None if there is none."""
    if layout.scope == "user":
        return None
    programs = (layout.python, os.path.realpath(layout.python), layout.package)
    folders = (folder for path in programs for folder in _above(path))
    return next((folder for folder in folders if not _is_roots_alone(folder)), None)


def _above(path: str) -> Iterator[str]:
    """Every folder above, by the path as it is given and by the one that it leads to."""
    for below in {path, os.path.realpath(path)}:
        while below != "/":
            below = os.path.dirname(below)
            yield below


def _is_roots_alone(folder: str) -> bool:
    try:
        facts = os.stat(folder)
    except FileNotFoundError:
        # Made along with the data home.
        return True
    # In a sticky folder nobody takes away what is another's.
    is_open = facts.st_mode & (0o022 if facts.st_gid else 0o002) and not facts.st_mode & stat.S_ISVTX
    return facts.st_uid == 0 and not is_open


def rehearse(layout: Layout) -> Installation:
    """What `install` would do; nothing is touched, and no service manager is needed."""
    files = unit_files.render(layout)
    _refuse_foreign(layout.scope)
    return _report(layout, files, dry_run=True)


def install(layout: Layout, make_home: Callable[[], object]) -> Installation:
    """Put the units in place, switch them on and start them; `make_home` makes the data home that they need.

    Raises `Unavailable` without a service manager, `Refused` when files of somebody else's are in the way or the
    units are not accepted: then nothing was made.
    """
    require_unlocked("installing units")
    scope = layout.scope
    if not service_calls.answers(scope):
        raise Unavailable(f"no {scope} service manager answers", hint=service_calls.hint(scope))
    files = unit_files.render(layout)
    _refuse_foreign(scope)
    _verify(scope, files)
    make_home()
    report = _report(layout, files, dry_run=False)
    folder = installed_units.folder(scope)
    os.makedirs(folder, exist_ok=True)
    for name in report.written:
        _write(os.path.join(folder, name), files[name])
    _switch_off(scope, report.removed)
    _delete(folder, report.removed)
    service_calls.demand(scope, "daemon-reload")
    service_calls.demand(scope, "enable", *ENABLED)
    # A timer that was armed from its old file would go on by it.
    service_calls.demand(scope, "restart" if report.written else "start", *ENABLED)
    return report


def uninstall(scope: Scope) -> Removal:
    """Switch off and delete what is ours. Runs under way, the data home and drop-ins stay."""
    require_unlocked("removing units")
    ours, folder = sorted(unit_files.installed(scope)), installed_units.folder(scope)
    left, home = unit_files.foreign(scope), installed_units.setting(scope, "CAROL_DATA_DIR")
    if ours:
        if not service_calls.answers(scope):
            raise Unavailable(f"no {scope} service manager answers", hint=service_calls.hint(scope))
        _switch_off(scope, ours)
        _delete(folder, ours)
        service_calls.demand(scope, "daemon-reload")
        # Not the slice, in which jobs may be running; of the rest no failure is to be remembered.
        service_calls.systemctl(scope, "reset-failed", *(name for name in ours if "@" not in name))
    return Removal(scope=scope, folder=folder, data_home=home, removed=ours, left_alone=left)


def _report(layout: Layout, files: Mapping[str, str], *, dry_run: bool) -> Installation:
    scope, there = layout.scope, unit_files.installed(layout.scope)
    written = [name for name in files if there.get(name) != files[name]]
    return Installation(
        scope=scope,
        folder=installed_units.folder(scope),
        data_home=layout.data_home,
        planner_db=layout.planner_db,
        written=written,
        unchanged=[name for name in files if name not in written],
        removed=[name for name in there if name not in files],
        enabled=list(ENABLED),
        linger=service_calls.lingers(os.geteuid()) if scope == "user" else None,
        dry_run=dry_run,
        files=dict(files) if dry_run else {},
    )


def _refuse_foreign(scope: Scope) -> None:
    foreign = unit_files.foreign(scope)
    if foreign:
        raise Refused(
            f"not made by carolctl, and left alone: {', '.join(foreign)}",
            hint="move them away, then install again; nothing was changed",
        )


def _verify(scope: Scope, files: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="carolctl-units-") as folder:
        for name, text in files.items():
            _write(os.path.join(folder, name), text)
        done = service_calls.call(*verification(scope, [os.path.join(folder, name) for name in files]))
    if done.returncode == 127:
        return
    if done.returncode:
        raise Refused(
            f"systemd does not accept the units: {service_calls.said(done)}", hint="nothing was changed"
        )


def verification(scope: Scope, paths: list[str]) -> list[str]:
    """The call that looks for mistakes in unit files."""
    option = service_manager.option(scope)
    return ["systemd-analyze", *option, "verify", "--man=no", "--recursive-errors=no", "--", *paths]


def _switch_off(scope: Scope, names: list[str]) -> None:
    active = [name for name in names if name.endswith((".timer", ".path"))]
    if active:
        service_calls.demand(scope, "disable", "--now", *active)


def _delete(folder: str, names: list[str]) -> None:
    for name in names:
        os.unlink(os.path.join(folder, name))


def _write(path: str, text: str) -> None:
    """Whole or not at all."""
    part = f"{path}.{os.getpid()}.part"
    with open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _is_foreign(planner: str) -> bool:
    """Whether root would need a capability to write it, or to leave its owner the files beside it."""
    for path in (planner, os.path.dirname(planner)):
        try:
            if is_foreign(os.stat(path)):
                return True
        except OSError:
            continue
    return False
