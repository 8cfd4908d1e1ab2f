"""HTTP runs in one runner, as a real process on a real store, against a server on the loopback."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from carolctl import clock, launch
from carolctl.model import Claimed
from tests import builders
from tests.endpoint import Endpoint, Reply
from tests.yard import Yard, probe, until


@pytest.fixture
def yard(home: Path) -> Iterator[Yard]:
    """A data home for runs; every process in it is ended after the test."""
    made = Yard(home)
    yield made
    made.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as served:
        yield served


def calls(yard: Yard, *urls: str, cap: int = 100, lease_sec: int = 60) -> list[Claimed]:
    """Claimed runs of new HTTP jobs, as many as `cap` lets; the rest is queued."""
    yard.queue(*(builders.job(f"call-{n}", manual=True, url=url) for n, url in enumerate(urls)))
    return yard.claim(cap=cap, lease_sec=lease_sec)


def test_http_runs_share_one_runner(yard: Yard, endpoint: Endpoint) -> None:
    together = threading.Event()
    urls = [
        endpoint.on(f"/{n}", Reply(json={"turns": n, "summary": f"s{n}"}, hold=together)) for n in range(6)
    ]
    runner = yard.spawn(*calls(yard, *urls))
    endpoint.wait_for(6)
    assert {run.pid for run in yard.rows()} == {runner.pid}
    together.set()
    assert runner.wait(timeout=30) == 0
    assert [(r.status, r.turn_count, r.result_summary, r.http_status) for r in yard.rows()] == [
        ("completed", n, f"s{n}", 200) for n in range(6)
    ]
    assert yard.complaints() == ""


def test_a_request_carries_the_key_of_its_run(yard: Yard, endpoint: Endpoint) -> None:
    assert yard.spawn(*calls(yard, endpoint.url("/job"))).wait(timeout=30) == 0
    (seen,) = endpoint.seen
    with yard.store.read() as tx:
        key = f"{tx.store_uuid()}:1"
    assert seen.headers["idempotency-key"] == key
    assert (seen.json["run_id"], seen.json["job_id"], seen.json["claim"]) == (1, "call-0", 1)


def test_each_answer_is_recorded_as_it_is(yard: Yard, endpoint: Endpoint) -> None:
    urls = [
        endpoint.on("/denied", Reply(status=401)),
        endpoint.on("/missing", Reply(status=404)),
        endpoint.on("/limit", Reply(json={"failure_reason": "turn_limit_exceeded", "turns": 9})),
        endpoint.on("/hang", Reply(manner="hang_up")),
        endpoint.on("/fine", Reply()),
    ]
    assert yard.spawn(*calls(yard, *urls)).wait(timeout=30) == 0
    assert [(run.failure_reason, run.http_status, run.turn_count) for run in yard.rows()] == [
        ("auth_failed", 401, None),
        ("http_error", 404, None),
        ("turn_limit_exceeded", 200, 9),
        ("outcome_unknown", None, None),
        (None, 200, None),
    ]


def test_an_accepted_run_lives_on_without_a_process(yard: Yard, endpoint: Endpoint) -> None:
    claimed = calls(yard, endpoint.on("/accept", Reply(status=202)))
    assert yard.spawn(*claimed).wait(timeout=30) == 0
    run = yard.row(1)
    assert (run.status, run.pid, run.pid_start) == ("running", None, None)
    assert probe(run) == "unknown"


def test_what_takes_the_place_of_an_http_run_goes_on_in_the_same_runner(
    yard: Yard, endpoint: Endpoint
) -> None:
    claimed = calls(yard, *(endpoint.url(f"/{n}") for n in range(7)), cap=2)
    runner = yard.spawn(*claimed, SCHEDULE_MAX_CONCURRENT="2")
    assert runner.wait(timeout=30) == 0
    assert [(run.status, run.pid) for run in yard.rows()] == [("completed", runner.pid)] * 7


def test_a_command_that_takes_the_place_of_an_http_run_gets_a_process_of_its_own(
    yard: Yard, endpoint: Endpoint
) -> None:
    together = threading.Event()
    held, quick = endpoint.on("/held", Reply(hold=together)), endpoint.url("/quick")
    claimed = calls(yard, held, quick)
    (command,) = yard.queue(builders.job("command", manual=True, argv=("sh", "-c", "exit 7")))
    runner = yard.spawn(*claimed, SCHEDULE_MAX_CONCURRENT="2")
    yard.until_status("failed", command)
    run = yard.row(command)
    assert (run.exit_status, run.pid != runner.pid) == (7, True)
    until(lambda: children_of(runner.pid) == [])
    together.set()
    assert runner.wait(timeout=30) == 0
    assert [one.status for one in yard.rows()] == ["completed", "completed", "failed"]


def children_of(pid: int) -> list[str]:
    """The children of a process, also those that nobody has waited for."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_stale_http_claim_is_never_sent(yard: Yard, endpoint: Endpoint) -> None:
    calls(yard, endpoint.url("/a"), endpoint.url("/b"))
    assert yard.spawn_runner(["http", "1:2", "2:1", "99:1"]).wait(timeout=30) == 0
    assert [seen.path for seen in endpoint.seen] == ["/b"]
    assert [run.status for run in yard.rows()] == ["claimed", "completed"]


def test_the_lease_ends_one_http_run_and_leaves_the_others(yard: Yard, endpoint: Endpoint) -> None:
    held = endpoint.on("/held", Reply(hold=threading.Event()))
    slow = endpoint.on("/slow", Reply(delay=1.4))
    yard.queue(
        builders.job("held", manual=True, url=held, max_run_duration_sec=1),
        builders.job("slow", manual=True, url=slow),
    )
    assert yard.spawn(*yard.claim()).wait(timeout=30) == 0
    assert [(run.status, run.failure_reason) for run in yard.rows()] == [
        ("failed", "lease_expired"),
        ("completed", None),
    ]


def test_an_http_lease_that_ran_out_before_the_start_sends_nothing(yard: Yard, endpoint: Endpoint) -> None:
    yard.queue(builders.job("late", manual=True, url=endpoint.url("/late")))
    assert yard.spawn(*yard.claim(lease_sec=5, claimed_ago_ms=6000)).wait(timeout=30) == 0
    assert yard.row(1).failure_reason == "lease_expired"
    assert endpoint.seen == []


def test_a_stop_ends_the_http_runs_that_were_asked_and_then_the_whole_runner(
    yard: Yard, endpoint: Endpoint
) -> None:
    held = endpoint.on("/held", Reply(hold=threading.Event()))
    runner = yard.spawn(*calls(yard, held, held, endpoint.url("/quick")))
    endpoint.wait_for(3)
    yard.until_status("completed", 3)
    with yard.store.write() as tx:
        tx.set_stop_reason(1, 1, "cancelled", now=clock.now())
    launch.stop([yard.row(1)])
    yard.until_status("cancelled", 1)
    assert yard.row(2).status == "running"
    launch.stop([yard.row(2)])
    assert runner.wait(timeout=5) == 0
    assert [(run.status, run.failure_reason) for run in yard.rows()] == [
        ("cancelled", None),
        ("failed", "outcome_unknown"),
        ("completed", None),
    ]


def test_a_job_that_changed_its_kind_meanwhile_is_a_launch_failure(yard: Yard, endpoint: Endpoint) -> None:
    claimed = calls(yard, endpoint.url("/a"), endpoint.url("/b"))
    with yard.store.write() as tx:
        tx.delete_job("call-0")
    assert yard.spawn(*claimed).wait(timeout=30) == 0
    assert [run.failure_reason for run in yard.rows()] == ["launch_failed", None]


def test_a_dispatch_cut_down_after_sending_is_found_dead(yard: Yard, endpoint: Endpoint) -> None:
    claimed = calls(yard, endpoint.on("/held", Reply(hold=threading.Event())))
    runner = yard.spawn(*claimed)
    endpoint.wait_for(1)
    runner.kill()
    runner.wait()
    assert yard.row(1).status == "running"
    assert probe(yard.row(1)) == "dead"


def test_an_answer_that_came_while_the_store_was_busy_is_recorded_by_a_runner_that_is_ended(
    yard: Yard, endpoint: Endpoint
) -> None:
    first, second = threading.Event(), threading.Event()
    urls = [endpoint.on("/first", Reply(hold=first)), endpoint.on("/second", Reply(hold=second))]
    runner = yard.spawn(*calls(yard, *urls))
    endpoint.wait_for(2)
    with closing(sqlite3.connect(yard.home / "scheduler.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        first.set()
        time.sleep(0.5)
        second.set()
        time.sleep(0.5)
        runner.terminate()
        foreign.execute("ROLLBACK")
    assert runner.wait(timeout=10) == 0
    assert [run.status for run in yard.rows()] == ["completed", "completed"]
