"""Fixtures that every test may use: a fresh data home, the real program in it, an opener of stores."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from carolctl import session
from carolctl.cli import app, entry
from carolctl.store import db
from carolctl.store.db import Store
from tests import builders
from tests.builders import Carol, Result
from tests.fleet import Fleet, make_fleet


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all tests nothing runs in a data home of theirs: neither a runner nor its command."""
    yield
    mark = os.fsencode(f"CAROL_DATA_DIR={tmp_path_factory.getbasetemp()}/")
    deadline = time.monotonic() + 20
    while left := _processes_with(mark):
        assert time.monotonic() < deadline, f"left running: {left}"
        time.sleep(0.1)


def _processes_with(mark: bytes) -> dict[int, str]:
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if mark in Path("/proc", pid, "environ").read_bytes():
                line = Path("/proc", pid, "cmdline").read_bytes()
                found[int(pid)] = line.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


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


@pytest.fixture
def fleet(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """An empty fleet in `home` whose clock stands at T0."""
    made = make_fleet(home, monkeypatch)
    yield made
    made.store.close()


_build = functools.cache(app.build)


@pytest.fixture
def inside(
    home: Path, carol: Carol, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """``inside("add-job", ...)`` runs a command in this process: thirty times faster, for tables of input."""
    for name in set(os.environ) - set(carol.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.setenv("CAROL_LAUNCHER", "process")
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
