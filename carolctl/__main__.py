"""The entry point. An idle tick is answered here, before anything expensive is imported."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run one command; the exit code."""
    os.umask(0o077)
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "tick":
        from carolctl.store.idle import answer_idle_tick

        answer_idle_tick(arguments[1:])
    from carolctl.cli.entry import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
