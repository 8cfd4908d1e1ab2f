"""The harness is itself tested: it must see bugs that are planted in a copy of the package, and none without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.harness import Program, copied
from tests.crash.seeded_bugs import BUGS, SeededBug

pytestmark = pytest.mark.slow

by_name = pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "_") for bug in BUGS])


@pytest.fixture(scope="module")
def unpatched(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return copied(tmp_path_factory.mktemp("unpatched"))


@by_name
def test_the_harness_finds_the_bug_that(bug: SeededBug, tmp_path: Path) -> None:
    program = copied(tmp_path / "patched", *bug.patches)
    assert bug.seen_as in {violation.what for violation in bug.hunt(program, tmp_path)}


@by_name
def test_the_harness_finds_nothing_where_it_is_not_true_that(
    bug: SeededBug, unpatched: Program, tmp_path: Path
) -> None:
    assert bug.hunt(unpatched, tmp_path) == []
