"""One command, from its start to the end of its whole tree.

A command runs in the session of its supervisor, in a process group of its own. A run ends with its whole tree:
what the command left in that session when it ended is ended too, as a service manager would, because its slot
is given to the next.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from carolctl.launch import owner
from carolctl.launch.capture import CappedLog
from carolctl.lockguard import require_unlocked
from carolctl.model import FailureClass

STOP_GRACE_SEC = 10.0
"""From SIGTERM to SIGKILL for a run that is to end."""

LEFTOVER_GRACE_SEC = 2.0
"""The same for what a command left running behind itself."""

PIPE_PATIENCE_SEC = 1.0
"""How long to read on after the end of a command whose output is still held open by somebody."""

_KILL_PATIENCE_SEC = 5.0
_LOOK_AGAIN_SEC = 0.02
_LONGEST_WAIT_SEC = 30.0
_READ_BYTES = 65536
_COMMAND_UMASK = 0o022


def boot_seconds() -> float:
    """Seconds since boot, suspend included: a lease goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Signals:
    """SIGTERM remembered, and every signal felt by a poll on `wake_fd`."""

    def __init__(self) -> None:
        self.stop_asked = False
        self.on_stop: Callable[[], None] = lambda: None
        self.wake_fd, self._write_fd = os.pipe()
        for descriptor in (self.wake_fd, self._write_fd):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def install(self) -> None:
        """Take over what matters here, and undo what a caller had set: commands inherit what is ignored."""
        for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGTERM, self._remember)
        # Handlers that do nothing, because a handler, unlike SIG_IGN, does not outlive an exec.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _remember(self, *_: object) -> None:
        self.stop_asked = True
        self.on_stop()

    def drain(self) -> None:
        """Empty the pipe that woke a poll."""
        os.read(self.wake_fd, _READ_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the process ended: as `subprocess` has it, and why we ended it, if it was us."""

    returncode: int
    ended_by_us: FailureClass | None

    @property
    def exit_status(self) -> int:
        """As a shell has it: 128 + n for signal n."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode


class CommandSupervisor:
    """Runs one command to its end: pumps its output, holds it to its lease, and ends its whole tree."""

    def __init__(self, argv: Sequence[str], *, deadline: float, log: CappedLog, signals: Signals) -> None:
        self._argv = argv
        self._deadline = deadline
        self._log = log
        self._signals = signals
        self._ended_by_us: FailureClass | None = None
        self._ended_at = math.inf
        self._kill_at = math.inf
        self._poller = select.poll()

    def spawn(self, environment: dict[str, str], folder: str | None = None) -> None:
        """Start the command in `folder`, else at home. Raises OSError or ValueError when it cannot be run."""
        require_unlocked("starting a command")
        home = environment.get("HOME", "")
        self._process = subprocess.Popen(
            # Byte for byte, whatever the locale is.
            [argument.encode("utf-8", "surrogateescape") for argument in self._argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=folder or (home if os.path.isdir(home) else "/"),
            env=environment,
            process_group=0,
            umask=_COMMAND_UMASK,
        )
        assert self._process.stdout is not None
        self._pipe: int | None = self._process.stdout.fileno()
        for descriptor in (self._pipe, self._signals.wake_fd):
            self._poller.register(descriptor, select.POLLIN)

    def wait(self) -> Ending:
        """Pump and watch until the command and its tree have ended."""
        while not self._is_over(boot_seconds()):
            self._listen(self._patience(boot_seconds()))
            self._look(boot_seconds())
        self._close_pipe()
        return Ending(returncode=self._process.returncode, ended_by_us=self._ended_by_us)

    def _listen(self, seconds: float) -> None:
        """Wait for output, a signal or the time to look again."""
        for descriptor, _ in self._poller.poll(math.ceil(seconds * 1000)):
            if descriptor == self._signals.wake_fd:
                self._signals.drain()
            else:
                self._read(descriptor)

    def _read(self, descriptor: int) -> None:
        chunk = os.read(descriptor, _READ_BYTES)
        if chunk:
            self._log.add(chunk)
        else:
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._pipe is not None and self._process.stdout is not None:
            self._poller.unregister(self._pipe)
            self._process.stdout.close()
            self._pipe = None

    def _patience(self, now: float) -> float:
        if self._has_ended or now >= self._kill_at:
            return _LOOK_AGAIN_SEC
        until = self._deadline if self._ended_by_us is None else self._kill_at
        return min(max(until - now, 0.0), _LONGEST_WAIT_SEC)

    @property
    def _has_ended(self) -> bool:
        return self._ended_at < math.inf

    def _look(self, now: float) -> None:
        """Notice, in this order, that the command has ended, that it has to, and that it will not by itself."""
        if not self._has_ended and self._process.poll() is not None:
            self._ended_at = now
            self._end_tree(now + LEFTOVER_GRACE_SEC)
        elif not self._has_ended and self._ended_by_us is None:
            self._end_if_due(now)
        if now >= self._kill_at:
            self._send(signal.SIGKILL)

    def _end_if_due(self, now: float) -> None:
        if self._signals.stop_asked:
            self._ended_by_us = "aborted"
        elif now >= self._deadline:
            self._ended_by_us = "lease_expired"
        else:
            return
        self._end_tree(now + STOP_GRACE_SEC)

    def _end_tree(self, kill_at: float) -> None:
        self._kill_at = min(self._kill_at, kill_at)
        self._send(signal.SIGTERM)
        # What was stopped would never notice.
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        """To the command's group in one go, and to whoever of the session left that group; not to this process."""
        require_unlocked("ending a command")
        # As long as the command has not been waited for, its id can be nobody else's.
        group = 0 if self._has_ended else self._process.pid
        if group:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
        for process in owner.members_but_me():
            if process.group != group:
                owner.send(process.pid, number)

    def _is_over(self, now: float) -> bool:
        if not self._has_ended or (self._pipe is not None and now < self._ended_at + PIPE_PATIENCE_SEC):
            return False
        return not owner.members_but_me() or now >= self._kill_at + _KILL_PATIENCE_SEC
