"""Death and suspension at every failpoint: the points are found in the source, so a new one is aimed at by itself."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash import scenarios
from tests.crash.harness import Coverage, failpoints
from tests.crash.scenarios import Action, Aim

pytestmark = pytest.mark.slow

Aims = dict[str, list[Aim]]


@pytest.fixture(scope="module")
def aims(tmp_path_factory: pytest.TempPathFactory) -> Aims:
    """By failpoint: what to aim at to meet it in every role that passes it."""
    by_point: Aims = defaultdict(list)
    for aim in scenarios.survey(tmp_path_factory.mktemp("survey")):
        by_point[aim.point].append(aim)
    return by_point


@pytest.fixture(scope="module")
def reached() -> Coverage:
    return Coverage()


def test_every_failpoint_in_the_source_is_passed_by_some_scenario(aims: Aims) -> None:
    assert failpoints() == set(aims), "add a scenario that passes the missing ones"


@pytest.mark.parametrize("point", sorted(failpoints()))
def test_nothing_is_lost_or_done_twice_when_somebody_is_killed_at(
    point: str, aims: Aims, reached: Coverage, tmp_path: Path
) -> None:
    _attempt_all(aims[point], "kill", reached, tmp_path)


@pytest.mark.parametrize("point", sorted(failpoints()))
def test_nothing_is_lost_or_done_twice_when_somebody_stands_still_past_its_lease_and_goes_on_at(
    point: str, aims: Aims, reached: Coverage, tmp_path: Path
) -> None:
    _attempt_all([aim for aim in aims[point] if aim.hit == 1], "stop", reached, tmp_path)


def test_the_failpoints_left_many_different_situations_behind(reached: Coverage) -> None:
    print(reached.report())
    if reached.fired != failpoints():
        pytest.skip("not every failpoint was part of this test run")
    assert len(reached.states) >= 15


def _attempt_all(aims: list[Aim], action: Action, reached: Coverage, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(lambda aim: scenarios.attempt(aim, action, folder / scenarios.slug(str(aim))), aims)
        )
    for world, _ in results:
        reached.add(world.coverage)
    assert {str(aim): found for aim, (_, found) in zip(aims, results, strict=True) if found} == {}
    assert {aim.point for aim in aims} <= reached.fired
