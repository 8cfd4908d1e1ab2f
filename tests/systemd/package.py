"""carolctl in a virtual environment below some root folder, as a user would install it, but without network.

The wheel is that of this repository; what it stands on is copied from the environment that the tests run in.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PREFIX = Path("/opt/carolctl")
"""The virtual environment."""
PYTHON = f"{PREFIX}/bin/python"


def install(root: Path, chroot: Sequence[str]) -> None:
    """``python -m venv`` and ``pip install`` of the wheel in the file system at `root`, which `chroot` leads into."""
    name, content = wheel()
    (root / "srv/wheel").mkdir(parents=True)
    (root / "srv/wheel" / name).write_bytes(content)
    shutil.rmtree(root / PREFIX.relative_to("/"), ignore_errors=True)
    target = root / PREFIX.relative_to("/") / f"lib/python{_version()}/site-packages"

    def inside(*words: str) -> None:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        subprocess.run([*chroot, *words], check=True, env=environment, stdin=subprocess.DEVNULL, timeout=120)

    # A shared libpython is looked for where it was built, which a unit's sandbox may hide.
    (root / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    inside("ldconfig")
    inside(f"/opt/python/bin/python{_version()}", "-m", "venv", "--without-pip", str(PREFIX))
    _copy_dependencies(target)
    inside(PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"/srv/wheel/{name}")


@functools.cache
def wheel() -> tuple[str, bytes]:
    """The wheel of this repository: its file name and its content."""
    words = ["wheel", "--quiet", "--disable-pip-version-check", "--no-deps", str(REPOSITORY)]
    isolation = ["--no-build-isolation"] if _is_here("hatchling") else []
    with tempfile.TemporaryDirectory(prefix="carolctl-wheel-") as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", *words, *isolation, "--wheel-dir", folder],
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        [path] = Path(folder).glob("carolctl-*.whl")
        return path.name, path.read_bytes()


def _copy_dependencies(target: Path) -> None:
    for name in ("pip", *_closure("carolctl")):
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(distribution.locate_file(file)), target / file)


def _closure(name: str) -> set[str]:
    """The distributions that it stands on, without itself and without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for line in metadata.requires(waiting.pop()) or ():
            needed = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
            if "extra ==" not in line and needed not in found and _is_here(needed):
                found.add(needed)
                waiting.append(needed)
    return found


def _is_here(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
