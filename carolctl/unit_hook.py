"""The two ends of a command's unit: ``python -I -m carolctl.unit_hook start|finish RUN CLAIM HOME FOLDER ...``.

Incident: a scheduler's own process stayed by every job, and when it was killed nobody knew how the job had ended.
Decision: systemd calls ``start`` before the command, a compare-and-swap that turns stale and second launches away,
and ``finish`` after it, however it ended. Consequence: while a command runs nothing of ours does, and its end is
known even when the command, its user or its folder never was.

Exit codes of ``start``: 0 go on; 1 stale, 75 busy, or anything else: the unit is skipped, and a sweep launches the
run again if it is still claimed. HOME is our data home, FOLDER the one that the command was told, and after them come
the settings, ``NAME=VALUE`` each. The environment is not asked for them: a job's own file of variables is for its hooks
as well, and one without a PATH to systemctl, or with a store of its own, would have its end never recorded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from carolctl.errors import CarolError, Exit, UsageError
from carolctl.notices import warn

_OF_MANAGER = ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "INVOCATION_ID", "PATH")


def main(arguments: Sequence[str]) -> int:
    """Do what `arguments` say; the exit code."""
    os.umask(0o077)
    try:
        match arguments:
            case ["start" | "finish" as verb, run_id, claim_no, home, folder, *settings] if (
                run_id.isdecimal() and claim_no.isdecimal()
            ):
                _believe({"CAROL_DATA_DIR": home} | dict(_pair(word) for word in settings))
                if verb == "start":
                    from carolctl.unit_start import start

                    return start(int(run_id), int(claim_no))
                from carolctl.unit_finish import finish

                finish(int(run_id), int(claim_no), folder)
            case _:
                raise UsageError("unit_hook start|finish RUN CLAIM HOME FOLDER NAME=VALUE...")
    except CarolError as error:
        warn(f"unit_hook {' '.join(arguments[:3])}: {error.message}")
        return error.code
    return Exit.OK


def _believe(settings: dict[str, str]) -> None:
    """Forget every variable but those of the manager, and `settings`."""
    kept = {name: os.environ[name] for name in _OF_MANAGER if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | settings)


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without closing the store: the last connection to close would have to write a checkpoint.
    os._exit(_code)
