"""Event files: what is read as an event, and what is set aside instead. The store is not part of this."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carolctl import emit, events, lockguard
from carolctl.errors import UsageError
from carolctl.event_values import is_event_id, is_event_kind, is_shallow
from carolctl.lockguard import IOUnderLock
from carolctl.store.events import Event
from tests import strange_files
from tests.builders import T0

NOBODY = 65534


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spool of a fresh data home."""
    for name in [name for name in os.environ if name.startswith("CAROL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    for name in ("tmp", "new", "bad"):
        (home / "spool" / name).mkdir(parents=True)
    return home / "spool"


def document(**members: Any) -> dict[str, Any]:
    """What an event file holds, with `members` changed."""
    return {
        "kind": "event", "event_id": "one", "run_id": 1, "event_kind": "progress", "emitted_at": T0,
    } | members  # fmt: skip


def put(folder: Path, content: str | bytes, name: str = "event-one.json") -> Path:
    path = folder / "new" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def say(event_id: str = "good", *, run: str = "1", kind: str = "progress", **given: str) -> None:
    emit.emit(run=run, kind=kind, event_id=event_id, now=T0, **given)


def read() -> list[Event]:
    return [file.event for file in events.pending().files]


def refusals() -> list[str]:
    return [file.reason for file in events.pending().unusable]


# -- there and back ----


def test_what_was_emitted_comes_back_as_it_was(folder: Path) -> None:
    say("a", run="7", kind="turns", turns="12", data='{"wörd": ["\\ud83d", 1.50, null]}')
    say("b")
    [first, second] = read()
    assert json.loads(first.data or "") == {"wörd": ["\ud83d", 1.5, None]}
    assert (first.event_id, first.run_id, first.turns, first.claim_no) == ("a", 7, 12, None)
    assert second == Event(event_id="b", run_id=1, kind="progress", emitted_at=T0)


def test_inside_its_run_an_agent_says_its_claim_and_about_another_run_it_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAROL_RUN_ID", "5")
    monkeypatch.setenv("CAROL_CLAIM", "3")
    say("a", run="5")
    say("b", run="6")
    assert [event.claim_no for event in read()] == [3, None]


def test_events_come_in_the_order_in_which_they_were_emitted_and_no_more_than_asked_for(folder: Path) -> None:
    for number in range(9, 0, -1):
        put(
            folder,
            json.dumps(document(event_id=f"e{number}", emitted_at=T0 + number)),
            f"event-e{number}.json",
        )
    assert [event.event_id for event in read()] == [f"e{number}" for number in range(1, 10)]
    some = events.pending(4)
    assert (len(some.files), some.is_full, events.pending(10).is_full) == (4, True, False)


def test_a_spool_that_was_never_used_holds_no_events(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAROL_DATA_DIR", str(home))
    assert events.pending() == events.Batch()
    assert not home.exists()


def test_reading_unlinks_nothing(folder: Path) -> None:
    say("a", data="1")
    say("a", data="2")
    put(folder, "poison")
    assert [event.data for event in read()] == [event.data for event in read()] == ["1", "2"]
    log, poison = sorted(os.listdir(folder / "new"), reverse=True)
    assert (log.startswith("events-"), poison) == (True, "event-one.json")
    assert os.listdir(folder / "tmp") == []


def test_nothing_is_emitted_or_read_while_a_write_transaction_is_open(folder: Path) -> None:
    lockguard.set_write_open(True)
    try:
        for verb in (say, events.pending):
            with pytest.raises(IOUnderLock):
                verb()
    finally:
        lockguard.set_write_open(False)


# -- what an event may not say ----


_REFUSED: dict[str, tuple[str, dict[str, str]]] = {
    "a run by name": ("RUN", {"run": "nightly"}),
    "no run": ("RUN", {"run": "0"}),
    "a signed run": ("RUN", {"run": "+1"}),
    "a run beyond the database": ("RUN", {"run": "9" * 19}),
    "a run in foreign digits": ("RUN", {"run": "１"}),
    "an empty kind": ("kind", {"kind": ""}),
    "a shouted kind": ("kind", {"kind": "Turns"}),
    "a kind with a quote": ("kind", {"kind": 'a"'}),
    "a long kind": ("kind", {"kind": "k" * 33}),
    "an id with a slash": ("event-id", {"event_id": "../x"}),
    "an empty id": ("event-id", {"event_id": ""}),
    "a hidden id": ("event-id", {"event_id": ".x"}),
    "a long id": ("event-id", {"event_id": "x" * 65}),
    "negative turns": ("turns", {"turns": "-1"}),
    "half a turn": ("turns", {"turns": "1.5"}),
    "turns that no double holds": ("turns", {"turns": str(2**53)}),
    "turns with underscores": ("turns", {"turns": "1_0"}),
    "a report of no turns": ("turns", {"kind": "turns"}),
    "no JSON": ("data", {"data": "{done: 12}"}),
    "nothing as JSON": ("data", {"data": ""}),
    "not a number": ("data", {"data": "NaN"}),
    "an endless number": ("data", {"data": "[1e999]"}),
    "an endless whole number": ("data", {"data": "1" * 5000}),
    "bytes that are no text": ("data", {"data": '"\udcff"'}),
    "nests without end": ("data", {"data": "[" * 60_000}),
    "nests too deep": ("data", {"data": "[" * 40 + "]" * 40}),
    "too much": ("data", {"data": f'"{"x" * 65_500}"'}),
    "far too much": ("data", {"data": f'"{"x" * 2**20}"'}),
}  # fmt: skip


@pytest.mark.parametrize(("field", "given"), _REFUSED.values(), ids=_REFUSED.keys())
def test_a_value_that_cannot_be_is_refused_by_name(folder: Path, field: str, given: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        say(**given)
    assert refused.value.field == field
    assert [os.listdir(folder / name) for name in ("tmp", "new")] == [[], []]


def test_the_largest_values_are_taken() -> None:
    assert is_event_id("9" + "aZ._-" * 12 + "abc")
    assert is_event_kind("a" + "z9._-" * 6 + "b")
    assert is_shallow(json.loads("[" * 32 + "]" * 32))
    assert not is_shallow(json.loads('{"a":' * 33 + "1" + "}" * 33))


# -- what is no event of ours ----


def _symbolic_link(folder: Path, path: Path) -> None:
    (folder / "elsewhere").write_text(json.dumps(document()))
    path.symlink_to(folder / "elsewhere")


def _hard_link(folder: Path, path: Path) -> None:
    (folder / "elsewhere").write_text(json.dumps(document()))
    os.link(folder / "elsewhere", path)


def _huge(folder: Path, path: Path) -> None:
    path.write_text(json.dumps(document(data="x" * 65_536)))


def _a_million_deep(folder: Path, path: Path) -> None:
    path.write_text("[" * 1_000_000)


def _deep_within_the_size(folder: Path, path: Path) -> None:
    path.write_text(json.dumps(document())[:-1] + ', "data": ' + "[" * 60_000)


@pytest.mark.parametrize(
    "plant",
    [_symbolic_link, _hard_link, strange_files.fifo, strange_files.unix_socket, strange_files.directory,
     _huge, strange_files.endless, _a_million_deep, _deep_within_the_size,],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_what_is_no_plain_file_of_ours_is_refused_with_a_reason_and_its_neighbour_is_read(
    folder: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(folder, folder / "new" / "event-one.json")
    say("good")
    assert [event.event_id for event in read()] == ["good"]
    [reason] = refusals()
    assert len(reason) > 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else")
def test_somebody_elses_file_is_refused(folder: Path) -> None:
    os.chown(put(folder, json.dumps(document())), NOBODY, NOBODY)
    assert refusals() == [f"owned by somebody else, uid {NOBODY}"]


_POISON: dict[str, str] = {
    "nothing": "",
    "half a document": json.dumps(document())[:30],
    "no text": "\udcff",
    "a list": "[]",
    "an outcome": json.dumps(document(kind="finish")),
    "an unknown member": json.dumps(document(colour="blue")),
    "no run": json.dumps({k: v for k, v in document().items() if k != "run_id"}),
    "a run that is a truth value": json.dumps(document(run_id=True)),
    "a run as text": json.dumps(document(run_id="1")),
    "a run beyond 64 bits": json.dumps(document(run_id=10**30)),
    "an id that is a number": json.dumps(document(event_id=5)),
    "an id that is a path": json.dumps(document(event_id="../../x")),
    "another id than its name": json.dumps(document(event_id="two")),
    "a kind with a blank": json.dumps(document(event_kind="a b")),
    "no kind": json.dumps(document(event_kind=None)),
    "a time beyond the calendar": json.dumps(document(emitted_at=2**61)),
    "half a millisecond": json.dumps(document(emitted_at=1.5)),
    "negative turns": json.dumps(document(turns=-1)),
    "turns that no double holds": json.dumps(document(turns=2**53)),
    "no turns at all": json.dumps(document(turns=None)),
    "a claim in words": json.dumps(document(claim="first")),
    "a claim of zero": json.dumps(document(claim=0)),
    "not a number": json.dumps(document(data=float("nan"))),
    "an endless number": json.dumps(document(data=0)).replace('"data": 0', '"data": 1e999'),
    "an endless whole number": json.dumps(document(data=0)).replace('"data": 0', f'"data": {"1" * 5000}'),
    "too deep": json.dumps(document(data=json.loads("[" * 33 + "]" * 33))),
}


@pytest.mark.parametrize("content", _POISON.values(), ids=_POISON.keys())
def test_a_file_that_no_transaction_could_take_in_is_refused_and_its_neighbour_is_read(
    folder: Path, content: str
) -> None:
    put(folder, content.encode(errors="surrogateescape"))
    say("good")
    assert [event.event_id for event in read()] == ["good"]
    assert len(refusals()) == 1
