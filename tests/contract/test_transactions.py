"""The two transactions of a job store: lock, wait and end; and files that are not what they should be."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from carolctl import lockguard
from carolctl.errors import BadConfig, BadData, CarolError, Exit, NotFound, NotPermitted, StoreBusy
from carolctl.lockguard import IOUnderLock
from carolctl.store import connect
from carolctl.store.db import Store, open_store
from tests import builders
from tests.builders import T0, Carol, Result, job

NOBODY = 65534


@pytest.fixture
def opened(home: Path) -> Iterator[Store]:
    """A job store with one job and a short deadline."""
    builders.add_jobs(home, job())
    one = builders.store(home, deadline_ms=300)
    yield one
    one.close()


@contextmanager
def foreign_lock(home: Path, statement: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """Another program that holds the database."""
    with closing(
        sqlite3.connect(home / "scheduler.db", isolation_level=None, check_same_thread=False)
    ) as foreign:
        foreign.execute(statement)
        yield foreign
        if foreign.in_transaction:
            foreign.execute("ROLLBACK")


def dump(home: Path) -> list[str]:
    """Everything that the database holds, as SQL."""
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return list(connection.iterdump())


def add_a_run(one: Store) -> None:
    with one.write() as tx:
        tx.insert_run("nightly", source="manual", now=T0)


# -- the lock ----


def test_a_write_holds_the_lock_from_its_first_moment(opened: Store, home: Path) -> None:
    with (
        opened.write(),
        closing(sqlite3.connect(home / "scheduler.db", isolation_level=None, timeout=0)) as foreign,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        foreign.execute("BEGIN IMMEDIATE")


def test_a_read_holds_no_lock(opened: Store, home: Path) -> None:
    with opened.read() as tx:
        tx.jobs()
        with foreign_lock(home) as foreign:
            foreign.execute("UPDATE scheduled_jobs SET priority = 9")
            foreign.execute("COMMIT")


def test_a_reader_keeps_its_snapshot_from_the_moment_it_is_opened(opened: Store, home: Path) -> None:
    with opened.read() as tx, foreign_lock(home) as foreign:
        foreign.execute("UPDATE scheduled_jobs SET priority = 9")
        foreign.execute("COMMIT")
        assert [one.priority for one in tx.jobs()] == [0]
    with opened.read() as tx:
        assert [one.priority for one in tx.jobs()] == [9]


def test_readers_are_not_held_up_by_a_foreign_writer(home: Path) -> None:
    builders.add_jobs(home, job())
    with foreign_lock(home) as foreign:
        foreign.execute("UPDATE scheduled_jobs SET priority = 9")
        with (
            closing(builders.store(home, create=False, deadline_ms=0)) as impatient,
            impatient.read() as tx,
        ):
            assert [one.priority for one in tx.jobs()] == [0]


def test_a_claim_is_durable_when_it_is_committed(opened: Store) -> None:
    asked = {name: opened._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in
             ("synchronous", "journal_mode", "journal_size_limit")}  # fmt: skip
    assert asked == {"synchronous": 2, "journal_mode": "wal", "journal_size_limit": 16 * 1024 * 1024}


def test_a_store_that_is_opened_again_is_as_durable(opened: Store, home: Path) -> None:
    with closing(builders.store(home, create=False)) as again:
        assert again._connection.execute("PRAGMA synchronous").fetchone()[0] == 2


# -- waiting for it ----


@pytest.mark.parametrize("deadline_ms", [0, 150, 400])
def test_a_lock_that_is_not_to_be_had_is_busy_at_the_deadline(home: Path, deadline_ms: int) -> None:
    builders.add_jobs(home, job())
    with closing(builders.store(home, deadline_ms=deadline_ms)) as one, foreign_lock(home):
        began = time.monotonic()
        with pytest.raises(StoreBusy) as caught, one.write():
            pytest.fail("the lock was held by another")
        waited = time.monotonic() - began
    assert deadline_ms / 1000 <= waited < deadline_ms / 1000 + 0.3
    assert caught.value.code == Exit.TRY_AGAIN
    assert caught.value.details["database"] == str(home / "scheduler.db")
    assert not lockguard.write_is_open()


def test_a_lock_that_is_freed_in_time_is_taken(home: Path) -> None:
    builders.add_jobs(home, job())
    with closing(builders.store(home, deadline_ms=10_000)) as one, foreign_lock(home) as foreign:
        began = time.monotonic()
        release = threading.Timer(0.2, foreign.execute, ["COMMIT"])
        release.start()
        add_a_run(one)
        waited = time.monotonic() - began
        release.join()
    assert 0.2 <= waited < 1.0


def test_after_a_busy_end_the_store_works_again(opened: Store, home: Path) -> None:
    with foreign_lock(home), pytest.raises(StoreBusy):
        add_a_run(opened)
    add_a_run(opened)
    with opened.read() as tx:
        assert tx.count_live() == (1, 0)


def test_the_time_that_the_lock_was_held_is_told(opened: Store) -> None:
    add_a_run(opened)
    assert 0 < opened.write_lock_ms < 1000


# -- its end ----


@pytest.mark.parametrize("trouble", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_whatever_leaves_the_block_rolls_it_back(opened: Store, home: Path, trouble: BaseException) -> None:
    before = dump(home)

    def leave() -> None:
        with opened.write() as tx:
            tx.insert_run("nightly", source="manual", now=T0)
            raise trouble

    with pytest.raises(type(trouble)):
        leave()
    assert not lockguard.write_is_open()
    assert not opened._connection.in_transaction
    assert dump(home) == before
    add_a_run(opened)


def test_an_error_of_the_database_inside_the_block_rolls_it_back(opened: Store, home: Path) -> None:
    before = dump(home)
    with pytest.raises(sqlite3.IntegrityError), opened.write() as tx:
        tx.insert_jobs([job("another"), job()])
    assert dump(home) == before
    add_a_run(opened)


def test_a_dry_run_sees_its_own_writes_and_leaves_no_trace(opened: Store, home: Path) -> None:
    before = dump(home)
    with opened.write(dry_run=True) as tx:
        run_id = tx.insert_run("nightly", source="manual", now=T0)
        assert tx.run(run_id or 0) is not None
        tx.set_meta("paused_until", "forever")
    assert dump(home) == before
    assert not lockguard.write_is_open()


def test_a_write_inside_a_write_is_refused_and_the_outer_one_rolled_back(opened: Store, home: Path) -> None:
    before = dump(home)

    def nest() -> None:
        with opened.write() as tx:
            tx.insert_run("nightly", source="manual", now=T0)
            add_a_run(opened)

    with pytest.raises(IOUnderLock):
        nest()
    assert dump(home) == before
    assert not lockguard.write_is_open()


def test_a_read_inside_a_write_is_refused(opened: Store) -> None:
    with pytest.raises(IOUnderLock), opened.write(), opened.read():
        pytest.fail("this is nested")


def test_a_write_to_another_store_inside_a_write_is_refused(opened: Store, tmp_path: Path) -> None:
    with closing(builders.store(tmp_path / "other")) as other:
        with pytest.raises(IOUnderLock), opened.write(), other.write():
            pytest.fail("never one transaction over two databases")
        add_a_run(other)


def test_the_guard_speaks_up_inside_a_write_and_only_there(opened: Store) -> None:
    lockguard.require_unlocked("a test")
    with opened.read():
        lockguard.require_unlocked("a test")
    with opened.write(), pytest.raises(IOUnderLock, match="a test attempted"):
        lockguard.require_unlocked("a test")
    lockguard.require_unlocked("a test")


def test_the_guard_of_one_thread_says_nothing_about_another(opened: Store) -> None:
    heard: list[bool] = []
    with opened.write():
        thread = threading.Thread(target=lambda: heard.append(lockguard.write_is_open()))
        thread.start()
        thread.join()
    assert heard == [False]


@pytest.mark.parametrize(
    "opening",
    [
        lambda path: open_store(path, deadline_ms=0),
        lambda path: connect.connect(path, mode="rw", deadline_ms=0),
    ],
    ids=["store", "database"],
)
def test_no_database_is_opened_inside_a_write(
    opened: Store, home: Path, opening: Callable[[str], object]
) -> None:
    with pytest.raises(IOUnderLock), opened.write():
        opening(str(home / "scheduler.db"))


# -- Ctrl-C ----

_PRELUDE = """
import sys
from carolctl.store.db import open_store
store = open_store(sys.argv[1], deadline_ms=20000)
def say(word): sys.stdout.write(word + "\\n"); sys.stdout.flush()
"""

_WAITING = f"""{_PRELUDE}
say("now")
try:
    with store.write(): pass
except KeyboardInterrupt:
    say(f"felt {{store._connection.in_transaction}}")
"""

_LONG_QUERY = f"""{_PRELUDE}
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
try:
    with store.{{}}() as tx:
        say("now")
        tx._connection.execute(ENDLESS).fetchone()
except KeyboardInterrupt:
    say(f"felt {{{{store._connection.in_transaction}}}}")
"""


def interrupted(script: str, home: Path) -> tuple[float, str, str]:
    """Run `script`, interrupt it while it is busy; how long until it felt that, what it said, its complaints."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, str(home / "scheduler.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "now\n"
        time.sleep(0.15)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        said = child.stdout.readline()
        felt_after = time.monotonic() - began
        child.wait(timeout=10)
        return felt_after, said, child.stderr.read()


def felt_at_once(script: str, home: Path) -> None:
    """Twice at most: a machine that is busy with something else may be late once."""
    for last in (False, True):
        felt_after, said, complaints = interrupted(script, home)
        assert (said, complaints) == ("felt False\n", "")
        if felt_after < 0.2:
            return
        assert not last, felt_after


def test_ctrl_c_is_felt_at_once_while_waiting_for_the_lock(home: Path) -> None:
    builders.add_jobs(home, job())
    with foreign_lock(home):
        felt_at_once(_WAITING, home)


@pytest.mark.parametrize("verb", ["read", "write"])
def test_ctrl_c_is_felt_at_once_in_a_long_query_and_leaves_no_transaction(home: Path, verb: str) -> None:
    builders.add_jobs(home, job())
    felt_at_once(_LONG_QUERY.format(verb), home)
    with closing(builders.store(home, deadline_ms=0)) as one:
        add_a_run(one)


def test_a_command_that_is_interrupted_while_it_waits_ends_with_130(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    with foreign_lock(home):
        child = carol.spawn("tick", CAROL_BUSY_TIMEOUT_MS="20000", CAROL_NOW="2026-01-01T01:00:00Z")
        time.sleep(1.0)
        assert child.poll() is None
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=10)
        took = time.monotonic() - began
    assert child.returncode == Exit.INTERRUPTED
    assert err.decode().splitlines()[-1] == "carolctl: interrupted"
    assert b"Traceback" not in err
    assert took < 1.0


# -- what files look like ----


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_database_files_are_private_whatever_the_umask(home: Path) -> None:
    with umask(0o022), closing(builders.store(home)) as one:
        add_a_run(one)
        side = (f"scheduler.db{suffix}" for suffix in ("-wal", "-shm", "-gate"))
        assert modes(home) == dict.fromkeys(["scheduler.db", *side], 0o600)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def wait_for_the_end(home: Path) -> None:
    """Until no run lives any more."""
    with closing(builders.store(home)) as one:
        for _ in range(500):
            with one.read() as tx:
                if tx.count_live() == (0, 0):
                    return
            time.sleep(0.02)
    pytest.fail("a run does not end")


def test_whatever_a_tick_makes_is_private_whatever_the_umask(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job(argv=("no-such-program-at-all",)))
    with umask(0o022):
        done = carol("tick", "--json", CAROL_NOW="2026-01-01T01:00:00Z")
    assert done.code == Exit.OK
    assert done.json()["launched"] == [1]
    wait_for_the_end(home)
    public = [
        path for path in home.rglob("*") if path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and path.exists()
    ]  # fmt: skip
    assert public == []


def test_a_store_is_made_only_where_that_was_asked_for(home: Path) -> None:
    with pytest.raises(NotFound):
        builders.store(home, create=False)
    assert not home.exists()


def test_an_empty_file_becomes_a_store_only_where_that_was_asked_for(home: Path) -> None:
    home.mkdir()
    (home / "scheduler.db").touch()
    with pytest.raises(NotFound):
        builders.store(home, create=False)
    assert (home / "scheduler.db").stat().st_size == 0
    with closing(builders.store(home)) as one:
        add_a_run(one)


def test_two_processes_that_make_the_store_at_once_make_one(home: Path) -> None:
    home.mkdir()
    script = (
        "import sys; from carolctl.store.db import open_store\n"
        "store = open_store(sys.argv[1], deadline_ms=20000, create=True)\n"
        "with store.read() as tx: print(tx.store_uuid())"
    )
    makers = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", script, str(home / "scheduler.db")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    answers = [maker.communicate(timeout=60) for maker in makers]
    assert {out for out, _ in answers} == {answers[0][0]}, answers
    assert len(answers[0][0].strip()) == 32


def test_a_folder_with_odd_signs_in_its_name_is_no_trouble(tmp_path: Path) -> None:
    odd = tmp_path / "100% odd?#&=;' \u00e9"
    builders.add_jobs(odd, job(manual=True))
    for _ in range(2):  # the second one by the idle look
        assert Carol(odd)("tick").code == Exit.OK
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


def test_a_folder_whose_name_is_no_text_is_no_trouble(tmp_path: Path) -> None:
    odd = tmp_path / "latin-\udce9"
    with closing(builders.store(odd)) as one:
        one.write()


# -- files that are not what they should be ----


def _missing_file(home: Path) -> None:
    home.mkdir()


def _missing_folder(home: Path) -> None:
    pass


def _folder_as_file(home: Path) -> None:
    (home / "scheduler.db").mkdir(parents=True)


def _empty_file(home: Path) -> None:
    home.mkdir()
    (home / "scheduler.db").touch()


def _random_bytes(home: Path) -> None:
    home.mkdir()
    (home / "scheduler.db").write_bytes(bytes(range(7, 256)) * 100)


def _sound(home: Path) -> bytes:
    """A store with a few hundred jobs, all of it in the main file; its bytes."""
    builders.add_jobs(home, *(job(f"job-{n:03}") for n in range(150)))
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (home / "scheduler.db").read_bytes()


def _damaged_magic(home: Path) -> None:
    (home / "scheduler.db").write_bytes(b"SQLite format 4\0" + _sound(home)[16:])


def _cut_to_half(home: Path) -> None:
    content = _sound(home)
    (home / "scheduler.db").write_bytes(content[: len(content) // 2])


def _one_bad_page(home: Path) -> None:
    content = bytearray(_sound(home))
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        [root] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'scheduled_jobs'"
        ).fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()  # fmt: skip
    content[(root - 1) * size : root * size] = b"\xa5" * size
    (home / "scheduler.db").write_bytes(content)


def _newer_schema(home: Path) -> None:
    _sound(home)
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        connection.execute("PRAGMA user_version = 999")


def _somebody_elses(home: Path) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        connection.execute("CREATE TABLE droid_runs (id INTEGER PRIMARY KEY)")


def _somebody_elses_with_a_version(home: Path) -> None:
    _somebody_elses(home)
    with closing(sqlite3.connect(home / "scheduler.db")) as connection:
        connection.execute("PRAGMA user_version = 1")


_KINDS: dict[Callable[[Path], None], tuple[type[CarolError], str]] = {
    _missing_file: (NotFound, "no such file"),
    _missing_folder: (NotFound, "no such file"),
    _folder_as_file: (NotFound, "is a folder"),
    _empty_file: (NotFound, "holds no jobs table"),
    _random_bytes: (BadData, "is not a SQLite database"),
    _damaged_magic: (BadData, "is not a SQLite database"),
    _cut_to_half: (BadData, "damaged"),
    _one_bad_page: (BadData, "damaged"),
    _newer_schema: (BadData, "newer than this program"),
    _somebody_elses: (BadData, "another program"),
    _somebody_elses_with_a_version: (BadData, "another program"),
}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, but for SQLite's side files."""
    return {
        path.name: path.read_bytes() if path.is_file() else None
        for path in (folder.iterdir() if folder.exists() else ())
        if not path.name.endswith(("-shm", "-wal"))
    }


def _timeless(text: str) -> str:
    return re.sub(r"for at least [\d.]+ s", "", text)


def one_line(home: Path, carol: Carol, command: str, **env: Any) -> tuple[int, str]:
    """The exit code and the one line of complaint of a command that must fail, in text and as JSON alike."""
    done, as_json = carol(command, **env), carol(command, "--json", **env)
    assert (done.out, as_json.out) == ("", "")
    [line] = done.err.splitlines()
    [_] = as_json.err.splitlines()
    # The second of the two finds whoever holds the lock a little later.
    assert _timeless(as_json.error()["message"]) in _timeless(line)
    assert as_json.error()["hint"]
    assert done.code == as_json.code
    assert "Traceback" not in done.err + as_json.err
    assert str(home / "scheduler.db") in line
    return done.code, line


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_a_damaged_or_misplaced_database_is_one_line_and_left_as_it_is(
    home: Path, carol: Carol, kind: Callable[[Path], None]
) -> None:
    kind(home)
    before = contents(home)
    error, text = _KINDS[kind]
    code, line = one_line(home, carol, "reap")
    assert code == error.code
    assert text in line
    assert contents(home) == before


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_the_idle_look_lets_a_damaged_or_misplaced_database_through_to_the_same_line(
    home: Path, carol: Carol, kind: Callable[[Path], None]
) -> None:
    kind(home)
    if home.exists():
        (home / "tick.stamp").touch()
    before = contents(home)
    error, text = _KINDS[kind]
    done = carol("tick")
    assert done.code == error.code
    [line] = done.err.splitlines()
    assert text in line
    assert contents(home) == before


def test_a_database_that_is_held_exclusively_is_busy(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    with foreign_lock(home, "PRAGMA locking_mode = EXCLUSIVE") as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        code, line = one_line(home, carol, "reap", CAROL_BUSY_TIMEOUT_MS="100")
    assert code == Exit.TRY_AGAIN
    assert "gave up after 0.1 s" in line


def test_a_tick_waits_for_an_exclusive_holder_no_longer_than_its_deadline(home: Path, carol: Carol) -> None:
    builders.add_jobs(home, job())
    (home / "tick.stamp").touch()
    with foreign_lock(home, "PRAGMA locking_mode = EXCLUSIVE") as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        done = carol("tick", CAROL_BUSY_TIMEOUT_MS="100")
    assert done.code == Exit.TRY_AGAIN
    assert time.monotonic() - began < 2.5


# -- files that somebody else may not touch ----


def unprivileged() -> list[str]:
    """What to put before a command so that file modes hold for it, whoever runs the tests."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root is above all modes, and there is no setpriv to change that")
    return [setpriv, "--bounding-set", "-dac_override,-dac_read_search", "--"]


@pytest.fixture
def due(home: Path, carol: Carol) -> Iterator[Carol]:
    """The program in a home with a due job, without any right but those of the file modes."""

    class Unprivileged(Carol):
        def command(self, *arguments: str) -> list[str]:
            return [*unprivileged(), *super().command(*arguments)]

    builders.add_jobs(home, job())
    yield Unprivileged(home)
    home.chmod(0o700)


def ticked(carol: Carol) -> Result:
    return carol("tick", "--json", CAROL_NOW="2026-01-01T01:00:00Z")


def refused(carol: Carol) -> str:
    """The one line with which a tick says that it may not."""
    done = ticked(carol)
    assert (done.code, done.out) == (Exit.NOT_PERMITTED, "")
    [line] = done.err.splitlines()
    assert done.error()["error"] == "not_permitted"
    return line


def test_file_modes_are_no_hindrance_in_a_home_of_ones_own(due: Carol, home: Path) -> None:
    assert ticked(due).json()["launched"] == [1]
    wait_for_the_end(home)


def test_a_read_only_file_is_not_permitted(due: Carol, home: Path) -> None:
    (home / "scheduler.db").chmod(0o400)
    assert "read-only" in refused(due)


def test_an_unreadable_file_is_not_permitted(due: Carol, home: Path) -> None:
    (home / "scheduler.db").chmod(0)
    assert "cannot be opened" in refused(due)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_an_unreadable_file_of_another_user_is_not_permitted(due: Carol, home: Path) -> None:
    os.chown(home / "scheduler.db", NOBODY, NOBODY)
    assert "cannot be opened" in refused(due)


def test_a_read_only_folder_is_not_permitted(due: Carol, home: Path) -> None:
    for path in home.iterdir():
        if path.name != "scheduler.db":
            path.unlink()
    home.chmod(0o500)
    refused(due)


def test_a_folder_that_may_not_be_entered_is_not_permitted(due: Carol, home: Path) -> None:
    home.chmod(0o600)
    assert "may not be entered" in refused(due)


def test_a_home_that_cannot_be_made_is_not_permitted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotPermitted):
        open_store(str(tmp_path / "file" / "home" / "scheduler.db"), deadline_ms=0, create=True)


# -- network file systems ----

_MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
23 22 0:20 / /proc rw - proc proc rw
30 22 0:40 / {base}/nfs rw,relatime shared:9 - nfs4 server:/export rw
31 30 0:41 / {base}/nfs/local rw - xfs /dev/sdb1 rw
32 22 0:42 / {base}/with\\040space rw - cifs //server/share rw
33 22 0:43 / {base}/fuse rw master:3 - fuse.sshfs host:/ rw
34 22 0:44 / {base}/block rw - fuseblk /dev/sdc1 rw
35 22 0:45 / {base}/nfsabc rw - tmpfs tmpfs rw
36 22 0:46 / {base}/twice rw - tmpfs tmpfs rw
37 22 0:47 / {base}/twice rw - 9p host rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    """A table of mounts below `tmp_path`, as the kernel writes it."""
    table = tmp_path / "mountinfo"
    table.write_text(_MOUNTS.format(base=tmp_path))
    return str(table)


@pytest.mark.parametrize(
    ("place", "kind", "is_network"),
    [
        ("x", "ext4", False),
        ("nfs/a/scheduler.db", "nfs4", True),
        ("nfs", "nfs4", True),
        ("nfs/local/scheduler.db", "xfs", False),
        ("with space/scheduler.db", "cifs", True),
        ("fuse/x", "fuse.sshfs", True),
        ("block/x", "fuseblk", False),
        ("nfsabc/x", "tmpfs", False),
        ("twice/x", "9p", True),
    ],
)
def test_network_file_systems_are_told_by_the_mount_that_is_nearest(
    tmp_path: Path,
    mounts: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kind: str,
    is_network: bool,
) -> None:
    path = str(tmp_path / place)
    assert connect.file_system_type(path, mounts) == kind
    # The kernel's own table stands behind the default of that parameter.
    monkeypatch.setattr(connect.file_system_type, "__defaults__", (mounts,))
    if not is_network:
        connect.refuse_network_file_system(path)
        return
    with pytest.raises(BadConfig, match="network file system") as caught:
        open_store(path, deadline_ms=0, create=True)
    assert caught.value.code == Exit.CONFIG
    assert not os.path.lexists(path)
    monkeypatch.setenv("CAROL_ALLOW_NETWORK_FS", "1")
    connect.refuse_network_file_system(path)


def test_a_link_to_a_network_file_system_is_followed(tmp_path: Path, mounts: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    assert connect.file_system_type(str(tmp_path / "link" / "scheduler.db"), mounts) == "nfs4"


def test_without_a_table_of_mounts_nothing_is_refused(tmp_path: Path) -> None:
    assert connect.file_system_type(str(tmp_path), str(tmp_path / "none")) == ""
