"""What settling needs to know besides the rows, gathered before the lock: no file and no cron arithmetic under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from carolctl.errors import BadSchedule
from carolctl.lockguard import require_unlocked
from carolctl.model import Job, Millis, Outcome
from carolctl.store.db import Store

GRACE_SLOTS = 2
"""A breach does not count while at most so many slots have come since the budget was set."""

_PSI_CPU = "/proc/pressure/cpu"

#: Job id, schedule_rev, max_turns_set_at.
Budget = tuple[str, int, Millis | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts:
    """The facts for one call of `settle`."""

    #: The share of the last ten seconds in which somebody waited for a processor, in percent; None: not to be had.
    psi_cpu_avg10: float | None = None
    #: When the grace of a turn budget ends, by job, schedule and the instant at which the budget was set.
    grace_ends: Mapping[Budget, Millis | None] = field(default_factory=dict)

    def is_in_grace(self, job: Job, at: Millis) -> bool:
        """Whether a breach at `at` does not count yet, because the budget is new to the job.

        A budget or a schedule that was not there when the facts were gathered is newer than any slot.
        """
        if job.max_turns_set_at is None:
            return False
        ends = self.grace_ends.get(_budget(job))
        return ends is None or at < ends


NOTHING_KNOWN = EndFacts()


def gather(
    store: Store, outcomes: Sequence[Outcome], *, reported: Sequence[tuple[int, int]] = ()
) -> EndFacts:
    """What `settle` has to know about these ends, and about the turns that events have `reported` (run id, turns).

    Nothing, and at no cost, when there are none.
    """
    if not outcomes and not reported:
        return NOTHING_KNOWN
    said = [(one.run_id, one.turns, one.failure_reason == "turn_limit_exceeded") for one in outcomes]
    with store.read() as tx:
        jobs = tx.jobs_of_breaches(said + [(run_id, turns, False) for run_id, turns in reported])
    return EndFacts(
        psi_cpu_avg10=psi_cpu_avg10() if outcomes else None,
        grace_ends={_budget(job): _grace_end(job) for job in jobs},
    )


def _budget(job: Job) -> Budget:
    return job.job_id, job.schedule_rev, job.max_turns_set_at


def _grace_end(job: Job) -> Millis | None:
    """The third slot after the budget was set; None where the schedule has no third, or cannot be read."""
    # Breaches are rare, and the runner of a run needs no schedules otherwise.
    from carolctl import timing

    try:
        times, slot = timing.schedule_of(job), job.max_turns_set_at
        for _ in range(GRACE_SLOTS + 1):
            slot = None if slot is None else times.next_after(slot)
    except BadSchedule:
        return None
    return slot


def psi_cpu_avg10(path: str = _PSI_CPU) -> float | None:
    """The kernel's ``some avg10`` of the processor, in percent; None where the kernel does not say."""
    require_unlocked("reading the processor's pressure")
    try:
        with open(path, encoding="ascii") as file:
            words = file.readline().split()
        return next(float(word[6:]) for word in words if word.startswith("avg10="))
    except (OSError, ValueError, StopIteration):
        return None
