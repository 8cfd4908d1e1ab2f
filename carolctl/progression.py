"""Instants evenly spaced in elapsed time: the slots of ``every``, ``at`` and ``manual``, which know no wall clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Progression(NamedTuple):
    """``size`` instants ``step`` apart from ``first`` on: ``every``, ``at`` (one) and ``manual`` (none)."""

    first: int
    step: int
    size: int = 1 << 62

    def _upto(self, at: int) -> int:
        return min(max((at - self.first) // self.step + 1, 0), self.size)

    def _range(self, after: int, until: int) -> range:
        low, high = self._upto(after), self._upto(until)
        return range(self.first + low * self.step, self.first + high * self.step, self.step)

    def next_after(self, after: int) -> int | None:
        """The first instant strictly after."""
        number = self._upto(after)
        return self.first + number * self.step if number < self.size else None

    def latest_at(self, at: int) -> int | None:
        """The last instant at or before."""
        number = self._upto(at)
        return self.first + (number - 1) * self.step if number else None

    def tally(self, after: int, until: int, limit: int) -> int:
        """How many lie in (after, until]."""
        return len(self._range(after, until))

    def tallies(self, start: int, width: int, size: int) -> Sequence[int]:
        """How many lie in each of ``size`` intervals of ``width`` from ``start`` on, their ends excluded."""
        ends = [self._upto(start + number * width - 1) for number in range(size + 1)]
        return [high - low for low, high in pairwise(ends)]

    def newest(self, after: int, until: int, limit: int) -> list[int]:
        """The newest ``limit`` in (after, until], ascending."""
        return list(self._range(after, until)[-limit:])

    def between(self, after: int, until: int) -> Iterator[int]:
        """Those in (after, until], ascending."""
        return iter(self._range(after, until))
