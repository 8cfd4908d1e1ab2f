"""doctor: is everything as it should be? Nothing is written, made or touched; see `store.examine` for how.

Each check stands alone: one that cannot be made, or that fails in a way nobody thought of, is a finding itself and
never keeps the others from being made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from carolctl import clock
from carolctl import doctor_checks_host as host
from carolctl import doctor_checks_store as store
from carolctl import doctor_checks_units as units
from carolctl import doctor_checks_work as work
from carolctl.doctor_checks import Evidence, Finding, Place, Status, fail, gather
from carolctl.errors import CarolError, Exit
from carolctl.lockguard import require_unlocked
from carolctl.store import APPLICATION_ID, SCHEMA_VERSION

__all__ = ["Check", "Place", "Report", "examine"]

#: In the order of the report.
CHECKS: dict[str, Callable[[Evidence], Finding]] = {
    "integrity": store.integrity,
    "schema": store.schema,
    "journal": store.journal,
    "wal": store.wal,
    "replaced": store.replaced,
    "filesystem": store.file_system,
    "space": host.space,
    "modes": host.modes,
    "tick": work.tick,
    "units": units.units,
    "timers": units.timers,
    "linger": units.linger,
    "backups": units.backups,
    "pause": work.pause,
    "jobs": work.jobs,
    "owners": work.owners,
    "leases": work.leases,
    "spool": work.spool,
    "spool_bad": work.spool_bad,
    "planner": work.planner,
    "ledger": work.ledger,
    "orphans": work.orphans,
    "legacy": work.legacy,
    "clock": host.clock,
    "zones": host.zones,
    "launcher": host.launcher,
    "settings": host.settings,
    "sqlite": store.sqlite,
    "program": host.program,
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check by its name, and what it found."""

    name: str
    finding: Finding

    def document(self) -> dict[str, Any]:
        """The JSON member."""
        found = self.finding
        return {
            "name": self.name,
            "status": found.status,
            "detail": found.detail,
            "hint": found.hint,
            "figures": dict(found.figures),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks."""

    db: str
    at: str | None
    no_store: bool
    checks: tuple[Check, ...]

    def of(self, *statuses: Status) -> list[Check]:
        """The checks that ended so."""
        return [check for check in self.checks if check.finding.status in statuses]

    @property
    def verdict(self) -> Status:
        """The worst of all."""
        return "fail" if self.of("fail") else "warn" if self.of("warn") else "ok"

    def exit_code(self, *, strict: bool) -> int:
        """1 when something is wrong (or, if `strict`, not quite right), 66 without a job store."""
        if self.no_store:
            return Exit.NOT_FOUND
        return Exit.FAILED if self.of("fail", *(("warn",) if strict else ())) else Exit.OK

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "verdict": self.verdict,
            "database": self.db,
            "at": self.at,
            "failed": [check.name for check in self.of("fail")],
            "warned": [check.name for check in self.of("warn")],
            "checks": [check.document() for check in self.checks],
        }


def examine(place: Place) -> Report:
    """Make every check."""
    require_unlocked("examining the installation")
    evidence = gather(place, current_version=SCHEMA_VERSION, application_id=APPLICATION_ID)
    return Report(
        db=place.db,
        at=clock.iso(place.now),
        no_store=evidence.no_store,
        checks=tuple(Check(name, _made(check, evidence)) for name, check in CHECKS.items()),
    )


def _made(check: Callable[[Evidence], Finding], evidence: Evidence) -> Finding:
    try:
        return check(evidence)
    except CarolError as problem:
        return fail(problem.message, problem.hint)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        return fail(f"it cannot be looked at: {where}{problem.strerror}", "check the owner and the modes")
    except Exception as bug:
        if os.environ.get("CAROL_DEBUG") == "1":
            raise
        return fail(f"the check itself failed: {type(bug).__name__}: {bug}", "a bug: please report it")
