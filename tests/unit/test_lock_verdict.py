"""Looks at a lock, judged; and the texts of the kernel and of SQLite that they are made from."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import pytest

from carolctl.lock_formats import (
    SHARED,
    FileLock,
    Header,
    WalIndex,
    parse_cgroup,
    parse_header,
    parse_io,
    parse_locks,
    parse_stat,
    parse_tcp,
    parse_wal_index,
    shown_command,
)
from carolctl.lock_report import culprit_words
from carolctl.lock_state import Memory, continued, recall, remember
from carolctl.lock_verdict import (
    ADVICE,
    UNSEEN,
    Activity,
    Sample,
    Verdict,
    activity_words,
    commits,
    is_clear,
    judge,
    tally,
)
from tests.builders import T0

LOOKS = 200


def samples(
    writers: Sequence[int | None],
    *,
    changes: Sequence[int] = (0,),
    readers: Mapping[int, int | None] | None = None,
    is_pending: bool = False,
) -> list[Sample]:
    """A second of looks, five milliseconds apart, in which these writers and counts recur."""
    return [
        Sample(at=place * 0.005, writer=writer, readers=readers or {}, change=change, is_pending=is_pending)
        for place, writer, change in zip(
            range(LOOKS + 1),
            islice(cycle(writers), LOOKS + 1),
            islice(cycle(changes), LOOKS + 1),
            strict=True,
        )
    ]


COUNTING = range(LOOKS + 1)
HOG = [7] * 36 + [None] * 4
MINUTE = 60_000


@pytest.mark.parametrize(
    ("looks", "activity", "idle_ms", "is_wal", "verdict"),
    [
        (samples([None]), "", 0, True, "free"),
        (samples([None] * 19 + [7]), "", 0, True, "free"),
        (samples([None, 7]), "working", 0, True, "contention"),
        (samples([7, 8, 9, None], changes=COUNTING), "working", 0, True, "contention"),
        (samples(HOG, changes=COUNTING), "idle in transaction", 0, True, "starvation"),
        (samples(HOG), "idle in transaction", 0, True, "starvation"),
        (samples([7], changes=COUNTING), "working", 0, True, "starvation"),
        (samples([7, 7, 7, 8], changes=COUNTING), "working", 0, True, "starvation"),
        (samples([7]), "working", MINUTE, True, "long_holder"),
        (samples([7]), "idle in transaction", MINUTE - 1, True, "long_holder"),
        (samples([7]), "idle in transaction", MINUTE, True, "wedge"),
        (samples([7]), "waiting on the network", MINUTE, False, "wedge"),
        (samples([7]), "unknown", MINUTE, True, "long_holder"),
        (samples([7]), "stopped", 0, True, "wedge"),
        (samples([UNSEEN]), "unknown", 0, True, "unseen_holder"),
        (samples([UNSEEN] * 9 + [None]), "unknown", 0, True, "unseen_holder"),
        (samples([None], readers={5: 3}), "", 0, True, "long_reader"),
        (samples([None], readers={5: 0}), "", 0, True, "free"),
        (samples([None, 7], readers={5: 3}), "working", 0, True, "long_reader"),
        (samples([7], readers={5: 3}), "working", 0, True, "long_holder"),
        (samples([7], readers={5: 3}, is_pending=True), "idle in transaction", 0, True, "long_reader"),
        (samples([7], readers={5: 3}, is_pending=True), "working", 0, True, "long_holder"),
        (samples([7], readers={7: 0}, is_pending=True), "idle in transaction", 0, True, "long_holder"),
        (samples([None], readers={5: None}), "", 0, False, "long_reader"),
        (samples([7], readers={5: None}), "idle in transaction", 0, False, "long_holder"),
        (samples([7], readers={5: None}, is_pending=True), "idle in transaction", 0, False, "long_reader"),
        (samples([7], readers={5: None}, is_pending=True), "stopped", 0, False, "wedge"),
    ],
)
def test_looks_amount_to_a_verdict(
    looks: list[Sample], activity: str, idle_ms: int, is_wal: bool, verdict: Verdict
) -> None:
    assert judge(tally(looks), activity=activity, idle_ms=idle_ms, is_wal=is_wal) == verdict


def test_every_verdict_has_its_advice() -> None:
    assert set(ADVICE) == set(Verdict.__args__)  # type: ignore[attr-defined]


def test_a_holder_that_came_while_we_looked_is_steady_after_nine_tenths_of_a_second() -> None:
    late = [*samples([None])[:100], *samples([7])[100:]]
    assert not is_clear(late)
    on = [Sample(at=1.0 + n * 0.005, writer=7, readers={}, change=0) for n in range(90)]
    [holding] = tally(late + on).writers
    assert (is_clear(late + on), round(holding.steady_sec, 2)) == (True, 0.95)


def test_a_commit_ends_what_counts_as_one_holding() -> None:
    looks = samples([7], changes=[0] * 150 + [1] * 51)
    [holding] = tally(looks).writers
    assert (holding.share, round(holding.steady_sec, 2), is_clear(looks)) == (1.0, 0.25, False)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((5, 5, 5), 0), ((5, 6, 9), 4), ((2**32 - 1, 0), 1), ((900, 0, 3), 4), ((0,), 0)],
)
def test_commits_are_counted_over_the_wrap_and_over_a_fresh_start(
    counts: Sequence[int], expected: int
) -> None:
    looks = [Sample(at=0.0, writer=None, readers={}, change=count) for count in counts]
    assert commits(looks) == expected


def did(
    state: str = "S", *, cpu: float = 0.0, disk: int | None = 0, wait: str = "", peer: str = ""
) -> Activity:
    return Activity(
        state=state,
        cpu_share=cpu,
        disk_bytes=disk,
        waits=frozenset([wait] if wait else []),
        peers=(peer,) if peer else (),
    )


@pytest.mark.parametrize(
    ("activity", "has_committed", "words"),
    [
        (None, False, "unknown"),
        (did("T", cpu=1.0), False, "stopped"),
        (did("D"), False, "waiting on the disk"),
        (did(cpu=0.5), False, "working"),
        (did(disk=4096), False, "working"),
        (did(disk=4096), True, "idle in transaction"),
        (did(disk=None), False, "idle in transaction"),
        (did(wait="wait_woken", peer="10.0.0.1:80"), False, "waiting on the network"),
        (did(wait="hrtimer_nanosleep", peer="10.0.0.1:80"), False, "idle in transaction"),
        (did(wait="wait_woken"), False, "idle in transaction"),
        (did("R", cpu=0.01), False, "idle in transaction"),
    ],
)
def test_what_a_process_does_in_words(activity: Activity | None, has_committed: bool, words: str) -> None:
    assert activity_words(activity, has_committed=has_committed) == words


# -- texts ----

LOCKS = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:42 120 121
1: -> POSIX  ADVISORY  WRITE 12 fe:00:42 120 120
2: POSIX  ADVISORY  READ 13 fe:00:42 1073741826 1073742335
3: OFDLCK ADVISORY  WRITE -1 fe:00:42 0 EOF
4: FLOCK  ADVISORY  WRITE 14 fe:00:42 0 EOF
5: POSIX  ADVISORY  WRITE 15 fe:01:42 120 120
6: POSIX  ADVISORY  WRITE 16 fe:00:421 120 120
7: POSIX  ADVISORY
"""


def test_the_locks_of_one_file_are_picked_from_the_table() -> None:
    found = list(parse_locks(LOCKS, device="fe:00", inode=42))
    assert found == [
        FileLock(11, True, 120, 121),
        FileLock(13, False, *SHARED),
        FileLock(-1, True, 0, 2**63 - 1),
    ]
    assert [lock.pid for lock in parse_locks(LOCKS, device=None, inode=42)] == [11, 13, -1, 15]


@pytest.mark.parametrize(
    ("first", "last", "covered"), [(120, None, True), (121, None, True), (122, None, False), (0, 120, True)]
)
def test_a_lock_covers_the_bytes_from_its_first_to_its_last(
    first: int, last: int | None, covered: bool
) -> None:
    assert FileLock(11, True, 120, 121).covers(first, last) is covered


def page(version: int, change: int) -> bytes:
    return b"SQLite format 3\0" + b"\0\0" + bytes([version, version]) + b"\0" * 4 + struct.pack(">I", change)


@pytest.mark.parametrize(
    ("head", "header"),
    [
        (b"", Header(is_wal=False, change=0)),
        (page(1, 7), Header(is_wal=False, change=7)),
        (page(2, 7), Header(is_wal=True, change=7)),
        (page(2, 7)[:20], None),
        (b"not a database, but long enough", None),
    ],
)
def test_the_first_page_tells_the_journal_mode(head: bytes, header: Header | None) -> None:
    assert parse_header(head) == header


def wal_index(*, change: int, frames: int, moved: int, marks: Sequence[int], ready: bool = True) -> bytes:
    copy = struct.pack("=IIIBBHI", 3007000, 0, change, ready, 0, 4096, frames).ljust(48, b"\0")
    return copy + copy + struct.pack("=6I", moved, *marks)


def test_the_wal_index_tells_how_far_behind_a_reader_is() -> None:
    text = wal_index(change=9, frames=100, moved=40, marks=(0, 100, 60, 2**32 - 1, 500))
    index = parse_wal_index(text)
    assert index == WalIndex(9, 100, 40, (0, 100, 60, 100, 100))
    assert [index.frames_behind(slot) for slot in range(5)] == [60, 0, 40, 0, 0]
    assert parse_wal_index(text[:100]) is None
    assert parse_wal_index(wal_index(change=0, frames=0, moved=0, marks=(0,) * 5, ready=False)) is None


def test_a_process_name_with_brackets_and_spaces_confuses_nobody() -> None:
    numbers = b" ".join(b"%d" % number for number in range(4, 53))
    found = parse_stat(b"17 (a) R (b\n) S " + numbers)
    assert (found.state, found.cpu, found.start, found.name) == ("S", 14 + 15, 22, "a) R (b\n")


def test_disk_traffic_is_what_was_read_and_written() -> None:
    assert parse_io("rchar: 5\nread_bytes: 10\nwrite_bytes: 7\ncancelled_write_bytes: 3\n") == 17


def test_the_far_ends_of_connections_are_listed_by_socket() -> None:
    text = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:819B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:857E 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   2: 0:0 0000000000000000FFFF00000100007F:0050 02 0:0 00:0 0     0        0 3 1 0
   3: 0:0 B80D0120000000000000000001000000:01BB 08 0:0 00:0 0     0        0 4 1 0
"""
    assert parse_tcp(text) == {"2": "127.0.0.1:8080", "3": "127.0.0.1:80", "4": "[2001:db8::1]:443"}


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/agent.service\n", "agent.service"),
        ("0::/user.slice/user@1.service/app.slice/x.scope/inner\n", "x.scope"),
        ("4:memory:/docker/abc\n0::/\n", None),
        ("1:name=systemd:/system.slice/old:style.service\n", "old:style.service"),
        ("", None),
    ],
)
def test_a_process_belongs_to_the_innermost_unit(text: str, unit: str | None) -> None:
    assert parse_cgroup(text) == unit


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        (b"python\0agent.py\0", "python agent.py"),
        (b"", "[kworker/0:1]"),
        (b"x\0--token\0hunter2\0-v\0", "x --token *** -v"),
        (b"x\0--api-key=hunter2\0", "x --api-key=***"),
        (b"env\0DB_PASSWORD=hunter2\0x", "env DB_PASSWORD=*** x"),
        (b"curl\0https://me:hunter2@host/\0", "curl https://***@host/"),
        (b"\xff\x1b", "\\xff\x1b"),
        (b"a" * 500, "a" * 200),
    ],
)
def test_a_command_line_is_shown_without_its_secrets(cmdline: bytes, shown: str) -> None:
    assert shown_command(cmdline, "kworker/0:1") == shown


# -- earlier looks ----


def memory(*, pid: int = 7, change: int = 1, since: int = T0, idle: bool = True) -> Memory:
    return Memory(
        pid=pid,
        start=99,
        boot="b",
        change=change,
        since=since,
        idle_since=since if idle else None,
        seen=since,
    )


def test_the_same_holding_keeps_its_dates() -> None:
    later = memory(since=T0 + MINUTE)
    kept = continued(memory(), later)
    assert (kept.since, kept.idle_since, kept.seen) == (T0, T0, T0 + MINUTE)


@pytest.mark.parametrize(
    "old", [None, memory(pid=8), memory(change=0), memory(since=T0 + 2 * MINUTE)], ids=repr
)
def test_another_process_a_commit_or_a_clock_set_back_starts_afresh(old: Memory | None) -> None:
    fresh = memory(since=T0 + MINUTE)
    assert continued(old, fresh) == fresh


def test_work_in_between_starts_the_idle_time_afresh() -> None:
    kept = continued(memory(idle=False), memory(since=T0 + MINUTE))
    assert (kept.since, kept.idle_since) == (T0, T0 + MINUTE)
    assert continued(memory(), memory(since=T0 + MINUTE, idle=False)).idle_since is None


def test_what_was_seen_is_written_down_for_the_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "locks.state.json"
    assert remember(str(file), "1:2", None, now=T0)
    assert not file.exists(), "nothing to say"
    assert remember(str(file), "1:2", memory(), now=T0)
    assert recall(str(file)) == {"1:2": memory()}
    assert file.stat().st_mode & 0o777 == 0o600
    assert remember(str(file), "1:2", None, now=T0)
    assert recall(str(file)) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["locks.state.json"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    file = str(tmp_path / "locks.state.json")
    for number in range(20):
        remember(file, f"1:{number}", memory(since=T0 + number), now=T0)
    assert set(recall(file)) == {f"1:{number}" for number in range(4, 20)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"1:2": 3}',
        '{"1:2": {"pid": 7}}',
        "[" * 60_000,
        '{"1:2": {"pid": "7", "start": 1}}',
        "\xff",
    ],
    ids=lambda text: text[:12],
)
def test_a_file_of_another_kind_is_no_memory(tmp_path: Path, text: str) -> None:
    file = tmp_path / "locks.state.json"
    file.write_text(text, encoding="latin-1")
    assert recall(str(file)) == {}


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert not remember(str(tmp_path / "home" / "x"), "1:2", memory(), now=T0)
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("{}")
    link = tmp_path / "locks.state.json"
    link.symlink_to(tmp_path / "precious")
    remember(str(link), "1:2", memory(), now=T0)
    assert (tmp_path / "precious").read_text() == "{}"
    assert not link.is_symlink()


# -- sentences ----


def document(**members: object) -> dict[str, object]:
    holder = {"pid": 7, "command": "agent", "held_at_least_sec": 3.21, "held_share": 0.9, "peers": [],
              "activity": "idle in transaction"}  # fmt: skip
    return {
        "holder": holder,
        "commits": 0,
        "verdict": "long_holder",
        "readers_block_writers": False,
    } | members


NETWORK = {"pid": 7, "command": "a" * 100, "held_at_least_sec": 300, "held_share": 1.0,
           "activity": "waiting on the network", "peers": ["10.0.0.1:80", "10.0.0.2:80"]}  # fmt: skip
READERS = [{"pid": 5, "command": None}]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (document(), "held by pid 7 (agent) for at least 3.2 s, idle in transaction"),
        (document(commits=4), "held by pid 7 (agent) 90% of the time, idle in transaction"),
        (
            document(holder=NETWORK),
            f"held by pid 7 ({'a' * 77}...) for at least 5 min, idle in transaction, waiting on 10.0.0.1:80, "
            "10.0.0.2:80",
        ),
        (document(holder=None, verdict="unseen_holder"), "held by a process that cannot be seen from here"),
        (
            document(holder=None, verdict="long_reader", readers=READERS, readers_block_writers=True),
            "read without a pause by pid 5, so that nobody can write",
        ),
        (document(holder=None, verdict="long_reader", readers=READERS), None),
        (document(holder=None, verdict="contention"), None),
        (document(holder=None, verdict="free"), None),
    ],
)
def test_the_culprit_is_named_in_the_end_of_a_sentence(found: dict[str, object], words: str | None) -> None:
    assert culprit_words(found) == words
