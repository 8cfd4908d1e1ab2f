"""A minute with the planner database locked without a gap: ``scripts/soak.py``, which can do it for ten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_planner_database_locked_without_a_gap_delays_no_run_and_loses_none(journal_mode: str) -> None:
    seconds = "60" if journal_mode == "wal" else "30"
    done = subprocess.run(
        [
            sys.executable,
            str(SOAK),
            "--seconds",
            seconds,
            "--tick-every",
            "5",
            "--journal-mode",
            journal_mode,
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["runs"] > 0
    assert report["longest_backlog"] > 0
    assert done.returncode == 0
