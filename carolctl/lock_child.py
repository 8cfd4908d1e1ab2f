"""Asking who holds a lock from a process that may have the database open itself.

Incident: to open and close a database file by hand drops the locks that SQLite holds on it for the same process.
Decision: the diagnosis always runs as a child, bounded in time, and its failure is silence: it adds to an error
message and must never become one. Consequence: a command that gives up says by whom it was kept out.

A unit's sandbox may hide /proc/locks and the processes of others; there the child runs in a unit of its own.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from typing import Any

from carolctl.lockguard import require_unlocked

WATCH_SEC = 0.6
DEADLINE_SEC = 2.5
_MOST_BYTES = 1024 * 1024
_PASSED_ON = ("CAROL_DATA_DIR", "XDG_STATE_HOME", "HOME")


def holder_phrase(path: str) -> str | None:
    """Who keeps the database at `path` locked, as the end of a sentence; None when there is nobody to name.

    Takes about 1 s, at most 2.5, and raises nothing but a Ctrl-C. The caller holds no write transaction.
    """
    found = culprit(path)
    return found[0] if found else None


def culprit(path: str) -> tuple[str, dict[str, Any] | None] | None:
    """The same with the ``holder`` member of the diagnosis."""
    require_unlocked("asking who holds a lock")
    give_up = time.monotonic() + DEADLINE_SEC
    for command in _commands(path):
        document = _answer(command, give_up)
        if document is not None:
            return _blame(document)
    return None


def _blame(document: dict[str, Any]) -> tuple[str, dict[str, Any] | None] | None:
    from carolctl.lock_report import culprit_words

    try:
        words = culprit_words(document)
    except (KeyError, IndexError, TypeError):
        return None
    return (words, document["holder"]) if words else None


def _commands(path: str) -> list[list[str]]:
    """What to run, one after the other until one answers."""
    direct = [os.path.abspath(sys.executable), "-I", "-m", "carolctl", "locks", "--json"]
    direct += ["--watch-sec", str(WATCH_SEC), "--", os.path.abspath(path)]
    if not is_blinded(os.environ):
        return [direct]
    manager = [] if os.geteuid() == 0 else ["--user"]
    passed = [f"--setenv={name}={os.environ[name]}" for name in _PASSED_ON if name in os.environ]
    outside = ["systemd-run", *manager, "--pipe", "--wait", "--collect", "--quiet", *passed, "--"]
    return [outside + direct, direct]


def is_blinded(environ: os._Environ[str] | dict[str, str]) -> bool:
    """Whether we run in a unit whose sandbox hides the locks, or the processes, of others."""
    return "INVOCATION_ID" in environ and not (
        os.access("/proc/locks", os.R_OK) and os.path.exists("/proc/1")
    )


def _answer(command: Sequence[str], give_up: float) -> dict[str, Any] | None:
    import subprocess

    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    assert child.stdout is not None
    try:
        text = _read_all(child.stdout.fileno(), give_up)
    finally:
        # Also on a Ctrl-C, which is not to wait for the child to notice.
        child.kill()
        child.stdout.close()
        child.wait()
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _read_all(descriptor: int, give_up: float) -> bytes:
    """Everything until the end of the file; what there is by the deadline otherwise."""
    text = b""
    while (left := give_up - time.monotonic()) > 0 and len(text) < _MOST_BYTES:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 65536)
        if not part:
            break
        text += part
    return text
