"""Events from the spool into the store: each once, and its effect with it, in the caller's one transaction.

Incident: 22 agents wrote an event a transaction, and the first cure, a batch, let half of a failed event commit and
acted before it was durable. Decision: a batch shares one transaction with a savepoint an event; what follows from
an event (stopping a run that used up its turns) is done after COMMIT, and only then is its file unlinked, or its
log's next line begun with.
Consequence: wherever somebody is killed, a file is either still there or its event is stored whole, and taking it
in again changes nothing.

Incident: five schedules used 12,600 agent turns and starved the chat. Decision: an event that reports more turns
than the run may use stops the run; one that comes home after the run's end counts as the breach that it was. An
event never extends a lease: a run that talks is not thereby entitled to go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from carolctl import event_log, spool
from carolctl.config import Settings
from carolctl.end_facts import NOTHING_KNOWN, EndFacts
from carolctl.errors import BadData
from carolctl.event_log import Line, Part
from carolctl.event_values import MAX_ID, MAX_TURNS, is_event_id, is_event_kind, is_shallow
from carolctl.failpoints import failpoint
from carolctl.job_warnings import overrun_said
from carolctl.model import Millis, Run
from carolctl.notices import warn
from carolctl.settle import UNUSABLE, settle_late_turns
from carolctl.spool import Unusable
from carolctl.spool_owner import AsOwner
from carolctl.store.events import Event
from carolctl.store.records import RefusedValue
from carolctl.store.rows import to_json
from carolctl.store.tx import WriteTx

BATCH = 500
"""How many events one transaction takes in."""

_DEFAULTS = Settings()
_MEMBERS = {"kind", "event_id", "run_id", "event_kind", "emitted_at"}
_OPTIONAL = {"claim", "turns", "data"}


@dataclass(frozen=True, slots=True)
class EventFile:
    """One file in ``new`` and the event that it holds; with `line` it is one of a log."""

    path: str
    event: Event
    line: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What waits, up to a limit, also in `logs`; `is_full`: there may be more."""

    files: tuple[EventFile, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    logs: tuple[Part, ...] = ()
    is_full: bool = False

    @property
    def paths(self) -> frozenset[str]:
        """All that will no longer be there once it is stored and cleared."""
        return frozenset(
            [file.path for file in self.files]
            + [file.path for file in self.unusable]
            + [part.path for part in self.logs if part.is_progress]
        )


@dataclass(slots=True, kw_only=True)
class Taken:
    """What became of a batch inside a transaction; to be acted on after its COMMIT."""

    #: Stored now, or before.
    stored: list[EventFile] = field(default_factory=list)
    refused: list[Unusable] = field(default_factory=list)
    new: int = 0
    #: The runs to stop: they reported more turns than they may use.
    stops: list[Run] = field(default_factory=list)
    #: The runs that had ended well, and now turn out to have used more turns than they might.
    overruns: list[Run] = field(default_factory=list)


# -- looking -----------------------------------------------------------------------------------------------


def pending(limit: int = BATCH, *, dry_run: bool = False) -> Batch:
    """Read up to `limit` events. Nothing is moved yet, but the log that is being appended to, unless `dry_run`."""
    with AsOwner():
        if not dry_run:
            event_log.take_away()
        logs = tuple(event_log.parts(limit))
        parts = tuple(part for part in logs if isinstance(part, Part))
        taken = [part for part in logs if isinstance(part, Unusable)]
        files: list[EventFile] = []
        _sort_out((_understood(line) for part in parts for line in part.lines), files, taken, limit)
        _sort_out(map(_read, spool.paths("event")), files, taken, limit)
    files.sort(key=lambda file: (file.event.emitted_at, file.event.event_id))
    read = len(files) + sum(file.content is not None for file in taken)
    return Batch(files=tuple(files), unusable=tuple(taken), logs=parts, is_full=read >= limit)


def _sort_out(
    found: Iterable[EventFile | Unusable | None], files: list[EventFile], unusable: list[Unusable], limit: int
) -> None:
    """Up to `limit` events in all. What is none does not count: where it cannot be moved away, it stays for ever."""
    for one in found:
        if isinstance(one, Unusable):
            unusable.append(one)
        elif one is not None:
            files.append(one)
        if len(files) >= limit:
            return


def _understood(line: Line) -> EventFile | Unusable:
    if not line.is_whole:
        return Unusable(line.path, "too long a line", line.content)
    event = spool.made_of(line.path, lambda: _event(line.content))
    if isinstance(event, Unusable):
        return replace(event, content=line.content)
    return EventFile(line.path, event, line.content)


def _read(path: str) -> EventFile | Unusable | None:
    taken = spool.understood(path, _event)
    if not isinstance(taken, Event):
        return taken
    # So that whoever replaces a file by another of its name replaces it by the same event.
    if os.path.basename(path) != _name(taken):
        return Unusable(path, f"the event in it is called {taken.event_id}")
    return EventFile(path, taken)


def _name(event: Event) -> str:
    return f"{spool.EVENT_PREFIX}{event.event_id}.json"


def _event(content: bytes) -> Event:
    """The event in a file. Raises `BadData` for anything that a transaction could not take in."""
    document = _DECODER.decode(content.decode())
    if not isinstance(document, dict) or document.get("kind") != "event":
        raise BadData("not an event")
    strange = (document.keys() ^ _MEMBERS) - _OPTIONAL
    if strange:
        raise BadData(f"members missing or unknown: {', '.join(sorted(strange))[:200]}")
    for name, is_sound in _SOUND.items():
        if name in document and not is_sound(document[name]):
            raise BadData(f"an event whose {name} cannot be")
    return Event(
        event_id=document["event_id"],
        run_id=document["run_id"],
        kind=document["event_kind"],
        emitted_at=Millis(document["emitted_at"]),
        turns=document.get("turns"),
        data=to_json(document["data"]) if "data" in document else None,
        claim_no=document.get("claim"),
    )


def _refuse_constant(name: str) -> object:
    raise BadData(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):
        raise BadData(f"{text[:80]} is no number that could be written again")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _within(least: int, most: int, value: object) -> bool:
    return type(value) is int and least <= value <= most


_SOUND = {
    "event_id": lambda value: isinstance(value, str) and is_event_id(value),
    "event_kind": lambda value: isinstance(value, str) and is_event_kind(value),
    "run_id": lambda value: _within(1, MAX_ID, value),
    "claim": lambda value: _within(1, MAX_ID, value),
    "turns": lambda value: _within(0, MAX_TURNS, value),
    "emitted_at": spool.is_instant,
    "data": is_shallow,
}


# -- taking in ---------------------------------------------------------------------------------------------


def turns_reported(batch: Batch) -> list[tuple[int, int]]:
    """Run id and turns of every event that reports any."""
    return [(one.event.run_id, one.event.turns) for one in batch.files if one.event.turns is not None]


def take_in(
    tx: WriteTx,
    files: Sequence[EventFile],
    *,
    now: Millis,
    settings: Settings = _DEFAULTS,
    facts: EndFacts = NOTHING_KNOWN,
) -> Taken:
    """Store the events inside the open transaction `tx`, with what they change of their runs and jobs."""
    taken = Taken()
    count_late = partial(settle_late_turns, tx, now=now, settings=settings, facts=facts)
    for file in files:
        try:
            with tx.savepoint:
                _take_one(tx, file, taken, count_late, now=now)
        except UNUSABLE as problem:
            taken.refused.append(refusal(file, f"{type(problem).__name__}: {problem}"))
        else:
            taken.stored.append(file)
    failpoint("events-taken")
    return taken


def refusal(file: EventFile, reason: str) -> Unusable:
    """An event that the store does not take; named so that it can be moved back into ``new`` once it would."""
    return Unusable(file.path, reason, file.line, _name(file.event))


def _take_one(
    tx: WriteTx, file: EventFile, taken: Taken, count_late: Callable[..., Run | None], *, now: Millis
) -> None:
    event = file.event
    if not tx.insert_event(event, now=now):
        _refuse_anothers_id(tx, event)
        return
    stopped = overrun = None
    if event.turns is not None:
        run = tx.raise_turns(event.run_id, event.turns, claim_no=event.claim_no)
        if run is None:
            overrun = count_late(event.run_id, event.turns, claim_no=event.claim_no)
        else:
            stopped = _stopped(tx, run, event.turns, now=now)
    taken.new += 1
    if stopped is not None:
        taken.stops.append(stopped)
    if overrun is not None:
        taken.overruns.append(overrun)


def _refuse_anothers_id(tx: WriteTx, event: Event) -> None:
    """The same event again changes nothing; one of another run that goes by its id must not vanish."""
    run_id = tx.run_of_event(event.event_id)
    if run_id != event.run_id:
        raise RefusedValue(f"an event of run {run_id} has that id")


def _stopped(tx: WriteTx, run: Run, turns: int, *, now: Millis) -> Run | None:
    """The run, if it is to be stopped because of the turns that an event reports."""
    # Not its turn count: another event may have reported more than this one.
    if run.max_turns is None or turns <= run.max_turns:
        return None
    if not tx.set_stop_reason(run.run_id, run.claim_no, "turn_limit_exceeded", now=now):
        return None
    return replace(run, stop_reason="turn_limit_exceeded")


# -- after COMMIT ------------------------------------------------------------------------------------------


def clear(batch: Batch, taken: Taken) -> int:
    """After COMMIT: unlink what is stored, and move away what nobody can take in; how much of that was moved."""
    failpoint("events-before-clear")
    away = [*batch.unusable, *taken.refused]
    left = spool.set_all_aside(away)
    try:
        with AsOwner():
            spool.unlink(file for file in taken.stored if file.line is None)
            for part in batch.logs:
                # What of it could be kept nowhere else is tried again, with all that came after it.
                if not any(file.path.startswith(f"{part.path}#") for file in left):
                    event_log.advance(part)
    except OSError as trouble:
        # Taking them in once more changes nothing.
        warn(f"events that are stored stay in the spool: {trouble.strerror}")
    return len(away) - len(left)


def announce(taken: Taken) -> None:
    """Say which runs are stopped for their turns, and which ended well beyond them."""
    for run in taken.stops:
        warn(
            f"run {run.run_id} of {run.job_id} used {run.turn_count} of {run.max_turns} turns: it is stopped"
        )
    for run in taken.overruns:
        warn(overrun_said(run) or "")
