"""From an argument list to an exit code: the one place that catches.

The commands of the timer's path are run without typer when their options are the plain ones; everything else,
their ``--help`` and their mistakes included, goes through the typer application.
"""

from __future__ import annotations

import errno
import os
import sys

from carolctl.cli import output
from carolctl.errors import BadData, CarolError, DiskFull, Exit, NotPermitted, StoreBusy

#: What timers call; see `machine`.
_PLAIN = ("tick", "reap", "drain", "prune")


def run(arguments: list[str]) -> int:
    """Run the command that `arguments` describe; every error becomes one line and its exit code."""
    try:
        return _run(arguments, as_json="--json" in _before_separator(arguments))
    except KeyboardInterrupt:
        output.note("interrupted")
        return Exit.INTERRUPTED


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        if not as_json:
            output.announce_pinned_clock(as_json=False)
        code = _dispatch(arguments)
        if as_json:
            # An error says it in its own line, so that this one line is all that standard error holds.
            output.announce_pinned_clock(as_json=True)
        return code
    except StoreBusy as busy:
        output.report_error(_with_culprit(busy), as_json=as_json)
        return busy.code
    except CarolError as error:
        output.report_error(error, as_json=as_json)
        return error.code
    except BrokenPipeError:
        return _reader_went_away()
    except OSError as trouble:
        return _report_trouble(trouble, as_json=as_json)
    except Exception as bug:  # noqa: BLE001 - the last line of defence
        return _report_bug(bug, as_json=as_json)


def _with_culprit(busy: StoreBusy) -> CarolError:
    """The same error with whoever holds the lock in its message; as it is when nobody can be named."""
    path = busy.details.get("database")
    if not isinstance(path, str):
        return busy
    from carolctl.lock_child import culprit

    found = culprit(path)
    if found is None:
        return busy
    words, holder = found
    return StoreBusy(f"{busy.message}; {words}", hint=busy.hint, **busy.details, holder=holder)


def _dispatch(arguments: list[str]) -> int:
    code = None
    if arguments and arguments[0] in _PLAIN:
        from carolctl.cli import machine

        code = machine.run_plain(arguments)
    if code is None:
        from carolctl.cli import app

        code = app.run(arguments)
    with output.showing():
        sys.stdout.flush()
    return code


def _before_separator(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _reader_went_away() -> int:
    # Python would complain again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13


def _report_trouble(trouble: OSError, *, as_json: bool) -> int:
    """What the file system refused outside the database: logs, spool, stamp, our own output."""
    where = f"{trouble.filename}: " if trouble.filename else ""
    message = f"{where}{trouble.strerror or trouble}"
    if trouble.errno in (errno.ENOSPC, errno.EDQUOT):
        error: CarolError = DiskFull(message, hint="free some space; nothing was half-written")
    elif trouble.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP):
        error = BadData(
            message, hint="something else lies where carolctl keeps a file or folder: move it away"
        )
    elif trouble.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        error = NotPermitted(message, hint="check the owner and the modes")
    else:
        return _report_bug(trouble, as_json=as_json)
    output.report_error(error, as_json=as_json)
    return error.code


def _report_bug(bug: Exception, *, as_json: bool) -> int:
    if os.environ.get("CAROL_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    wrapped = CarolError(
        f"a bug of carolctl: {type(bug).__name__}: {bug}",
        hint="CAROL_DEBUG=1 shows the traceback; please report it",
    )
    output.report_error(wrapped, as_json=as_json)
    return Exit.SOFTWARE
