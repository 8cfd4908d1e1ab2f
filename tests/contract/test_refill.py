"""What takes the place of a run that ended, where the one that ended it is no tick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carolctl import clock, finish
from carolctl.model import HttpAction, Outcome, Run
from carolctl.store.db import Store
from carolctl.store.runs import RunFilter
from tests import builders
from tests.builders import T0, job


@pytest.fixture
def opened(home: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which one run holds the only slot, and calls with and without a reference wait for it."""
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.setenv("SCHEDULE_MAX_CONCURRENT", "1")
    monkeypatch.setenv("CAROL_NOW", clock.iso(T0) or "")
    secret = HttpAction(url="http://h/", headers={"X-Token": "Bearer ${env:DIGEST_TOKEN}"})
    builders.add_jobs(
        home, job("hand"), job("digest", priority=9, action=secret), job("plain", url="http://h/")
    )
    made: Store = store(home)
    with made.write() as tx:
        for name in ("hand", "digest", "plain"):
            run_id = tx.insert_run(name, source="manual", now=T0)
            if name == "hand":
                claimant = finish.claimant_now(T0, finish.config.resolve({}, {}, lambda _: None))
                tx.claim(claimant, cap=1, only=run_id)
                tx.start(run_id, 1, now=T0, pid=None, pid_start=None, unit=None)
    return made


def end_of_hand(store: Store) -> list[str]:
    """Record the end of the run that holds the slot; the jobs whose runs are to be launched in its place."""
    outcome = Outcome(run_id=1, claim_no=1, status="completed", completed_at=T0)
    return [one.run.job_id for one in finish.record_outcomes(store, [outcome], now=T0)]


def row(store: Store, job_id: str) -> Run:
    with store.read() as tx:
        [run] = tx.runs(RunFilter(job_id=job_id))
    return run


def test_a_call_whose_variables_are_not_here_waits_for_a_tick_and_keeps_its_place(opened: Store) -> None:
    assert end_of_hand(opened) == []
    left = row(opened, "digest")
    assert (left.status, left.launches, left.slot_claimed_at, left.lease_expires_at) == (
        "queued",
        0,
        None,
        None,
    )
    assert row(opened, "plain").status == "queued"
    settings = finish.config.resolve({}, {"SCHEDULE_MAX_CONCURRENT": "1"}, lambda _: None)
    with opened.write() as tx:
        claimed = finish.refill(tx, finish.claimant_now(T0, settings), settings, is_tick=True)
    assert [(one.run.job_id, one.run.claim_no) for one in claimed] == [("digest", 2)]


def test_a_call_whose_variables_are_here_is_launched_at_once(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGEST_TOKEN", "hush")
    assert end_of_hand(opened) == ["digest"]
