"""systemctl and its kin, called for setting up: one process a call, with a deadline, its exit code and words returned.

Whoever only asks about units, and takes no answer for one, asks `launch.service_manager`.
"""

from __future__ import annotations

import os
import subprocess

from carolctl.errors import Unavailable
from carolctl.launch import service_manager
from carolctl.lockguard import require_unlocked
from carolctl.unit_files import Scope

_DEADLINE_SEC = 60
_LINGER = "/var/lib/systemd/linger"


def call(*words: str, deadline_sec: float = _DEADLINE_SEC) -> subprocess.CompletedProcess[str]:
    """Run it; whatever its exit code. A missing program, or one that hangs, is an exit code of its own (127, 124)."""
    require_unlocked("calling the service manager")
    try:
        return subprocess.run(
            words,
            env=service_manager.environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_sec,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: not installed")
    except (OSError, subprocess.TimeoutExpired) as problem:
        return subprocess.CompletedProcess(words, 124, "", f"{words[0]}: {problem}")


def systemctl(scope: Scope, *words: str) -> subprocess.CompletedProcess[str]:
    """``systemctl [--user] WORDS``."""
    return call("systemctl", *service_manager.option(scope), "--no-pager", *words)


def demand(scope: Scope, *words: str) -> str:
    """The same, where nothing but success will do: raises `Unavailable` with what was said."""
    done = systemctl(scope, *words)
    if done.returncode:
        raise Unavailable(f"systemctl {' '.join(words)}: {said(done)}", hint=hint(scope))
    return done.stdout


def answers(scope: Scope) -> bool:
    """Whether that service manager is there and speaks to us."""
    return os.path.isdir("/run/systemd/system") and not systemctl(scope, "show", "-p", "Version").returncode


def hint(scope: Scope) -> str:
    """What to do when it does not answer."""
    if scope == "system":
        return "is systemd running, and are you root? --user installs for one user"
    return "log in properly once, or as root: loginctl enable-linger USER"


def lingers(uid: int) -> bool:
    """Whether the user's manager runs without anybody being logged in."""
    import pwd

    try:
        return os.path.exists(os.path.join(_LINGER, pwd.getpwuid(uid).pw_name))
    except KeyError:
        return False


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a call said, on one line."""
    return " ".join((done.stderr or done.stdout).split()) or f"exit {done.returncode}"
