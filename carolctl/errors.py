"""The exit-code table and the one tree of errors that reach a person.

Each error class carries its exit code, a short machine-readable name and, where one helps, a hint.
Nothing here formats or prints: that is the business of the command line.
"""

from __future__ import annotations


class Exit:
    """Exit codes, the numbers of sysexits.h where one fits. Plain integers: an enum costs start-up time."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_DATA = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    TRY_AGAIN = 75
    NOT_PERMITTED = 77
    CONFIG = 78
    INTERRUPTED = 130


class CarolError(Exception):
    """An error that is shown to a person as one line with a hint."""

    code: int = Exit.SOFTWARE
    name: str = "internal"

    def __init__(self, message: str, *, hint: str = "", **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        #: Extra JSON members of the error line, such as ``slot_eta_sec``.
        self.details = details


class UsageError(CarolError):
    """A value on the command line that cannot be used."""

    code = Exit.USAGE
    name = "usage"

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message, hint=hint)
        self.field = field


class BadSchedule(UsageError):
    """A schedule that cannot be understood or can never fire; ``field`` names the culprit."""

    name = "bad_schedule"


class BadData(CarolError):
    """A file or database whose contents are damaged, foreign or newer than this program."""

    code = Exit.BAD_DATA
    name = "bad_data"


class NotFound(CarolError):
    """No such job, run, file or table."""

    code = Exit.NOT_FOUND
    name = "not_found"


class Unavailable(CarolError):
    """A service that is needed is not there."""

    code = Exit.UNAVAILABLE
    name = "unavailable"


class StoreBusy(CarolError):
    """The write lock was not to be had within the busy deadline."""

    code = Exit.TRY_AGAIN
    name = "database_busy"


class TryAgainLater(CarolError):
    """Not now, for a reason that passes."""

    code = Exit.TRY_AGAIN
    name = "try_again"


class CapacityFull(CarolError):
    """Every slot under the global cap is taken."""

    code = Exit.TRY_AGAIN
    name = "capacity_full"


class JobRunning(CarolError):
    """The job has a live run already."""

    code = Exit.TRY_AGAIN
    name = "job_running"


class NotPermitted(CarolError):
    """File modes or a rule of the settings forbid it."""

    code = Exit.NOT_PERMITTED
    name = "not_permitted"


class BadConfig(CarolError):
    """The configuration does not allow what was asked for."""

    code = Exit.CONFIG
    name = "configuration"


class Refused(CarolError):
    """A check does not hold, or the state of a job forbids the change."""

    code = Exit.FAILED
    name = "refused"


class DiskFull(CarolError):
    """No room to write; nothing was half-written."""

    code = Exit.TRY_AGAIN
    name = "disk_full"


class Unshown(CarolError):
    """What was asked for is done, and its report could not be written: to try again would do it twice."""

    code = Exit.FAILED
    name = "unshown"
