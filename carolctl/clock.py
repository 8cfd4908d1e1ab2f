"""The clock, the boot and the host: read by the command line and by runners, handed down as values.

``CAROL_NOW`` (ISO 8601) stands still in place of the wall clock, for tests and rehearsals. While it is set
there is no boot-time clock either, since the two would contradict each other.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

from carolctl.errors import UsageError
from carolctl.instant import Millis

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> Millis:
    """The present instant, or ``CAROL_NOW``. Raises `UsageError` when that is no ISO 8601 instant."""
    pinned = os.environ.get("CAROL_NOW")
    if pinned:
        return parse_iso(pinned, field="CAROL_NOW")
    return Millis(time.time_ns() // 1_000_000)


def boottime_ms() -> int | None:
    """Milliseconds since boot, suspend included; None while ``CAROL_NOW`` is set."""
    if os.environ.get("CAROL_NOW"):
        return None
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)


def boot_id() -> str:
    """The identity of this boot, or ``unknown`` where /proc hides it.

    Our units are told by the service manager (``CAROL_BOOT_ID``): in a container, the /proc of a sandbox is a new one
    and has the host's, which would make every run a run of another boot.
    """
    told = os.environ.get("CAROL_BOOT_ID", "")
    if len(told) == 32:
        return "-".join((told[:8], told[8:12], told[12:16], told[16:20], told[20:]))
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def hostname() -> str:
    """The name of this host, as the kernel has it."""
    return os.uname().nodename


def iso(instant: Millis | int | None) -> str | None:
    """ISO 8601 with ``Z``; milliseconds only where there are any. Beyond the calendar, the bare number."""
    if instant is None:
        return None
    try:
        moment = _EPOCH + timedelta(milliseconds=instant)
    except OverflowError:
        return f"{instant} ms"
    precision = "milliseconds" if instant % 1000 else "seconds"
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def parse_iso(text: str, *, field: str) -> Millis:
    """An instant from ISO 8601; without an offset it is UTC. Raises `UsageError` naming `field`."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"not an ISO 8601 time: {text!r}", field=field, hint="for example 2026-03-29T02:30:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return Millis((moment - _EPOCH + timedelta(microseconds=500)) // timedelta(milliseconds=1))
