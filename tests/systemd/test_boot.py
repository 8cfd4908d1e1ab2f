"""The machine itself: what is installed in it, that it boots again, and that nothing of it stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.systemd.boot import CAROL, USER, Machine


def test_the_machine_is_up_and_carolctl_is_in_it_for_everybody(machine: Machine) -> None:
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"
    assert machine.run(CAROL, "--version").stdout.startswith("carolctl ")
    assert machine.run("carolctl", "--version", user=USER).stdout.startswith("carolctl ")


def test_a_reboot_and_a_pulled_plug_give_a_new_boot_and_keep_the_disk(machine: Machine) -> None:
    def boot_id() -> str:
        return machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout

    machine.write("/var/lib/kept", "yes")
    boots = [boot_id()]
    machine.reboot()
    boots.append(boot_id())
    machine.kill()
    machine.start()
    boots.append(boot_id())
    assert len(set(boots)) == 3
    assert machine.run("cat", "/var/lib/kept").stdout == "yes"


def test_of_a_machine_that_was_thrown_away_nothing_is_left(machine: Machine) -> None:
    other = Machine()
    other.start()
    pids = (other._holder.pid, other._leader)
    other.close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not os.path.exists(other._lab)
    assert not [folder for folder in other._cgroups if os.path.exists(folder)]
    assert other._lab not in Path("/proc/self/mountinfo").read_text()
