"""The child's side of the contention test: wait for the word to begin, work until the word to stop, report once.

A child says ``ready`` on standard output, reads ``go`` and ``stop`` from standard input, and answers with one JSON
line. Its standard input ends with its parent, and it with that: no child outlives a parent that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Brief = dict[str, Any]
"""What a child is told: numbers, texts and lists of them."""


class Cue:
    """When to begin and when to stop, and the attempts timed in between."""

    def __init__(self) -> None:
        self._go, self._stop = threading.Event(), threading.Event()
        self.milliseconds: list[float] = []
        self.failures = 0

    @property
    def over(self) -> bool:
        """Whether the parent said stop."""
        return self._stop.is_set()

    def wait_for_go(self) -> None:
        """Say that everything is prepared, and wait for the others."""
        say("ready")
        self._go.wait()

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, or until the end."""
        self._stop.wait(seconds)

    def attempt(self, act: Callable[[], bool]) -> bool:
        """Time one attempt; whether it succeeded."""
        began = time.perf_counter()
        done = act()
        self.milliseconds.append(round((time.perf_counter() - began) * 1000, 4))
        self.failures += not done
        return done

    def figures(self) -> Brief:
        """What was timed, for a report."""
        return {"milliseconds": self.milliseconds, "failures": self.failures}

    def listen(self) -> None:
        """Follow standard input; its end is the end of this process."""
        while said := os.read(0, 4096):
            if b"go" in said:
                self._go.set()
            if b"stop" in said:
                self._stop.set()
        os._exit(1)


Task = Callable[[Cue, Brief], Brief]


def say(line: str) -> None:
    """One line to the parent, at once and whole."""
    data = f"{line}\n".encode()
    while data:
        data = data[os.write(1, data) :]


def perform(tasks: Mapping[str, Task], arguments: Sequence[str]) -> None:
    """The main function of a child: ``TASK BRIEF``, the latter as JSON. Ends the process."""
    # A Ctrl-C reaches the whole group: the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task, brief = arguments
    cue = Cue()
    threading.Thread(target=cue.listen, daemon=True).start()
    try:
        report = tasks[task](cue, json.loads(brief))
    except Exception as trouble:  # noqa: BLE001 - said to the parent, which judges it
        report = {"trouble": f"{task}: {type(trouble).__name__}: {trouble}"}
    say(json.dumps(report))
    sys.stderr.flush()
    os._exit(0)
