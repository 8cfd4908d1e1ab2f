"""stats through the program, what prune leaves, and that a long history is read by index alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from carolctl import jobs, prune
from carolctl.clock import iso
from carolctl.firing_stats import CapAdvice
from carolctl.model import Millis
from carolctl.stats import stats
from carolctl.store.runs import RunFilter
from carolctl.store.tx import ReadTx
from carolctl.why import why
from tests.builders import DAY, HOUR, MINUTE, T0, Carol, job
from tests.fleet import Fleet


def live_for(fleet: Fleet, hours: int, *, minutes: int, failing: int = 0) -> None:
    for hour in range(1, hours + 1):
        fleet.at(T0 + hour * HOUR).tick()
        fleet.at(fleet.now + minutes * MINUTE)
        while fleet.running:
            ending = dict.fromkeys(sorted(fleet.running), "timeout" if hour <= failing else None)
            fleet.end_together(ending, turns=hour)  # type: ignore[arg-type]


def test_figures_of_a_job_and_of_the_fleet(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job("a"), job("b"), job("c"), job("d", manual=True))
    live_for(fleet, 12, minutes=10, failing=1)
    document = stats(fleet.session(), "c", None).document()
    [one] = document["jobs"]
    assert (one["attempts"], one["failures"], document["cap"]) == (12, {"timeout": 1}, None)
    # Two slots: the third of three waits until the others have ended.
    assert one["wait_ms"]["p50"] == 10 * MINUTE
    assert (one["turns"]["p50"], one["turns"]["max"], one["turns_trend"]["word"]) == (6, 12, "rising")
    env = {"CAROL_NOW": str(iso(fleet.now)), "COLUMNS": "80"}
    told = carol("stats", **env)
    assert told.code == 0
    assert all(len(line) <= 80 for line in told.out.splitlines()[:5])
    assert "cap 2: no advice yet (7 days of metrics are needed, there are 0.5)" in told.out
    assert "timeout 1" in carol("stats", "c", **env).out
    whole = carol("stats", "--json", **env).json()
    assert [one["job_id"] for one in whole["jobs"]] == ["a", "b", "c", "d"]
    assert (whole["cap"]["advice"], whole["warnings"]) == ("too_early", [])
    assert carol("stats", "nobody", **env).code == 66


def test_after_a_week_of_waits_the_cap_is_to_be_raised_and_is_not(fleet: Fleet) -> None:
    fleet.add(job("a"), job("b"), job("c"))
    live_for(fleet, 7 * 24 + 1, minutes=10)
    advice = stats(fleet.session(), None, None).cap
    assert advice is not None
    assert (advice.advice, advice.to, advice.evidence.peak) == ("raise", 3, 2)
    assert advice.evidence.waited / advice.evidence.firings == pytest.approx(1 / 3, abs=0.01)
    with fleet.store.read() as tx:
        assert "schedule.max_concurrent" not in tx.settings_table()


def advice_of(fleet: Fleet) -> CapAdvice:
    advice = stats(fleet.session(), None, None).cap
    assert advice is not None
    return advice


def test_waits_behind_a_run_of_the_same_job_are_no_reason_to_raise_the_cap(fleet: Fleet) -> None:
    fleet.add(job("slow", overlap="queue", max_run_duration_sec=7200), job("brief", cron="20 * * * *"))
    for hour in range(1, 24 * 7 + 4):
        fleet.at(T0 + hour * HOUR).tick()
        # What ran since the hour before ends, and the firing that waited for it begins.
        fleet.at(fleet.now + 10 * MINUTE)
        fleet.end_together(dict.fromkeys(sorted(fleet.running) if hour > 1 else ()))
        fleet.at(fleet.now + 10 * MINUTE).tick()
        brief = [number for number, one in fleet.running.items() if one.run.job_id == "brief"]
        fleet.at(fleet.now + MINUTE).end_together(dict.fromkeys(brief))
    advice = advice_of(fleet)
    seen = advice.evidence
    assert (advice.advice, seen.waited, seen.peak) == ("keep", 0, 2)
    assert seen.waited_otherwise / seen.firings == pytest.approx(0.5, abs=0.02)


def test_waits_for_the_end_of_a_pause_are_no_reason_to_raise_the_cap(fleet: Fleet) -> None:
    fleet.add(job("a"), job("b"), job("c"))
    for hour in range(1, 24 * 7 + 2):
        fleet.at(T0 + hour * HOUR).tick()
        fleet.at(fleet.now + 10_000)
        jobs.pause_all(fleet.session(), until=Millis(fleet.now + 20 * MINUTE), reason=None)
        fleet.at(fleet.now + 15 * MINUTE)
        fleet.end_together(dict.fromkeys(sorted(fleet.running)))
        fleet.at(fleet.now + 6 * MINUTE).tick()
        fleet.at(fleet.now + MINUTE).end_all()
    advice = advice_of(fleet)
    seen = advice.evidence
    assert (advice.advice, seen.waited, seen.peak) == ("keep", 0, 2)
    assert seen.waited_otherwise / seen.firings == pytest.approx(1 / 3, abs=0.01)


def test_an_hour_of_pressure_puts_off_one_firing_of_a_job_however_often_it_is_looked_at(fleet: Fleet) -> None:
    fleet.add(job("a"), job("b"))
    live_for(fleet, 24 * 7, minutes=10)
    with fleet.store.write() as tx:
        tx.hold_pressure("chat", now=fleet.now, until=Millis(fleet.now + 110 * MINUTE))
    begin = fleet.at(fleet.now + 50 * MINUTE).now
    looks = 0
    for second in range(0, 63 * 60, 30):
        looks += len(fleet.at(begin + second * 1000).tick().deferred)
    assert looks > 200
    fleet.end_all()
    advice = advice_of(fleet)
    assert (advice.advice, advice.evidence.deferred) == ("keep", 2)


def test_no_advice_rests_on_a_few_firings_in_the_week(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job("seldom", cron="0 */12 * * *"))
    live_for(fleet, 24 * 8, minutes=10)
    told = carol("stats", CAROL_NOW=str(iso(fleet.now))).out
    assert "no advice yet (50 firings in 7 days are needed, there were 15)" in told
    assert "15 firings; at most 1 at once" in " ".join(told.split())


def test_a_drifting_job_is_warned_of_in_the_list(fleet: Fleet) -> None:
    fleet.add(job("slow", max_run_duration_sec=1200))
    live_for(fleet, 3, minutes=17)
    [told] = stats(fleet.session(), None, None).warnings()
    assert "slow: the last 3 firings ended above 80% of the lease of 1200 s" in told


def test_prune_goes_on_in_batches_until_nothing_old_is_left_but_the_newest_of_each_job(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    _multiply(fleet, 3000)
    fleet.at(T0 + 200 * DAY)
    gone = prune.prune(fleet.session())
    assert (gone["runs"], gone["schedule_firing_metrics"]) == (3000, 3001)
    assert len(fleet.runs("nightly")) == 1


def _multiply(fleet: Fleet, count: int) -> None:
    """Copies of the first run and of its metrics, for slots before it."""
    with fleet.store.write() as tx:
        for table in ("runs", "schedule_firing_metrics"):
            columns = [row[1] for row in tx._connection.execute(f"PRAGMA table_info({table})")]
            changed = {"run_id": "run_id + n", "scheduled_for": "1 + n * 1000", "slots_from": "1 + n * 1000"}
            told = ", ".join(changed.get(name, name) for name in columns)
            tx._connection.execute(
                "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)"
                f" INSERT INTO {table} SELECT {told} FROM c, {table}",
                (count,),
            )


class Explained:
    """A connection that keeps the plan of every statement that it is given."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.plans: list[tuple[str, str]] = []

    def execute(self, statement: str, *parameters: Any) -> Any:
        plan = self._connection.execute(f"EXPLAIN QUERY PLAN {statement}", *parameters).fetchall()
        self.plans += [(statement, step[3]) for step in plan]
        return self._connection.execute(statement, *parameters)


def test_list_runs_why_and_stats_of_one_job_walk_through_no_table(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add(job(overlap="queue", max_run_duration_sec=7200))
    fleet.at(T0 + HOUR).tick()
    fleet.at(T0 + 2 * HOUR).tick()
    # The second one waits for the first, and then for nobody.
    fleet.at(T0 + 2 * HOUR + MINUTE).end_all()
    seen: list[Explained] = []
    make = ReadTx.__init__

    def explained(self: ReadTx, connection: Any) -> None:
        seen.append(Explained(connection))
        make(self, seen[-1])  # type: ignore[arg-type]

    monkeypatch.setattr(ReadTx, "__init__", explained)
    session = fleet.session()
    with session.store.read() as tx:
        tx.runs(RunFilter(job_id="nightly"))
    why(session, "nightly", None)
    stats(session, "nightly", Millis(T0))
    steps = [step for one in seen for _, step in one.plans]
    assert len(steps) > 20
    large = r"SCAN (runs|schedule_firing_metrics|audit_log|events|scheduled_jobs)\b"
    walks = [step for step in steps if re.match(large, step) and "runs_live" not in step]
    assert walks == []
