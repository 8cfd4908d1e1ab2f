"""What became, or will become, of one slot: the facts weighed into a verdict, its causes and a sentence. Pure.

Incident: a nightly job had not run, and the search through logs, timers and database took a morning. Decision:
every slot leaves a row or lies beyond the watermark, so each case can be told from stored facts alone.
Consequence: the answer names the rows that it rests on, and where no row is found it says so: that is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from carolctl import policy
from carolctl.clock import iso
from carolctl.job_history import Entry, Epoch
from carolctl.model import LIVE, OCCUPYING, Job, Millis, Run

Verdict = Literal[
    "ran", "running", "queued", "cancelled", "skipped", "deferred", "paused", "due", "tick_down",
    "will_run", "never_due", "pruned", "no_row",
]  # fmt: skip


class Try(NamedTuple):
    """One attempt of a run that ended."""

    attempt: int
    claimed_at: Millis | None
    ended_at: Millis
    duration_ms: int | None
    failure_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """For what a queued run waited before its first slot, in milliseconds."""

    #: For the end of other runs of its job, and which.
    own_ms: int = 0
    own: Sequence[int] = ()
    #: While everything was paused, and while the job was.
    paused_ms: int = 0
    resting_ms: int = 0
    #: For a slot, and the runs whose end let it in.
    cap_ms: int = 0
    made_way: Sequence[Run] = ()


FORESEEN_UNTIL = Millis(7_258_118_400_000)
"""2200-01-01: where the reckoning of wall clocks ends."""

STALE_MS = 90_000
"""A tick that is older than this is late."""

_SKIPPED = {
    "overlap": "a run of the job was still alive (overlap {overlap})",
    "misfire": "it was older than the misfire grace when a tick came",
    "missed": "no tick came in time, and the job's catch-up is skip",
    "catch_up_limit": "too many slots had been missed: only the newest are caught up",
    "paused": "the job was paused",
    "edited": "the schedule was edited before a tick came",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that a verdict rests on, as of one snapshot."""

    job_id: str
    job: Job | None
    now: Millis
    asked: Millis
    #: The schedule in force then; None before the first and after the last.
    epoch: Epoch | None
    #: The slot that was asked for; None: there is none at that time.
    slot: Millis | None
    nearest: tuple[Millis | None, Millis | None] = (None, None)
    row: Run | None = None
    #: All runs that hold a slot now, and the live ones of this job.
    holders: Sequence[Run] = ()
    own: Sequence[Run] = ()
    wait: Wait = Wait()
    #: Its attempts that ended.
    tries: Sequence[Try] = ()
    #: The run that the tick that skipped the slot had laid out for the slot before it.
    laid_together: Run | None = None
    cap: int = 2
    spread_ms: int = 0
    #: Until when everything is paused (``forever``); None: it is not.
    all_paused: str | None = None
    pressure: Sequence[str] = ()
    gap: Entry | None = None
    #: How often pressure put the slot off; and the first and last entries of it.
    put_off: int = 0
    deferrals: Sequence[Entry] = ()
    #: The pause that the slot lies in.
    pause: Entry | None = None
    #: The edit that ended the schedule in force then.
    edit: Entry | None = None
    last_tick: Millis | None = None
    #: Rows that ended before this may have been pruned.
    kept_since: Millis | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The verdict, a sentence, and what contributed: overlap, cap, pressure, paused, tick_gap, and so on."""

    verdict: Verdict
    said: str
    causes: Sequence[str] = field(default=())


def tell(facts: Facts) -> Story:
    """What became of the slot, or will."""
    if facts.slot is None:
        return Story(verdict="never_due", said=_never_due(facts))
    if facts.row is not None:
        return _of_row(facts, facts.row)
    if facts.job is None:
        return _without_row(facts)
    if facts.slot <= facts.job.last_scheduled_for or (facts.epoch and facts.epoch.end is not None):
        return _without_row(facts)
    return _ahead(facts, facts.job)


def _never_due(facts: Facts) -> str:
    epoch = facts.epoch
    if epoch is None:
        return f"the job had no schedule at {iso(facts.asked)}: it did not exist, or nothing is known of it"
    if epoch.kind == "manual":
        return "it is a manual job: only run-job and events start it"
    if epoch.times is None:
        return f"its schedule cannot be read: {epoch.kind} {epoch.expr}"
    if facts.asked >= FORESEEN_UNTIL and epoch.kind in ("cron", "daily_at"):
        return f"schedules are reckoned until {iso(FORESEEN_UNTIL)} only"
    return f"{epoch.kind} {epoch.expr} ({epoch.timezone}) has no slot at {iso(facts.asked)}"


# -- with a row --------------------------------------------------------------------------------------------


def _of_row(facts: Facts, row: Run) -> Story:
    if row.status == "skipped":
        return _skipped(facts, row)
    if row.status == "queued":
        return _queued(facts, row)
    if row.status in OCCUPYING:
        said = f"run {row.run_id} holds a slot since {iso(row.slot_claimed_at)} ({row.status}){_shared(row)}"
        return Story(verdict="running", said=said + _late(facts, row), causes=_causes(facts, row))
    if row.status == "cancelled" and row.started_at is None:
        said = f"run {row.run_id} was cancelled while it waited{_shared(row)}"
        return Story(verdict="cancelled", said=said, causes=_causes(facts, row))
    how = f"{row.status} ({row.failure_reason})" if row.failure_reason else row.status
    began = f"started {iso(row.started_at)}, " if row.started_at is not None else "never started, "
    said = f"run {row.run_id} {_tried(facts, row)}{began}{how} {iso(row.completed_at)}{_shared(row)}"
    return Story(verdict="ran", said=said + _late(facts, row), causes=_causes(facts, row))


def _shared(row: Run) -> str:
    if row.coalesced == 1:
        return ""
    many = policy.slots_counted(row.coalesced)
    return f"; it stands for {many} slots, {iso(row.slots_from)} to {iso(row.scheduled_for)}"


def _tried(facts: Facts, row: Run) -> str:
    """Of a run that was tried again: how often, when first and with what end."""
    if row.attempt == 1:
        return ""
    head = f"was tried {row.attempt} times"
    first = next((one for one in facts.tries if one.attempt == 1), None)
    if first is None:
        return f"{head}; the last time it "
    began = f"started {_began(first)}" if _began(first) else "never started"
    return f"{head}: first {began} ({first.failure_reason}), the last time it "


def _began(one: Try) -> str | None:
    return None if one.duration_ms is None else iso(one.ended_at - one.duration_ms)


def _late(facts: Facts, row: Run) -> str:
    """Why it did not start at once."""
    words = [*_gap_and_pressure(facts), *([_waited(facts)] if _waited(facts) else [])]
    return "".join(f"; {word}" for word in words)


def _gap_and_pressure(facts: Facts) -> list[str]:
    words = []
    if facts.gap:
        words.append(
            f"no tick came from {iso(facts.gap['after']['from'])} to {iso(facts.gap['after']['to'])}"
        )
    return words + ([_put_off(facts)] if facts.deferrals else [])


def _put_off(facts: Facts) -> str:
    first, last = facts.deferrals[0], facts.deferrals[-1]
    limit = ", until it could be put off no longer" if last["command"] == "deferral_limit" else ""
    return f"pressure put it off {facts.put_off} times, from {iso(first['at'])} to {iso(last['at'])}{limit}"


def _waited(facts: Facts) -> str:
    wait, parts = facts.wait, []
    if wait.own_ms >= 1000:
        ids = ", ".join(str(run_id) for run_id in wait.own[:5])
        parts.append(f"{wait.own_ms // 1000} s for the end of run {ids} of the same job")
    if wait.paused_ms >= 1000:
        parts.append(f"{wait.paused_ms // 1000} s while everything was paused")
    if wait.resting_ms >= 1000:
        parts.append(f"{wait.resting_ms // 1000} s while the job was paused")
    if wait.cap_ms >= 1000:
        ids = ", ".join(str(run.run_id) for run in wait.made_way[:5])
        behind = f", held by runs {ids}" if ids else ""
        parts.append(f"{wait.cap_ms // 1000} s for a slot{behind}")
    return f"it waited {' and '.join(parts)}" if parts else ""


def _causes(facts: Facts, row: Run) -> list[str]:
    wait = facts.wait
    causes = [*_gaps(facts), *(["overlap"] if wait.own_ms >= 1000 else [])]
    causes += ["paused"] if max(wait.paused_ms, wait.resting_ms) >= 1000 else []
    return causes + (["cap"] if wait.cap_ms >= 1000 else [])


def _skipped(facts: Facts, row: Run) -> Story:
    reason = row.skip_reason or ""
    why = "; ".join([_why_skipped(facts, reason), *_gap_and_pressure(facts)])
    rested = ["paused"] if reason == "edited" and facts.pause else []
    return Story(
        verdict="skipped",
        said=f"skipped by row {row.run_id}: {why}{_shared(row)}",
        causes=[*rested, reason, *_gaps(facts)],
    )


def _why_skipped(facts: Facts, reason: str) -> str:
    overlap = facts.job.overlap if facts.job else "skip"
    why = _SKIPPED.get(reason, reason).format(overlap=overlap)
    if reason == "overlap" and facts.laid_together:
        slot = iso(facts.laid_together.scheduled_for)
        return (
            f"the same tick queued run {facts.laid_together.run_id} for an earlier slot, {slot}"
            f" (overlap {overlap})"
        )
    if reason in ("paused", "edited") and facts.pause:
        told = f" ({facts.pause['reason']})" if facts.pause["reason"] else ""
        rest = f"{_SKIPPED['paused']} by {facts.pause['actor']} since {iso(facts.pause['at'])}{told}"
        why = rest if reason == "paused" else f"{rest}, and before it was resumed {why.split(' before')[0]}"
    if reason == "edited" and facts.edit:
        why += f" by {facts.edit['actor']} at {iso(facts.edit['at'])}"
    return why


def _queued(facts: Facts, row: Run) -> Story:
    head = f"run {row.run_id} waits since {iso(row.queued_at)}{_shared(row)}"
    cause, why = _what_holds(facts, row)
    return Story(verdict="queued", said=f"{head}: {why}", causes=[*([cause] if cause else []), *_gaps(facts)])


def _gaps(facts: Facts) -> list[str]:
    return [*(["tick_gap"] if facts.gap else []), *(["pressure"] if facts.deferrals else [])]


def _what_holds(facts: Facts, row: Run) -> tuple[str, str]:
    """What keeps a queued run from its slot: the first of the rules of the claim that refuses it."""
    if facts.all_paused is not None:
        return "paused", f"everything is paused ({_until(facts.all_paused)})"
    if facts.job is not None and facts.job.status == "paused":
        return "paused", f"the job is paused: {facts.job.paused_reason}"
    if row.not_before is not None and row.not_before > facts.now:
        return (
            "retry",
            f"try {row.attempt} begins at {iso(row.not_before)} ({row.failure_reason or 'it failed'})",
        )
    earlier = [run for run in facts.own if run.run_id < row.run_id or run.status in OCCUPYING]
    if earlier and facts.job is not None and facts.job.overlap != "allow":
        return "overlap", f"the job's run {earlier[0].run_id} is still {earlier[0].status}"
    if len(facts.holders) >= facts.cap:
        held = ", ".join(
            f"{run.run_id} {run.job_id} since {iso(run.slot_claimed_at)}" for run in facts.holders
        )
        return "cap", f"all {facts.cap} slots are taken by {held or 'nobody: the cap is 0'}"
    return "", "a slot is free, the next tick gives it one"


def _until(word: str) -> str:
    return (
        "until carolctl resume"
        if word == "forever"
        else f"until {iso(int(word)) if word.isdigit() else word}"
    )


# -- without a row -----------------------------------------------------------------------------------------


def _without_row(facts: Facts) -> Story:
    assert facts.slot is not None
    if facts.kept_since is not None and facts.slot < facts.kept_since:
        said = f"its row is older than the retention: nothing before {iso(facts.kept_since)} is kept"
        return Story(verdict="pruned", said=said)
    if facts.job is None and facts.epoch and facts.slot > (facts.epoch.watermark or facts.slot):
        return Story(verdict="skipped", said="the job was removed before a tick came", causes=["removed"])
    said = "the slot was due and has no row: that must not be; carolctl audit shows how many are so"
    return Story(verdict="no_row", said=said)


def _ahead(facts: Facts, job: Job) -> Story:
    """A slot beyond the watermark."""
    assert facts.slot is not None
    wake = facts.slot + facts.spread_ms
    is_due = wake <= facts.now
    if job.status == "paused":
        verb = "was not fired" if is_due else "will not fire"
        return Story(
            verdict="paused", said=f"{verb}: the job is paused: {job.paused_reason}", causes=["paused"]
        )
    if facts.all_paused is not None and (is_due or _outlasts(facts.all_paused, wake)):
        said = f"everything is paused ({_until(facts.all_paused)}); the catch-up rule ({job.catch_up}) applies then"
        return Story(verdict="paused", said=said, causes=["paused"])
    if not is_due:
        return _to_come(facts, wake)
    if facts.cap == 0:
        return Story(verdict="queued", said="it is due, but the cap is 0: nothing fires", causes=["cap"])
    if job.deferred_at is not None:
        held = ", ".join(facts.pressure) or "none any more"
        again = iso(job.next_fire_at)
        said = (
            f"pressure puts it off since {iso(job.deferred_at)} (held now: {held}); looked at again {again}"
        )
        return Story(verdict="deferred", said=said, causes=["pressure"])
    if facts.last_tick is None or facts.now - facts.last_tick > STALE_MS:
        since = (
            "no tick ever came here"
            if facts.last_tick is None
            else f"the last tick was {iso(facts.last_tick)}"
        )
        return Story(verdict="tick_down", said=f"it is due, but {since}", causes=["tick_gap"])
    return Story(verdict="due", said="it is due: the next tick fires it")


def _outlasts(word: str, instant: int) -> bool:
    return not word.isdigit() or int(word) > instant


def _to_come(facts: Facts, wake: int) -> Story:
    words = [f"will fire at {iso(facts.slot)}" + (f", awake at {iso(wake)}" if facts.spread_ms else "")]
    causes = []
    live = [run for run in facts.own if run.status in LIVE and run.source == "scheduled"]
    if live and facts.job is not None and facts.job.overlap == "skip":
        words.append(f"unless run {live[0].run_id} is still alive: then it is skipped (overlap)")
    if facts.pressure:
        words.append(f"put off if pressure is still held then, as now by {', '.join(facts.pressure)}")
        causes.append("pressure")
    if len(facts.holders) >= facts.cap:
        words.append(f"all {facts.cap} slots are taken now: it waits if they still are")
    return Story(verdict="will_run", said="; ".join(words), causes=causes)


def documents_of(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Audit entries as JSON, their instants in ISO 8601."""
    return [entry | {"at": iso(entry["at"])} for entry in entries]


def try_document(one: Try) -> dict[str, Any]:
    """An attempt as JSON."""
    return {
        "attempt": one.attempt,
        "started_at": _began(one),
        "ended_at": iso(one.ended_at),
        "failure_reason": one.failure_reason,
    }
