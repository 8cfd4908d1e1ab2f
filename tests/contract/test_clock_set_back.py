"""A clock that is set back by days: what fired fires no second time, and what it did not reach is not lost."""

from __future__ import annotations

from typing import Any

import pytest

from carolctl import jobs, slot_audit
from carolctl.model import Millis, Run
from tests.builders import DAY, HOUR, MINUTE, T0, job
from tests.fleet import Fleet

#: Days after T0, and hours: what the clock says.
DAY_2 = T0 + 2 * DAY


def tick_at(fleet: Fleet, now: int) -> list[Run]:
    """The runs that a tick at `now` queues; all end well at once."""
    fired = set(fleet.at(now).tick().fired)
    fleet.end_all()
    return [run for run in fleet.runs() if run.run_id in fired]


def audited(fleet: Fleet) -> dict[str, Any]:
    found = slot_audit.audit(fleet.session(), None, T0, fleet.now)
    return found.document()


def set_back_by_two_days(fleet: Fleet, **columns: Any) -> None:
    """Ticks at 01:00 and 02:00 of the third day, then the clock says the first day, 00:00 and 01:00."""
    fleet.add(job("hourly", now=Millis(DAY_2), created_at=T0, anchor_at=T0, **columns))
    for hour in (1, 2):
        [run] = tick_at(fleet, DAY_2 + hour * HOUR)
        assert run.scheduled_for == DAY_2 + hour * HOUR
    for hour in (0, 1):
        tick_at(fleet, T0 + hour * HOUR)


def test_the_run_for_missed_slots_is_laid_on_the_newest_slot_that_has_no_row(fleet: Fleet) -> None:
    set_back_by_two_days(fleet)
    [run] = tick_at(fleet, DAY_2 + 3 * HOUR)
    assert (run.slots_from, run.scheduled_for, run.coalesced) == (T0 + 2 * HOUR, DAY_2, 47)
    fresh = fleet.runs()[-1]
    assert (fresh.scheduled_for, fresh.skip_reason) == (DAY_2 + 3 * HOUR, "overlap")
    assert [run.scheduled_for for run in tick_at(fleet, DAY_2 + 4 * HOUR)] == [DAY_2 + 4 * HOUR]
    assert audited(fleet)["verdict"] == "pass"


@pytest.mark.parametrize("catch_up", ["latest", "all", "skip"])
def test_where_every_missed_slot_has_its_row_the_slot_that_is_due_runs(fleet: Fleet, catch_up: str) -> None:
    fleet.add(job("hourly", catch_up=catch_up))
    for hour in (1, 2, 27, 28):
        fleet.at(T0 + hour * HOUR).tick()
        fleet.end_all()
    fleet.at(T0).tick()
    before = {run.run_id for run in fleet.runs()}
    with fleet.store.write() as tx:
        moved = tx.job("hourly")
        assert moved is not None
        assert moved.last_scheduled_for == T0
        tx._connection.execute("UPDATE scheduled_jobs SET last_scheduled_for = ?", (T0 + 26 * HOUR,))
    assert [run.scheduled_for for run in tick_at(fleet, T0 + 29 * HOUR)] == [T0 + 29 * HOUR]
    [new] = [run for run in fleet.runs() if run.run_id not in before]
    assert (new.status, new.coalesced) == ("completed", 1)


def test_a_tick_of_a_clock_days_ahead_does_not_swallow_the_days(fleet: Fleet) -> None:
    fleet.add(job("hourly"))
    tick_at(fleet, T0 + HOUR)
    # Nine days ahead by mistake, for one tick.
    [ahead] = tick_at(fleet, T0 + 9 * DAY)[:1]
    tick_at(fleet, T0 + HOUR + MINUTE)
    found = tick_at(fleet, T0 + 9 * DAY)
    assert ahead.scheduled_for == T0 + 9 * DAY - HOUR
    assert [run.scheduled_for for run in found] == [T0 + 9 * DAY - 2 * HOUR]
    assert audited(fleet)["verdict"] == "pass"
    assert [run.scheduled_for for run in tick_at(fleet, T0 + 9 * DAY + HOUR)] == [T0 + 9 * DAY + HOUR]


def test_a_pause_leaves_its_row_on_a_slot_that_has_none(fleet: Fleet) -> None:
    set_back_by_two_days(fleet)
    jobs.pause(fleet.at(DAY_2 + 2 * HOUR).session(), "hourly", "a rest")
    row = fleet.runs()[-1]
    assert (row.skip_reason, row.slots_from, row.scheduled_for) == ("paused", T0 + 2 * HOUR, DAY_2)
    jobs.resume(fleet.at(DAY_2 + 3 * HOUR + 1).session(), "hourly")
    assert audited(fleet)["lacking"] == []


def test_neither_a_tick_nor_a_slot_is_repeated_when_the_clock_comes_forward_step_by_step(
    fleet: Fleet,
) -> None:
    set_back_by_two_days(fleet)
    for hour in range(2, 60):
        tick_at(fleet, T0 + hour * HOUR)
    fired = [run.scheduled_for for run in fleet.runs() if run.status == "completed"]
    assert sorted(fired, key=lambda slot: slot or 0) == [T0 + hour * HOUR for hour in range(1, 60)]
    assert audited(fleet)["verdict"] == "pass"
