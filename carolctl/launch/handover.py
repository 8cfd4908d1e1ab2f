"""The environment of a launch, handed on to whatever the unit launches in its turn.

``${env:NAME}`` in a job is looked up in the environment of the tick. A unit begins with none of that, and must not
be given it as a property, because every user of the machine may read those. So what the tick has beyond the
ordinary waits in a file of mode 0600, one a unit, that is read by our own runner or hook and removed by it. The
command of a job never sees it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from carolctl.lockguard import require_unlocked

_KEPT_SEC = 86_400

_ORDINARY = frozenset({
    "PATH", "LANG", "LANGUAGE", "HOME", "LOGNAME", "USER", "SHELL", "PWD", "OLDPWD", "SHLVL", "TERM", "_",
    "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS",
    "MAINPID", "MANAGERPID", "SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "DBUS_SESSION_BUS_ADDRESS",
})  # fmt: skip
_ORDINARY_KINDS = ("CAROL_", "SCHEDULE_", "LC_", "XDG_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")


def worth_handing_over(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What a unit does not have by itself and is not told openly."""
    return {
        name: value
        for name, value in environ.items()
        if (word := os.fsdecode(name)) not in _ORDINARY and not word.startswith(_ORDINARY_KINDS)
    }


def leave(units: Iterable[str], home: str) -> None:
    """Leave the environment for each of `units`; on a disk that takes nothing they have to do without."""
    require_unlocked("handing an environment over")
    extra = worth_handing_over(os.environb)
    if not extra:
        return
    content = b"\0".join(name + b"=" + value for name, value in extra.items())
    with suppress(OSError):
        os.makedirs(os.path.join(home, "units"), mode=0o700, exist_ok=True)
        _clear_out(os.path.join(home, "units"))
        for unit in units:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(_path(unit, home), flags, 0o600), "wb") as file:
                file.write(content)


def _clear_out(folder: str) -> None:
    """Remove what nobody came for: the unit was never started."""
    for entry in os.scandir(folder):
        if (
            entry.name.endswith(".env")
            and time.time() - entry.stat(follow_symlinks=False).st_mtime > _KEPT_SEC
        ):
            os.unlink(entry.path)


def take(unit: str, home: str) -> None:
    """Put what was left for `unit` into this process's environment, and remove it; what is there stays."""
    require_unlocked("taking an environment over")
    with suppress(OSError):
        with open(os.open(_path(unit, home), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            content = file.read()
        for line in content.split(b"\0"):
            name, equals, value = line.partition(b"=")
            if equals and name not in os.environb:
                os.environb[name] = value
        drop(unit, home)


def drop(unit: str, home: str) -> None:
    """Remove what was left for a unit that does not need it."""
    with suppress(OSError):
        os.unlink(_path(unit, home))


def _path(unit: str, home: str) -> str:
    return os.path.join(home, "units", f"{unit}.env")
