"""Launching what was claimed, and asking after it: one protocol, whatever does the work underneath.

Everything here is called with no transaction open. A launcher never waits for a job: that the run has begun is
written by the run itself, under its claim number, and a launch that came to nothing is made again by a sweep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from carolctl import config, places
from carolctl.errors import Unavailable
from carolctl.launch import owner
from carolctl.launch.owner import Liveness
from carolctl.model import Claimed, Run
from carolctl.notices import warn

__all__ = [
    "LaunchFailure",
    "Launcher",
    "Liveness",
    "bury",
    "choose",
    "choose_configured",
    "kill",
    "probe",
    "stop",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailure:
    """A claim that was surely not started."""

    run_id: int
    claim_no: int
    message: str


class Launcher(Protocol):
    """Starts claimed runs as processes of their own."""

    def launch(self, claimed: Sequence[Claimed]) -> list[LaunchFailure]:
        """Start them, after COMMIT, and return at once; what could not be started comes back."""
        ...


def choose(name: str, *, db: str | None = None, home: str | None = None) -> Launcher:
    """The launcher of that name: ``systemd``, ``process``, or ``auto``: systemd where a manager answers.

    Called before anything is claimed. Raises `Unavailable` where no service manager answers, `BadConfig`
    where the chosen one would not let the runs live.
    """
    db, home = db or places.scheduler_db(), home or places.data_home()
    if name != "process":
        from carolctl.launch import service_manager

        manager = service_manager.manager_here()
        if manager is not None and (name == "systemd" or service_manager.is_ours(db)):
            from carolctl.launch.systemd import SystemdLauncher

            return SystemdLauncher(db=db, home=home, manager=manager)
        if name == "systemd":
            raise Unavailable(
                "no systemd manager answers",
                hint="carolctl needs root's, or one of your own: loginctl enable-linger; or CAROL_LAUNCHER=process",
            )
    from carolctl.launch.process import ProcessLauncher

    return ProcessLauncher(db=db, home=home)


def choose_configured() -> Launcher:
    """The launcher that ``CAROL_LAUNCHER`` names; see `choose`."""
    return choose(config.launcher(os.environ, warn))


def probe(runs: Sequence[Run], *, host: str, boot_id: str) -> dict[int, Liveness]:
    """Whether the owner of each run lives, by run id; ``unknown`` proves nothing."""
    found = owner.probe(runs, host=host, boot_id=boot_id)
    in_units = [run for run in runs if run.unit is not None]
    if in_units:
        from carolctl.launch import service_manager

        found |= service_manager.probe(in_units, db=places.scheduler_db(), host=host, boot_id=boot_id)
    return found


def stop(runs: Sequence[Run]) -> None:
    """Ask the live owners on this host to end; they record the end themselves.

    HTTP runs may share an owner: pass them only when every live run of it is to be stopped.
    """
    owner.ask_to_end(runs)
    if any(run.unit for run in runs):
        from carolctl.launch import service_manager

        service_manager.stop(runs)


def kill(runs: Sequence[Run]) -> None:
    """Kill live owners that outlived their grace, with all of their sessions; a sweep records the end."""
    owner.kill(runs)
    if any(run.unit for run in runs):
        from carolctl.launch import service_manager

        service_manager.kill(runs)


def bury(runs: Sequence[Run]) -> None:
    """Kill whatever the dead owners of `runs` left behind, before the runs are recorded as lost.

    Of a unit nothing is left behind: its manager ends whatever is in it.
    """
    owner.bury(runs)
