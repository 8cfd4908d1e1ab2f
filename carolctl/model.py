"""The nouns: jobs, runs, what became of a run, and what a firing decides. Pure values, no I/O, no clock.

Instants are integer Unix milliseconds in UTC (`Millis`), as in the database; durations carry their unit in
the name (`_sec`, `_ms`). The status names are the ones the database's CHECKs allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from carolctl.instant import Millis as Millis

ScheduleKind = Literal["cron", "daily_at", "every", "at", "manual"]
DstRule = Literal["once", "literal"]
ActionKind = Literal["http", "command"]
JobStatus = Literal["active", "paused"]
Overlap = Literal["skip", "queue", "allow"]
CatchUp = Literal["latest", "all", "skip"]
RunSource = Literal["scheduled", "manual", "event"]
RunStatus = Literal["queued", "claimed", "running", "completed", "failed", "skipped", "cancelled"]

LIVE: tuple[RunStatus, ...] = ("queued", "claimed", "running")
"""A run that has not ended. Overlap looks at these."""

OCCUPYING: tuple[RunStatus, ...] = ("claimed", "running")
"""A run that holds one of the slots under the global cap."""

FailureClass = Literal[
    "turn_limit_exceeded",
    "aborted",
    "timeout",
    "budget_exceeded",
    "auth_failed",
    "rate_limited",
    "lease_expired",
    "process_lost",
    "launch_failed",
    "out_of_memory",
    "http_error",
    "exit_nonzero",
    "killed",
    "outcome_unknown",
    "sdk_error",
]
FAILURE_CLASSES: tuple[FailureClass, ...] = FailureClass.__args__  # type: ignore[attr-defined]

SkipReason = Literal["overlap", "misfire", "missed", "catch_up_limit", "paused", "edited"]
StopReason = Literal["lease_expired", "turn_limit_exceeded", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAction:
    """One HTTP call; header values and the payload may hold ``${env:NAME}`` and ``${file:PATH}``."""

    url: str
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    payload: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAction:
    """An argv list, never a shell line, and what a service manager is told of it beyond that."""

    argv: tuple[str, ...]
    #: The user it runs as; only the system manager can do that.
    run_as: str | None = None
    working_directory: str | None = None
    environment_file: str | None = None
    #: ``ID:PATH`` each, as LoadCredential= has it.
    load_credential: tuple[str, ...] = ()
    #: As MemoryMax= has it: ``512M``.
    memory_max: str | None = None
    #: As CPUQuota= has it: ``50%``.
    cpu_quota: str | None = None
    #: Nothing it starts gains a privilege: no set-uid program works.
    sandbox: bool = True


Action = HttpAction | CommandAction

_UNSAID: dict[str, Any] = {f.name: f.default for f in fields(CommandAction) if f.name != "argv"}
_OF_COMMANDS = tuple(_UNSAID)


def action_kind(action: Action) -> ActionKind:
    """``http`` or ``command``, as the column ``action_kind`` has it."""
    return "http" if isinstance(action, HttpAction) else "command"


def action_document(action: Action) -> dict[str, Any]:
    """The JSON document of the column ``action``: every field but the kind; of a command what was said of it."""
    if isinstance(action, HttpAction):
        return {
            "url": action.url,
            "method": action.method,
            "headers": action.headers,
            "payload": action.payload,
        }
    said = {name: value for name in _OF_COMMANDS if (value := getattr(action, name)) != _UNSAID[name]}
    return {"argv": list(action.argv)} | said


def action_from_document(kind: ActionKind, document: dict[str, Any]) -> Action:
    """The reverse of `action_document`."""
    if kind == "http":
        return HttpAction(**document)
    argv = tuple(document["argv"])
    said = {name: document[name] for name in _OF_COMMANDS if name in document}
    said["load_credential"] = tuple(document.get("load_credential", ()))
    return CommandAction(argv=argv, **said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of ``scheduled_jobs``; the fields carry the names of the columns."""

    job_id: str
    project: str | None = None
    description: str | None = None
    schedule_kind: ScheduleKind
    schedule_expr: str
    timezone: str = "UTC"
    dst_rule: DstRule = "once"
    #: The instant from which ``every`` counts; set when the job is made and when its schedule is edited.
    anchor_at: Millis
    #: The cron fields as croniter expanded them, so that a tick need not parse (see `schedule.Schedule`).
    schedule_compiled: str | None = None
    spread_sec: int = 0
    action: Action
    status: JobStatus = "active"
    paused_reason: str | None = None
    priority: int = 0
    overlap: Overlap = "skip"
    catch_up: CatchUp = "latest"
    misfire_grace_sec: int | None = None
    max_run_duration_sec: int | None = None
    max_turns: int | None = None
    max_turns_set_at: Millis | None = None
    max_attempts: int = 1
    idempotent: bool = False
    #: Whether a process inside one of its runs may add, change, run and trigger jobs.
    may_schedule: bool = False
    agent_profile: str | None = None
    on_failure: str | None = None
    next_fire_at: Millis | None = None
    schedule_rev: int = 1
    #: The watermark: every slot up to and including this instant has its row.
    last_scheduled_for: Millis
    #: When pressure first put off the slot that is due now; such a slot is late, not missed.
    deferred_at: Millis | None = None
    last_fired_at: Millis | None = None
    last_run_id: int | None = None
    last_status: str | None = None
    last_failure_reason: str | None = None
    firing_count: int = 0
    suppression_count: int = 0
    failure_streak: int = 0
    turn_budget_breach_streak: int = 0
    #: The breach streak that the last success ended: an event that comes home later may show that it was a breach.
    breaches_before_success: int = 0
    lease_drift_streak: int = 0
    last_turn_count: int | None = None
    avg_turns_per_firing: float | None = None
    legacy: dict[str, Any] | None = None
    created_at: Millis
    updated_at: Millis


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of ``runs``; the fields carry the names of the columns."""

    run_id: int
    job_id: str
    source: RunSource
    scheduled_for: Millis | None
    #: The row stands for every slot of the job in [slots_from, scheduled_for].
    slots_from: Millis | None
    coalesced: int
    schedule_rev: int | None
    status: RunStatus
    failure_reason: str | None
    skip_reason: str | None
    stop_reason: str | None
    #: When the stop was asked for: an owner that outlives its grace is killed.
    stop_requested_at: Millis | None
    not_before: Millis | None
    queued_at: Millis
    slot_claimed_at: Millis | None
    claimed_boottime_ms: int | None
    claim_no: int
    launches: int
    lease_expires_at: Millis | None
    started_at: Millis | None
    completed_at: Millis | None
    attempt: int
    max_turns: int | None
    turn_count: int | None
    forced: bool
    requester: str | None
    event_id: str | None
    trigger_kind: str | None
    host: str | None
    boot_id: str | None
    unit: str | None
    pid: int | None
    pid_start: int | None
    exit_status: int | None
    http_status: int | None
    result_summary: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A run that holds a slot and is to be launched now, with what the launch needs of its job."""

    run: Run
    #: None: the job is gone, or its action cannot be understood.
    action: Action | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one claim of one run ended, whoever saw it: the runner, a finish hook, a sweep or the spool."""

    run_id: int
    claim_no: int
    status: Literal["completed", "failed", "cancelled"]
    completed_at: Millis
    failure_reason: FailureClass | None = None
    turns: int | None = None
    summary: str | None = None
    exit_status: int | None = None
    http_status: int | None = None
    #: Seconds to wait before a retry, when the other side said so (Retry-After).
    retry_after_sec: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when status and failure class do not go together."""
        if self.status not in ("completed", "failed", "cancelled"):
            raise ValueError(f"not the end of a run: {self.status!r}")
        if (self.failure_reason in FAILURE_CLASSES) != (self.status == "failed"):
            raise ValueError(f"{self.status} with failure reason {self.failure_reason!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRow:
    """A row of ``runs`` that a due slot, or a range of them, leaves behind."""

    scheduled_for: Millis
    slots_from: Millis
    coalesced: int
    #: None: a run to queue.
    skip_reason: SkipReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What a tick decided for one due job: its rows, and the new watermark and wake-up, by compare-and-swap."""

    job_id: str
    schedule_rev: int
    watermark_before: Millis
    watermark: Millis
    next_fire_at: Millis | None
    rows: tuple[SlotRow, ...]

    @property
    def fired(self) -> int:
        """How many runs it queues."""
        return sum(row.skip_reason is None for row in self.rows)

    @property
    def suppressed(self) -> int:
        """How many slots it skips because a run of the job lives."""
        return sum(row.coalesced for row in self.rows if row.skip_reason == "overlap")
