"""What settling needs to know besides the rows, gathered before the lock: no file and no cron arithmetic under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from carolctl.lockguard import require_unlocked
from carolctl.model import Outcome
from carolctl.store.db import Store

_PSI_CPU = "/proc/pressure/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts:
    """The facts for one call of `settle`."""

    #: The share of the last ten seconds in which somebody waited for a processor, in percent; None: not to be had.
    psi_cpu_avg10: float | None = None


NOTHING_KNOWN = EndFacts()


def gather(store: Store, outcomes: Sequence[Outcome]) -> EndFacts:
    """What `settle` has to know about these ends; nothing, and at no cost, when there are none."""
    return EndFacts(psi_cpu_avg10=psi_cpu_avg10()) if outcomes else NOTHING_KNOWN


def psi_cpu_avg10(path: str = _PSI_CPU) -> float | None:
    """The kernel's ``some avg10`` of the processor, in percent; None where the kernel does not say."""
    require_unlocked("reading the processor's pressure")
    try:
        with open(path, encoding="ascii") as file:
            words = file.readline().split()
        return next(float(word[6:]) for word in words if word.startswith("avg10="))
    except (OSError, ValueError, StopIteration):
        return None
