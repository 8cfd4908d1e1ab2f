"""Fixtures that every test may use: a fresh data home, the real program in it, an opener of stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carolctl.store.db import Store
from tests import builders
from tests.builders import Carol


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data home in which nothing lies yet."""
    return tmp_path / "home"


@pytest.fixture
def carol(home: Path) -> Carol:
    """``carol("add-job", ...)`` runs the program as a subprocess in `home`."""
    return Carol(home)


@pytest.fixture
def store() -> Iterator[Callable[..., Store]]:
    """``store(home)`` opens, and makes if need be, the job store of a data home; closed after the test."""
    opened: list[Store] = []

    def opener(folder: Path, *, create: bool = True, deadline_ms: int = 5000) -> Store:
        opened.append(builders.store(folder, create=create, deadline_ms=deadline_ms))
        return opened[-1]

    yield opener
    for one in opened:
        one.close()
