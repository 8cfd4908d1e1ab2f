"""The unit files as they are installed: the shipped ones of ``timers/`` with this installation's paths in them.

A placeholder stands between ``@``; a line that begins with ``@system@`` or ``@user@`` is for that manager alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from carolctl import __version__, installed_units
from carolctl.errors import BadConfig
from carolctl.installed_units import MARK, quoted

Scope = Literal["system", "user"]

NAMES = (
    "carolctl-tick.timer", "carolctl-tick.service", "carolctl-drain.path", "carolctl-drain.service",
    "carolctl-nightly.timer", "carolctl-nightly.service", "carolctl-alert@.service", "carolctl.slice",
)  # fmt: skip
ENABLED = ("carolctl-tick.timer", "carolctl-drain.path", "carolctl-nightly.timer")
"""What is switched on; the rest is started by these."""

_HOMES = ("/home", "/root", "/run/user")
_HIDDEN = ("/tmp", "/var/tmp", "/dev", "/proc", "/sys")  # noqa: S108 - what a sandbox replaces
_STATE = "/var/lib/"
_HEAD = "{mark}{version} install-timers; changes belong into a drop-in: systemctl edit.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One installation: all paths absolute."""

    scope: Scope
    data_home: str
    planner_db: str | None = None
    python: str = os.path.abspath(sys.executable)
    package: str = os.path.dirname(os.path.abspath(__file__))
    #: Root needs capabilities to write what belongs to somebody else, and to leave them what it makes beside it.
    planner_is_foreign: bool = False
    #: Whether a user's manager can hide the kernel's log.
    kernel_log_is_file: bool = True

    def paths(self) -> Iterator[str]:
        """Everything that a unit must be able to see."""
        yield from (self.python, os.path.realpath(self.python), self.package, self.data_home)
        if self.planner_db:
            yield os.path.dirname(self.planner_db)


def check(layout: Layout) -> None:
    """Raise `BadConfig` for paths that a unit could not name, or could not see in its sandbox."""
    for path in layout.paths():
        if any(ord(letter) < 32 for letter in path) or "$" in path:
            raise BadConfig(f"a unit file cannot name this path: {path!r}")
        if any(_below(path, hidden) for hidden in _HIDDEN):
            raise BadConfig(f"a sandboxed unit has no access to {path}", hint="choose another folder")


def render(layout: Layout) -> dict[str, str]:
    """The text of every unit file, by its name."""
    head = _HEAD.format(mark=MARK, version=__version__)
    values = {
        "PYTHON": _word(layout.python),
        "MAIN": _word(os.path.join(layout.package, "__main__.py")),
        "ENVIRONMENT": "\n".join(_environment(layout)),
        "SPOOL": os.path.join(layout.data_home, "spool", "new").replace("%", "%%"),
        "PATHS": "\n".join(_reach(layout)),
        **_of_planner(layout),
        "KERNEL_LOGS": "yes" if layout.scope == "system" or layout.kernel_log_is_file else "no",
    }
    hardening = _shipped("hardening.conf")
    return {
        name: head + _filled(_shipped(name).replace("@HARDENING@\n", hardening), layout.scope, values)
        for name in NAMES
    }


def _filled(text: str, scope: Scope, values: Mapping[str, str]) -> str:
    other = "@user@" if scope == "system" else "@system@"
    lines = [line.removeprefix(f"@{scope}@") for line in text.split("\n") if not line.startswith(other)]
    return re.sub("@([A-Z_]+)@", lambda found: values[found[1]], "\n".join(lines))


def _of_planner(layout: Layout) -> dict[str, str]:
    """What a planner database of another user relaxes, and what is closed for it."""
    if not layout.planner_is_foreign:
        return {"CAPABILITIES": "", "GIVING": "", "FAMILIES": "AF_UNIX AF_INET AF_INET6"}
    giving = (
        "# What SQLite makes beside the planner database becomes its owner's, who could not write otherwise."
    )
    return {
        "CAPABILITIES": "CAP_DAC_OVERRIDE CAP_CHOWN",
        "GIVING": f"{giving}\nSystemCallFilter=fchown\n",
        "FAMILIES": "AF_UNIX",
    }


def _environment(layout: Layout) -> Iterator[str]:
    yield "Environment=CAROL_BOOT_ID=%b"
    yield f'Environment="CAROL_DATA_DIR={quoted(layout.data_home)}"'
    if layout.planner_db:
        yield f'Environment="CAROL_PLANNER_DB={quoted(layout.planner_db)}"'


def _reach(layout: Layout) -> Iterator[str]:
    """What may be written, and how much of the home folders is to be seen."""
    state = layout.data_home.removeprefix(_STATE)
    if layout.scope == "system" and state != layout.data_home and re.fullmatch(r"[A-Za-z0-9._/-]+", state):
        yield f"StateDirectory={state}"
        yield "StateDirectoryMode=0700"
    else:
        yield f'ReadWritePaths="{quoted(layout.data_home)}"'
    if layout.planner_db:
        yield "# The folder: SQLite makes its files beside the database. Without it the ledger waits, and jobs run."
        yield f'ReadWritePaths=-"{quoted(os.path.dirname(layout.planner_db))}"'
    if layout.scope == "user":
        yield '# Not "yes": that hides /run/user, where the service manager listens.'
        yield "ProtectHome=read-only"
    elif any(_below(path, home) for path in layout.paths() for home in _HOMES):
        yield '# Not "yes", since something of ours lies in a home folder.'
        yield "ProtectHome=read-only"
    elif layout.planner_is_foreign:
        yield '# Not "yes": with CAP_DAC_OVERRIDE the hidden looks missing, and jobs with files in a home are refused.'
        yield "ProtectHome=read-only"
    else:
        yield "# Relax it to read-only if the interpreter, the data home or the planner database lies in a home folder."
        yield "ProtectHome=yes"


def _word(text: str) -> str:
    return f'"{quoted(text)}"' if re.search(r"[^A-Za-z0-9._/+:@-]", text) else text


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _shipped(name: str) -> str:
    """A file of ``timers/``: inside the package when installed, beside it in the repository."""
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (os.path.join(here, "timers"), os.path.join(os.path.dirname(here), "timers")):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                return file.read()
    raise BadConfig(f"this installation lacks its unit file {name}", hint="install carolctl again")


# -- what is there ---------------------------------------------------------------------------------------------


def installed(scope: Scope) -> dict[str, str]:
    """The unit files of ours, of any version, by their names; what is somebody else's is left out."""
    return {name: text for name, text in _there(scope).items() if text is not None and text.startswith(MARK)}


def foreign(scope: Scope) -> list[str]:
    """Paths that our units would take and somebody else's files have."""
    folder = installed_units.folder(scope)
    ours = installed(scope)
    return [os.path.join(folder, name) for name in _there(scope) if name in NAMES and name not in ours]


def _there(scope: Scope) -> dict[str, str | None]:
    """What lies in the folder under a name like ours; None for what is no readable file of its own."""
    folder = installed_units.folder(scope)
    try:
        names = sorted(name for name in os.listdir(folder) if _is_named_like_ours(name))
    except OSError:
        return {}
    return {name: _text(os.path.join(folder, name)) for name in names}


def _is_named_like_ours(name: str) -> bool:
    return re.fullmatch(r"carolctl(-[a-z]+@?)?\.(timer|service|path|slice)", name) is not None


def _text(path: str) -> str | None:
    # A link is somebody's arrangement (systemctl mask and link make them).
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None
