"""One booted machine for all tests of systemd; they are skipped, loudly, where none can be had."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.systemd import boot
from tests.systemd.boot import Machine, NoMachine

REQUIRED = os.environ.get("CAROL_REQUIRE_SYSTEMD") == "1"


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A machine that is up, with carolctl installed and no units yet; thrown away after the last test."""
    try:
        with boot.booted() as one:
            yield one
    except NoMachine as why:
        if REQUIRED:
            pytest.fail(f"CAROL_REQUIRE_SYSTEMD=1, and no machine can be booted: {why}")
        pytest.skip(f"NOT TESTED under a real systemd: {why}")
