"""Fixtures that every test may use: a fresh data home, the real program in it, an opener of stores."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carolctl import session
from carolctl.cli import app, entry
from carolctl.store import db
from carolctl.store.db import Store
from tests import builders
from tests.builders import Carol, Result


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


_build = functools.cache(app.build)


@pytest.fixture
def inside(
    home: Path, carol: Carol, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """``inside("add-job", ...)`` runs a command in this process: thirty times faster, for tables of input."""
    for name in set(os.environ) - set(carol.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    opened: list[Store] = []

    def remembered(*arguments: Any, **options: Any) -> Store:
        opened.append(db.open_store(*arguments, **options))
        return opened[-1]

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = entry.run(list(arguments))
        # A process of its own would end here, and its connection with it.
        while opened:
            opened.pop().close()
        said = capsys.readouterr()
        return Result(code=code, out=said.out, err=said.err)

    monkeypatch.setattr(session, "open_store", remembered)
    # Half of a call goes into building its command; one process needs to do that only once.
    monkeypatch.setattr(app, "build", _build)
    return run
