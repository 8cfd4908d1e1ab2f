"""The guard behind the first rule: no I/O but SQLite's while a write transaction is open.

Incident: a scheduler held the planner database's write lock across its HTTP dispatch, and twenty one-row
updates over thirty seconds all failed. Decision: every function that touches the network, a process, a
file or the clock's sleep calls `require_unlocked` first. Consequence: I/O under the lock is a failed
assertion in the first test that meets it, not a comment in a review.

A context variable, so that each thread of a runner answers for its own transaction only.
"""

from __future__ import annotations

from contextvars import ContextVar

_write_open: ContextVar[bool] = ContextVar("carolctl_write_open", default=False)


class IOUnderLock(AssertionError):
    """A rim function was called between BEGIN IMMEDIATE and the end of the transaction."""


def require_unlocked(what: str) -> None:
    """Raise `IOUnderLock` when this thread holds a write transaction; `what` names the I/O."""
    if _write_open.get():
        raise IOUnderLock(f"{what} attempted while a write transaction is open")


def write_is_open() -> bool:
    """Whether this thread holds a write transaction."""
    return _write_open.get()


def set_write_open(is_open: bool, /) -> None:
    """Called by the store alone, at BEGIN and after COMMIT or ROLLBACK."""
    _write_open.set(is_open)
