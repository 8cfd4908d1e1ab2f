"""The arithmetic of the contention test: percentiles of few values, histograms, what passes and what fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import carolctl
from carolctl.contention import verdicts
from carolctl.contention.figures import (
    EDGES_MS,
    Check,
    Measured,
    bars,
    class_names,
    histogram,
    judge,
    missing,
    most_at_once,
    percentile,
    repeated,
    together,
)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.5, 7.0),
        ([7.0], 0.99, 7.0),
        ([2.0, 1.0], 0.5, 1.0),
        ([2.0, 1.0], 0.95, 2.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (range(1, 21), 0.95, 19),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        (range(1, 102), 0.99, 100),
        (range(1, 1001), 0.99, 990),
    ],
)
def test_a_percentile_is_the_least_value_that_enough_are_not_above(
    values: Sequence[float], share: float, expected: float | None
) -> None:
    assert percentile(values, share) == expected


@pytest.mark.parametrize("size", range(1, 60))
def test_percentiles_of_any_size_are_what_counting_says(size: int) -> None:
    values = [float(number) for number in range(size, 0, -1)]
    for hundredths in (50, 95, 99):
        counted = next(
            value for value in sorted(values) if sum(v <= value for v in values) * 100 >= hundredths * size
        )
        assert percentile(values, hundredths / 100) == counted


def test_an_edge_of_the_histogram_belongs_to_the_class_below_it() -> None:
    assert histogram([0.2, 1, 1.01, 3, 3000, 3000.1, 9e9]) == (2, 2, 0, 0, 0, 0, 0, 1, 2)
    assert len(class_names()) == len(histogram([])) == len(EDGES_MS) + 1


@pytest.mark.parametrize("unicode", [True, False])
def test_the_fullest_class_has_the_highest_bar_and_a_single_one_is_still_seen(unicode: bool) -> None:
    fullest, none, single = bars([10_000, 0, 1], unicode=unicode)
    assert (fullest, none, single) == (("███", "", "▁▁▁") if unicode else ("@@@", "", "..."))
    assert bars([0, 0], unicode=unicode) == ["", ""]


@pytest.mark.parametrize(
    ("check", "holds", "finding"),
    [
        (Check(what="failures", value=0, most=0), True, "failures 0 (at most 0)"),
        (Check(what="failures", value=1, most=0), False, "failures 1 (at most 0)"),
        (
            Check(what="p95", value=250.4, most=250.0, unit=" ms"),
            False,
            "p95 250 ms (at most 250 ms)",
        ),
        (Check(what="least served", value=9.9, least=9.9), True, "least served 9.90 (at least 9.90)"),
        (Check(what="p95", value=None, most=1, unit=" ms"), False, "p95 not measured (at most 1 ms)"),
    ],
)
def test_a_check_holds_or_not_and_says_so(check: Check, holds: bool, finding: str) -> None:
    assert (check.holds, check.finding) == (holds, finding)


def test_a_scenario_in_which_nothing_was_written_fails_whatever_else_holds() -> None:
    nothing = judge("writers", Measured(), [Check(what="failures", value=0, most=0)])
    assert (nothing.verdict, nothing.p50_ms, nothing.max_ms) == ("fail", None, None)
    assert nothing.reason == "writes 0 (at least 1)"


def test_a_verdict_tells_only_what_was_broken_and_every_limit() -> None:
    checks = [Check(what="failures", value=2, most=0), Check(what="p99", value=3, most=9, unit=" ms")]
    result = judge("writers", Measured(milliseconds=[1, 2, 3], failures=2), checks)
    assert (result.verdict, result.writes, result.failures) == ("fail", 1, 2)
    assert result.reason == "failures 2 (at most 0)"
    assert result.limit == "failures at most 0; p99 at most 9 ms"


def test_what_is_missing_is_counted_by_writer_so_that_none_makes_up_for_another() -> None:
    assert missing({"a": 3, "b": 3}, {"a": 1, "b": 5}) == 2
    assert missing({"a": 3}, {}) == 3
    assert missing({}, {"a": 3}) == 0


@pytest.mark.parametrize(
    ("spans", "most"),
    [([], 0), ([(0, 1), (1, 2)], 1), ([(0, 2), (1, 3), (1.5, 1.6)], 3), ([(0, 9), (1, 2), (3, 4)], 2)],
)
def test_spans_that_share_an_instant_are_counted_and_those_that_touch_are_not(
    spans: list[tuple[float, float]], most: int
) -> None:
    assert most_at_once(spans) == most


def test_what_came_again_is_counted_each_time() -> None:
    assert (repeated("abc"), repeated("abca"), repeated("aaab")) == (0, 1, 2)


# -- the verdicts ----

QUICK = Measured(milliseconds=[1.0] * 20)
LATE = Measured(milliseconds=[1.0] * 18 + [900.0] * 2)
FAILING = Measured(milliseconds=[1.0] * 20, failures=1)


@pytest.mark.parametrize(
    ("beside", "idle", "stored", "in_flight", "passes"),
    [
        (QUICK, QUICK, 20, (8, 8), True),
        (FAILING, QUICK, 19, (8, 8), False),
        (LATE, QUICK, 20, (8, 8), False),
        (LATE, LATE, 20, (8, 8), True),
        (QUICK, QUICK, 19, (8, 8), False),
        (QUICK, QUICK, 20, (7, 8), False),
    ],
    ids=["quick", "failed", "late", "late on a slow machine", "lost", "nothing was dispatched"],
)
def test_an_outsider_is_judged_against_the_same_writes_beside_nobody(
    beside: Measured, idle: Measured, stored: int, in_flight: tuple[int, int], passes: bool
) -> None:
    result = verdicts.of_outsider(
        "w", {"planner": beside, "idle": idle}, stored=stored, in_flight=in_flight, completed=(8, 8)
    )
    assert result.passed is passes
    assert result.writes == beside.writes


@pytest.mark.parametrize(
    ("each", "stored", "passes"),
    [
        ({"a": QUICK, "b": QUICK}, {"a": 20, "b": 20}, True),
        ({"a": QUICK, "b": FAILING}, {"a": 20, "b": 19}, False),
        ({"a": QUICK, "b": QUICK}, {"a": 20, "b": 19}, False),
        ({"a": Measured(milliseconds=[1.0] * 400), "b": QUICK}, {"a": 400, "b": 20}, False),
        ({"a": QUICK, "b": Measured()}, {"a": 20}, False),
        ({"a": Measured(milliseconds=[1.0] * 18 + [2600.0] * 2)}, {"a": 20}, False),
        ({"a": Measured(milliseconds=[200.0] * 18 + [2600.0] * 2)}, {"a": 20}, True),
        (
            {"a": Measured(milliseconds=[1.0] * 18), "b": Measured(milliseconds=[1.0])},
            {"a": 18, "b": 1},
            True,
        ),
    ],
    ids=["fair", "failed", "lost", "starved", "never served", "late", "slow machine", "few writes"],
)
def test_writers_are_judged_by_failures_losses_latency_and_shares(
    each: dict[str, Measured], stored: dict[str, int], passes: bool
) -> None:
    assert verdicts.of_writers("w", each, stored, deadline_ms=5000, least_share=0.2).passed is passes


@pytest.mark.parametrize(
    ("held", "passes"),
    [
        ([("1", 0, 1), ("2", 0, 1), ("3", 1, 2)], True),
        ([("1", 0, 1), ("2", 0, 1), ("3", 0.5, 2)], False),
        ([("1", 0, 1), ("1", 2, 3)], False),
        ([], False),
    ],
    ids=["under the cap", "over the cap", "twice", "none"],
)
def test_claims_are_judged_by_what_was_held_when(held: list[verdicts.Span], passes: bool) -> None:
    assert verdicts.of_claims("c", QUICK, held, cap=2).passed is passes


@pytest.mark.parametrize(
    ("acknowledged", "stored", "killed", "passes"),
    [
        (["a", "b"], {"a": 1, "b": 1, "unacknowledged": 1}, 3, True),
        (["a", "b"], {"a": 1}, 3, False),
        (["a"], {"a": 2}, 3, False),
        (["a"], {"a": 1}, 0, False),
        ([], {}, 3, False),
    ],
    ids=["stored", "lost", "stored twice", "nobody was killed", "none"],
)
def test_events_are_judged_by_what_was_acknowledged(
    acknowledged: list[str], stored: dict[str, int], killed: int, passes: bool
) -> None:
    assert verdicts.of_events("e", QUICK, acknowledged, stored, killed=killed).passed is passes


def test_edits_are_judged_by_the_busy_deadline_and_only_beside_a_lock() -> None:
    def passed(edits: Measured, *, stored: int = 20, locked: bool = True) -> bool:
        return verdicts.of_edits("j", edits, stored=stored, locked=locked, deadline_ms=5000).passed

    assert passed(QUICK)
    assert not passed(QUICK, stored=19)
    assert not passed(QUICK, locked=False)
    assert not passed(Measured(milliseconds=[5001.0]), stored=1)


def test_the_monitor_has_a_second_or_longer_where_it_needs_longer_beside_nothing() -> None:
    slow = Measured(milliseconds=[1500.0])
    assert not verdicts.of_monitor("m", slow, quiet=[100, 100, 120], load=QUICK).passed
    assert verdicts.of_monitor("m", slow, quiet=[100, 300, 320], load=QUICK).passed
    assert not verdicts.of_monitor("m", QUICK, quiet=[1], load=Measured()).passed


def test_figures_are_put_together_with_their_failures() -> None:
    whole = together([FAILING, QUICK])
    assert (whole.writes, whole.failures, len(whole.milliseconds)) == (39, 1, 40)


def test_nothing_but_the_option_leads_to_the_broken_designs() -> None:
    root = Path(carolctl.__file__).parent
    naming = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for module in ("contention.broken", "store.broken")
        if f"carolctl.{module}" in path.read_text(encoding="utf-8")
    }
    assert naming == {"contention/broken.py", "contention/run.py"}
