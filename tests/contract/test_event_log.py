"""The log that agents append events to: taken away while they write, read in parts, nothing of it lost or doubled."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carolctl import emit, event_append, event_log, events, foreign_spool
from carolctl.model import Millis
from carolctl.store.db import Store
from tests import strange_files
from tests.builders import MINUTE, T0, Carol
from tests.contract.test_events import say, store, stored, take, waiting
from tests.yard import until

__all__ = ["store"]


def log(home: Path) -> Path:
    return home / "spool" / "new" / event_append.LIVE


def line(event_id: str, run: int = 1) -> bytes:
    members = f'"event_id":"{event_id}","run_id":{run},"event_kind":"progress","emitted_at":{T0}'
    return f'{{"kind":"event",{members}}}'.encode()


def bad(home: Path) -> list[str]:
    return [name for name in waiting(home, "bad") if not name.endswith(".reason")]


# -- appending ----


def test_all_events_are_lines_of_one_private_file(store: Store, home: Path) -> None:
    for number in range(3):
        say(f"e{number}")
    assert waiting(home) == ["events.jsonl"]
    assert stat.S_IMODE(log(home).stat().st_mode) == 0o600
    assert [text for text in log(home).read_bytes().splitlines() if text] == [line(f"e{n}") for n in range(3)]
    assert take(store).new == 3
    assert waiting(home) == []


@pytest.mark.parametrize(
    "plant",
    [strange_files.fifo, strange_files.unix_socket, strange_files.directory],
    ids=lambda one: one.__name__,
)
def test_what_stands_in_place_of_the_log_is_set_aside_and_events_are_stored_all_the_same(
    store: Store, home: Path, plant: Callable[[Path, Path], None]
) -> None:
    log(home).parent.mkdir(parents=True)
    plant(home, log(home))
    say("one")
    assert (home / "spool" / "new" / "event-one.json").is_file()
    take(store)
    assert (sorted(stored(home)), waiting(home), len(bad(home))) == (["one"], [], 1)
    say("two")
    assert waiting(home) == ["events.jsonl"]


@pytest.mark.parametrize("kind", ["a link", "a second name"])
def test_a_link_in_place_of_the_log_is_not_written_through(
    store: Store, home: Path, tmp_path: Path, kind: str
) -> None:
    log(home).parent.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    log(home).symlink_to(precious) if kind == "a link" else log(home).hardlink_to(precious)
    say("one")
    take(store)
    assert (precious.read_text(), sorted(stored(home)), waiting(home)) == ("mine", ["one"], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else")
def test_somebody_elses_log_is_neither_written_nor_read(store: Store, home: Path) -> None:
    log(home).parent.mkdir(parents=True)
    log(home).write_bytes(line("theirs") + b"\n")
    os.chown(log(home), 65534, 65534)
    say("ours")
    take(store)
    assert (sorted(stored(home)), waiting(home), len(bad(home))) == (["ours"], [], 1)


# -- taking away ----


def test_an_agent_that_opened_the_log_before_it_was_taken_away_writes_to_the_next(
    store: Store, home: Path, carol: Carol, tmp_path: Path
) -> None:
    say("first")
    agent = subprocess.Popen(
        [sys.executable, "-I", "-m", "carolctl", "emit", "1", "--kind", "progress", "--event-id", "late"],
        env=carol.environment(CAROL_NOW="", CAROL_FAILPOINT="event-log-opened:stop"),
        stdout=subprocess.DEVNULL,
    )
    until(lambda: Path(f"/proc/{agent.pid}/stat").read_text().split()[2] == "T")
    assert take(store).new == 1
    assert waiting(home) == []
    agent.send_signal(18)
    assert agent.wait(timeout=20) == 0
    assert waiting(home) == ["events.jsonl"]
    take(store)
    assert sorted(stored(home)) == ["first", "late"]


def test_a_log_stays_while_an_agent_may_be_writing_to_it_and_what_is_in_it_is_stored_once(
    store: Store, home: Path
) -> None:
    say("first")
    with open(log(home), "ab", buffering=0) as agent:
        fcntl.flock(agent, fcntl.LOCK_SH)
        agent.write(b'\n{"kind":"event","event_id":"half')
        assert [take(store).new, take(store).new] == [1, 0]
        assert len(waiting(home)) == 1
        agent.write(line("half").partition(b"half")[2] + b"\n")
    assert take(store).new == 1
    assert (sorted(stored(home)), waiting(home)) == (["first", "half"], [])


def test_a_long_log_is_taken_in_part_by_part_and_its_name_says_how_far(store: Store, home: Path) -> None:
    log(home).parent.mkdir(parents=True)
    log(home).write_bytes(b"".join(b"\n%s\n" % line(f"e{number}") for number in range(events.BATCH + 7)))
    assert take(store).new == events.BATCH
    [left] = waiting(home)
    offset = int(left.partition("@")[2].removesuffix(".jsonl"))
    assert (home / "spool" / "new" / left).read_bytes()[offset:].count(b"event_id") == 7
    say("later")
    assert take(store).new == 8
    assert (len(stored(home)), waiting(home)) == (events.BATCH + 8, [])


def test_two_who_read_the_same_part_store_it_once(store: Store, home: Path) -> None:
    log(home).parent.mkdir(parents=True)
    log(home).write_bytes(b"".join(b"%s\n" % line(f"e{number}") for number in range(events.BATCH + 7)))
    both = [events.pending(), events.pending()]
    for batch in both:
        with store.write() as tx:
            taken = events.take_in(tx, batch.files, now=Millis(T0 + MINUTE))
        events.clear(batch, taken)
    assert len(stored(home)) == events.BATCH
    assert take(store).new == 7
    assert waiting(home) == []


def test_a_dry_run_reads_the_log_where_it_is(store: Store, home: Path) -> None:
    say("one")
    assert [file.event.event_id for file in events.pending(dry_run=True).files] == ["one"]
    assert waiting(home) == ["events.jsonl"]


# -- what is no event ----


def test_a_line_that_was_cut_off_spoils_no_neighbour_and_leaves_nothing_behind(
    store: Store, home: Path
) -> None:
    say("before")
    for size in (1, 12, 40):
        with open(log(home), "ab") as cut:
            cut.write(b"\n" + line("cut")[:size])
        say(f"after-{size}")
    with open(log(home), "ab") as cut:
        cut.write(b"\n" + line("cut")[:50])
    assert take(store).new == 4
    assert (sorted(stored(home)), waiting(home), bad(home)) == (
        ["after-1", "after-12", "after-40", "before"], [], [],
    )  # fmt: skip


def test_a_line_that_is_no_event_is_set_aside_with_its_reason_and_its_neighbours_stay(
    store: Store, home: Path
) -> None:
    say("before")
    with open(log(home), "ab") as file:
        file.write(b'?\n[1]\n{"kind":"event"}\n' + b"x" * 200_000 + b"\n")
    say("after")
    assert take(store).new == 2
    assert (waiting(home), len(bad(home))) == ([], 4)
    reasons = [path.read_text() for path in sorted((home / "spool" / "bad").glob("*.reason"))]
    assert [words.partition(":")[0].strip() for words in reasons] == [
        "JSONDecodeError", "not an event", "members missing or unknown", "too long a line",
    ]  # fmt: skip


def test_a_refused_line_can_be_moved_back_when_the_trouble_is_over(store: Store, home: Path) -> None:
    say("one")
    batch = events.pending()
    trouble = events.Taken(refused=[events.refusal(batch.files[0], "not today")])
    events.clear(batch, trouble)
    assert (waiting(home), bad(home)) == ([], ["event-one.json"])
    os.rename(home / "spool" / "bad" / "event-one.json", home / "spool" / "new" / "event-one.json")
    assert take(store).new == 1


def test_an_endless_line_is_set_aside_with_its_log_after_what_stood_before_it(
    store: Store, home: Path
) -> None:
    say("one")
    with open(log(home), "r+b") as file:
        file.truncate(10 * 2**40)
    assert take(store).new == 1
    take(store)
    assert (waiting(home), len(bad(home))) == ([], 1)
    assert "does not end" in next((home / "spool" / "bad").glob("*.reason")).read_text()


# -- somebody else's log ----


def test_the_lines_of_a_log_elsewhere_that_are_about_the_run_are_brought_home(
    store: Store, home: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away" / "spool" / "new"
    away.mkdir(parents=True)
    lines = [line("a", 5), line("other", 6), b"?", line("b", 5), line("cut", 5)[:60]]
    (away / event_append.LIVE).write_bytes(b"\n".join(lines))
    assert foreign_spool.bring_home(str(tmp_path / "away"), 5) == 2
    assert take(store).new == 2


def test_progress_is_what_leaves_less_to_do() -> None:
    def part(path: str, end: int, *, is_last: bool = False) -> event_log.Part:
        return event_log.Part(path=path, lines=(), end=end, is_last=is_last)

    assert not part("new/events-1-1@7.jsonl", 7).is_progress
    assert part("new/events-1-1@7.jsonl", 8).is_progress
    assert part("new/events-1-1@7.jsonl", 7, is_last=True).is_progress


def test_an_id_given_twice_is_one_event(store: Store, home: Path) -> None:
    for data in ("1", "2"):
        emit.emit(run="1", kind="progress", event_id="same", now=T0, data=data)
    assert take(store).new == 1
    assert (len(stored(home)), waiting(home)) == (1, [])


def test_an_id_that_another_run_has_used_does_not_make_an_event_vanish(store: Store, home: Path) -> None:
    say("step-1", run=2)
    say("step-1", run=1)
    taken = take(store)
    assert (taken.new, [file.reason for file in taken.refused]) == (
        1,
        ["RefusedValue: an event of run 2 has that id"],
    )
    assert (waiting(home), bad(home)) == ([], ["event-step-1.json"])


def test_what_is_set_aside_is_on_disk_before_its_log_goes(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("one")
    with open(log(home), "ab") as file:
        file.write(b"?\n")
    said: list[str] = []
    fsync, unlink = os.fsync, os.unlink

    def synced(descriptor: int) -> None:
        said.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).partition("-")[0])
        fsync(descriptor)

    def unlinked(path: str) -> None:
        said.append("unlink " + os.path.basename(path).partition("-")[0])
        unlink(path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "unlink", unlinked)
    take(store)
    last_sync = len(said) - said[::-1].index("sync bad") - 1
    assert "sync aside" in said[:last_sync]
    assert said.index("unlink events") > last_sync


# -- root beside a user ----

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data home of another user, where that user may go."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        os.chown(home, NOBODY, NOBODY)
        monkeypatch.setenv("CAROL_DATA_DIR", str(home))
        yield home


def owners(home: Path) -> set[int]:
    return {path.lstat().st_uid for path in (home / "spool", *(home / "spool").rglob("*"))}


@root
def test_what_root_emits_and_sets_aside_in_somebody_elses_spool_is_theirs(store: Store, theirs: Path) -> None:
    say("one")
    assert owners(theirs) == {NOBODY}
    (theirs / "spool" / "new" / "event-bad.json").write_text("?")
    os.chown(theirs / "spool" / "new" / "event-bad.json", NOBODY, NOBODY)
    assert take(store).new == 1
    assert (waiting(theirs), bad(theirs), owners(theirs)) == ([], ["event-bad.json"], {NOBODY})
    assert os.geteuid() == 0


@root
@pytest.mark.parametrize("name", ["bad", "new"])
def test_a_link_in_place_of_a_folder_leads_root_no_further_than_its_owner_gets(
    store: Store, theirs: Path, name: str
) -> None:
    precious = theirs.parent / "precious"
    precious.mkdir()
    (precious / "event-passwd.json").write_text("root's")
    (theirs / "spool" / "new").mkdir(parents=True)
    (theirs / "spool" / "new" / "event-passwd.json").write_text("evil")
    for path in (theirs / "spool", *(theirs / "spool").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    place = theirs / "spool" / name
    if place.exists():
        place.rename(theirs / "spool" / "elsewhere")
    place.symlink_to(precious)
    take(store)
    assert {path.name: path.read_text() for path in precious.iterdir()} == {"event-passwd.json": "root's"}


def test_a_line_that_is_no_event_and_cannot_be_moved_away_keeps_none_of_those_behind_it(
    store: Store, home: Path
) -> None:
    say("one")
    with open(log(home), "ab") as file:
        file.write(b"?\n" + b"".join(b"%s\n" % line(f"e{number}") for number in range(700)))
    (home / "spool" / "bad").write_text("no folder")
    for _ in range(3):
        take(store)
    say("after")
    take(store)
    assert len(stored(home)) == 702
    [left] = waiting(home)
    assert (home / "spool" / "new" / left).read_text() == "?\n"
