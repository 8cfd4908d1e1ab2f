#!/usr/bin/env python3
"""Kill and stop ticks, runners and jobs for a long while, and say which situations were reached and what broke.

    scripts/crash_soak.py --kills 500              random moments, with a seed of its own that it prints
    scripts/crash_soak.py --kills 500 --seed 7     the same worlds again (not the same moments: those are real)
    scripts/crash_soak.py --kills 0 --points       every failpoint, every passage: killed, and stopped past its lease

With --copy the source may be edited meanwhile.

Exit status: 0 everything held; 1 something did not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.crash import chaos, scenarios
from tests.crash.harness import INSTALLED, Coverage, Program, Violation, copied


def main() -> int:
    """Do what the arguments say; the exit status."""
    options = _options()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-soak-", dir=options.folder) as folder:
        program = copied(Path(folder) / "program") if options.copy else INSTALLED
        broken = _points(program, Path(folder)) if options.points else []
        broken += _random(options, program, Path(folder)) if options.kills else []
    for where, violation in broken:
        print(f"BROKEN  {where}: {violation.what}: {violation.detail}")
    print(f"verdict: {'FAIL' if broken else 'PASS'} after {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="how many processes to kill at random moments")
    parser.add_argument("--seed", type=int, help="of the first world; by lot unless given")
    parser.add_argument("--workers", type=int, default=2, help="worlds side by side")
    parser.add_argument("--points", action="store_true", help="every failpoint as well")
    parser.add_argument(
        "--copy", action="store_true", help="run a copy made now, so that the source may change"
    )
    parser.add_argument("--folder", help="where to make the worlds; /dev/shm is fast")
    return parser.parse_args()


def _random(options: argparse.Namespace, program: Program, folder: Path) -> list[tuple[str, Violation]]:
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"random moments, seed {seed}")
    verdict = chaos.rage(options.kills, seed, folder, workers=options.workers, program=program)
    print(verdict.coverage.report())
    return [(f"seed {world}", violation) for world, violation in verdict.violations]


def _points(program: Program, folder: Path) -> list[tuple[str, Violation]]:
    coverage = Coverage()
    broken: list[tuple[str, Violation]] = []
    (folder / "survey").mkdir()
    actions: tuple[scenarios.Action, ...] = ("kill", "stop")
    for aim in scenarios.survey(folder / "survey"):
        for action in actions:
            world, found = scenarios.attempt(aim, action, folder / action / scenarios.slug(str(aim)), program)
            coverage.add(world.coverage)
            broken += [(f"{action} at {aim}", violation) for violation in found]
    print(coverage.report())
    return broken


if __name__ == "__main__":
    sys.exit(main())
