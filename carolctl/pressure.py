"""Soft pressure: whoever needs the machine for themselves holds a source, and due firings are put off meanwhile.

Incident: five schedules fired at once and the interactive chat starved behind them. Decision: chat comes first; it
holds a named source, leased like every other lock, and ticks put off what is due, up to a maximum in total; a manual
run is never put off. Consequence: a holder that dies delays the fleet until its lease ends, and no longer. Each
command that runs under a name has a row of its own, so that the end of one does not end the hold of another.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from carolctl import clock
from carolctl.errors import CarolError, NotFound, NotPermitted, StoreBusy, UsageError
from carolctl.event_values import is_event_id
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.store.records import AuditEntry

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_HEARD = {*_PASSED_ON, signal.SIGCHLD}
_RENEWALS_A_LEASE = 3
_TAKEN_AGAIN_SEC = 2.0
"""How soon a hold is tried again that a busy store did not take."""

MAX_TTL_SEC = 24 * 3600
"""A holder that died delays the fleet for so long at most."""


def check_name(text: str) -> str:
    """`text`, if it can be the name of a source. Raises `UsageError`."""
    if not is_event_id(text):
        raise UsageError(
            f"not a letter or digit and up to 63 of A-Z a-z 0-9 . _ -: {text[:80]!a}", field="name"
        )
    return text


def check_ttl(seconds: int) -> int:
    """`seconds`, if a source may be held for so long without being renewed. Raises `UsageError`."""
    if seconds > MAX_TTL_SEC:
        raise UsageError(
            f"at most {MAX_TTL_SEC // 3600} h",
            field="ttl",
            hint="hold NAME -- COMMAND holds for as long as a command takes; carolctl pause has no end",
        )
    return seconds


def hold(session: Session, name: str, *, ttl_sec: int, reason: str | None = None) -> Millis:
    """Hold a source for `ttl_sec` from now, or longer if it is held so already; when that hold ends by itself."""
    now = clock.now()
    with session.store.write() as tx:
        is_new = name not in tx.pressure_sources(now)
        until = tx.hold_pressure(name, now=now, until=_end(now, ttl_sec))
        # A renewal is no news: a chat that renews every half a minute must not fill the log.
        if is_new or reason:
            tx.audit(_entry(session, "pressure hold", name, now, {"until": until}, reason))
    return until


def release(session: Session, name: str, *, reason: str | None = None) -> bool:
    """Let a source go, whoever holds it, commands that run included; False when it was not held."""
    now = clock.now()
    with session.store.write() as tx:
        held = name in tx.pressure_sources(now)
        tx.release_pressure(name)
        if held:
            tx.audit(_entry(session, "pressure release", name, now, reason=reason))
    return held


def _end(now: Millis, ttl_sec: int) -> Millis:
    return Millis(now + 1000 * ttl_sec)


def _entry(
    session: Session,
    command: str,
    name: str,
    now: Millis,
    after: dict[str, Any] | None = None,
    reason: str | None = None,
) -> AuditEntry:
    return AuditEntry(at=now, actor=session.actor, command=command, subject=name, after=after, reason=reason)


# -- for the life of a command -----------------------------------------------------------------------------


def hold_while(
    session: Session, name: str, argv: Sequence[str], *, ttl_sec: int, reason: str | None = None
) -> int:
    """Hold a source while a command runs; its exit code, 128 + n when signal n ended it.

    Renewed three times a lease; given back at its end, also when we are told to end: that is passed on to it. Only a
    kill -9 of this process leaves the source held, until its lease ends. Raises `NotFound`, `NotPermitted`.
    """
    holding = _Holding(session, name, ttl_sec, reason)
    try:
        holding.take()
        # Blocked before the start: neither its end nor a signal for us can come between.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        return _wait(holding, _spawn(argv))
    finally:
        holding.give_back()


class _Holding:
    """The hold of one command: a row of its own, beside those of others under the same name."""

    def __init__(self, session: Session, name: str, ttl_sec: int, reason: str | None) -> None:
        self._session, self._name, self._ttl_sec, self._reason = session, name, ttl_sec, reason
        self._holder = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._state: Literal["not yet", "held", "released"] = "not yet"

    @property
    def pause_sec(self) -> float:
        """How long it may be until the next `keep`."""
        third = self._ttl_sec / _RENEWALS_A_LEASE
        return min(third, _TAKEN_AGAIN_SEC) if self._state == "not yet" else third

    def take(self) -> None:
        """Begin the hold. A busy store does not keep the command from starting: it is tried again meanwhile."""
        try:
            self._take()
        except StoreBusy as trouble:
            warn(f"{self._name} is not held yet: {trouble.message}")

    def keep(self) -> None:
        """Renew the hold, or begin it if that could not be done before."""
        try:
            if self._state == "not yet":
                self._take()
            elif self._state == "held" and not self._renew():
                self._state = "released"
                warn(f"{self._name} was released by somebody and is not taken back")
        except CarolError as trouble:
            warn(f"{self._name} is not renewed: {trouble.message}")

    def give_back(self) -> None:
        """End this hold, and no other of its name."""
        if self._state != "held":
            return
        now = clock.now()
        try:
            with self._session.store.write() as tx:
                if tx.release_pressure(self._name, holder=self._holder):
                    after = {"holder": self._holder}
                    tx.audit(_entry(self._session, "pressure release", self._name, now, after))
        except CarolError as trouble:
            warn(f"{self._name} stays held until its lease ends: {trouble.message}")

    def _take(self) -> None:
        now = clock.now()
        with self._session.store.write() as tx:
            until = tx.hold_pressure(self._name, now=now, until=_end(now, self._ttl_sec), holder=self._holder)
            after = {"until": until, "holder": self._holder}
            tx.audit(_entry(self._session, "pressure hold", self._name, now, after, self._reason))
            # Before COMMIT: an interrupt right after it must not leave the hold behind.
            self._state = "held"

    def _renew(self) -> bool:
        with self._session.store.write() as tx:
            return tx.renew_pressure(self._name, self._holder, until=_end(clock.now(), self._ttl_sec))


def _spawn(argv: Sequence[str]) -> int:
    require_unlocked("starting a command")
    words = [os.fsencode(word) for word in argv]
    try:
        return os.posix_spawnp(words[0], words, os.environ, setsigmask=())
    except OSError as problem:
        _cannot_run(argv[0], problem)
    except ValueError as problem:
        raise UsageError(str(problem), field="command") from None


def _cannot_run(program: str, problem: OSError) -> NoReturn:
    message = f"{program[:200]!a} cannot be run: {problem.strerror}"
    hint = "after -- comes a program, by its path or as it is found in PATH, and its arguments"
    if isinstance(problem, PermissionError):
        raise NotPermitted(message, hint=hint) from None
    raise NotFound(message, hint=hint) from None


def _wait(holding: _Holding, pid: int) -> int:
    """Until the command ends: keep the hold, and pass on what we are told."""
    keep_at = time.monotonic() + holding.pause_sec
    while True:
        heard = signal.sigtimedwait(_HEARD, max(0.0, keep_at - time.monotonic()))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if heard is None:
            holding.keep()
            keep_at = time.monotonic() + holding.pause_sec
        elif heard.si_signo in _PASSED_ON and not _was_for_both(heard):
            os.kill(pid, heard.si_signo)


def _was_for_both(heard: signal.struct_siginfo) -> bool:
    """A Ctrl-C comes from the kernel, and to everybody in front of the terminal: the command has it already."""
    return heard.si_signo == signal.SIGINT and heard.si_pid == 0
