"""A world per test, left without a process of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.harness import World


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """``new_world(cap=2)`` makes a fresh data home; whatever still runs in it at the end is killed."""
    made: list[World] = []

    def make(*, cap: int = 2) -> World:
        made.append(World(tmp_path / f"world-{len(made)}", cap=cap))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """A fresh data home under a cap of two."""
    return new_world()
