"""The account of slots: a month of accidents leaves none without its row, and a row that is taken away is missed."""

from __future__ import annotations

import os
import random

import pytest

from carolctl import jobs, slot_audit
from carolctl.clock import iso
from carolctl.model import FailureClass, Job, Millis
from carolctl.said import Said
from carolctl.slot_audit import Audit
from carolctl.store.records import AuditEntry
from tests.builders import DAY, HOUR, MINUTE, T0, Carol, job
from tests.fleet import Fleet

_CRONS = ("7 */2 * * *", "*/30 9-17 * * 1-5", "15 3 * * *", "0 6 1,15 * *", "40 1,13 * * *", "0 */6 * * *")
_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu")
_FAILURES: tuple[FailureClass, ...] = ("exit_nonzero", "turn_limit_exceeded", "timeout", "rate_limited")


def audited(fleet: Fleet, job_id: str | None = None, since: int = T0) -> Audit:
    return slot_audit.audit(fleet.session(), job_id, Millis(since), fleet.now)


def fleet_of(count: int, chance: random.Random) -> list[Job]:
    return [
        job(
            f"job-{number:03}",
            timezone=chance.choice(_ZONES),
            overlap=chance.choice(("skip", "queue", "allow")),
            catch_up=chance.choice(("latest", "all", "skip")),
            misfire_grace_sec=chance.choice((None, None, 3600)),
            spread_sec=chance.choice((0, 300)),
            max_attempts=chance.choice((1, 2)),
            max_run_duration_sec=2 * DAY // 1000,
            **({"every": "5h"} if number % 7 == 0 else {"cron": chance.choice(_CRONS)}),
        )
        for number in range(count)
    ]


class Month:
    """A fleet that lives through a month of failures, outages, pauses and edits."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet, self.chance = fleet, random.Random(seed)
        self.latest = fleet.now
        self.done = {
            "back": 0,
            "outage": 0,
            "pause": 0,
            "resume": 0,
            "edit": 0,
            "pressure": 0,
            "remove": 0,
            "stop": 0,
        }

    def live_through(self, until: int) -> None:
        fleet, chance = self.fleet, self.chance
        while fleet.now < until:
            lot = chance.random()
            if lot < 0.006:
                self.done["back"] += 1
                fleet.at(max(T0, fleet.now - chance.randrange(HOUR, 20 * HOUR)))
            elif lot < 0.018:
                self.done["outage"] += 1
                fleet.at(fleet.now + chance.randrange(6 * HOUR, 30 * HOUR))
            else:
                fleet.at(fleet.now + chance.randrange(20 * MINUTE, 150 * MINUTE))
            if chance.random() < 0.3 and fleet.now >= self.latest:
                self._meddle()
            self.latest = max(self.latest, fleet.now)
            fleet.tick()
            while fleet.running and chance.random() < 0.97:
                fleet.end_together({run_id: self._failure() for run_id in sorted(fleet.running)})

    def _failure(self) -> FailureClass | None:
        return self.chance.choice(_FAILURES) if self.chance.random() < 0.1 else None

    def _meddle(self) -> None:
        session, chance = self.fleet.session(), self.chance
        with self.fleet.store.read() as tx:
            known, resting = tx.jobs(), [one for one in tx.jobs() if one.status == "paused"]
        one = chance.choice(known)
        lot = chance.random()
        if lot < 0.35 and resting:
            self.done["resume"] += 1
            jobs.resume(session, chance.choice(resting).job_id)
        elif lot < 0.55 and one.status == "active":
            self.done["pause"] += 1
            jobs.pause(session, one.job_id, "a rest")
        elif lot < 0.85:
            self.done["edit"] += jobs.edit(session, one.job_id, Said(cron=chance.choice(_CRONS))) is not None
        elif lot < 0.9:
            self.done["stop"] += jobs.pause_all(session, until=Millis(session.now + 2 * HOUR), reason=None)
        elif lot < 0.95:
            self.done["pressure"] += 1
            with self.fleet.store.write() as tx:
                tx._connection.execute(
                    "INSERT OR REPLACE INTO pressure_sources (name, expires_at) VALUES ('chat', ?)",
                    (session.now + HOUR,),
                )
        elif not any(claimed.run.job_id == one.job_id for claimed in self.fleet.running.values()):
            with self.fleet.store.read() as tx:
                is_free = not tx.live_runs_of(one.job_id)
            if is_free:
                self.done["remove"] += 1
                jobs.remove(session, one.job_id, cancel=False)


@pytest.mark.timeout(120)
def test_a_month_of_100_jobs_with_failures_outages_pauses_edits_and_clock_steps_leaves_no_slot_without_its_row(
    fleet: Fleet, carol: Carol
) -> None:
    month = Month(fleet, seed=int(os.environ.get("CAROL_CRASH_SEED", "7")))
    fleet.add(*fleet_of(100, month.chance))
    fleet.monkeypatch.setenv("SCHEDULE_MAX_CONCURRENT", "10")
    month.live_through(T0 + 30 * DAY)
    assert min(month.done.values()) >= 1, month.done
    found = audited(fleet)
    print(found.rows, sum(one.slots for one in found.accounts), month.done)
    assert [(one.job_id, one.lacking[:3]) for one in found.accounts if one.lacking] == []
    assert found.faults == []
    assert found.holds
    assert sum(one.slots for one in found.accounts) > 10_000
    with fleet.store.write() as tx:
        [(run_id, job_id, slot)] = tx._connection.execute(
            "SELECT run_id, job_id, scheduled_for FROM runs WHERE source = 'scheduled' AND coalesced = 1"
            " AND status = 'completed' ORDER BY run_id LIMIT 1 OFFSET 900"
        ).fetchall()
        tx._connection.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
    told = carol("audit", "--json", "--since", str(iso(T0)), CAROL_NOW=str(iso(fleet.now)))
    [lacking] = told.json()["lacking"]
    assert told.code == 1
    assert (lacking["job_id"], lacking["count"], lacking["slots"]) == (job_id, 1, [iso(slot)])
    plain = carol("audit", "--since", str(iso(T0)), CAROL_NOW=str(iso(fleet.now)))
    assert (plain.code, "FAIL: 1 slots lack their row" in plain.out, job_id in plain.out) == (1, True, True)
    asked = carol("why", job_id, "--at", str(iso(slot)), "--json", CAROL_NOW=str(iso(fleet.now)))
    assert (asked.code, asked.json()["verdict"]) == (1, "no_row")


def test_a_coalesced_row_that_is_taken_away_leaves_all_its_slots_lacking(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + 5 * HOUR + 10 * MINUTE).tick()
    assert audited(fleet).holds
    with fleet.store.write() as tx:
        tx._connection.execute("DELETE FROM runs")
    [one] = audited(fleet).accounts
    assert list(one.lacking) == [T0 + hour * HOUR for hour in range(1, 6)]


def test_slots_that_wait_for_a_tick_or_lie_in_a_pause_are_no_failure_and_are_counted(fleet: Fleet) -> None:
    fleet.add(job("due"), job("resting"))
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    jobs.pause(fleet.session(), "resting", None)
    fleet.at(T0 + 3 * HOUR)
    found = audited(fleet)
    assert found.holds
    assert [(one.job_id, one.waits, len(one.waiting)) for one in found.accounts] == [
        ("due", "due", 2),
        ("resting", "paused", 2),
    ]


def test_the_slots_of_a_removed_job_stay_accounted_for(fleet: Fleet) -> None:
    fleet.add(job())
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    fleet.at(T0 + 2 * HOUR + MINUTE)
    jobs.remove(fleet.session(), "nightly", cancel=False)
    [one] = audited(fleet).accounts
    assert (one.slots, one.lacking, one.waits, len(one.waiting)) == (2, [], "removed", 1)
    with fleet.store.write() as tx:
        tx._connection.execute("DELETE FROM runs")
    assert not audited(fleet).holds


def test_a_period_older_than_the_retention_is_clipped_and_says_so(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job(every="1d"))
    fleet.at(T0 + 100 * DAY).tick()
    found = audited(fleet)
    assert (found.is_clipped, found.since) == (True, T0 + 10 * DAY)
    env = {"CAROL_NOW": str(iso(fleet.now))}
    told = carol("audit", "--since", "99d", **env)
    assert (told.code, "may have been pruned" in told.out, "pass: " in told.out) == (0, True, True)
    assert carol("audit", "nobody", **env).code == 66
    assert carol("audit", "--since", "2027-01-01", **env).code == 2


def test_a_damaged_job_is_said_by_each_of_the_commands_and_stops_none(fleet: Fleet, carol: Carol) -> None:
    fleet.add(job("sound"), job("broken"), job("odd"))
    with fleet.store.write() as tx:
        tx._connection.execute("UPDATE scheduled_jobs SET action = '{}' WHERE job_id = 'broken'")
        tx._connection.execute(
            "UPDATE scheduled_jobs SET schedule_expr = '99 * * * *', schedule_compiled = NULL WHERE job_id = 'odd'"
        )
    env = {"CAROL_NOW": str(iso(T0 + HOUR))}
    found = carol("audit", "--json", **env)
    assert (found.code, found.json()["unreadable"]) == (1, ["broken", "odd"])
    assert carol("forecast", "--json", **env).json()["unreadable"] == ["broken", "odd"]
    assert carol("why", "broken", **env).code == 65
    odd = carol("why", "odd", "--json", **env)
    assert (odd.code, odd.json()["verdict"]) == (0, "never_due")
    assert carol("stats", **env).code == 0


@pytest.fixture
def accounted(fleet: Fleet) -> Fleet:
    """An hourly job: rows 1 to 3 ran at 01:00 to 03:00, row 4 stands for 04:00 to 08:00, row 5 ran at 09:00."""
    fleet.add(job())
    for hour in (1, 2, 3, 8, 9):
        fleet.at(T0 + hour * HOUR + (10 * MINUTE if hour == 8 else 0)).tick()
        fleet.end_all()
    assert audited(fleet).holds
    return fleet


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        # A row of its own for a slot that a wide row stands for.
        ("INSERT INTO runs (job_id, source, scheduled_for, slots_from, status, queued_at, completed_at)"
         " VALUES ('nightly', 'scheduled', :t + 6 * :h, :t + 6 * :h, 'completed', 1, 1)",
         ("doubled", 6, "06:00")),
        # Wide rows that lie over others.
        ("UPDATE runs SET slots_from = slots_from - 2 * :h, coalesced = 7 WHERE run_id = 4",
         ("doubled", 3, "03:00")),
        ("UPDATE runs SET coalesced = 99, slots_from = slots_from - 150 * 60000 WHERE run_id = 4",
         ("no_slot", 4, "01:30")),
        ("INSERT INTO runs (job_id, source, scheduled_for, slots_from, status, queued_at, completed_at)"
         " VALUES ('nightly', 'scheduled', :t + 390 * 60000, :t + 390 * 60000, 'completed', 1, 1)",
         ("no_slot", 6, "06:30")),
        ("UPDATE runs SET coalesced = 99 WHERE run_id = 4", ("miscounted", 4, "08:00")),
        ("UPDATE runs SET coalesced = 2 WHERE run_id = 1", ("miscounted", 1, "01:00")),
        ("UPDATE runs SET status = 'skipped', skip_reason = 'overlap' WHERE run_id = 2",
         ("ran_though_skipped", 2, "02:00")),
        ("UPDATE runs SET job_id = 'nobody' WHERE run_id = 2", ("no_schedule", 2, "02:00")),
    ],
)  # fmt: skip
def test_a_row_that_is_doubled_or_has_no_slot_or_counts_wrong_is_named_with_its_slot(
    accounted: Fleet, carol: Carol, change: str, wrong: tuple[str, int, str]
) -> None:
    with accounted.store.write() as tx:
        tx._connection.execute(change, {"t": T0, "h": HOUR})
    env = {"CAROL_NOW": str(iso(accounted.now)), "COLUMNS": "160"}
    found = carol("audit", "--json", **env)
    told = [(one["kind"], one["run_id"], one["slot"][11:16]) for one in found.json()["wrong"]["rows"]]
    assert found.code == 1
    assert wrong in told
    assert found.json()["wrong"]["count"] == len(told) <= 3
    plain = carol("audit", **env)
    assert plain.code == 1
    assert f"row {wrong[1]} at 2026-01-01T{wrong[2]}:00Z ({wrong[0]})" in plain.out


def test_rows_from_before_all_that_an_emptied_audit_log_knows_are_said_to_have_no_schedule(
    fleet: Fleet,
) -> None:
    fleet.add(job("edited"), job("gone"))
    fleet.at(T0 + HOUR).tick()
    fleet.end_all()
    fleet.at(T0 + 90 * MINUTE)
    jobs.edit(fleet.session(), "edited", Said(cron="30 * * * *"))
    jobs.remove(fleet.session(), "gone", cancel=False)
    assert audited(fleet).holds
    with fleet.store.write() as tx:
        tx._connection.execute("DELETE FROM audit_log")
    found = audited(fleet)
    assert [(one.job_id, one.kind) for one in found.faults] == [
        ("edited", "no_schedule"),
        ("gone", "no_schedule"),
    ]


def test_slots_that_come_due_twice_since_the_clock_was_set_back_are_counted_and_no_fault(
    fleet: Fleet,
) -> None:
    fleet.add(job())
    for hour in (1, 60, 30, 31, 32):
        fleet.at(T0 + hour * HOUR).tick()
        fleet.end_all()
    found = audited(fleet)
    assert found.faults == []
    assert found.repeated >= 3
    assert found.holds


def test_rows_from_before_an_import_that_overwrote_the_job_are_not_judged(accounted: Fleet) -> None:
    fleet = accounted
    with fleet.store.write() as tx:
        tx._connection.execute("UPDATE scheduled_jobs SET anchor_at = :t", {"t": fleet.now})
    assert not audited(fleet).holds
    with fleet.store.write() as tx:
        tx.audit(
            AuditEntry(
                at=fleet.now, actor="tester", command="migrate-jobs", subject="scheduled_jobs",
                after={"overwritten": ["nightly"]},
            )
        )  # fmt: skip
    assert audited(fleet).holds
