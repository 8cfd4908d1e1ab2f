"""What one command works with: the clock read once, the store opened, the settings resolved.

The rim of the program: everything below is handed these as values and reads neither clock nor environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from carolctl import clock, config, places
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.store.db import Store, open_store
from carolctl.store.tx import ReadTx


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One command's store, instant and actor."""

    store: Store
    now: Millis
    actor: str

    def settings(self, tx: ReadTx) -> config.Settings:
        """The settings in force, as of the snapshot `tx`."""
        return config.resolve(tx.settings_table(), os.environ, warn)


def open_session(db: str | None = None, *, create: bool = False, planner_db: str | None = None) -> Session:
    """Read the clock and open the job store (`db`, else the environment's); see `open_store` for the errors.

    An explicit `db` or `planner_db` (empty: none) is put into the environment, so that a run that is launched from
    here finds the same store, and mirrors into the same ledger.
    """
    if db:
        os.environ["CAROL_SCHEDULER_DB"] = os.path.abspath(db)
    if planner_db is not None:
        os.environ["CAROL_PLANNER_DB"] = os.path.abspath(planner_db) if planner_db else ""
    now = clock.now()
    store = open_store(
        places.scheduler_db(),
        deadline_ms=config.busy_timeout_ms(os.environ, warn),
        create=create,
        mirrored=places.planner_db() is not None,
    )
    return Session(store=store, now=now, actor=actor())


def actor() -> str:
    """Who gives this command: the login behind sudo, else the effective user."""
    behind_sudo = os.environ.get("SUDO_USER")
    if behind_sudo:
        return behind_sudo
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return f"uid {os.geteuid()}"
