"""Booted machines for the tests of systemd; these are skipped, loudly, where none can be had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.systemd import boot
from tests.systemd.boot import CAROL, Machine, NoMachine

REQUIRED = os.environ.get("CAROL_REQUIRE_SYSTEMD") == "1"


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A machine that is up, with carolctl installed and no units yet; thrown away after the last test."""
    with _one() as machine:
        yield machine


@pytest.fixture(scope="session")
def clockwork() -> Iterator[Machine]:
    """A machine that nothing is done to: the timers as shipped are on, and what they do can be read later."""
    with _one() as machine:
        machine.run(CAROL, "install-timers", "--system")
        yield machine


@contextlib.contextmanager
def _one() -> Iterator[Machine]:
    try:
        with boot.booted() as machine:
            yield machine
    except NoMachine as why:
        if REQUIRED:
            pytest.fail(f"CAROL_REQUIRE_SYSTEMD=1, and no machine can be booted: {why}")
        pytest.skip(f"NOT TESTED under a real systemd: {why}")
