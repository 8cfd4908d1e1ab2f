"""The spool: outcomes durable in files of our own, and whatever else lies there set aside and never acted on."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carolctl import lockguard, spool
from carolctl.lockguard import IOUnderLock
from carolctl.model import Outcome
from tests import strange_files
from tests.builders import T0

NOBODY = 65534


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spool of a fresh data home."""
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    monkeypatch.delenv("CAROL_FAILPOINT", raising=False)
    for name in ("tmp", "new", "bad"):
        (home / "spool" / name).mkdir(parents=True)
    return home / "spool"


def outcome(run_id: int = 1, **columns: Any) -> Outcome:
    values: dict[str, Any] = {"run_id": run_id, "claim_no": 1, "status": "completed", "completed_at": T0}
    return Outcome(**values | columns)


def document(**members: Any) -> dict[str, Any]:
    """What a finish file holds, with `members` changed."""
    return {
        "kind": "finish", "run_id": 1, "claim_no": 1, "status": "completed", "completed_at": T0,
        "failure_reason": None, "turns": None, "summary": None, "exit_status": None, "http_status": None,
        "retry_after_sec": None,
    } | members  # fmt: skip


def put(folder: Path, content: str | bytes, name: str = "finish-1-1.json") -> Path:
    path = folder / "new" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def outcomes() -> list[Outcome]:
    return [file.outcome for file in spool.pending()]


def names(folder: Path, of: str) -> list[str]:
    """The files, without the reasons beside those that were set aside."""
    return sorted(name for name in os.listdir(folder / of) if not name.endswith(".reason"))


def reasons(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "bad").glob("*.reason"))]


# -- leaving and taking ----


def test_what_was_left_comes_back_as_it_was(folder: Path) -> None:
    left = [
        outcome(1, turns=12, summary="grün\n\tund \u202e mehr", exit_status=0),
        outcome(2, status="failed", failure_reason="http_error", http_status=503, retry_after_sec=1.5),
        outcome(3, status="cancelled", claim_no=9),
    ]
    for one in left:
        spool.leave(one)
    assert outcomes() == left


def test_a_spool_that_was_never_used_is_empty(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    assert spool.pending() == []
    assert not home.exists()


def test_leaving_makes_what_folders_it_needs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    path = spool.leave(outcome())
    assert os.path.dirname(path) == str(home / "spool" / "new")


def test_files_are_private_and_nothing_stays_in_tmp(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        path = spool.leave(outcome())
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert names(folder, "tmp") == []


def test_the_same_claim_left_twice_is_one_file_with_the_last_word(folder: Path) -> None:
    spool.leave(outcome(summary="first"))
    spool.leave(outcome(summary="second"))
    assert [one.summary for one in outcomes()] == ["second"]


def test_two_claims_of_one_run_are_two_files(folder: Path) -> None:
    spool.leave(outcome(claim_no=1))
    spool.leave(outcome(claim_no=2))
    assert [one.claim_no for one in outcomes()] == [1, 2]


def test_a_duplicate_under_another_name_is_read_too(folder: Path) -> None:
    path = spool.leave(outcome())
    put(folder, Path(path).read_bytes(), "copy of finish-1-1.json")
    assert outcomes() == [outcome(), outcome()]


def test_reading_leaves_the_files_where_they_are(folder: Path) -> None:
    spool.leave(outcome())
    assert spool.pending() == spool.pending()
    assert names(folder, "new") == ["finish-1-1.json"]


def test_unlinking_takes_only_what_was_named_and_may_be_done_twice(folder: Path) -> None:
    spool.leave(outcome(1))
    taken = spool.pending()
    spool.leave(outcome(2))
    spool.unlink(taken)
    spool.unlink(taken)
    assert [one.run_id for one in outcomes()] == [2]


def test_a_file_that_was_never_renamed_does_not_count(folder: Path) -> None:
    (folder / "tmp" / "finish-1-1.json.77").write_text(json.dumps(document()))
    assert outcomes() == []
    assert names(folder, "tmp") == ["finish-1-1.json.77"]


def test_a_link_planted_in_tmp_is_not_written_through(folder: Path) -> None:
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / "tmp" / f"finish-1-1.json.{os.getpid()}").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        spool.leave(outcome())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "verb",
    [lambda: spool.leave(outcome()), spool.pending, lambda: spool.unlink([])],
    ids=["leave", "pending", "unlink"],
)
def test_no_verb_works_while_a_write_transaction_is_open(folder: Path, verb: Callable[[], object]) -> None:
    lockguard.set_write_open(True)
    try:
        with pytest.raises(IOUnderLock):
            verb()
    finally:
        lockguard.set_write_open(False)
    assert names(folder, "new") == []


# -- what is not a file of ours ----


def _symbolic_link(folder: Path, path: Path) -> None:
    (folder / "elsewhere").write_text(json.dumps(document()))
    path.symlink_to(folder / "elsewhere")


def _dangling_link(folder: Path, path: Path) -> None:
    path.symlink_to(folder / "nowhere")


def _hard_link(folder: Path, path: Path) -> None:
    (folder / "elsewhere").write_text(json.dumps(document()))
    os.link(folder / "elsewhere", path)


def _huge(folder: Path, path: Path) -> None:
    path.write_text(json.dumps(document(summary="x" * 65536)))


def _unreadable_bytes(folder: Path, path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 20)


_STRANGERS = [
    _symbolic_link, _dangling_link, _hard_link, strange_files.fifo, strange_files.unix_socket, strange_files.directory,
    _huge, strange_files.endless, _unreadable_bytes,
]  # fmt: skip


@pytest.mark.parametrize("plant", _STRANGERS, ids=lambda plant: plant.__name__.strip("_"))
def test_what_is_no_plain_file_of_ours_is_set_aside_and_the_rest_is_read(
    folder: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(folder, folder / "new" / "finish-1-1.json")
    spool.leave(outcome(2))
    assert [one.run_id for one in outcomes()] == [2]
    assert names(folder, "bad") == ["finish-1-1.json"]
    assert [one.run_id for one in outcomes()] == [2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else")
def test_somebody_elses_file_is_set_aside(folder: Path) -> None:
    path = put(folder, json.dumps(document()))
    os.chown(path, NOBODY, NOBODY)
    assert outcomes() == []
    assert names(folder, "bad") == ["finish-1-1.json"]


def test_the_largest_file_that_is_read_has_64_kib(folder: Path) -> None:
    text = json.dumps(document(summary=""))
    put(folder, text.replace('"summary": ""', f'"summary": "{"x" * (65536 - len(text))}"'))
    assert len(outcomes()) == 1


def test_what_is_set_aside_twice_keeps_the_newest(folder: Path) -> None:
    for content in ("one", "two"):
        put(folder, content)
        assert outcomes() == []
    assert (folder / "bad" / "finish-1-1.json").read_text() == "two"


def test_a_folder_is_set_aside_twice(folder: Path) -> None:
    for _ in range(2):
        (folder / "new" / "odd" / "inside").mkdir(parents=True)
        assert outcomes() == []
    assert names(folder, "new") == []


def test_names_of_any_kind_are_listed(folder: Path) -> None:
    for name in (b"\xff\xfe.json", b"new\nline", b".hidden", b"-rf"):
        with open(os.path.join(os.fsencode(folder / "new"), name), "wb") as file:
            file.write(b"?")
    assert outcomes() == []
    assert len(names(folder, "bad")) == 4


def test_a_file_that_goes_away_while_it_is_set_aside_is_no_error(folder: Path) -> None:
    spool.set_aside(spool.Unusable(str(folder / "new" / "gone"), "it was there"))
    assert os.listdir(folder / "bad") == []


def test_the_reason_lies_beside_what_is_set_aside(folder: Path) -> None:
    put(folder, '{"kind": "finish"', "finish-1-1.json")
    put(folder, json.dumps(document(turns="many")), "finish-2-1.json")
    (folder / "new" / "odd").symlink_to("/etc/passwd")
    assert outcomes() == []
    half, unsound, link = reasons(folder)
    assert half.startswith("JSONDecodeError: ")
    assert unsound == "a finish file whose turns cannot be\n"
    assert "symbolic link" in link
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / "bad").glob("*.reason")} == {0o600}


def test_a_name_too_long_for_a_reason_beside_it_is_set_aside_all_the_same(folder: Path) -> None:
    put(folder, "?", "x" * 255)
    assert outcomes() == []
    assert names(folder, "bad") == ["x" * 255]


def test_a_dry_run_moves_nothing(folder: Path) -> None:
    put(folder, "?")
    assert spool.pending(dry_run=True) == []
    assert names(folder, "new") == ["finish-1-1.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else")
def test_root_reads_what_the_owner_of_the_folder_left(folder: Path) -> None:
    path = put(folder, json.dumps(document()))
    for owned in (folder / "new", path):
        os.chown(owned, NOBODY, NOBODY)
    assert outcomes() == [outcome()]


# -- in a flood ----


def test_events_in_the_same_folder_are_left_alone(folder: Path) -> None:
    put(folder, "whatever", "event-1.json")
    spool.leave(outcome())
    assert outcomes() == [outcome()]
    assert names(folder, "new") == ["event-1.json", "finish-1-1.json"]


def test_in_a_flood_the_outcomes_of_live_claims_are_found_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_MOST_NAMES", 10)
    for number in range(200):
        put(folder, "", f"event-{number}.json")
    spool.leave(outcome(1))
    spool.leave(outcome(2))
    found = [file.outcome.run_id for file in spool.pending([(1, 1), (2, 1), (3, 1)])]
    assert found == [1, 2]


# -- what a file says ----


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_half_written_file_is_set_aside(folder: Path, cut: int) -> None:
    put(folder, json.dumps(document())[:cut])
    assert outcomes() == []
    assert names(folder, "bad") == ["finish-1-1.json"]


_UNSOUND: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "event"},
    "an unknown member": {"colour": "blue"},
    "a run id as text": {"run_id": "1"},
    "a run id that is a truth value": {"run_id": True},
    "no run id": {"run_id": None},
    "a fraction of a claim": {"claim_no": 1.0},
    "no time": {"completed_at": None},
    "a state that is no end": {"status": "running"},
    "a skipped run": {"status": "skipped"},
    "a success that failed": {"failure_reason": "timeout"},
    "a failure without a class": {"status": "failed"},
    "a class nobody knows": {"status": "failed", "failure_reason": "gremlins"},
    "turns as text": {"turns": "12"},
    "turns as truth": {"turns": False},
    "a fraction of an exit status": {"exit_status": 0.5},
    "a list as HTTP status": {"http_status": [200]},
    "a number as summary": {"summary": 5},
}


@pytest.mark.parametrize("members", _UNSOUND.values(), ids=_UNSOUND.keys())
def test_a_file_with_values_that_cannot_be_is_set_aside(folder: Path, members: dict[str, Any]) -> None:
    put(folder, json.dumps(document(**members)))
    assert outcomes() == []
    assert names(folder, "bad") == ["finish-1-1.json"]


_POISON: dict[str, str] = {
    "a number for a document": "5",
    "no number for a document": "NaN",
    "null for a document": "null",
    "a text for a document": '"finish"',
    "truth for a document": "true",
    "a run id beyond 64 bits": json.dumps(document(run_id=10**30)),
    "a time beyond 64 bits": json.dumps(document(completed_at=2**63)),
    "turns beyond 64 bits": json.dumps(document(turns=10**30)),
    "half a character in the summary": json.dumps(document(summary="\ud83d")),
    "a list for a class": json.dumps(document(failure_reason=[])),
    "an endless pause": json.dumps(document(retry_after_sec=float("inf"))),
    "a pause in words": json.dumps(document(retry_after_sec="soon")),
}


@pytest.mark.parametrize("content", _POISON.values(), ids=_POISON.keys())
def test_a_file_that_no_transaction_could_take_in_is_set_aside(folder: Path, content: str) -> None:
    put(folder, content)
    assert outcomes() == []
    assert names(folder, "bad") == ["finish-1-1.json"]


@pytest.mark.parametrize("completed_at", [2**61, -(2**61)])
def test_a_time_beyond_the_calendar_is_set_aside(folder: Path, completed_at: int) -> None:
    put(folder, json.dumps(document(completed_at=completed_at)))
    assert outcomes() == []


@pytest.mark.parametrize("content", ["[]", "[" * 60_000, "{}", '{"kind": {}}', '{"kind": "finish"}'])
def test_other_json_is_set_aside(folder: Path, content: str) -> None:
    put(folder, content)
    assert outcomes() == []
    assert names(folder, "bad") == ["finish-1-1.json"]


@pytest.mark.parametrize("gone", ["new", "tmp"])
def test_a_spool_folder_that_somebody_removed_is_made_again(folder: Path, gone: str) -> None:
    spool.leave(outcome(1))
    shutil.rmtree(folder / gone)
    spool.leave(outcome(2))
    assert 2 in [one.run_id for one in outcomes()]
    assert names(folder, "tmp") == []
