"""What an instant is, apart from the nouns: `next` and a command's help need no more."""

from __future__ import annotations

from typing import NewType

Millis = NewType("Millis", int)
"""An instant: Unix time in milliseconds, UTC."""
