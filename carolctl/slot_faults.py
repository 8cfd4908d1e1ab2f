"""What is wrong with the rows that stand for slots, beside the slots that have none: each by row and slot. Pure.

Each slot is to be covered by exactly one row. A row is at fault that stands for a slot which another stands for too,
or for none, or that counts other slots than lie in its range, or that says skipped of what held a slot to run in.

Where the clock was set back so far that the job's time began anew, slots come due a second time: what was laid down
for those is counted, and is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from carolctl.clock import iso
from carolctl.job_history import Entry, Epoch
from carolctl.model import Millis
from carolctl.policy import COALESCED_LIMIT
from carolctl.slot_waits import Span

Kind = Literal["doubled", "no_slot", "miscounted", "ran_though_skipped", "no_schedule"]


class Row(NamedTuple):
    """A row of a scheduled firing: the slots in [slots_from, scheduled_for], `coalesced` of them."""

    run_id: int
    slots_from: Millis
    scheduled_for: Millis
    coalesced: int
    #: It is skipped, and yet was given a slot to run in.
    is_skip_that_ran: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a row, and the slot at which it shows."""

    job_id: str
    kind: Kind
    run_id: int
    slot: Millis
    said: str


def of_job(
    job_id: str, rows: Sequence[Row], epochs: Sequence[Epoch], due: set[Millis], changes: Sequence[Entry],
    *, since: Millis, until: Millis,
) -> tuple[list[Fault], int]:  # fmt: skip
    """The faults of a job's rows (by scheduled_for), and how many rows are excused by a clock that was set back.

    `due`: its slots in (since, until], under all its epochs.
    """
    repeated = _repeated(changes)
    excused = {
        row.run_id
        for row in rows
        if any(row.slots_from <= high and low < row.scheduled_for for low, high in repeated)
    }
    found = [fault for row in rows for fault in _alone(job_id, row, epochs, due, since, until)]
    found += _doubled(job_id, rows)
    return [fault for fault in found if fault.run_id not in excused], len(excused)


def _repeated(changes: Iterable[Entry]) -> list[Span]:
    """(from, to]: where the job's time went back, by an entry that began it anew."""
    found = []
    for entry in changes:
        before = (entry["before"] or {}).get("last_scheduled_for")
        after = (entry["after"] or {}).get("last_scheduled_for")
        if before is not None and after is not None and after < before:
            found.append((after, before))
    return found


def _alone(
    job_id: str, row: Row, epochs: Sequence[Epoch], due: set[Millis], since: Millis, until: Millis
) -> Iterable[Fault]:
    """What is wrong with a row by itself."""

    def fault(kind: Kind, slot: Millis, said: str) -> Fault:
        return Fault(job_id=job_id, kind=kind, run_id=row.run_id, slot=slot, said=said)

    if row.is_skip_that_ran:
        yield fault(
            "ran_though_skipped", row.scheduled_for, "it says skipped, and was given a slot to run in"
        )
    held = [epoch for epoch in epochs if epoch.begin < row.scheduled_for and _reaches(epoch, row.slots_from)]
    if not held:
        yield fault("no_schedule", row.scheduled_for, "nothing is known of a schedule at that time")
        return
    if any(epoch.times is None for epoch in held):
        return
    for slot in sorted({row.slots_from, row.scheduled_for}):
        if since < slot <= until and slot not in due:
            yield fault("no_slot", slot, "no slot was due then")
            return
    if (row.slots_from, row.coalesced) != (row.scheduled_for, 1):
        count = min(COALESCED_LIMIT, sum(_count(epoch, row) for epoch in held))
        if count != row.coalesced:
            said = f"it counts {row.coalesced} slots from {iso(row.slots_from)}, and {count} were due"
            yield fault("miscounted", row.scheduled_for, said)


def _reaches(epoch: Epoch, instant: Millis) -> bool:
    return epoch.end is None or instant <= epoch.end


def _count(epoch: Epoch, row: Row) -> int:
    """Its slots in the range of a row."""
    if epoch.times is None:
        return 0
    after = Millis(max(epoch.begin, row.slots_from - 1))
    last = row.scheduled_for if epoch.end is None else Millis(min(epoch.end, row.scheduled_for))
    return epoch.times.count(after, last, limit=COALESCED_LIMIT) if after < last else 0


def _doubled(job_id: str, rows: Sequence[Row]) -> Iterable[Fault]:
    """Rows whose ranges lie over the range of another: both ends of a range are slots, so they share one."""
    widest: Row | None = None
    for row in sorted(rows, key=lambda row: (row.slots_from, -row.scheduled_for, row.run_id)):
        if widest is not None and row.slots_from <= widest.scheduled_for:
            said = (
                f"row {widest.run_id} stands for {iso(widest.slots_from)} to {iso(widest.scheduled_for)} too"
            )
            slot = Millis(min(row.scheduled_for, widest.scheduled_for))
            yield Fault(job_id=job_id, kind="doubled", run_id=row.run_id, slot=slot, said=said)
        if widest is None or row.scheduled_for > widest.scheduled_for:
            widest = row
