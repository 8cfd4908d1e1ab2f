"""Soft pressure: whoever needs the machine for themselves holds a source, and due firings are put off meanwhile.

Incident: five schedules fired at once and the interactive chat starved behind them. Decision: chat comes first; it
holds a named source, leased like every other lock, and ticks put off what is due, up to a maximum in total; a manual
run is never put off. Consequence: a holder that dies delays the fleet until its lease ends, and no longer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import NoReturn

from carolctl import clock
from carolctl.errors import CarolError, NotFound, NotPermitted, UsageError
from carolctl.event_values import is_event_id
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.session import Session
from carolctl.store.records import AuditEntry

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_HEARD = {*_PASSED_ON, signal.SIGCHLD}
_RENEWALS_A_LEASE = 3


def check_name(text: str) -> str:
    """`text`, if it can be the name of a source. Raises `UsageError`."""
    if not is_event_id(text):
        raise UsageError(
            f"not a letter or digit and up to 63 of A-Z a-z 0-9 . _ -: {text[:80]!a}", field="name"
        )
    return text


def hold(session: Session, name: str, *, ttl_sec: int) -> Millis:
    """Hold a source for `ttl_sec` from now, or longer if it is held so already; when it ends by itself."""
    now = clock.now()
    with session.store.write() as tx:
        is_new = name not in tx.pressure_sources(now)
        until = tx.hold_pressure(name, now=now, until=Millis(now + 1000 * ttl_sec))
        # A renewal is no news: a chat that renews every half a minute must not fill the log.
        if is_new:
            tx.audit(_entry(session, "pressure hold", name, now, after={"until": until}))
    return until


def release(session: Session, name: str) -> bool:
    """Let a source go, whoever held it; False when it was not held."""
    now = clock.now()
    with session.store.write() as tx:
        held = name in tx.pressure_sources(now)
        tx.release_pressure(name)
        if held:
            tx.audit(_entry(session, "pressure release", name, now))
    return held


def _entry(
    session: Session, command: str, name: str, now: Millis, after: dict[str, Millis] | None = None
) -> AuditEntry:
    return AuditEntry(at=now, actor=session.actor, command=command, subject=name, after=after)


# -- for the life of a command -----------------------------------------------------------------------------


def hold_while(session: Session, name: str, argv: Sequence[str], *, ttl_sec: int) -> int:
    """Hold a source while a command runs; its exit code, 128 + n when signal n ended it.

    Renewed three times a lease; released at its end, also when we are told to end: that is passed on to it. Only a
    kill -9 of this process leaves the source held, until its lease ends. Raises `NotFound`, `NotPermitted`.
    """
    try:
        hold(session, name, ttl_sec=ttl_sec)
        # Blocked before the start: neither its end nor a signal for us can come between.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        return _wait(session, name, _spawn(argv), ttl_sec)
    finally:
        _release_or_say(session, name)


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
    if isinstance(problem, PermissionError):
        raise NotPermitted(message) from None
    raise NotFound(message) from None


def _wait(session: Session, name: str, pid: int, ttl_sec: int) -> int:
    """Until the command ends: renew the lease, and pass on what we are told."""
    pause = ttl_sec / _RENEWALS_A_LEASE
    renew_at = time.monotonic() + pause
    while True:
        heard = signal.sigtimedwait(_HEARD, max(0.0, renew_at - time.monotonic()))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if heard is None:
            _renew_or_say(session, name, ttl_sec)
            renew_at = time.monotonic() + pause
        elif heard.si_signo in _PASSED_ON and not _was_for_both(heard):
            os.kill(pid, heard.si_signo)


def _was_for_both(heard: signal.struct_siginfo) -> bool:
    """A Ctrl-C comes from the kernel, and to everybody in front of the terminal: the command has it already."""
    return heard.si_signo == signal.SIGINT and heard.si_pid == 0


def _renew_or_say(session: Session, name: str, ttl_sec: int) -> None:
    try:
        hold(session, name, ttl_sec=ttl_sec)
    except CarolError as trouble:
        warn(f"{name} is not renewed: {trouble.message}")


def _release_or_say(session: Session, name: str) -> None:
    try:
        release(session, name)
    except CarolError as trouble:
        warn(f"{name} stays held until its lease ends: {trouble.message}")
