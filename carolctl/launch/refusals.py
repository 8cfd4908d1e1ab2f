"""Why a run cannot be launched at all: what the manager would only find when nobody listens any more.

The tick looks from inside its sandbox, where home folders and /tmp may be hidden or empty. That something is not to be
seen there is no proof that it is missing, and the unit, which is under no such limits, finds out by itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from carolctl.launch import LaunchFailure
from carolctl.launch.service_manager import Manager
from carolctl.model import Claimed, CommandAction, HttpAction

_MOUNTS = "/proc/self/mountinfo"
_HOMES = ("/home", "/root", "/run/user")


def refusal(one: Claimed, manager: Manager) -> LaunchFailure | None:
    """Why `one` cannot be launched by `manager`, where that is sure."""
    action = one.action
    if isinstance(action, HttpAction):
        return None
    message = "the job has no command to run"
    if action is not None and action.argv:
        message = _of_user(action, manager) or _of_files(action) or ""
    return failure(one, message) if message else None


def failure(one: Claimed, message: str) -> LaunchFailure:
    """The failed launch of `one`."""
    return LaunchFailure(run_id=one.run.run_id, claim_no=one.run.claim_no, message=message)


def _of_user(action: CommandAction, manager: Manager) -> str | None:
    if action.run_as is None:
        return None
    if manager != "system":
        return "--run-as needs the system manager: run the tick as root"
    return None if _is_user(action.run_as) else f"no such user: {action.run_as}"


def _is_user(name: str) -> bool:
    import pwd

    try:
        if name.isdecimal():
            pwd.getpwuid(int(name))
        else:
            pwd.getpwnam(name)
    except (KeyError, OverflowError):
        return False
    return True


def _of_files(action: CommandAction) -> str | None:
    wanted = (("folder", action.working_directory, os.X_OK), ("file", action.environment_file, os.R_OK))
    for name, path, access in wanted:
        if path is not None and (refusal := _of_path(name, path, access, as_other=action.run_as is not None)):
            return refusal
    if action.run_as is not None and action.environment_file is not None:
        return _untrusted(action.environment_file)
    return None


def _of_path(name: str, path: str, access: int, *, as_other: bool) -> str | None:
    """What the manager would stumble over before the start hook, and so without a word to it."""
    if is_surely_missing(path):
        return f"no such {name}: {path[:200]}"
    try:
        mode = os.stat(path).st_mode
    except OSError as trouble:
        is_kept_out = isinstance(trouble, PermissionError) and not as_other and os.geteuid() != 0
        return f"{path[:200]} may not be used: {trouble.strerror}" if is_kept_out else None
    if stat.S_ISDIR(mode) != (name == "folder"):
        return f"not a {name}: {path[:200]}"
    # Root may do what it likes, and what another user may is for that user's unit to find.
    if not as_other and not os.access(path, access, effective_ids=True):
        return f"{path[:200]} may not be {'entered' if name == 'folder' else 'read'} by this user"
    return None


def _untrusted(path: str) -> str | None:
    """The loader of our privileged hooks gets the variables of the file as well: nobody else may write it."""
    try:
        facts = [os.stat(one) for start in (path, os.path.realpath(path)) for one in _with_folders(start)]
    except OSError:
        return f"{path[:200]} cannot be looked at from here: keep it in /etc, for a job with --run-as"
    if all(one.st_uid in (0, os.geteuid()) and not one.st_mode & 0o022 for one in facts):
        return None
    return (
        f"{path[:200]} and the folders above it must belong to root and be writable by nobody else,"
        " for a job with --run-as"
    )


def _with_folders(path: str) -> Iterator[str]:
    yield path
    while (above := os.path.dirname(path)) != path:
        yield (path := above)


def is_surely_missing(path: str) -> bool:
    """Gone for the unit as well, and not only for us."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        hidden = _hidden()
        return not any(_is_below(one, hidden) for one in (path, os.path.realpath(path)))
    except OSError:
        return False
    return False


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _hidden() -> list[str]:
    """The folders in whose place our sandbox has put others, by ProtectHome= and PrivateTmp=."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split(" ") for line in file]
    except OSError:
        return ["/"]
    return [point for _, _, _, root, point, *rest in lines if _is_ersatz(root, point, rest)]


def _is_ersatz(root: str, point: str, rest: Sequence[str]) -> bool:
    by_systemd = "/systemd/inaccessible/" in root or "/systemd-private-" in root
    return by_systemd or (point in _HOMES and "tmpfs" in rest)
