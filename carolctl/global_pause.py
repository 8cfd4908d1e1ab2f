"""The global pause: a word in meta, ``forever`` or the instant at which it ends. Pure."""

from __future__ import annotations

from carolctl.instant import Millis

KEY = "paused_until"
FOREVER = "forever"


def in_force(until: str | None, now: Millis) -> bool:
    """Whether that word means a pause at `now`; one that cannot be read does: the careful reading."""
    if until is None:
        return False
    end = ends_at(until)
    return end is None or end > now


def ends_at(until: str) -> Millis | None:
    """When it ends by itself; None for one that does not."""
    try:
        return Millis(int(until))
    except ValueError:
        return None
