"""Emit one event: acknowledged once its file is on disk, without a look at the database.

Incident: 22 agents wrote their events straight into the database, one transaction each, and fought over its lock.
Decision: an agent leaves a file in the spool and is told so once that file is durable; a tick or a drain takes
files in by the hundred. Consequence: no agent waits for a lock, and a locked, full or missing database loses none.

`answer` comes before all imports of the command line: an agent calls this many times a minute.
"""

from __future__ import annotations

import errno
import os
import time

from carolctl import event_append
from carolctl.errors import BadData, CarolError, DiskFull, NotPermitted, UsageError
from carolctl.event_values import MAX_BYTES, MAX_ID, MAX_TURNS, is_event_id, is_event_kind, is_shallow

_OPTIONS = {"--kind": "kind", "--turns": "turns", "--data": "data", "--event-id": "event_id"}


def answer(words: list[str]) -> list[str]:
    """Emit for a plain call and end the process; else the words for the whole program to go on with.

    Help, mistakes and a pinned clock are the whole program's, and so is to say what the disk refused: then the
    id of the event is among the words, so that its second try is the same event.
    """
    given = _plain(words)
    if given is None or os.environ.get("CAROL_NOW"):
        return words
    as_json = given.pop("json", "") != ""
    event_id = given.setdefault("event_id", new_id())
    try:
        emit(**given, now=time.time_ns() // 1_000_000)
    except CarolError:
        return words if "--event-id" in words else [*words, "--event-id", event_id]
    _acknowledge(event_id, as_json=as_json)
    return words


def _plain(words: list[str]) -> dict[str, str] | None:
    """The values by name, when the words are a run and options with values of their own."""
    given: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        value = next(remaining, None) if word in _OPTIONS else word
        if value is None or (word.startswith("-") and word != "--json" and word not in _OPTIONS):
            return None
        name = _OPTIONS.get(word, "json" if word == "--json" else "run")
        if name == "run" and name in given:
            return None
        given[name] = value
    return given if "run" in given and "kind" in given else None


def _acknowledge(event_id: str, *, as_json: bool) -> None:
    line = f'{{"event_id": "{event_id}"}}\n' if as_json else f"{event_id}\n"
    try:
        os.write(1, line.encode())
    except BrokenPipeError:
        os._exit(128 + 13)
    except OSError:
        # The event is on disk; that its id could not be shown must not make anybody leave it a second time.
        os._exit(0)
    os._exit(0)


def new_id() -> str:
    """A random event id."""
    return os.urandom(16).hex()


def emit(
    *, run: str, kind: str, event_id: str, now: int, turns: str | None = None, data: str | None = None
) -> None:
    """Leave one event in the spool, durably; the values are as they were typed, `now` in Unix milliseconds.

    Whether there is such a run is not asked. Raises `UsageError` naming the option; `DiskFull`, `NotPermitted` or
    `BadData` when the file is not surely on disk.
    """
    content = _document(run=run, kind=kind, event_id=event_id, now=now, turns=turns, data=data)
    try:
        event_append.append(event_id, content)
    except OSError as trouble:
        raise _explained(trouble, event_id) from trouble


def _document(*, run: str, kind: str, event_id: str, now: int, turns: str | None, data: str | None) -> bytes:
    """The file, put together by hand: after the checks nothing in it needs to be escaped."""
    run_id = _whole(run, "RUN", least=1, most=MAX_ID)
    _refuse_bad_words(kind, event_id, turns)
    members = [
        f'"kind":"event","event_id":"{event_id}","run_id":{run_id},"event_kind":"{kind}","emitted_at":{now}'
    ]
    claim = os.environ.get("CAROL_CLAIM", "")
    if os.environ.get("CAROL_RUN_ID") == str(run_id) and _is_whole(claim, least=1, most=MAX_ID):
        members.append(f'"claim":{int(claim)}')
    if turns is not None:
        members.append(f'"turns":{_whole(turns, "turns", least=0, most=MAX_TURNS)}')
    if data is not None:
        members.append(f'"data":{_compact(data)}')
    content = f"{{{','.join(members)}}}".encode()
    if len(content) > MAX_BYTES:
        raise UsageError(f"the event has {len(content)} bytes, more than {MAX_BYTES}", field="data")
    return content


def _refuse_bad_words(kind: str, event_id: str, turns: str | None) -> None:
    if not is_event_kind(kind):
        raise UsageError(
            f"not a small letter and up to 31 of a-z 0-9 . _ -: {kind!r}",
            field="kind",
            hint="--kind progress",
        )
    if not is_event_id(event_id):
        raise UsageError(
            f"not a letter or digit and up to 63 of A-Z a-z 0-9 . _ -: {event_id!r}", field="event-id"
        )
    if kind == "turns" and turns is None:
        raise UsageError("an event of kind turns needs the number", field="turns", hint="--turns 12")


def _whole(text: str, field: str, *, least: int, most: int) -> int:
    if not _is_whole(text, least=least, most=most):
        raise UsageError(f"not a whole number from {least} to {most}: {text[:80]!r}", field=field)
    return int(text)


def _is_whole(text: str, *, least: int, most: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most


def _compact(text: str) -> str:
    """The same JSON in ASCII without blanks. Raises `UsageError` for what is none, or what nobody could read back."""
    import json

    if len(text) > MAX_BYTES:
        raise UsageError(f"more than {MAX_BYTES} bytes", field="data")
    try:
        text.encode()
        value = json.loads(text)
        if not is_shallow(value):
            raise UsageError("nested too deeply", field="data")
        # Not every number that can be read can be written: 1e999.
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise UsageError("nested too deeply", field="data") from None
    except ValueError as problem:
        raise UsageError(f"not JSON: {problem}", field="data", hint="""--data '{"done": 12}'""") from None


def _explained(trouble: OSError, event_id: str) -> CarolError:
    where = f"{trouble.filename}: " if trouble.filename else ""
    message = f"the event was not stored: {where}{trouble.strerror or trouble}"
    again = f"and emit it again with --event-id {event_id}"
    if trouble.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(message, hint=f"free some space {again}", event_id=event_id)
    if trouble.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotPermitted(message, hint=f"check the owner and the modes {again}", event_id=event_id)
    return BadData(message, hint=f"check the spool folder {again}", event_id=event_id)
