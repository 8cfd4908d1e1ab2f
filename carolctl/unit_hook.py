"""The two ends of a command's unit: ``python -I -m carolctl.unit_hook start|finish RUN CLAIM [HOME]``.

Incident: a scheduler's own process stayed by every job, and when it was killed nobody knew how the job had ended.
Decision: systemd calls ``start`` before the command, a compare-and-swap that turns stale and second launches away,
and ``finish`` after it, however it ended. Consequence: while a command runs nothing of ours does, and its end is
known even when the command, its user or its folder never was.

Exit codes of ``start``: 0 go on; 1 stale, 75 busy, or anything else: the unit is skipped, and a sweep launches the
run again if it is still claimed. HOME is our data home, where the command is told another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from carolctl import places
from carolctl.errors import CarolError, Exit, UsageError
from carolctl.notices import warn


def main(arguments: Sequence[str]) -> int:
    """Do what `arguments` say; the exit code."""
    os.umask(0o077)
    try:
        match arguments:
            case ["start" | "finish" as verb, run_id, claim_no, *home] if (
                run_id.isdecimal() and claim_no.isdecimal() and len(home) < 2
            ):
                told = places.data_home()
                if home:
                    os.environ["CAROL_DATA_DIR"] = home[0]
                if verb == "start":
                    from carolctl.unit_start import start

                    return start(int(run_id), int(claim_no))
                from carolctl.unit_finish import finish

                finish(int(run_id), int(claim_no), told)
            case _:
                raise UsageError("unit_hook start|finish RUN CLAIM [HOME]")
    except CarolError as error:
        warn(f"unit_hook {' '.join(arguments)}: {error.message}")
        return error.code
    return Exit.OK


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without closing the store: the last connection to close would have to write a checkpoint.
    os._exit(_code)
