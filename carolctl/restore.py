"""restore: a backup in the place of the job store, which is paused and set aside whole.

The copy that takes its place gets an identity of its own, and run ids go on above those of the old one: see
`store_copy`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from carolctl import global_pause, store_copy
from carolctl.errors import BadData, NotFound, NotPermitted, Refused, StoreBusy
from carolctl.lockguard import require_unlocked
from carolctl.model import Millis
from carolctl.notices import warn
from carolctl.open_files import processes_with
from carolctl.store.backup import copy_store, highest_run_id, private_store
from carolctl.store.db import open_store
from carolctl.store_copy import SIDE_FILES, Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What is in force now, and where the store before it lies."""

    restored: str
    from_backup: str
    store_uuid: str
    restored_from: str
    #: The files of the store that was there; empty if there was none.
    set_aside: list[str]
    #: Runs that were under way when the backup was made.
    live_runs: int
    integrity: str
    elapsed_ms: float


def restore(file: str, live: str, caller: Caller, *, even_if_used: bool = False) -> Restored:
    """Put the backup `file` in the place of the job store `live`, which is set aside with its side files.

    Raises `Refused` while runs are under way there or somebody has it open, unless `even_if_used`; `NotFound`,
    `BadData` for a file that is damaged or no job store.
    """
    require_unlocked("restoring a backup")
    began = time.perf_counter()
    file = os.path.abspath(file)
    if not os.path.exists(file):
        raise NotFound(
            f"no such file: {file}", hint="carolctl backup makes one; by default they lie in backups"
        )
    if os.path.exists(live) and os.path.samefile(file, live):
        raise Refused(f"{file} is the job store itself", hint="give a backup of it")
    _make_home(live)
    with store_copy.partial_file(live) as partial:
        copy_store(file, partial, deadline_ms=caller.deadline_ms)
        store_copy.refuse_damage(partial, file, caller)
        highest = _fence(live, caller, even_if_used=even_if_used)
        uuid, origin = store_copy.give_identity(partial, "restore", file, caller, after_run=highest)
        with private_store(partial, deadline_ms=caller.deadline_ms) as store, store.read() as tx:
            live_runs = tx.count_live()[1]
        moved = _set_aside(live, caller.now)
        store_copy.install(partial, live)
    return Restored(
        restored=live,
        from_backup=file,
        store_uuid=uuid,
        restored_from=origin,
        set_aside=moved,
        live_runs=live_runs,
        integrity="ok",
        elapsed_ms=store_copy.since(began),
    )


def _make_home(live: str) -> None:
    try:
        os.makedirs(os.path.dirname(live), mode=0o700, exist_ok=True)
    except OSError as problem:
        raise NotPermitted(
            f"{os.path.dirname(live)} cannot be made: {problem.strerror}", hint="check the modes"
        ) from None


def _fence(live: str, caller: Caller, *, even_if_used: bool) -> int | None:
    """Pause the store that is to be set aside, if nothing runs there; the highest run id it ever gave out.

    One transaction, so that no tick claims between the look and the move: a tick that has the old store open
    finds it paused. None for a store that cannot be asked.
    """
    users = processes_with(live)
    if users and not even_if_used:
        raise _in_use(f"{live} is open in process {', '.join(map(str, users[:8]))}")
    try:
        store = open_store(live, deadline_ms=caller.deadline_ms)
    except NotFound:
        return 0 if not os.path.exists(live) or not os.path.getsize(live) else None
    except BadData as problem:
        warn(f"{problem.message}; it is set aside as it is")
        return None
    try:
        with store.write() as tx:
            held = tx.count_live()[1]
            if held and not even_if_used:
                raise _in_use(f"{held} runs are under way in {live}")
            tx.set_meta(global_pause.KEY, global_pause.FOREVER)
            tx.audit(store_copy.entry("restore", live, caller))
            return highest_run_id(tx)
    except (BadData, StoreBusy) as problem:
        if isinstance(problem, StoreBusy) and not even_if_used:
            raise
        warn(f"{problem.message}; it is set aside as it is")
        return None
    finally:
        store.close()


def _in_use(message: str) -> Refused:
    return Refused(message, hint="let them end (carolctl pause, then monitor), or give --yes")


def _set_aside(live: str, now: Millis) -> list[str]:
    """Move the store and its side files to a name of their own; their new names.

    At no moment does a ``-wal`` lie beside another store than its own, and none is ever without its: the side files
    get their second name first and lose the old one last.
    """
    there = _aside_name(live, now)
    sides = [suffix for suffix in SIDE_FILES if os.path.lexists(live + suffix)]
    moved = [there] if os.path.lexists(live) else []
    for suffix in sides:
        os.link(live + suffix, there + suffix)
    if moved:
        os.rename(live, there)
    store_copy.unlink([live + suffix for suffix in sides])
    return [*moved, *(there + suffix for suffix in sides)]


def _aside_name(live: str, now: Millis) -> str:
    wanted = f"{live}.before-restore-{store_copy.compact(now)}"
    number, found = 1, wanted
    while any(os.path.lexists(found + suffix) for suffix in ("", *SIDE_FILES)):
        number += 1
        found = f"{wanted}-{number}"
    return found
