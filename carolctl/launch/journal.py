"""The output of units, as the journal has it.

Units of the system manager are under no rate limit of the journal's: what a job wrote must not vanish without a word.
For those of a user's manager systemd 252 has no such setting: there the limit of journald.conf holds, for all units
of the user together.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from carolctl import places
from carolctl.errors import NotPermitted, Unavailable
from carolctl.launch.capture import TELLING_LINES, telling_lines
from carolctl.launch.service_manager import environment, manager_of_user
from carolctl.launch.unit_names import identifier, store_tag
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis

_CURSOR = b"-- cursor: "
_ANSWER_SEC = 60.0
#: For a hook, which has little time: for both of its questions together.
_SOON_SEC, _SHORTEST_SEC = 1.5, 0.1
_LAG_SEC = 0.5


def output(units: Sequence[str], *, since: Millis, cursor: str | None = None) -> tuple[str, str | None]:
    """What the commands in `units` wrote since then, or after `cursor`, and the cursor to go on from.

    Lines of ours and of the service manager are left out. Raises `NotPermitted` where the journal may not be read,
    `Unavailable` where there is none.
    """
    require_unlocked("reading the journal")
    chosen = _matches(*units)
    if manager_of_user() == "user":
        chosen.append(f"_UID={os.getuid()}")
    begin = f"--after-cursor={cursor}" if cursor else f"--since=@{since // 1000}"
    lines = _journalctl("--output=cat", "--all", "--show-cursor", begin, *chosen)
    text, found, last = lines.rpartition(_CURSOR)
    if not found:
        return lines.decode("utf-8", "backslashreplace"), cursor
    return text.decode("utf-8", "backslashreplace"), last.strip().decode()


def last_lines(unit: str) -> list[str]:
    """The last lines that the command in `unit` wrote, newest first; none where they cannot be read soon."""
    require_unlocked("reading the journal")
    chosen = ["--output=cat", "--all", f"--lines={TELLING_LINES}", *_matches(unit)]
    give_up = time.monotonic() + _SOON_SEC
    try:
        flush(_SOON_SEC)
        text = _journalctl(*chosen, seconds=max(_SHORTEST_SEC, give_up - time.monotonic()))
    except (NotPermitted, Unavailable):
        return []
    return telling_lines(text.decode("utf-8", "backslashreplace"))


def _matches(*units: str) -> list[str]:
    """How their lines are found. The journal does not know the user unit of a process that ended very soon."""
    tag = store_tag(places.scheduler_db())
    if manager_of_user() == "system":
        return [*(f"_SYSTEMD_UNIT={unit}" for unit in units), f"CAROL_STORE={tag}", "_TRANSPORT=stdout"]
    return [*(f"SYSLOG_IDENTIFIER={identifier(unit, tag)}" for unit in units), "_TRANSPORT=stdout"]


def flush(seconds: float = _ANSWER_SEC) -> None:
    """Have the journal take in what was written just now; where we may not ask for that, give it some time."""
    if manager_of_user() == "system":
        _journalctl("--sync", seconds=seconds)
    else:
        require_unlocked("waiting for the journal")
        time.sleep(_LAG_SEC)


def _journalctl(*arguments: str, seconds: float = _ANSWER_SEC) -> bytes:
    try:
        done = subprocess.run(
            ["journalctl", "--quiet", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(os.environ),
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"the journal cannot be read: {problem}") from problem
    if b"insufficient permissions" in done.stderr:
        raise NotPermitted(
            "the journal may not be read",
            hint="be a member of the group systemd-journal, or have the journal kept: mkdir /var/log/journal",
        )
    return done.stdout
