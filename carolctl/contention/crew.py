"""The parent's side of the contention test: children that begin together, stop together and report.

Every child is ended by its own process object, whatever happens; none is looked for by name.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType

from carolctl.contention.cue import Brief
from carolctl.errors import Refused
from carolctl.lockguard import require_unlocked

WORKER = "carolctl.contention.worker"
PATIENCE_SEC = 60.0
"""How long children may take to get ready or to report: after that they are killed, and the scenario fails."""


class Crew:
    """Children of one scenario: ``with Crew(environment) as crew``, then add, start, stop, reports."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()

    def add(self, task: str, *, module: str = WORKER, **brief: object) -> None:
        """Start a child that will do `task` of `module`."""
        require_unlocked("starting a process")
        self._children.append(
            subprocess.Popen(
                [sys.executable, "-I", "-m", module, task, json.dumps(brief)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                bufsize=0,
            )
        )

    def start(self) -> None:
        """Wait until all are prepared, then let them begin."""
        for line in self._lines():
            if line != b"ready\n":
                raise _failed(line)
        self._tell(b"go\n")

    def stop(self, *, dead_are_expected: bool = False) -> list[Brief]:
        """Let all end; what they report, in the order in which they were added."""
        self._tell(b"stop\n")
        return [_report(line) for line in self._lines() if line or not dead_are_expected]

    def kill(self) -> None:
        """End all at once by SIGKILL."""
        for child in self._children:
            child.kill()

    def _tell(self, word: bytes) -> None:
        for child in self._children:
            assert child.stdin is not None
            try:
                child.stdin.write(word)
            except BrokenPipeError:
                continue  # it has died; its missing report says so

    def _lines(self) -> list[bytes]:
        """One line from each; an empty one from a child that died or was too slow."""
        watchdog = threading.Timer(PATIENCE_SEC, self.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            return [child.stdout.readline() for child in self._children if child.stdout]
        finally:
            watchdog.cancel()


def _report(line: bytes) -> Brief:
    if not line.startswith(b"{"):
        raise _failed(line)
    report: Brief = json.loads(line)
    if "trouble" in report:
        raise _failed(line)
    return report


def _failed(line: bytes) -> Refused:
    said = line.decode(errors="replace").strip() or "nothing: it died, or took too long"
    return Refused(
        f"a process of the contention test said {said[:300]}", hint="run it again on a quieter machine"
    )
