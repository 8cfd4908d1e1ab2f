"""locks, on real databases that real processes lock in every way there is: the right process, the right verdict.

The cases take two seconds each and hardly any work, so they run beside each other, once for all tests here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from carolctl import locks
from carolctl.errors import UsageError
from carolctl.lock_watch import Watched
from tests import builders, lock_actors
from tests.builders import Carol, Result, job
from tests.yard import until

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NEW_NAMESPACE = ("unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "--pid", "--fork", "--mount-proc")
SLOWEST_SEC = 10.0


class Actor:
    """A process of `lock_actors`, ready."""

    def __init__(self, role: str, database: Path, *more: str, within: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-I", lock_actors.__file__, role, str(database), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", role
        if within:
            self.pid = _only_child(self.process.pid)

    def ends_well(self) -> bool:
        """Tell it to commit: whether it could."""
        return self.process.communicate(b"go\n", timeout=30)[0] == b"committed\n"

    def close(self) -> None:
        for pid in {self.pid, self.process.pid}:
            if self.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=30)


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@contextmanager
def acting(*arguments: Any, **options: Any) -> Iterator[Actor]:
    actor = Actor(*arguments, **options)
    try:
        yield actor
    finally:
        actor.close()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Who acts on a database, who looks, and what must be found."""

    verdict: str
    roles: tuple[str, ...] = ()
    activity: str | None = None
    actor_within: tuple[str, ...] = ()
    looker_within: tuple[str, ...] = ()
    #: Other than the process that must be named.
    is_stopped: bool = False
    is_second_look: bool = False
    has_peer: bool = False


IDLE = "idle in transaction"
CASES: dict[str, Case] = {
    "free": Case(verdict="free", roles=("bystander",)),
    "idle in a transaction": Case(verdict="long_holder", roles=("immediate",), activity=IDLE),
    "exclusive": Case(verdict="long_holder", roles=("exclusive",), activity=IDLE),
    "reader left behind": Case(verdict="long_reader", roles=("reader",)),
    "computing in a transaction": Case(verdict="long_holder", roles=("burner",), activity="working"),
    "hog": Case(verdict="starvation", roles=("hog",)),
    "four short writers": Case(verdict="contention", roles=("short_writer",) * 4),
    "stopped": Case(verdict="wedge", roles=("immediate",), activity="stopped", is_stopped=True),
    "stopped, exclusive": Case(verdict="wedge", roles=("exclusive",), activity="stopped", is_stopped=True),
    "waiting for an answer": Case(
        verdict="long_holder", roles=("receiver",), activity="waiting on the network", has_peer=True
    ),
    "leaked, a minute later": Case(
        verdict="wedge", roles=("immediate",), activity=IDLE, is_second_look=True
    ),
    "lock of an open file description": Case(
        verdict="long_holder", roles=("bystander", "ofd_lock"), activity=IDLE
    ),
    "holder in a namespace below": Case(
        verdict="long_holder", roles=("immediate",), activity=IDLE, actor_within=NEW_NAMESPACE
    ),
    "holder in a namespace above": Case(
        verdict="unseen_holder", roles=("immediate",), looker_within=NEW_NAMESPACE
    ),
    "computing, seen by nobody": Case(
        verdict="long_holder", roles=("burner",), activity="working", looker_within=NOBODY
    ),
    "seen by nobody": Case(
        verdict="long_holder", roles=("immediate",), activity=IDLE, looker_within=NOBODY
    ),
}  # fmt: skip
TABLE = [(mode, name) for mode in ("wal", "delete") for name in CASES]


@dataclass(kw_only=True)
class Scene:
    """What a case came to."""

    code: int
    document: dict[str, Any]
    seconds: float
    pids: list[int]
    port: int | None = None
    still_locked: bool = False
    ended_well: list[bool] = field(default_factory=list)


class Stage:
    """A folder that anybody may look into, in which cases are played."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.chmod(0o755)

    def play(self, mode: str, name: str) -> Scene:
        case = CASES[name]
        folder = self._folder / f"{mode} {name}"
        folder.mkdir()
        database = folder / "some.db"
        lock_actors.make_database(str(database), mode)
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            actors = [
                stack.enter_context(acting(role, database, str(port), within=case.actor_within))
                for role in case.roles
            ]
            if case.is_stopped:
                os.kill(actors[-1].pid, signal.SIGSTOP)
            scene = self._look(case, folder, database)
            scene.pids, scene.port = [actor.pid for actor in actors], port
            scene.still_locked = lock_actors.is_locked(str(database))
            if case.is_stopped:
                os.kill(actors[-1].pid, signal.SIGCONT)
            if case.has_peer:
                listener.accept()[0].close()
            scene.ended_well = [
                actor.ends_well()
                for actor, role in zip(actors, case.roles, strict=True)
                if role not in ("hog", "short_writer")
            ]
        return scene

    def _look(self, case: Case, folder: Path, database: Path) -> Scene:
        carol = Carol(folder / "home")
        if case.is_second_look:
            carol.home.mkdir(mode=0o700)
            look(carol, database)
            _grow_older(carol.home / "locks.state.json", seconds=61)
        return look(carol, database, within=case.looker_within)


def look(carol: Carol, database: Path, *options: str, within: Sequence[str] = ()) -> Scene:
    began = time.monotonic()
    done = subprocess.run(
        [*within, *carol.command("locks", str(database), "--json", *options)],
        capture_output=True,
        env=carol.environment(),
        timeout=60,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.stdout, done.stderr
    return Scene(code=done.returncode, document=json.loads(done.stdout), seconds=seconds, pids=[])


def _grow_older(state: Path, *, seconds: int) -> None:
    [(key, memory)] = json.loads(state.read_text()).items()
    for name in ("since", "idle_since", "seen"):
        memory[name] -= seconds * 1000
    state.write_text(json.dumps({key: memory}))


def can(*command: str) -> bool:
    """Whether this command works here, with our Python behind it."""
    try:
        done = subprocess.run([*command, sys.executable, "-I", "-c", "import carolctl"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def able() -> dict[tuple[str, ...], bool]:
    """What may be done here: to become another user, to make namespaces."""
    return {(): True, NOBODY: can(*NOBODY), NEW_NAMESPACE: can(*NEW_NAMESPACE)}


@pytest.fixture(scope="module")
def scenes(able: dict[tuple[str, ...], bool]) -> Iterator[dict[tuple[str, str], Future[Scene]]]:
    """All cases, playing."""
    # Not below pytest's own folder, which is closed to others.
    folder = Path(tempfile.mkdtemp(prefix="carolctl-locks-"))
    stage = Stage(folder)
    with ThreadPoolExecutor(6) as pool:
        yield {
            (mode, name): pool.submit(stage.play, mode, name)
            for mode, name in TABLE
            if able[CASES[name].actor_within] and able[CASES[name].looker_within]
        }
    shutil.rmtree(folder)


@pytest.mark.parametrize(("mode", "name"), TABLE)
def test_the_holder_is_named_judged_and_left_alone(
    scenes: dict[tuple[str, str], Future[Scene]], mode: str, name: str
) -> None:
    if (mode, name) not in scenes:
        pytest.skip("needs root, or user namespaces")
    case, scene = CASES[name], scenes[mode, name].result(timeout=120)
    found, holder = scene.document, scene.document["holder"]
    print(f"{mode}, {name}: {scene.seconds:.1f} s, {found['headline']}")
    assert (found["verdict"], found["journal_mode"]) == (case.verdict, "wal" if mode == "wal" else "rollback")
    assert scene.code == (0 if case.verdict in ("free", "contention") else 1)
    assert scene.seconds < SLOWEST_SEC
    assert all(scene.ended_well)
    assert scene.still_locked or case.verdict in ("free", "contention", "starvation", "long_reader")
    if case.verdict in ("long_holder", "wedge", "starvation"):
        assert holder["pid"] == scene.pids[-1]
        assert case.activity in (None, holder["activity"])
        assert holder["held_share"] > 0.6
        assert lock_actors.__file__ in holder["command"]
        assert (holder["peers"] == [f"127.0.0.1:{scene.port}"]) == case.has_peer
    else:
        assert holder is None
    if case.verdict == "long_reader":
        assert [reader["pid"] for reader in found["readers"]] == scene.pids
        assert found["readers"][0]["frames_behind"] == (50 if mode == "wal" else None)
    if case.verdict in ("contention", "starvation"):
        assert found["commits"] > 2
        assert {one["pid"] for one in found["holders"]} <= {*scene.pids, None}


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_another_user_may_not_see_is_said(
    scenes: dict[tuple[str, str], Future[Scene]], mode: str
) -> None:
    if (mode, "seen by nobody") not in scenes:
        pytest.skip("needs root")
    limits = scenes[mode, "seen by nobody"].result(timeout=120).document["limits"]
    assert "its sockets and disk traffic are hidden: run this as root" in limits


# -- the file ----


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database in WAL mode that nobody has open."""
    path = tmp_path / "some.db"
    lock_actors.make_database(str(path), "wal")
    return path


def test_a_database_that_nobody_has_open_is_free(carol: Carol, database: Path) -> None:
    found = look(carol, database, "--for", "0.1").document
    assert (found["verdict"], found["wal"]["frames"]) == ("free", 0)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("missing", 66, "no such file"), ("folder", 66, "folder"), ("text", 65, "not a SQLite database"),
     ("fifo", 65, "not a SQLite database"), ("empty", 0, "")],
)  # fmt: skip
def test_what_is_no_database_is_called_by_its_name(
    carol: Carol, tmp_path: Path, what: str, code: int, said: str
) -> None:
    path = tmp_path / "it"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what != "missing":
        path.write_text("" if what == "empty" else "not a database, but long enough to be one " * 10)
    result = carol("locks", str(path), "--for", "0.1")
    assert (result.code, said in result.err) == (code, True), result.err


def test_a_file_that_may_not_be_read_is_not_permitted(able: dict[tuple[str, ...], bool]) -> None:
    if not able[NOBODY]:
        pytest.skip("needs root")
    with tempfile.NamedTemporaryFile() as file:
        done = subprocess.run(
            [*NOBODY, sys.executable, "-I", "-m", "carolctl", "locks", file.name],
            capture_output=True,
            text=True,
        )
    assert (done.returncode, "may not be read" in done.stderr) == (77, True), done.stderr


@pytest.mark.parametrize("how", ["symlink", "relative", "other file system"])
def test_whatever_path_leads_to_it_the_holder_is_found(carol: Carol, tmp_path: Path, how: str) -> None:
    folder, given = tmp_path, "some.db"
    with ExitStack() as stack:
        if how == "other file system":
            if not os.access("/dev/shm", os.W_OK):
                pytest.skip("there is none")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        database = folder / "some.db"
        lock_actors.make_database(str(database), "wal")
        if how == "symlink":
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "link.db").symlink_to(database)
            given = str(tmp_path / "elsewhere" / "link.db")
        actor = stack.enter_context(acting("immediate", database))
        done = subprocess.run(
            carol.command("locks", given, "--json", "--for", "0.3"),
            capture_output=True,
            cwd=folder,
            env=carol.environment(),
        )
    assert json.loads(done.stdout)["holder"]["pid"] == actor.pid


@pytest.mark.parametrize("given", ["0", "0.01", "2d", "-1", "x", "1e9", "99h"])
def test_a_time_that_is_none_is_a_mistake(inside: Any, given: str) -> None:
    assert inside("locks", "--for", given).code == 2


def test_the_one_who_looks_takes_no_lock(carol: Carol, database: Path) -> None:
    with acting("immediate", database):
        looker = carol.spawn("locks", str(database), "--json", "--for", "0.8")
        holders = set()
        while looker.poll() is None:
            table = Path("/proc/locks").read_text()
            holders |= {line.split()[4] for line in table.splitlines() if "->" not in line}
        looker.communicate()
    assert str(looker.pid) not in holders


def test_people_get_a_sentence_a_table_and_advice_without_escapes(carol: Carol, database: Path) -> None:
    trick = "\x1b]0;owned\x07 --token=tops3cret"
    with acting("immediate", database, trick) as actor:
        result = carol("locks", str(database), "--for", "0.3", COLUMNS="80")
    assert result.code == 1
    assert result.out.startswith(f"long holder: pid {actor.pid} (")
    assert all(character.isprintable() for character in result.out.replace("\n", ""))
    assert "advice: " in result.out


# -- those who are kept out ----


@pytest.fixture
def hogged(home: Path) -> Iterator[Actor]:
    """A job store with a due job, locked by somebody who does nothing."""
    builders.add_jobs(home, job())
    with acting("store_holder", home / "scheduler.db") as actor:
        yield actor


def kept_out(carol: Carol, *arguments: str) -> Result:
    return carol(*arguments, CAROL_BUSY_TIMEOUT_MS="100", CAROL_NOW="2026-01-01T01:00:00Z")


def named(result: Result, actor: Actor) -> bool:
    return f"held by pid {actor.pid} (" in result.err and "idle in transaction" in result.err


@pytest.mark.parametrize("command", [("pause", "nightly"), ("tick",)])
def test_a_command_that_gives_up_names_the_culprit(
    carol: Carol, hogged: Actor, command: tuple[str, ...]
) -> None:
    plain, as_json = kept_out(carol, *command), kept_out(carol, *command, "--json")
    assert (plain.code, as_json.code) == (75, 75)
    assert named(plain, hogged), plain.err
    error = as_json.error()
    assert (error["error"], error["holder"]["pid"]) == ("database_busy", hogged.pid)
    assert (carol.home / "locks.state.json").exists(), "a later look is to know of this one"


def test_a_command_that_waits_for_the_name_of_the_culprit_feels_ctrl_c(carol: Carol, hogged: Actor) -> None:
    with carol.spawn("pause", "nightly", CAROL_BUSY_TIMEOUT_MS="1") as command:
        until(lambda: "locks" in _command_lines_of_children(command.pid))
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=30)[1]
    assert (command.returncode, said) == (130, b"carolctl: interrupted\n")


def _command_lines_of_children(pid: int) -> list[str]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return " ".join(Path(f"/proc/{child}/cmdline").read_text() for child in children).split("\0")
    except OSError:
        return []


def test_a_phrase_names_the_holder_of_any_database(database: Path) -> None:
    assert locks.holder_phrase(str(database)) is None
    with acting("immediate", database) as actor:
        phrase = locks.holder_phrase(str(database))
    assert phrase is not None
    assert phrase.startswith(f"held by pid {actor.pid} (")


@pytest.mark.parametrize("path", ["/nonexistent/a.db", "/dev/null", "/", "a\nb", "--json"])
def test_a_phrase_that_cannot_be_had_is_none(path: str) -> None:
    assert locks.holder_phrase(path) is None


SANDBOX = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o subset=pid proc /proc && exec "$@"', "sh")
PHRASE = "import sys; from carolctl.locks import holder_phrase; print(holder_phrase(sys.argv[1]))"


@pytest.mark.parametrize("manager", ["works", "fails"])
def test_in_a_sandbox_it_is_asked_from_a_unit_of_its_own(
    carol: Carol, tmp_path: Path, database: Path, manager: str
) -> None:
    if not can(*SANDBOX):
        pytest.skip("needs root")
    fake = tmp_path / "bin" / "systemd-run"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ntest {manager} = works || exit 1\n{_OUTSIDE}')
    fake.chmod(0o755)
    env = carol.environment(INVOCATION_ID="0" * 32, PATH=f"{fake.parent}:{os.environ['PATH']}")
    with acting("immediate", database) as actor:
        phrase = subprocess.check_output(
            [*SANDBOX, sys.executable, "-I", "-c", PHRASE, str(database)], env=env, text=True
        )
    asked = (tmp_path / "asked").read_text()
    assert "--pipe --wait --collect --quiet" in asked
    assert asked.endswith(f"-m carolctl locks --json --watch-sec 0.6 -- {database}\n")
    assert phrase.startswith(f"held by pid {actor.pid} ("), (
        "the kernel names it even where /proc/locks is hidden"
    )


#: Run what stands behind ``--`` with a /proc in which everything can be seen.
_OUTSIDE = 'while [ "$1" != -- ]; do shift; done; shift; exec unshare --mount --mount-proc -- "$@"\n'


def test_the_look_is_refused_where_it_would_drop_a_lock(database: Path) -> None:
    with closing(sqlite3.connect(database)), pytest.raises(UsageError, match="in this very process"):
        Watched(str(database))
