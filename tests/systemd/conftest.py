"""Booted machines for the tests of systemd; these are skipped, loudly, where none can be had."""

from __future__ import annotations

import contextlib
import os
import time
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
        while _wake_up(machine) > 0.75:
            machine.reboot()
        machine.run(CAROL, "install-timers", "--system")
        machine.run(CAROL, "add-job", "beat", "--every", "30s", "--", "true")
        yield machine


def _wake_up(machine: Machine) -> float:
    """The fraction of a second at which this boot wakes up for timers that may be a second late.

    systemd draws it for each boot. Near the end of the second, a start of a few milliseconds would look late.
    """
    words = (
        "--on-calendar=*:*:*",
        "--timer-property=AccuracySec=1s",
        "--unit=wake-up",
        "--property=Type=oneshot",
    )
    machine.run("systemd-run", "--quiet", *words, "true")
    deadline = time.monotonic() + 10
    while not (starts := machine.starts("wake-up.service")):
        assert time.monotonic() < deadline, "no timer fires"
        time.sleep(0.2)
    machine.run("systemctl", "stop", "wake-up.timer")
    return starts[-1] % 1


@contextlib.contextmanager
def _one() -> Iterator[Machine]:
    try:
        with boot.booted() as machine:
            yield machine
    except NoMachine as why:
        if REQUIRED:
            pytest.fail(f"CAROL_REQUIRE_SYSTEMD=1, and no machine can be booted: {why}")
        pytest.skip(f"NOT TESTED under a real systemd: {why}")
