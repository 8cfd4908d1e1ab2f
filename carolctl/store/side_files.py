"""Whether what SQLite makes beside a database may be left there: its owner has to be able to use it.

Incident: a tick that ran as root without the right to give files away opened a planner database that belonged to an
agent. SQLite made ``-wal`` and ``-shm`` for it, root's, and could not hand them over: from then on the owner could
not write. Decision: root opens somebody else's database only where a file may become that user's. Consequence: in a
sandbox that is closed too far the ledger waits, with a warning, and its owner goes on.

Plain functions, for an idle tick asks too.
"""

import os


def may_be_left_beside(path: str) -> bool:
    """Whether the owner of the database at `path` will own what SQLite makes beside it."""
    if os.geteuid() != 0:
        # SQLite gives its files the mode of the database, and that is all that anybody else can do.
        return True
    try:
        facts = os.stat(path)
    except OSError:
        # Nothing to open, nobody to harm.
        return True
    return not is_foreign(facts) or _may_give(facts.st_uid, facts.st_gid)


def is_foreign(facts: os.stat_result) -> bool:
    """Whether anybody but root may write such a file or folder."""
    return facts.st_uid != 0 or (facts.st_gid != 0 and bool(facts.st_mode & 0o020))


def owned_by_others(path: str) -> list[str]:
    """The files beside the database at `path` that are not its owner's, who then may be unable to write."""
    found: list[str] = []
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return found
    for suffix in ("-wal", "-shm", "-journal"):
        try:
            if os.lstat(path + suffix).st_uid != owner:
                found.append(path + suffix)
        except OSError:
            continue
    return found


def _may_give(uid: int, gid: int) -> bool:
    # Neither the capability nor the filter of system calls tells the whole: so it is done, with a file of no name.
    try:
        descriptor = os.memfd_create("carolctl")
    except OSError:
        return False
    try:
        os.fchown(descriptor, uid, gid)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
