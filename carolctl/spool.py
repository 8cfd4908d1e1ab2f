"""Outcomes that could not be written: one small file each, durable before anyone relies on it.

A file is written by `spool_write`. It is unlinked only after the COMMIT that took it in; taking it in twice changes
nothing, because an outcome is a compare-and-swap. Whatever is not a plain file of our own is moved to ``bad`` with
its reason beside it, and never read: a link, a FIFO, somebody else's, an endless one. Events lie in the same folder
and are read by the same means (see `events`), but never stand in the way of an outcome.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import BinaryIO, Literal, Protocol, TypeVar, cast

from carolctl import places
from carolctl.errors import BadData
from carolctl.event_values import MAX_BYTES
from carolctl.lockguard import require_unlocked
from carolctl.model import Outcome
from carolctl.notices import warn
from carolctl.spool_owner import AsOwner
from carolctl.spool_write import folder, put, sync_folder, write_synced

T = TypeVar("T")

EVENT_PREFIX = "event-"

Kind = Literal["outcome", "event", "log"]
"""What a file in ``new`` is by its name: an outcome, one event, or many of them."""

_LOG = re.compile(r"events(-[0-9]+-[0-9]+@[0-9]{1,18})?\.jsonl")
_MOST_NAMES = 20_000
"""How many names are looked at in one go: a flood of a million must not cost a tick its time."""

_LONGEST_NAME = 255
_END_OF_CALENDAR = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One file in ``new`` and the outcome that it holds."""

    path: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that no transaction could take in, and why; with `content` it is a line of one, to be kept as `name`."""

    path: str
    reason: str
    content: bytes | None = None
    name: str | None = None


class _File(Protocol):
    @property
    def path(self) -> str: ...


def leave(outcome: Outcome) -> str:
    """Write one outcome durably; its path. Raises OSError when the disk does not take it."""
    return put(
        _name(outcome.run_id, outcome.claim_no), json.dumps({"kind": "finish"} | asdict(outcome)).encode()
    )


def _name(run_id: int, claim_no: int) -> str:
    return f"finish-{run_id}-{claim_no}.json"


def pending(claims: Iterable[tuple[int, int]] = (), *, dry_run: bool = False) -> list[SpoolFile]:
    """The outcomes that wait in ``new``; what cannot be used is moved to ``bad``, unless `dry_run`.

    Those of `claims` (run id, claim number) are looked for by name, and so are found in any flood.
    """
    files, unusable = found(claims)
    if not dry_run:
        set_all_aside(unusable)
    return files


def found(claims: Iterable[tuple[int, int]] = ()) -> tuple[list[SpoolFile], list[Unusable]]:
    """As `pending`, with what cannot be used left where it is."""
    named = (os.path.join(new_folder(), _name(*claim)) for claim in claims)
    files: list[SpoolFile] = []
    unusable: list[Unusable] = []
    with AsOwner():
        for path in sorted({*paths("outcome"), *named}):
            taken = understood(path, _outcome)
            if isinstance(taken, Unusable):
                unusable.append(taken)
            elif taken is not None:
                files.append(SpoolFile(path, taken))
    return files, unusable


def new_folder() -> str:
    """Where the files wait."""
    return os.path.join(places.spool(), "new")


def paths(kind: Kind) -> Iterator[str]:
    """The files in ``new`` that are named so, among the first 20,000 of the folder."""
    require_unlocked("reading the spool")
    try:
        listing = os.scandir(new_folder())
    except FileNotFoundError:
        return
    with listing:
        for entry in islice(listing, _MOST_NAMES):
            if _kind(entry.name) == kind:
                yield entry.path


def _kind(name: str) -> Kind:
    if name.startswith(EVENT_PREFIX):
        return "event"
    return "log" if _LOG.fullmatch(name) else "outcome"


def understood(path: str, understand: Callable[[bytes], T]) -> T | Unusable | None:
    """What `understand` makes of a file; why it cannot be used; or None where it is gone or not to be read now."""
    return read_plain(path, lambda file: understand(_small(file)))


def read_plain(path: str, understand: Callable[[BinaryIO], T]) -> T | Unusable | None:
    """As `understood`, of a file of any size."""
    try:
        with _opened(path) as file:
            return made_of(path, lambda: understand(file))
    except BadData as problem:
        return Unusable(path, problem.message)
    except OSError as trouble:
        # Gone, or not to be read now: it may hold a good word. A link is never followed, so never read.
        if trouble.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            return Unusable(path, f"not a plain file: {trouble.strerror}")
        return None


def made_of(path: str, understand: Callable[[], T]) -> T | Unusable:
    """What `understand` makes of what was read at `path`, or why it cannot be used."""
    try:
        return understand()
    except BadData as problem:
        return Unusable(path, problem.message)
    except RecursionError:
        return Unusable(path, "nested too deeply")
    except (ValueError, TypeError, KeyError) as problem:
        return Unusable(path, f"{type(problem).__name__}: {problem}")


def unlink(files: Iterable[_File]) -> None:
    """Remove files whose contents are committed."""
    require_unlocked("emptying the spool")
    with AsOwner():
        for file in files:
            try:
                os.unlink(file.path)
            except FileNotFoundError:
                continue


def set_aside(file: Unusable) -> bool:
    """Move what cannot be used to ``bad``, where a person may look at it, with its reason in NAME.reason.

    A line of a log is written there durably, and where that cannot be beside the log: it must not stand in the way
    of those behind it. Returns whether it is in its log, or where it was found, no longer.
    """
    require_unlocked("moving a spool file")
    name = file.name or os.path.basename(file.path)
    with AsOwner():
        if file.content is None:
            return _moved_aside(file, name)
        return _kept_aside(file.content, file.reason, name) or _kept_beside(file.content, name)


def set_all_aside(files: Iterable[Unusable]) -> list[Unusable]:
    """`set_aside` of each; those that could not be, which is said once."""
    left = [file for file in files if not set_aside(file)]
    if left:
        bad = os.path.join(places.spool(), "bad")
        warn(
            f"{len(left)} files in the spool are of no use and cannot be moved to {bad}: {left[0].reason[:200]}"
        )
    return left


def _moved_aside(file: Unusable, name: str) -> bool:
    try:
        target = _target(name)
        os.lstat(file.path)
        # The reason first: a file without one would stay so.
        _leave_reason(target, file.reason)
        os.rename(file.path, target)
    except OSError:
        return False
    return True


def _kept_aside(content: bytes, reason: str, name: str) -> bool:
    try:
        target = _target(name)
        _leave_reason(target, reason)
        _leave(target, content)
        sync_folder(os.path.dirname(target))
    except OSError:
        return False
    return True


def _kept_beside(content: bytes, name: str) -> bool:
    try:
        put(name if name.startswith(EVENT_PREFIX) else f"{EVENT_PREFIX}{name}", content)
    except OSError:
        return False
    return True


def _target(name: str) -> str:
    target = os.path.join(folder("bad"), name)
    # A folder does not replace one that is there and not empty.
    return f"{target}.{time.time_ns()}" if os.path.isdir(target) else target


def _leave_reason(target: str, reason: str) -> None:
    with suppress(OSError):
        _leave(_reason_path(target), f"{reason[:2000]}\n".encode(errors="backslashreplace"))


def _leave(path: str, content: bytes) -> None:
    """Write a file, whatever lies there; only whole."""
    partial = os.path.join(folder("tmp"), f"aside-{os.getpid()}-{time.time_ns()}")
    try:
        write_synced(partial, content)
        os.rename(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _reason_path(path: str) -> str:
    """NAME.reason, also where NAME is as long as a name may be."""
    above, name = os.path.split(path)
    while len(os.fsencode(name)) > _LONGEST_NAME - len(".reason"):
        name = name[:-1]
    return os.path.join(above, f"{name}.reason")


def _opened(path: str) -> BinaryIO:
    # O_NONBLOCK: opening a FIFO must not hang; O_NOFOLLOW: a link is not ours to follow.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_strange(os.fstat(descriptor), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_strange(facts: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        raise BadData("not a plain file, or one with several names")
    # Whoever owns the folder may put anything into it: root may take in what the user's agents left there.
    if facts.st_uid not in (os.geteuid(), os.stat(os.path.dirname(path)).st_uid):
        raise BadData(f"owned by somebody else, uid {facts.st_uid}")


def _small(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise BadData(f"too large: {size} bytes")
    return file.read(MAX_BYTES + 1)


def _outcome(content: bytes) -> Outcome:
    """The outcome in a file. Raises `BadData` for anything that a transaction could not take in."""
    document = json.loads(content)
    if not isinstance(document, dict) or document.pop("kind", None) != "finish":
        raise BadData("not a finish file")
    for name, value in document.items():
        if name not in _SOUND or not _SOUND[name](value):
            raise BadData(f"a finish file whose {name} cannot be")
    return Outcome(**document)


def is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**62


def is_instant(value: object) -> bool:
    return is_whole(value) and 0 <= cast(int, value) < _END_OF_CALENDAR


def _is_text(value: object) -> bool:
    # A lone surrogate is text to JSON and not to SQLite.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_pause(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) < 1e9


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_SOUND: dict[str, Callable[[object], bool]] = {
    "run_id": is_whole,
    "claim_no": is_whole,
    "status": _is_text,
    "completed_at": is_instant,
    "failure_reason": _or_none(_is_text),
    "turns": _or_none(is_whole),
    "summary": _or_none(_is_text),
    "exit_status": _or_none(is_whole),
    "http_status": _or_none(is_whole),
    "retry_after_sec": _or_none(_is_pause),
}
