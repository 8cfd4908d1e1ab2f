"""install-timers and uninstall-timers: their options, help and exit codes, and what people are shown."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import config, places
from carolctl.cli.app import application
from carolctl.cli.options import Json, PlannerDb, help_epilog
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import BadConfig, CarolError, NotPermitted, Refused, StoreBusy, UsageError
from carolctl.notices import warn

if TYPE_CHECKING:
    from carolctl.timers_install import Installation, Removal
    from carolctl.unit_files import Layout, Scope

ForUser = Annotated[bool, typer.Option("--user", help="Your own service manager [default unless root]")]
ForSystem = Annotated[bool, typer.Option("--system", help="The system's [default for root]")]
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="PATH", help="Data home [CAROL_DATA_DIR; as installed; /var/lib/carolctl]"),
]  # fmt: skip
Rehearsal = Annotated[bool, typer.Option("--dry-run", help="Print the files and change nothing")]


@application.command(
    "install-timers",
    epilog=help_epilog(
        "carolctl install-timers --system --planner-db /var/lib/planner/plangenerator.db",
        x1="files that are not ours are in the way, systemd does not accept the units, or jobs would be left behind",
        x69="no service manager answers",
        x77="--system needs root",
        x78="paths that a unit cannot use, or not safely",
    ),
)
def install_timers(
    *,
    user: ForUser = False,
    system: ForSystem = False,
    data_dir: DataDir = None,
    planner_db: PlannerDb = None,
    dry_run: Rehearsal = False,
    as_json: Json = False,
) -> None:
    """Let systemd fire the tick every 30 seconds, and do the upkeep once a night.

    May be repeated, and is to be after an upgrade: it replaces what it made, and touches nothing else. What is not
    given stays as it was installed; --planner-db '' takes the planner database back. From then on every command uses
    the data home of the units.
    """
    from carolctl import timers_install as verb

    scope = _scope(user=user, system=system)
    if not dry_run:
        _require_root(scope)
    layout = _layout(scope, data_dir, planner_db)
    _warn_of_old_home(scope, layout)
    if dry_run:
        report = verb.rehearse(layout)
    else:
        _refuse_to_leave_jobs(layout, data_dir)
        report = verb.install(layout, lambda: _make_store(layout))
    _warn_of_planner(layout)
    if folder := verb.replaceable(layout):
        warn(f"whoever may write {folder} decides what root runs: install carolctl below /opt instead")
    print_json(asdict(report)) if as_json else print_lines(_told(report))


@application.command(
    "uninstall-timers",
    epilog=help_epilog(
        "carolctl uninstall-timers --user", x69="no service manager answers", x77="--system needs root"
    ),
)
def uninstall_timers(*, user: ForUser = False, system: ForSystem = False, as_json: Json = False) -> None:
    """Switch the timers off and remove their unit files.

    Runs under way go on to their end; jobs, data home and files that carolctl did not make stay.
    """
    from carolctl import timers_install as verb

    scope = _scope(user=user, system=system)
    _require_root(scope)
    removal = verb.uninstall(scope)
    print_json(asdict(removal)) if as_json else print_lines(_told_removal(removal))


def _scope(*, user: bool, system: bool) -> Scope:
    if user and system:
        raise UsageError("--user and --system exclude each other")
    return "system" if system or (not user and os.geteuid() == 0) else "user"


def _require_root(scope: Scope) -> None:
    if scope == "system" and os.geteuid() != 0:
        raise NotPermitted("--system needs root", hint="sudo carolctl ..., or --user")


def _layout(scope: Scope, data_dir: str | None, planner_db: str | None) -> Layout:
    from carolctl.timers_install import planned

    home = data_dir or os.environ.get("CAROL_DATA_DIR") or None
    named = os.environ.get("CAROL_SCHEDULER_DB")
    layout = planned(
        scope,
        data_home=home,
        planner_db=planner_db if planner_db is not None else os.environ.get("CAROL_PLANNER_DB") or None,
        fallback=None if scope == "system" else places.default_data_home(),
    )
    if named and os.path.abspath(named) != os.path.join(layout.data_home, "scheduler.db"):
        raise BadConfig(
            f"CAROL_SCHEDULER_DB is {named}, and units work with scheduler.db of a data home",
            hint="unset it, and give --data-dir",
        )
    return layout


def _refuse_to_leave_jobs(layout: Layout, data_dir: str | None) -> None:
    """Jobs that were added before the units say where: they would vanish from sight, and never fire."""
    own = places.default_data_home()
    if data_dir or os.environ.get("CAROL_DATA_DIR") or own == layout.data_home:
        return
    jobs = _jobs_in(os.path.join(own, "scheduler.db"))
    if not jobs:
        return
    what = f"{jobs} job{'' if jobs == 1 else 's'} in {own} would not be fired by units that use {layout.data_home}"
    if os.path.exists(os.path.join(layout.data_home, "scheduler.db")):
        warn(f"{what}; --data-dir chooses")
        return
    hint = f"--data-dir {own} keeps them; --data-dir {layout.data_home} begins anew"
    raise Refused(what, hint=f"{hint}; nothing was changed")


def _jobs_in(db: str) -> int:
    from carolctl.store.examine import look

    if not os.path.isfile(db):
        return 0
    try:
        return look(db, lambda tx: len(tx.jobs()), deadline_ms=config.busy_timeout_ms(os.environ, warn))
    except StoreBusy:
        raise
    except CarolError:
        # Not one of ours, or of another version: nothing that a tick would fire.
        return 0


def _warn_of_old_home(scope: Scope, layout: Layout) -> None:
    """Units that are given another data home leave the jobs of the present one where they are."""
    from carolctl import installed_units

    old = installed_units.setting(scope, "CAROL_DATA_DIR")
    jobs = _jobs_in(os.path.join(old, "scheduler.db")) if old and old != layout.data_home else 0
    if jobs:
        warn(f"the timers fire nothing of {old} any more, which holds {jobs} job{'' if jobs == 1 else 's'}")


def _warn_of_planner(layout: Layout) -> None:
    if layout.planner_db and not os.path.isfile(layout.planner_db):
        warn(f"there is no planner database {layout.planner_db}: runs wait to be mirrored until it is there")


def _make_store(layout: Layout) -> None:
    """The units' sandbox needs the data home, and a tick the job store, to be there."""
    from carolctl.session import open_session

    os.environ["CAROL_DATA_DIR"] = layout.data_home
    open_session(create=True).store.close()


def _told(report: Installation) -> list[str]:
    if report.dry_run:
        return [
            line
            for name, text in report.files.items()
            for line in (f"# {report.folder}/{name}", *text.rstrip("\n").split("\n"), "")
        ]
    counts = [
        f"{len(names)} {word}"
        for names, word in (
            (report.written, "written"),
            (report.unchanged, "unchanged"),
            (report.removed, "of an older version removed"),
        )
        if names
    ]
    lines = [
        f"{report.folder}: {', '.join(counts)}",
        f"data home {report.data_home}; planner database {report.planner_db or 'none'}",
        f"on: {', '.join(report.enabled)}",
    ]
    return lines if report.linger is not False else [*lines, LINGER]


LINGER = "they stop when you log out, jobs included, unless you linger: loginctl enable-linger"


def _told_removal(removal: Removal) -> list[str]:
    lines = [
        f"{removal.folder}: {len(removal.removed)} removed"
        if removal.removed
        else "nothing of ours is installed"
    ]
    if removal.data_home:
        lines.append(f"data home {removal.data_home} stays, with its jobs and runs")
        if (now := places.data_home()) != removal.data_home:
            lines.append(
                f"commands use {now} from now on; CAROL_DATA_DIR={removal.data_home} shows those of before"
            )
    return lines + [f"not made by carolctl, left alone: {path}" for path in removal.left_alone]
