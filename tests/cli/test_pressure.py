"""pressure hold, release and list, and what a held source does to ticks."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carolctl import end_facts, events
from carolctl import tick as tick_verb
from carolctl.model import Millis
from carolctl.session import Session
from tests import builders
from tests.builders import HOUR, T0, Carol, Result, add_jobs, job
from tests.cli.test_tick import all_ended, due_job, wait_until

Inside = Callable[..., Result]


def rows(home: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute(question).fetchall()


def held(carol: Carol) -> list[str]:
    return [source["name"] for source in carol("pressure", "list", "--json").json()["sources"]]


def tick(carol: Carol, now: str, **env: str) -> dict[str, Any]:
    done = carol("tick", "--json", CAROL_NOW=f"2026-01-01T{now}Z", **env)
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json()
    return found


def hold(carol: Carol, now: str, ttl: str = "10h") -> None:
    assert carol("pressure", "hold", "chat", "--ttl", ttl, CAROL_NOW=f"2026-01-01T{now}Z").code == 0


# -- hold, release, list ----


def test_a_source_is_held_listed_and_released_and_each_change_is_audited_once(
    inside: Inside, home: Path
) -> None:
    for _ in range(2):
        assert inside("pressure", "hold", "chat", "--ttl", "1h").code == 0
    [source] = inside("pressure", "list", "--json").json()["sources"]
    assert source["name"] == "chat"
    assert source["expires_at"].endswith("Z")
    assert inside("pressure", "release", "chat", "--json").json() == {"name": "chat", "released": True}
    assert inside("pressure", "list", "--json").json() == {"sources": []}
    assert rows(home, "SELECT command, subject FROM audit_log") == [
        ("pressure hold", "chat"), ("pressure release", "chat")
    ]  # fmt: skip


def test_release_of_an_unknown_name_is_a_no_op(inside: Inside, home: Path) -> None:
    for _ in range(2):
        assert inside("pressure", "release", "nobody", "--json").json() == {
            "name": "nobody", "released": False
        }  # fmt: skip
        add_jobs(home) if not home.exists() else None
    assert rows(home, "SELECT count(*) FROM audit_log") == [(0,)]


def test_hold_twice_is_one_until_the_later_end(carol: Carol) -> None:
    hold(carol, "00:00:00", "2h")
    hold(carol, "00:30:00", "60s")
    assert carol("pressure", "list", CAROL_NOW="2026-01-01T01:59:59Z").out == (
        "chat until 2026-01-01T02:00:00Z\n"
    )
    assert carol("pressure", "list", CAROL_NOW="2026-01-01T02:00:00Z").out == "nothing is held\n"


@pytest.mark.parametrize(
    "words",
    [
        ("hold", "a b"),
        ("hold", ""),
        ("hold", "chat", "--ttl", "0"),
        ("hold", "chat", "--ttl", "25h"),
        ("release", "../x"),
    ],
)
def test_a_name_or_time_that_cannot_be_is_a_usage_error(
    inside: Inside, home: Path, words: tuple[str, ...]
) -> None:
    assert inside("pressure", *words).code == 2
    assert not home.exists()


def test_the_help_says_what_it_does_to_a_job_of_every_minute(inside: Inside) -> None:
    said = " ".join(inside("pressure", "hold", "--help").out.split())
    assert '"* * * * *"' in said
    assert "the other nine slots are skipped as overlap" in said


# -- for the life of a command ----


def test_a_hold_with_a_command_lasts_as_long_as_the_command_and_gives_its_exit_code(
    carol: Carol, home: Path
) -> None:
    add_jobs(home)
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
print(c.execute('SELECT name FROM pressure_sources').fetchall()); sys.exit(7)"
    command = (sys.executable, "-I", "-c", script, str(home / "scheduler.db"))
    done = carol("pressure", "hold", "chat", "--", *command)
    assert (done.code, done.out, done.err) == (7, "[('chat',)]\n", "")
    assert held(carol) == []


def test_a_hold_is_renewed_while_its_command_lives(carol: Carol, home: Path) -> None:
    holder = carol.spawn("pressure", "hold", "chat", "--ttl", "1s", "--", "sleep", "600")
    first = wait_until(lambda: home.exists() and carol("pressure", "list", "--json").json()["sources"])
    renewed = wait_until(
        lambda: [s for s in carol("pressure", "list", "--json").json()["sources"] if s not in first]
    )
    assert [source["name"] for source in renewed] == ["chat"]
    holder.terminate()
    holder.communicate(timeout=20)
    assert holder.returncode == 128 + signal.SIGTERM
    assert rows(home, "SELECT count(*) FROM audit_log") == [(2,)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_its_source_is_released(
    carol: Carol, home: Path, number: signal.Signals
) -> None:
    script = f"trap 'echo caught; exit 5' {number.value}; echo ready; while :; do sleep 0.05; done"
    holder = carol.spawn("pressure", "hold", "chat", "--", "sh", "-c", script)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    assert held(carol) == ["chat"]
    holder.send_signal(number)
    out, _ = holder.communicate(timeout=20)
    assert (holder.returncode, out) == (5, b"caught\n")
    assert held(carol) == []


def test_a_holder_that_is_killed_holds_no_longer_than_its_lease(carol: Carol, home: Path) -> None:
    holder = carol.spawn("pressure", "hold", "chat", "--ttl", "1s", "--", "sleep", "1")
    wait_until(lambda: home.exists() and held(carol) == ["chat"])
    holder.kill()
    holder.communicate(timeout=20)
    wait_until(lambda: held(carol) == [])


def holders(carol: Carol, name: str = "chat") -> int:
    if not (carol.home / "scheduler.db").exists():
        return 0
    listed = carol("pressure", "list", "--json").json()["sources"]
    return sum(int(source["holders"]) for source in listed if source["name"] == name)


def test_two_commands_under_one_name_hold_it_until_the_last_one_ends(carol: Carol) -> None:
    first = carol.spawn("pressure", "hold", "chat", "--ttl", "1h", "--", "sleep", "600")
    wait_until(lambda: holders(carol) == 1)
    second = carol.spawn("pressure", "hold", "chat", "--ttl", "2h", "--", "sleep", "600")
    wait_until(lambda: holders(carol) == 2)
    assert carol("pressure", "list").out.endswith(", 2 holders\n")
    assert held(carol) == ["chat"]
    second.terminate()
    second.communicate(timeout=20)
    assert holders(carol) == 1
    first.terminate()
    first.communicate(timeout=20)
    assert carol("pressure", "list").out == "nothing is held\n"


def test_the_end_of_a_command_leaves_the_plain_hold_of_its_name(carol: Carol) -> None:
    carol("pressure", "hold", "chat", "--ttl", "1h")
    before = carol("pressure", "list").out
    assert carol("pressure", "hold", "chat", "--", "true").code == 0
    assert carol("pressure", "list").out == before


def test_a_release_ends_all_of_a_name_and_no_renewal_brings_it_back(carol: Carol) -> None:
    holder = carol.spawn("pressure", "hold", "chat", "--ttl", "1s", "--", "sleep", "600")
    wait_until(lambda: holders(carol) == 1)
    carol("pressure", "hold", "chat", "--ttl", "1h")
    assert carol("pressure", "release", "chat").out == "chat is released\n"
    assert holder.stderr is not None
    assert b"chat was released by somebody and is not taken back" in holder.stderr.readline()
    assert holders(carol) == 0
    holder.terminate()
    holder.communicate(timeout=20)


def test_a_holder_that_slept_past_its_lease_takes_it_up_again(home: Path) -> None:
    with closing(builders.store(home)) as store, store.write() as tx:
        tx.hold_pressure("chat", now=T0, until=Millis(T0 + 1000), holder="a")
        tx.hold_pressure("build", now=Millis(T0 + HOUR), until=Millis(T0 + 2 * HOUR))
        assert tx.pressure_sources(Millis(T0 + HOUR)) == ["build"]
        assert tx.renew_pressure("chat", "a", until=Millis(T0 + 2 * HOUR))
        assert tx.pressure_sources(Millis(T0 + HOUR)) == ["build", "chat"]


def test_a_command_starts_though_the_store_is_busy_and_the_hold_follows(carol: Carol, home: Path) -> None:
    add_jobs(home)
    script = "echo started; while :; do sleep 0.05; done"
    with closing(sqlite3.connect(home / "scheduler.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        holder = carol.spawn(
            "pressure", "hold", "chat", "--ttl", "1h", "--", "sh", "-c", script, CAROL_BUSY_TIMEOUT_MS="50"
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"started\n"
        assert holders(carol) == 0
        writer.execute("ROLLBACK")
    wait_until(lambda: holders(carol) == 1)
    holder.terminate()
    _, said = holder.communicate(timeout=20)
    assert b"chat is not held yet" in said
    assert holders(carol) == 0


def test_a_command_that_cannot_be_run_is_66_and_nothing_stays_held(carol: Carol) -> None:
    done = carol("pressure", "hold", "chat", "--", "/no/such/program")
    assert (done.code, "cannot be run" in done.err) == (66, True)
    assert held(carol) == []


# -- ticks ----


def test_pressure_puts_a_due_firing_off_without_a_row_and_records_it(carol: Carol, home: Path) -> None:
    add_jobs(home, job(next_fire_at=None), job("hourly"))
    hold(carol, "00:59:00")
    before = rows(home, "SELECT last_scheduled_for FROM scheduled_jobs WHERE job_id = 'hourly'")
    report = tick(carol, "01:00:10")
    assert (report["deferred"], report["fired"], report["skipped"]) == (["hourly"], [], [])
    assert rows(home, "SELECT count(*) FROM runs") == [(0,)]
    assert rows(home, "SELECT last_scheduled_for FROM scheduled_jobs WHERE job_id = 'hourly'") == before
    [shown] = [j for j in carol("list-jobs", "--json").json()["jobs"] if j["job_id"] == "hourly"]
    assert shown["next_fire_at"] == "2026-01-01T01:00:40Z"
    [(after,)] = rows(home, "SELECT after FROM audit_log WHERE command = 'deferred' AND subject = 'hourly'")
    assert json.loads(after)["pressure"] == ["chat"]


def test_a_released_source_lets_the_deferred_slot_fire_as_late_not_missed(carol: Carol, home: Path) -> None:
    add_jobs(home, job("hourly", catch_up="skip"))
    hold(carol, "00:59:00")
    tick(carol, "01:00:10")
    carol("pressure", "release", "chat", CAROL_NOW="2026-01-01T01:20:00Z")
    assert len(tick(carol, "01:20:10")["fired"]) == 1
    wait_until(lambda: all_ended(carol))


def test_pressure_puts_a_firing_off_for_a_maximum_in_total_and_no_longer(carol: Carol, home: Path) -> None:
    add_jobs(home, job("hourly", daily_at="01:00"))
    carol("config", "set", "pressure.max_deferral_sec", "100")
    hold(carol, "00:59:00")
    for now in ("01:00:00", "01:00:30", "01:01:00", "01:01:30"):
        assert tick(carol, now)["deferred"] == ["hourly"]
    report = tick(carol, "01:01:39")
    assert (report["deferred"], report["fired"]) == ([], [])
    report = tick(carol, "01:01:40")
    assert (report["deferred"], len(report["fired"])) == ([], 1)
    assert len(rows(home, "SELECT 1 FROM audit_log WHERE command = 'deferral_limit'")) == 1
    wait_until(lambda: all_ended(carol))
    assert rows(home, "SELECT deferred_at FROM scheduled_jobs") == [(None,)]


def test_a_job_of_every_minute_owes_one_run_and_skips_the_rest_as_overlap(carol: Carol, home: Path) -> None:
    add_jobs(home, job("minutely", cron="* * * * *"))
    hold(carol, "00:00:00", "10m")
    tick(carol, "00:01:00")
    report = tick(carol, "00:10:30")
    assert (len(report["fired"]), len(report["skipped"])) == (1, 1)
    assert rows(home, "SELECT coalesced, skip_reason FROM runs ORDER BY run_id") == [
        (1, None),
        (9, "overlap"),
    ]
    wait_until(lambda: all_ended(carol))


def test_a_manual_run_is_never_put_off(carol: Carol, home: Path) -> None:
    add_jobs(home, due_job("minutely"))
    carol("pressure", "hold", "chat")
    assert carol("run-job", "minutely", "--wait").code == 0


def test_a_held_pressure_is_undisturbed_by_new_firings_under_five_forced_runs(
    carol: Carol, home: Path
) -> None:
    forced = [job(f"forced-{n}", manual=True, argv=("sleep", "2")) for n in range(5)]
    add_jobs(home, *forced, *(due_job(f"due-{n}") for n in range(3)))
    carol("pressure", "hold", "chat")
    together = [carol.spawn("run-job", one.job_id, "--force", "--reason", "now") for one in forced]
    assert [process.communicate(timeout=60)[1] for process in together] == [b""] * 5
    report = carol("tick", "--json").json()
    assert (report["deferred"], report["fired"], report["running"]) == (["due-0", "due-1", "due-2"], [], 5)
    assert rows(home, "SELECT count(*) FROM runs WHERE source = 'scheduled'") == [(0,)]
    assert rows(home, "SELECT count(*) FROM audit_log WHERE command = 'manual_force_bypass'") == [(5,)]
    wait_until(lambda: all_ended(carol))
    [*metrics] = rows(home, "SELECT pressure_sources FROM schedule_firing_metrics")
    assert metrics == [("chat",)] * 5


# -- metrics ----


def test_the_metrics_of_an_end_hold_the_processors_pressure_where_the_kernel_says_it(
    carol: Carol, home: Path, tmp_path: Path
) -> None:
    add_jobs(home, job("once", manual=True))
    assert carol("run-job", "once", "--wait").code == 0
    [(sources, psi)] = rows(home, "SELECT pressure_sources, psi_cpu_avg10 FROM schedule_firing_metrics")
    assert sources is None
    assert (psi is None) == (end_facts.psi_cpu_avg10() is None)
    (tmp_path / "cpu").write_text("some avg10=12.50 avg60=3.00 avg300=1.00 total=12345\n")
    assert end_facts.psi_cpu_avg10(str(tmp_path / "cpu")) == 12.5
    (tmp_path / "cpu").write_text("some\n")
    assert end_facts.psi_cpu_avg10(str(tmp_path / "cpu")) is None


def test_once_a_hold_is_acknowledged_no_tick_that_looked_before_fires(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    with closing(builders.store(home)) as store:
        with store.write() as tx:
            tx.insert_jobs([job("hourly")])
        session = Session(store=store, now=Millis(T0 + HOUR), actor="tester")

        def hold_meanwhile(*_: object, **__: object) -> events.Batch:
            with store.write() as tx:
                tx.hold_pressure("chat", now=session.now, until=Millis(session.now + 1))
            return events.Batch()

        monkeypatch.setattr(events, "pending", hold_meanwhile)
        report = tick_verb.tick(session)
    assert (report.deferred, report.fired) == (["hourly"], [])
