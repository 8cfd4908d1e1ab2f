"""contention-test as it is called: its document, its teeth, and what it leaves behind, which is nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carolctl.contention import scenarios, worker
from carolctl.contention.broken import BROKEN
from carolctl.contention.scenarios import SCENARIOS, Trial
from carolctl.store.scratch import audited
from tests import builders
from tests.builders import Carol, job

SHORT = ("contention-test", "--writers", "4", "--seconds", "0.5")
FIXED = {"name", "verdict", "writes", "failures", "p50_ms", "p95_ms", "p99_ms", "max_ms"}
#: How a broken design is to be found out; any other reason would be luck.
FOUND_BY = {
    "lock-held-across-dispatch": "failures ",
    "deferred-transactions": "failures ",
    "acknowledged-before-durable": "events lost ",
    "check-then-act-claim": "runs claimed twice ",
}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file in it, by its hash and the time of its last change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def processes_about(text: str) -> list[str]:
    """The processes whose arguments or environment speak of `text`, this one and its parents apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in said:
            found.append(entry.name)
    return found


def wait_until(condition: Callable[[], bool], *, timeout: float = 30) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def scratch_of(parent: Path) -> list[Path]:
    return list(parent.glob("carolctl-contention-*"))


def test_every_scenario_passes_beside_a_live_store_that_is_left_alone(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    # Whoever opened this one would say that it is no database.
    planner = home / "planner.db"
    planner.write_bytes(b"not a database, and not to be opened")
    before = contents(home)
    result = carol(*SHORT, "--json", CAROL_PLANNER_DB=str(planner))
    document = result.json()
    assert (result.code, document["verdict"], result.err) == (0, "pass", ""), document
    assert [one["name"] for one in document["scenarios"]] == list(SCENARIOS)
    for one in document["scenarios"]:
        assert one.keys() >= FIXED | {"limit", "reason"}
        assert (one["verdict"], one["failures"]) == ("pass", 0)
        assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"] <= one["max_ms"]
        assert sum(one["histogram"].values()) == one["writes"]
    assert document["elapsed_sec"] < 60
    assert contents(home) == before
    assert scratch_of(home.parent) == []


def test_every_broken_design_is_found_out_by_its_own_fault(home: Path, carol: Carol) -> None:
    result = carol(*SHORT, "--broken", "--json")
    document = result.json()
    assert (result.code, document["verdict"], document["toothless"]) == (1, "fail", []), document
    assert [one["name"] for one in document["scenarios"]] == list(BROKEN) == list(FOUND_BY)
    for one in document["scenarios"]:
        assert one["verdict"] == "fail"
        assert one["reason"].startswith(FOUND_BY[one["name"]]), one
    assert (home.exists(), scratch_of(home.parent)) == (False, [])


def test_a_broken_design_that_passes_is_said_aloud_and_is_exit_1(
    inside: Callable[..., builders.Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BROKEN, "deferred-transactions", scenarios.writers)
    toothless = ("contention-test", "--writers", "2", "--seconds", "0.2", "--broken", "--scenario")
    told = inside(*toothless, "deferred-transactions")
    assert told.code == 1
    assert "THE TEST HAS NO TEETH: deferred-transactions should have failed and passed" in told.out
    document = inside(*toothless, "deferred-transactions", "--json").json()
    assert (document["verdict"], document["toothless"]) == ("fail", ["deferred-transactions"])


def test_the_table_says_in_words_what_passed_and_needs_no_unicode(home: Path, carol: Carol) -> None:
    # Not under -I, which would not look at the encoding.
    command = [sys.executable, "-m", "carolctl", *SHORT, "--scenario", "writers"]
    environment = carol.environment(COLUMNS="80", PYTHONIOENCODING="ascii")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == "carolctl: contention-test: 1 scenario, 4 writers, about 2 s\n"
    assert "pass: 1 scenario, in" in done.stdout
    assert "writes lost 0 (at most 0)" in done.stdout
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_as_many_writes_are_counted_as_there_are_rows(tmp_path: Path) -> None:
    trial = Trial(name="writers", folder=str(tmp_path), writers=3, seconds=0.3, deadline_ms=5000)
    result = scenarios.writers(trial)
    stored = audited(str(tmp_path / "writers" / "scheduler.db"), worker.WRITE)
    assert set(stored) == {"writer-0", "writer-1", "writer-2"}
    assert sum(stored.values()) == result.writes > 0


def test_where_no_data_home_is_yet_it_works_in_the_nearest_folder_above(tmp_path: Path) -> None:
    carol = Carol(tmp_path / "not" / "there" / "yet")
    assert carol(*SHORT, "--scenario", "claims").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--scenario", "no-such"), 2, "no such scenario: 'no-such'"),
        (("--broken", "--scenario", "writers"), 2, "no such scenario: 'writers'"),
        (("--writers", "1"), 2, "whole number of at least 2"),
        (("--writers", "201"), 2, "more than 200"),
        (("--seconds", "nan"), 2, "not between"),
        (("--scratch", "/no/such/folder"), 66, "no such folder"),
        (("--scratch", "/dev/null"), 66, "no such folder"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    inside: Callable[..., builders.Result], arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = inside("contention-test", "--json", *arguments)
    assert (result.code, said in result.error()["message"]) == (code, True), result.err


def begun(carol: Carol, scenario: str) -> subprocess.Popen[bytes]:
    """A test that would go on for minutes, once its children are at work."""
    test = carol.spawn("contention-test", "--writers", "3", "--seconds", "120", "--scenario", scenario)
    parent = carol.home.parent
    # Itself, two crews of children or one, and their databases.
    wait_until(lambda: any(path.glob("*/scheduler.db") for path in scratch_of(parent)))
    wait_until(lambda: len(processes_about(str(parent))) >= 3)
    return test


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("scenario", ["writes-during-dispatch", "foreign-hog"])
def test_an_interrupted_test_leaves_no_file_and_no_process(
    home: Path, carol: Carol, scenario: str, number: signal.Signals
) -> None:
    test = begun(carol, scenario)
    time.sleep(0.5)
    test.send_signal(number)
    out, err = test.communicate(timeout=20)
    assert (test.returncode, out, err.splitlines()[-1]) == (130, b"", b"carolctl: interrupted")
    assert scratch_of(home.parent) == []
    wait_until(lambda: processes_about(str(home.parent)) == [], timeout=10)
    assert list(home.parent.iterdir()) == []


def test_the_children_of_a_killed_test_die_with_it_and_the_next_one_clears_up(
    home: Path, carol: Carol
) -> None:
    test = begun(carol, "writes-during-dispatch")
    time.sleep(1)
    test.kill()
    test.communicate(timeout=20)
    # A runner whose request was not yet sent tries it a few times more.
    wait_until(lambda: processes_about(str(home.parent)) == [], timeout=60)
    left = scratch_of(home.parent)
    assert len(left) == 1
    strange = home.parent / "carolctl-contention-of-somebody"
    strange.mkdir()
    assert carol(*SHORT, "--scenario", "claims").code == 0
    assert scratch_of(home.parent) == [strange]
