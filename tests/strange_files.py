"""What may lie in a spool folder besides files: made by name, for the tests of both kinds of spool files."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def fifo(folder: Path, path: Path) -> None:
    os.mkfifo(path)


def unix_socket(folder: Path, path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def directory(folder: Path, path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def endless(folder: Path, path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 * 2**40)
