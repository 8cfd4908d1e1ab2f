"""The service manager that answers here, asked through ``systemctl``: which of our units live, and their end.

Which manager it is follows from who we are: the system manager for root, the user's own for anybody else. So a
store is looked after by its owner alone; what root sees of the system manager proves nothing about the runs in
somebody else's store. An error or a time-out of the manager proves nothing either.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from carolctl import clock, places
from carolctl.launch.owner import Liveness, is_of_another_boot
from carolctl.launch.unit_names import store_tag, tag_of
from carolctl.lockguard import require_unlocked
from carolctl.model import Run

Manager = Literal["system", "user"]

ANSWER_SEC = 10.0
"""How long an answer is waited for; a manager that reloads a large machine takes its time."""

_give_up = math.inf
_SHORTEST_ANSWER_SEC = 0.1

_PAUSES_SEC = (0.2, 0.5, 0.0)
_BOOTED = "/run/systemd/system"
_OURS = ("carolctl-run-*.service", "carolctl-http-*.service")
_LINE = re.compile(r"^\W*(carolctl-\S+\.service) +\S+ +(\S+) (.*)$", re.MULTILINE)
_ENDED = {"inactive", "failed"}


def manager_of_user() -> Manager:
    """The manager that runs what this user launches."""
    return "system" if os.geteuid() == 0 else "user"


def manager_here() -> Manager | None:
    """The manager of this user, if it answers."""
    if not os.path.isdir(_BOOTED):
        return None
    manager = manager_of_user()
    for pause in _PAUSES_SEC:
        if systemctl(manager, "show", "--property=Version", "--value"):
            return manager
        if not _listens(manager):
            return None
        # It hangs up on everybody while it executes itself anew.
        require_unlocked("waiting for the service manager")
        time.sleep(pause)
    return None


def _listens(manager: Manager) -> bool:
    folder = "/run" if manager == "system" else environment(os.environ).get("XDG_RUNTIME_DIR", "/nowhere")
    return os.path.exists(os.path.join(folder, "systemd", "private"))


def option(manager: Manager) -> list[str]:
    """What tells systemctl, systemd-run and journalctl which manager is meant."""
    return ["--user"] if manager == "user" else []


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a client of the manager: cron and ssh do not say where the user's own listens."""
    runtime = f"/run/user/{os.getuid()}"
    own = {**environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    if "XDG_RUNTIME_DIR" not in own and os.path.isdir(runtime):
        own["XDG_RUNTIME_DIR"] = runtime
    return own


def answer_within(seconds: float) -> None:
    """From here on wait no longer than that for all answers together: for whoever has little time."""
    global _give_up
    _give_up = time.monotonic() + seconds


def systemctl(manager: Manager, *arguments: str) -> str | None:
    """What ``systemctl`` prints; None where it fails or does not answer in time."""
    require_unlocked("asking the service manager")
    try:
        done = subprocess.run(
            ["systemctl", *option(manager), "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(os.environ),
            timeout=min(ANSWER_SEC, max(_SHORTEST_ANSWER_SEC, _give_up - time.monotonic())),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def probe(runs: Sequence[Run], *, db: str, host: str, boot_id: str) -> dict[int, Liveness]:
    """Whether the unit of each run lives, by run id: one question for all of them, however many."""
    require_unlocked("asking the service manager")
    here = [run for run in runs if run.host == host]
    gone = {run.run_id for run in here if is_of_another_boot(run, boot_id)}
    asked = [run for run in here if run.run_id not in gone]
    alive = live_units(manager_of_user()) if asked and is_ours(db) else None
    verdicts: dict[int, Liveness] = {run.run_id: "unknown" for run in runs}
    verdicts |= dict.fromkeys(gone, "dead")
    if alive is not None:
        verdicts |= {run.run_id: _liveness(run, alive, store_tag(db)) for run in asked}
    return verdicts


def _liveness(run: Run, alive: Mapping[str, str | None], tag: str) -> Liveness:
    """A unit of another store's that has the same name proves neither."""
    if run.unit is None or run.unit not in alive:
        return "dead"
    return "alive" if alive[run.unit] in (tag, None) else "unknown"


def live_units(manager: Manager) -> dict[str, str | None] | None:
    """Our units that have not ended, with the tags of their stores; None where the manager does not say."""
    listing = systemctl(manager, "list-units", "--all", "--plain", "--full", "--no-legend", *_OURS)
    return None if listing is None else parsed_units(listing)


def parsed_units(listing: str) -> dict[str, str | None]:
    """The units of a listing (UNIT LOAD ACTIVE SUB DESCRIPTION) that are not over, and what tags their descriptions."""
    return {
        unit: tag_of(description)
        for unit, active, description in _LINE.findall(listing)
        if active not in _ENDED
    }


def is_ours(db: str) -> bool:
    """Whether the runs in the store at `db` are in the manager of this user."""
    try:
        return os.stat(db).st_uid == os.geteuid()
    except OSError:
        return False


def stop(runs: Iterable[Run]) -> None:
    """Ask the units to end. What several HTTP runs share is only told so: it ends those that are to end."""
    units = _units_here(runs)
    shared = [unit for unit in units if unit.startswith("carolctl-http-")]
    if shared:
        systemctl(manager_of_user(), "kill", "--kill-who=main", "--signal=TERM", *shared)
    if len(shared) < len(units):
        systemctl(manager_of_user(), "stop", "--no-block", *(unit for unit in units if unit not in shared))


def kill(runs: Iterable[Run]) -> None:
    """End the units; the manager kills what is left of them after their TimeoutStopSec."""
    units = _units_here(runs)
    if units:
        systemctl(manager_of_user(), "stop", "--no-block", *units)


def _units_here(runs: Iterable[Run]) -> list[str]:
    """The units of the runs, without those that are another store's by now."""
    units = sorted({run.unit for run in runs if _is_here(run) and run.unit})
    alive = (live_units(manager_of_user()) if units else None) or {}
    tag = store_tag(places.scheduler_db())
    return [unit for unit in units if alive.get(unit) in (tag, None)]


def _is_here(run: Run) -> bool:
    return run.host == clock.hostname() and not is_of_another_boot(run, clock.boot_id())


def properties(manager: Manager, unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit by name; empty where the manager does not say."""
    chosen = [f"--property={name}" for name in names]
    lines = (systemctl(manager, "show", *chosen, unit) or "").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def is_being_stopped(manager: Manager, unit: str) -> bool:
    """Whether a stop of the unit is pending, whoever asked for it: an operator, or a shutdown.

    The property ``Job`` alone does not tell: a unit that ended before it was up has its start job still.
    """
    listing = systemctl(manager, "list-jobs", "--full", "--no-legend", unit) or ""
    kinds = [words[2] for line in listing.splitlines() if len(words := line.split()) > 3]
    return any(kind in ("stop", "restart") for kind in kinds)


def is_shutting_down(manager: Manager) -> bool:
    """Whether the manager is about to stop everything, so that nothing can be started any more."""
    # Not ``is-system-running``, which fails with every state but one.
    return (systemctl(manager, "show", "--property=SystemState", "--value") or "").strip() == "stopping"
