"""Named places where a test may kill or stop the process. Without CAROL_FAILPOINT they do nothing.

``CAROL_FAILPOINT=name[:action[:hit]]``: at the ``hit``-th passage (1 by default) of ``name`` in this
process, ``kill`` sends SIGKILL (the default), ``stop`` sends SIGSTOP, so that a test can play a zombie, and
``raise`` raises. With ``CAROL_FAILPOINT_ONCE=PATH`` it acts only where it can create that file: one death
among many processes. Ignored when running set-uid.
"""

from __future__ import annotations

import os

_passages: dict[str, int] = {}


class FailpointReached(BaseException):
    """Raised by an armed ``raise`` failpoint; a BaseException, so that no handler swallows it."""


def failpoint(name: str, /) -> None:
    """Die, stop or raise here if the environment arms `name`."""
    armed = os.environ.get("CAROL_FAILPOINT")
    if not armed or os.getuid() != os.geteuid():
        return
    wanted, _, rest = armed.partition(":")
    if wanted != name:
        return
    action, _, hit = rest.partition(":")
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] == int(hit or 1) and _first_of_all_processes():
        _act(action or "kill", name)


def _first_of_all_processes() -> bool:
    path = os.environ.get("CAROL_FAILPOINT_ONCE")
    if not path:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _act(action: str, name: str) -> None:
    import signal

    if action == "raise":
        raise FailpointReached(name)
    os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
