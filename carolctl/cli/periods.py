"""A beginning or an end of a period, as a person gives it: how long ago, or an instant."""

from __future__ import annotations

from carolctl import clock
from carolctl.instant import Millis


def instant_or_ago(text: str, now: Millis, *, field: str) -> Millis:
    """``24h`` is that long before `now`; anything else is ISO 8601. Raises `UsageError` naming `field`."""
    from carolctl.schedule import parse_duration

    if text[:1].isdigit() and text[4:5] != "-":
        return Millis(now - 1000 * parse_duration(text, field=field))
    return clock.parse_iso(text, field=field)
