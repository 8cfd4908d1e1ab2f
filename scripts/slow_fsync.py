#!/usr/bin/env python3
"""Run a command as on a slower disk: every fsync, fdatasync and sync_file_range takes some milliseconds longer.

Usage: slow_fsync.py [--ms 5] COMMAND [ARGUMENT...]

A few lines of C, compiled into a temporary folder with the compiler that is there (`cc`) and put in front of the C
library by LD_PRELOAD; whatever the command starts is slowed down as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/types.h>
#include <time.h>

static void take_longer(void) {
    struct timespec left = {DELAY_MS / 1000, (DELAY_MS % 1000) * 1000000L};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {}
}

int fsync(int fd) {
    int (*plain)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    take_longer();
    return plain(fd);
}

int fdatasync(int fd) {
    int (*plain)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    take_longer();
    return plain(fd);
}

int sync_file_range(int fd, off64_t from, off64_t length, unsigned int flags) {
    int (*plain)(int, off64_t, off64_t, unsigned int) =
        (int (*)(int, off64_t, off64_t, unsigned int))dlsym(RTLD_NEXT, "sync_file_range");
    take_longer();
    return plain(fd, from, length, flags);
}
"""

#: Shows that the shim is felt: prints the milliseconds of one fsync of an empty file.
_PROBE = """
import os, tempfile, time
with tempfile.TemporaryFile() as file:
    began = time.perf_counter()
    os.fsync(file.fileno())
    print((time.perf_counter() - began) * 1000)
"""


class Unbuildable(Exception):
    """The shim cannot be had here; the text says why."""


def build(folder: Path, milliseconds: int) -> Path:
    """Compile the shim into `folder` and prove that it works; its path. Raises `Unbuildable`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unbuildable("there is no C compiler (cc, gcc or clang)")
    source, shim = folder / "slow_fsync.c", folder / "slow_fsync.so"
    source.write_text(_SOURCE)
    flags = ["-O2", "-shared", "-fPIC", f"-DDELAY_MS={milliseconds}"]
    made = subprocess.run(
        [compiler, *flags, "-o", str(shim), str(source), "-ldl"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise Unbuildable(f"{compiler} fails: {made.stderr.strip()[-300:]}")
    _prove(shim, milliseconds)
    return shim


def environment(shim: Path) -> dict[str, str]:
    """What to add to the environment of a command that is to feel it."""
    others = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{shim}:{others}" if others else str(shim)}


def _prove(shim: Path, milliseconds: int) -> None:
    probe = subprocess.run(
        [sys.executable, "-I", "-c", _PROBE],
        env=os.environ | environment(shim),
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode or float(probe.stdout) < milliseconds:
        raise Unbuildable(f"it is not felt: {probe.stdout or probe.stderr}".strip())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--ms", type=int, default=5, help="how much longer, in milliseconds (default: 5)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARGUMENT...]")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("which command?")
    with tempfile.TemporaryDirectory(prefix="carolctl-slow-") as folder:
        try:
            shim = build(Path(folder), given.ms)
        except Unbuildable as reason:
            print(f"slow_fsync: {reason}", file=sys.stderr)
            return 69
        return subprocess.run(command, env=os.environ | environment(shim), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
