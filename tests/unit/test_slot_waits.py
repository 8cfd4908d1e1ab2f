"""What a wait was for: sums on spans of time."""

from __future__ import annotations

from carolctl.model import Millis
from carolctl.slot_waits import Held, for_cap, full, length, pauses


def held(job_id: str, queued: int, claimed: int, ended: int, attempt: int = 1) -> Held:
    return Held(job_id, attempt, Millis(queued), Millis(claimed), Millis(ended))


def test_where_enough_overlap_is_full_and_ends_that_meet_beginnings_are_not() -> None:
    assert full([(0, 10), (5, 15), (15, 20), (8, 9)], 2) == [(5, 10)]
    assert full([(0, 10), (10, 20)], 1) == [(0, 10), (10, 20)]
    assert full([(0, 10)], 2) == []


def test_only_the_part_within_counts_and_only_without_what_is_left_out() -> None:
    spans = [(0, 10), (20, 30), (40, 50)]
    assert length(spans, 5, 45) == 20
    assert length(spans, 5, 45, without=[(8, 22)]) == 5 - 2 + 10 - 2 + 5
    assert length(spans, 10, 20) == 0


def test_only_time_with_all_slots_taken_nothing_paused_and_no_run_of_its_own_counts() -> None:
    others = [held("a", 0, 0, 100), held("b", 0, 0, 100)]
    waits = held("c", 0, 100, 110)
    assert for_cap([*others, waits], cap=2, longer_than_ms=60) == 1
    assert for_cap([*others, waits], cap=3, longer_than_ms=60) == 0
    assert for_cap([*others, waits], cap=2, longer_than_ms=60, paused=[(10, 60)]) == 0
    assert for_cap([*others, waits], cap=2, longer_than_ms=60, resting={"c": [(10, 60)]}) == 0
    own = held("a", 0, 100, 110)
    assert for_cap([*others, own], cap=2, longer_than_ms=60) == 0
    assert for_cap([*others, own], cap=2, longer_than_ms=60, parallel={"a"}) == 1
    assert for_cap([*others, waits._replace(attempt=2)], cap=2, longer_than_ms=60) == 0


def test_a_pause_lasts_until_the_resume_or_until_it_ends_by_itself() -> None:
    def entry(at: int, word: str | None) -> dict[str, object]:
        return {"at": at, "after": {"paused_until": word}}

    told = [entry(10, "forever"), entry(20, None), entry(30, "35"), entry(40, "80"), entry(50, "forever")]
    assert pauses(told, Millis(90)) == [(10, 20), (30, 35), (40, 50), (50, 90)]
    assert pauses([entry(10, "500")], Millis(90)) == [(10, 90)]
