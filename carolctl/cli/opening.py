"""Opening the job store from a command. What that takes is imported at the call: a ``--help`` has no use for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carolctl.session import Session


def open_session(db: str | None = None, *, create: bool = False, planner_db: str | None = None) -> Session:
    """`carolctl.session.open_session`, imported when it is wanted."""
    from carolctl.session import open_session as open_it

    return open_it(db, create=create, planner_db=planner_db)
