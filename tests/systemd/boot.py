"""A throw-away Linux machine under a systemd of its own, and carolctl installed in it as a user would.

`systemd-nspawn` boots an overlay of the host's root file system in a second. The upper layer is a tmpfs in a mount
namespace that one waiting process holds open: when that process or this one dies, however it dies, the mounts are
gone with it, and so is everything that was written. The interpreter of the tests is ``/opt/python`` inside, wherever
it lies outside: a unit's sandbox may hide home folders. The network is loopback only.

Controllers of cgroups are not delegated: MemoryMax= and its kin are accepted inside and may not be enforced.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.systemd import package
from tests.systemd.package import PREFIX, PYTHON

__all__ = ["CAROL", "PREFIX", "PYTHON", "UID", "USER", "Machine", "NoMachine", "booted"]

CAROL = f"{PREFIX}/bin/carolctl"
USER = "agent"
"""An ordinary user inside, without linger to begin with."""
UID = 4242

_TOOLS = (
    "systemd-nspawn",
    "systemd-run",
    "dbus-daemon",
    "unshare",
    "nsenter",
    "setpriv",
    "runuser",
    "loginctl",
)
_PATH = f"{PREFIX}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNSHARE = ("unshare", "--mount", "--propagation", "private")
_BOOT_SEC = 60

# The shell keeps the mount namespace until its input ends.
_HOLD = """
set -e
lab=$1; python=$2; shift 2
mount -t tmpfs -o mode=0755,size=4g carolctl-lab "$lab"
mkdir "$lab/upper" "$lab/work" "$lab/root"
mount -t overlay -o "lowerdir=/,upperdir=$lab/upper,workdir=$lab/work" carolctl-lab "$lab/root"
mkdir -p "$lab/root/opt/python"
mount --bind "$python" "$lab/root/opt/python"
echo ready
read -r _ || true
# A machine whose keeper, nspawn, was killed lives on.
for folder; do
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    find "$folder" -name cgroup.procs -exec cat {} + | xargs -r kill -9 2>/dev/null || true
    find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.2
  done
done
umount -R -l "$lab"; rmdir "$lab"
"""
_BOOT = """
lab=$1; name=$2; shift 2
for folder; do echo $$ >"$folder/cgroup.procs"; done
exec systemd-nspawn --quiet -D "$lab/root" -M "$name" --register=no --keep-unit --private-network --console=pipe \
  --link-journal=no --resolv-conf=off --timezone=off -b
"""
_MASKED = (
    "getty.target", "console-getty.service", "systemd-networkd.service", "systemd-networkd.socket",
    "systemd-resolved.service", "systemd-timesyncd.service", "systemd-firstboot.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "man-db.timer",
    "systemd-tmpfiles-clean.timer", "systemd-logind-varlink.socket", "polkit.service",
)  # fmt: skip


class NoMachine(Exception):
    """Why none can be booted here."""


class Machine:
    """One machine: booted, rebooted, killed, thrown away."""

    def __init__(self) -> None:
        require_means()
        self.name = f"carolctl-{secrets.token_hex(4)}"
        self._cgroups = _make_cgroups(self.name)
        self._lab = tempfile.mkdtemp(prefix="carolctl-lab-")
        self._console: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the machine
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._holder = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _HOLD, "hold", self._lab, sys.base_prefix, *self._cgroups],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            _, complaint = self._holder.communicate(timeout=10)
            self.close()
            raise NoMachine(f"no overlay of the root file system: {complaint.strip()}")
        _furnish(self.root)

    @property
    def root(self) -> Path:
        """The machine's root file system, seen from outside; without what is mounted inside, such as /tmp and /run."""
        return Path(f"/proc/{self._holder.pid}/root{self._lab}/root")

    # -- power ----

    def start(self) -> None:
        """Boot, and wait until it is up. Raises `NoMachine` with the console's last words."""
        assert self._nspawn is None, "it is running"
        inside = ["nsenter", "--target", str(self._holder.pid), "--mount", "sh", "-c", _BOOT, "boot"]
        self._nspawn = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *inside, self._lab, self.name, *self._cgroups],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            start_new_session=True,
        )
        deadline = time.monotonic() + _BOOT_SEC
        while not self._up():
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NoMachine(f"it does not boot: {self.console()[-2000:]}")
            time.sleep(0.05)
        # A pipe of nspawn's, which no other machine has: a user's manager could not hide it from a unit.
        self.run("umount", "/proc/kmsg", check=False)

    def _up(self) -> bool:
        assert self._nspawn is not None
        self._leader = _leader(self._nspawn.pid)
        if not self._leader:
            return False
        with contextlib.suppress(subprocess.SubprocessError):
            state = self.run("systemctl", "is-system-running", check=False, timeout=10).stdout.strip()
            return state in ("running", "degraded")
        return False

    def reboot(self, timeout: float = 60) -> None:
        """Shut down in order and boot again: services are stopped, hooks run, the boot id is a new one."""
        assert self._nspawn is not None
        self.run("systemctl", "reboot", check=False)
        self._nspawn.wait(timeout)
        self._nspawn = None
        self.start()

    def kill(self) -> None:
        """Pull the plug: nothing inside gets to know."""
        if self._nspawn is None:
            return
        # Not nspawn alone: a machine whose keeper is gone would still be dying while we look.
        for pid in (self._leader, self._nspawn.pid):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._nspawn.wait(30)
        self._nspawn, self._leader = None, 0

    def close(self) -> None:
        """Leave no process, mount, cgroup or file behind."""
        self.kill()
        if self._holder.poll() is None:
            self._holder.communicate("", timeout=30)
        for stream in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if stream:
                stream.close()
        self._console.close()
        for folder in (*self._cgroups, self._lab):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    @property
    def chroot(self) -> list[str]:
        """How a command is run in the machine's file system while it is off."""
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "chroot", f"{self._lab}/root"]

    def console(self) -> str:
        """What the machine said while it booted."""
        self._console.seek(0)
        return self._console.read().decode(errors="replace")

    # -- work ----

    def run(
        self,
        *argv: str,
        user: str | None = None,
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in an environment of its own; `user` as after a login, but without a session.

        Raises `AssertionError` with everything that was said when the exit code is not 0 and `check` holds.
        """
        done = subprocess.run(
            [*self.way_in(user, env or {}), *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def way_in(self, user: str | None, env: Mapping[str, str]) -> list[str]:
        """The words that take the command after them inside."""
        variables = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root"}
        become: list[str] = []
        if user:
            uid = UID if user == USER else int(subprocess.check_output(["id", "-u", user]))
            variables |= {"HOME": f"/home/{user}", "USER": user, "XDG_RUNTIME_DIR": f"/run/user/{uid}"}
            become = ["runuser", "-u", user, "--"]
        words = [f"{name}={value}" for name, value in (variables | dict(env)).items()]
        return ["nsenter", "--target", str(self._leader), "--all", *become, "env", "-i", "-C", "/", *words]

    def sh(self, script: str, *, user: str | None = None, check: bool = True, timeout: float = 60) -> str:
        """Run a shell script inside; its output."""
        return self.run("bash", "-ec", script, user=user, check=check, timeout=timeout).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make a file inside, with the folders above it."""
        folder = os.path.dirname(path)
        self.run(
            "sh", "-c", f'mkdir -p "$1" && cat >"$2" && chmod {mode:o} "$2"', "sh", folder, path, stdin=text
        )

    def show(self, unit: str, *names: str, user: str | None = None) -> dict[str, str]:
        """Properties of a unit, as systemctl shows them."""
        manager = ["--user"] if user else []
        wanted = ["-p", ",".join(names)] if names else []
        text = self.run("systemctl", *manager, "show", *wanted, "--", unit, user=user).stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def journal(self, *arguments: str) -> str:
        """What the journal has, messages only."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "--no-pager", "-o", "cat", *arguments, check=False).stdout

    def starts(self, unit: str) -> list[float]:
        """When a unit was started, in seconds since 1970."""
        words = ("-u", unit, "-o", "json", "--output-fields=MESSAGE", "--no-pager")
        lines = map(json.loads, self.run("journalctl", *words).stdout.splitlines())
        begun = (line for line in lines if line["MESSAGE"].startswith("Starting "))
        return [int(line["__REALTIME_TIMESTAMP"]) / 1e6 for line in begun]


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """A machine that is up, with carolctl in `PREFIX`; thrown away at the end."""
    machine = Machine()
    try:
        package.install(machine.root, machine.chroot)
        machine.start()
        yield machine
    finally:
        machine.close()


# -- what it needs ----


def require_means() -> None:
    """Raise `NoMachine` unless everything that a boot needs is here."""
    if os.geteuid() != 0:
        raise NoMachine("only root can boot a machine")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise NoMachine(f"not installed: {', '.join(missing)} (apt-get install systemd-container dbus)")


def _make_cgroups(name: str) -> list[str]:
    """A cgroup of its own in every hierarchy that systemd keeps; two machines in one would be in each other's way."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and controllers != "name=systemd":
            continue
        top = _mounted("cgroup2" if number == "0" else "name=systemd")
        folder = f"{top}{path.rstrip('/')}/{name}"
        try:
            os.mkdir(folder)
        except OSError as problem:
            raise NoMachine(f"no cgroup can be made: {folder}: {problem.strerror}") from None
        made.append(folder)
    return made


def _mounted(kind: str) -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        file_system, _, options = after.split(" ", 2)
        if file_system == kind or (file_system == "cgroup" and kind in options.split(",")):
            return before.split()[4]
    raise NoMachine(f"no cgroup hierarchy is mounted: {kind}")


def _leader(nspawn: int) -> int:
    """The init process inside: the first below nspawn in a process namespace of its own; 0 if there is none yet."""
    own = os.readlink("/proc/self/ns/pid")
    below = [nspawn]
    while below:
        pid = below.pop()
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") != own:
                return pid
            for task in os.listdir(f"/proc/{pid}/task"):
                below += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return 0


# -- furniture ----


def _furnish(root: Path) -> None:
    """Nothing of the host's is started inside; there is one ordinary user, and a journal that is kept."""
    for place in ("systemd/system", "systemd/user", "init.d", *(f"rc{level}.d" for level in "0123456S")):
        shutil.rmtree(root / "etc" / place, ignore_errors=True)
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (root / "etc/systemd/user").mkdir(exist_ok=True)
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text(secrets.token_hex(16) + "\n")
    for folder in ("var/log/journal", "var/lib/systemd/linger", "var/lib/systemd/timers"):
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir(parents=True)
    _add_user(root)


def _add_user(root: Path) -> None:
    with (root / "etc/passwd").open("a") as file:
        file.write(f"{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh\n")
    with (root / "etc/group").open("a") as file:
        file.write(f"{USER}:x:{UID}:\n")
    with (root / "etc/shadow").open("a") as file:
        file.write(f"{USER}:*:20000:0:99999:7:::\n")
    home = root / "home" / USER
    home.mkdir(parents=True, mode=0o700)
    os.chown(home, UID, UID)


def main(words: Sequence[str]) -> int:
    """``python -m tests.systemd.boot COMMAND...``: boot, run it inside, throw the machine away."""
    with booted() as machine:
        return subprocess.run([*machine.way_in(None, {}), *(words or ["bash"])], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
