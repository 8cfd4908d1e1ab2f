"""What the installed units say: where unit files lie, and the data home that the tick's names.

So that `carolctl list-jobs` shows the jobs that the timer fires, without anybody setting a variable. Plain functions
over files, without imports: an idle tick may need the data home.
"""

import os

TICK = "carolctl-tick.service"
MARK = "# Made by carolctl "
"""How the first line of every unit file of ours begins; the version follows."""


def folder(scope: str) -> str:
    """Where the unit files of a manager go: ``system`` or ``user``."""
    if scope == "system":
        return "/etc/systemd/system"
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "systemd", "user")


def data_home() -> str | None:
    """The data home of the tick unit whose timers serve this user; None if there is none.

    Those of the system, unless they are somebody else's; for an ordinary user their own come first. It need not be
    there: where it was lost, nothing else may stand in for it.
    """
    return _serving()[1]


def planner_db() -> str | None:
    """The planner database of that same unit, if it has one."""
    scope, _ = _serving()
    return setting(scope, "CAROL_PLANNER_DB") if scope else None


def _serving() -> tuple[str, str | None]:
    is_root = os.geteuid() == 0
    for scope in ("system", "user") if is_root else ("user", "system"):
        found = setting(scope, "CAROL_DATA_DIR")
        if found and (scope == "user" or is_root or os.access(found, os.W_OK)):
            return scope, found
    return "", None


def setting(scope: str, name: str) -> str | None:
    """What the installed tick unit puts into the environment under `name`; None if it is not ours or says nothing."""
    try:
        with open(os.path.join(folder(scope), TICK), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(65536).split("\n")
    except OSError:
        return None
    if not lines[0].startswith(MARK):
        return None
    start = f'Environment="{name}='
    for line in lines:
        if line.startswith(start) and line.endswith('"'):
            return unquoted(line[len(start) : -1])
    return None


def quoted(text: str) -> str:
    """As it stands between double quotes in a unit file."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def unquoted(text: str) -> str:
    """The way back."""
    return text.replace("%%", "%").replace('\\"', '"').replace("\\\\", "\\")
