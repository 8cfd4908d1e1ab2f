"""The output of a run: from the journal where it was a unit, else from the files of the process launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from carolctl import clock
from carolctl.launch import journal, service_manager
from carolctl.launch.unit_names import run_unit
from carolctl.model import LIVE, Millis, Run
from carolctl.run_view import log_paths

_POLL_SEC = 0.2
_JUST_NOW_MS = 5000


def units(run: Run) -> list[str]:
    """The units that its claims had, oldest first; none where no claim was made, or the process launcher's."""
    if run.unit is not None and run.unit.startswith("carolctl-http-"):
        return [run.unit]
    if run.unit is None and (run.claim_no == 0 or run.pid is not None or log_paths(run)):
        return []
    if run.unit is None and service_manager.manager_here() is None:
        return []
    return [run_unit(run.run_id, claim) for claim in range(1, run.claim_no + 1)]


def whole(run: Run) -> str:
    """Everything so far."""
    return "".join(chunks(lambda: run, follow=False))


def chunks(look: Callable[[], Run], *, follow: bool) -> Iterator[str]:
    """The output so far, and with `follow` what is added until the run ends; `look` reads its row anew."""
    shown: dict[str, int] = {}
    cursor: str | None = None
    while True:
        # Looked up before the output is read: whatever it wrote before its end is then read as well.
        run = look()
        going_on = follow and run.status in LIVE
        yield from _of_files(run, shown, going_on=going_on)
        if named := units(run):
            if not going_on and _has_just_ended(run):
                journal.flush()
            text, cursor = journal.output(named, since=_begin(run), cursor=cursor)
            if text:
                yield text
        if not going_on:
            return
        time.sleep(_POLL_SEC)


def _has_just_ended(run: Run) -> bool:
    return run.completed_at is None or clock.now() - run.completed_at < _JUST_NOW_MS


def _begin(run: Run) -> Millis:
    """Not before it: an earlier store may have given the same names."""
    return Millis(run.queued_at - 1000)


def _of_files(run: Run, shown: dict[str, int], *, going_on: bool) -> Iterator[str]:
    for path in log_paths(run):
        text = _text(path)[shown.get(path, 0) :]
        if going_on and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
        shown[path] = shown.get(path, 0) + len(text)
        if text:
            yield text


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        return file.read()
