"""The queue before the write lock: its order, its end at the deadline, and that nothing rests on it."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from carolctl.errors import StoreBusy
from carolctl.store.db import Store, open_store
from carolctl.store.gate import SUFFIX, queued
from tests import builders
from tests.builders import Carol

_HOLDER = """
import fcntl, os, sys, time
gate = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(gate, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""

_WRITER = """
import sys
from carolctl.store.db import open_store
store = open_store(sys.argv[1], deadline_ms=20_000)
print("ready", flush=True)
sys.stdin.readline()
with store.write() as tx:
    order = tx.meta("order") or ""
    tx.set_meta("order", order + sys.argv[2])
"""


@pytest.fixture
def opened(home: Path) -> Iterator[Store]:
    """A job store with a deadline of a second, and a gate that has been used."""
    with closing(builders.store(home, deadline_ms=1000)) as one:
        write(one)
        yield one


def write(one: Store) -> float:
    """One write; the seconds that it took."""
    began = time.monotonic()
    with one.write() as tx:
        tx.set_meta("word", "written")
    return time.monotonic() - began


def gate_of(one: Store) -> Path:
    return Path(one.path + SUFFIX)


@contextmanager
def holder(one: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process of ours at the head of the line."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(gate_of(one))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_writers_are_served_in_the_order_of_their_arrival(opened: Store) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, opened.path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcdef"
    ]
    with holder(opened) as first:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
            until_it_waits(writer.pid)
        first.kill()
        for writer in writers:
            writer.communicate(timeout=20)
    with opened.read() as tx:
        assert tx.meta("order") == "abcdef"


def until_it_waits(pid: int) -> None:
    """Until /proc/locks shows that process behind another one's lock."""
    deadline = time.monotonic() + 20
    while not any(
        "->" in line and "FLOCK" in line and f" {pid} " in line
        for line in Path("/proc/locks").read_text().splitlines()
    ):
        assert time.monotonic() < deadline, "it does not wait in line"
        time.sleep(0.005)


def test_a_killed_holder_lets_the_next_one_in_at_once(opened: Store) -> None:
    with holder(opened) as first:
        threading.Timer(0.2, first.kill).start()
        assert 0.15 < write(opened) < 0.55


def test_a_stopped_holder_is_passed_by_before_the_deadline(opened: Store) -> None:
    with holder(opened) as first:
        first.send_signal(signal.SIGSTOP)
        assert 0.5 < write(opened) < 0.95


def test_a_stopped_holder_is_named_by_locks(opened: Store, carol: Carol) -> None:
    with holder(opened) as first:
        assert carol("locks", "--json").json()["limits"] == []
        first.send_signal(signal.SIGSTOP)
        found = carol("locks", "--json").json()
        assert found["verdict"] == "free"
        assert f"kill -CONT {first.pid}" in found["limits"][0]


def test_a_foreign_lock_is_waited_for_until_the_deadline_behind_a_stopped_holder_too(opened: Store) -> None:
    foreign = sqlite3.connect(opened.path, isolation_level=None)
    with holder(opened), closing(foreign):
        foreign.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreBusy), opened.write():
            pass
        assert 0.95 < time.monotonic() - began < 1.5


def test_the_turn_lasts_to_the_end_of_the_transaction(opened: Store) -> None:
    with opened.write() as tx:
        tx.set_meta("word", "again")
        assert not free(gate_of(opened))
    assert free(gate_of(opened))
    with pytest.raises(ValueError, match="no"), opened.write():
        raise ValueError("no")
    assert free(gate_of(opened))


def free(gate: Path) -> bool:
    descriptor = os.open(gate, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_read_stands_in_no_line(opened: Store) -> None:
    with holder(opened):
        began = time.monotonic()
        with opened.read() as tx:
            assert tx.meta("word") == "written"
        assert time.monotonic() - began < 0.3


def test_ctrl_c_is_felt_at_once_in_the_line(home: Path) -> None:
    with closing(builders.store(home, deadline_ms=1000)) as one:
        write(one)
        with holder(one):
            child = subprocess.Popen(
                [sys.executable, "-c", _WRITER, one.path, "x"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            until_it_waits(child.pid)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, complaint = child.communicate(timeout=10)
            assert time.monotonic() - began < 0.5
    assert "KeyboardInterrupt" in complaint
    assert child.returncode != 0


@pytest.mark.parametrize("obstacle", ["symlink", "folder", "fifo"])
def test_where_the_gate_cannot_be_used_writes_go_on_without_it(opened: Store, obstacle: str) -> None:
    gate = gate_of(opened)
    gate.unlink()
    elsewhere = gate.with_name("elsewhere")
    if obstacle == "symlink":
        gate.symlink_to(elsewhere)
    elif obstacle == "folder":
        gate.mkdir()
    else:
        os.mkfifo(gate)
    assert write(opened) < 0.3
    assert not elsewhere.exists()


def test_a_deleted_gate_costs_the_order_and_nothing_else(opened: Store) -> None:
    with holder(opened):
        gate_of(opened).unlink()
        assert write(opened) < 0.3
        assert gate_of(opened).exists()


def test_a_thread_waits_for_the_lock_itself_and_writes(opened: Store) -> None:
    took: list[float] = []
    with holder(opened):
        thread = threading.Thread(target=lambda: took.append(write(opened)))
        thread.start()
        thread.join()
    assert took[0] < 0.3


def test_an_alarm_of_somebody_else_is_given_back(opened: Store) -> None:
    def theirs(_number: int, _frame: object) -> None:
        pass

    before = signal.signal(signal.SIGALRM, theirs)
    try:
        with holder(opened):
            write(opened)
        assert signal.getsignal(signal.SIGALRM) is theirs
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_without_any_time_left_nobody_waits_in_line(opened: Store) -> None:
    with holder(opened):
        began = time.monotonic()
        with queued(opened.path, 0) as first:
            assert not first
        assert time.monotonic() - began < 0.1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")
def test_what_root_makes_belongs_to_the_owner_of_the_database(home: Path) -> None:
    with closing(builders.store(home)) as one:
        os.chown(one.path, 65534, 65534)
        with closing(open_store(one.path, deadline_ms=1000)) as again:
            write(again)
        made = gate_of(one).stat()
    assert (made.st_uid, made.st_gid) == (65534, 65534)
