"""What people ask about the past and the present of slots: why, audit, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carolctl import clock
from carolctl.cli.app import application
from carolctl.cli.opening import open_session
from carolctl.cli.options import Db, JobId, Json, help_epilog
from carolctl.cli.output import print_json, print_lines
from carolctl.errors import Exit, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carolctl.cli.render import Tone
    from carolctl.firing_stats import JobStats, Spread
    from carolctl.slot_audit import Account, Audit
    from carolctl.stats import Stats
    from carolctl.why import Answer

_TONES: dict[str, Tone] = {
    "ran": "good", "running": "good", "will_run": "good", "due": "good",
    "skipped": "warn", "queued": "warn", "deferred": "warn", "paused": "warn", "cancelled": "warn",
    "tick_down": "bad", "no_row": "bad",
}  # fmt: skip


@application.command(
    "why",
    epilog=help_epilog(
        "carolctl why nightly --at 2026-03-29T01:30:00Z",
        x1="the slot was due and has no row, which must not be",
        x2="a time that cannot be read",
        x65="the job's row is damaged",
        x66="no such job, no job store",
    ),
)
def why(
    job_id: JobId,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="ISO 8601, UTC unless it says [the last slot that was due]"
        ),
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Say what became of a slot, or will, and show the rows that prove it.

    It ran, was skipped, deferred, is queued and behind whom, was never due, or no tick came. A time in whole
    minutes means the slot within that minute.
    """
    from carolctl.why import why as ask

    asked = None if at is None else clock.parse_iso(at, field="at")
    answer = ask(open_session(db), job_id, asked)
    print_json(answer.document()) if as_json else _print_answer(answer)
    return Exit.FAILED if answer.story.verdict == "no_row" else Exit.OK


def _print_answer(answer: Answer) -> None:
    from carolctl.cli import render

    facts, story, epoch = answer.facts, answer.story, answer.facts.epoch
    rows: list[tuple[str, object]] = [
        ("slot", clock.iso(facts.slot) if facts.slot is not None else f"none at {clock.iso(facts.asked)}"),
        ("verdict", render.Toned(story.verdict.replace("_", " "), _TONES.get(story.verdict, ""))),
        ("why", story.said),
    ]
    if epoch:
        rows.append(("schedule", f"{epoch.kind} {epoch.expr}".strip() + f" ({epoch.timezone})"))
    before, after = (clock.iso(instant) or "none" for instant in facts.nearest)
    rows.append(("slots near it", f"before: {before}; after: {after}"))
    if facts.row:
        rows.append(("row", f"carolctl show-run {facts.row.run_id}"))
    rows += [("slot held by", f"run {run.run_id} of {run.job_id}") for run in answer.holders()]
    rows += [("audit log", _in_words(entry)) for entry in answer.evidence()]
    render.pairs(facts.job_id, rows)


def _in_words(entry: dict[str, object]) -> str:
    said = f": {entry['reason']}" if entry["reason"] else ""
    return f"{entry['audit_id']} at {clock.iso(int(str(entry['at'])))} {entry['command']} by {entry['actor']}{said}"


@application.command(
    "audit",
    epilog=help_epilog(
        "carolctl audit --since 7d --json",
        x1="a slot lacks its row or has two, a row is wrong, or a schedule cannot be read: it says which",
        x2="a time that cannot be read",
        x66="no such job, no job store",
    ),
)
def audit(
    job_id: Annotated[str | None, typer.Argument(metavar="JOB", help="Only this job")] = None,
    since: Annotated[str, typer.Option("--since", metavar="DUR|ISO", help="From when on")] = "30d",
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DUR|ISO", help="To when: an instant, or how long ago [now]"),
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Prove that every slot of a period has exactly one row, or say which do not, and which rows are wrong.

    What was due is computed anew from the schedules and from what the audit log says of edits, and held against the
    rows of runs and skips. Slots that wait for a tick, or lie in a pause that lasts, are counted apart.
    """
    from carolctl import slot_audit
    from carolctl.cli.periods import instant_or_ago

    session = open_session(db)
    begin = instant_or_ago(since, session.now, field="since")
    end = session.now if until is None else instant_or_ago(until, session.now, field="until")
    if not begin < min(end, session.now):
        raise UsageError("the period is empty", field="since")
    found = slot_audit.audit(session, job_id, begin, min(end, session.now))
    if job_id is not None and not found.accounts:
        raise NotFound(f"no such job: {job_id[:80]}", hint="carolctl list-jobs")
    print_json(found.document()) if as_json else _print_audit(found)
    return Exit.OK if found.holds else Exit.FAILED


def _print_audit(found: Audit) -> None:
    from carolctl.cli import render

    document = found.document()
    clipped = " (older rows may have been pruned)" if found.is_clipped else ""
    print_lines(
        [
            f"{document['jobs']} jobs, {document['slots']:,} slots and {document['rows']:,} rows"
            f" from {document['since']} to {document['until']}{clipped}"
        ]
    )
    rows = [_account_row(one, "lacks its row", one.lacking, "bad") for one in found.accounts if one.lacking]
    rows += [_account_row(one, _WAITS[one.waits], one.waiting, "") for one in found.accounts if one.waiting]
    if rows:
        columns = [
            render.Column(name="job", least=12, overflow="fold"),
            render.Column(name="slots", least=5, justify="right"),
            render.Column(name="what", least=13),
            render.Column(name="first", least=17),
            render.Column(name="last", least=17, dispensable=1),
            render.Column(name="schedule", least=12, dispensable=2),
        ]
        render.table(None, columns, rows)
    for name in document["unreadable"]:
        render.line(f"FAIL: {name}: its schedule or row cannot be read, so nothing is proved", "bad")
    for fault in found.faults[:_FAULTS_SHOWN]:
        slot = clock.iso(fault.slot)
        render.line(f"FAIL: {fault.job_id}: row {fault.run_id} at {slot} ({fault.kind}): {fault.said}", "bad")
    if len(found.faults) > _FAULTS_SHOWN:
        print_lines(
            [f"and {len(found.faults) - _FAULTS_SHOWN:,} more rows that are wrong (--json shows 100)"]
        )
    if found.repeated:
        print_lines(
            [f"{found.repeated:,} rows are of slots that came due twice, since the clock was set back"]
        )
    lacking = sum(len(one.lacking) for one in found.accounts)
    if lacking:
        render.line(f"FAIL: {lacking:,} slots lack their row (carolctl why JOB --at SLOT)", "bad")
    elif found.holds:
        render.line("pass: no slot lacks its row, and no row is doubled or without its slots", "good")


_FAULTS_SHOWN = 20
_WAITS = {"paused": "paused", "due": "waits for tick", "removed": "job removed"}


def _account_row(one: Account, what: str, slots: Sequence[int], tone: Tone) -> list[object]:
    from carolctl.cli import render

    first, last = render.moment(slots[0]), render.moment(slots[-1])
    return [one.job_id, len(slots), render.Toned(what, tone), first, last, one.schedule]


@application.command(
    "stats",
    epilog=help_epilog(
        "carolctl stats nightly --since 7d",
        x2="a time that cannot be read",
        x66="no such job, no job store",
    ),
)
def stats(
    job_id: Annotated[str | None, typer.Argument(metavar="JOB", help="Only this job")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DUR|ISO", help="Ended since [as long as metrics are kept]"),
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Show waits, durations, lateness, turns and failures, and how they change.

    Of a job its newest 1,000 attempts, of all jobs the newest 200 of each. Warns of runs that come near their lease.
    Without JOB it says after a week of metrics whether the cap should be raised, kept or lowered; nothing is applied.
    """
    from carolctl.cli.periods import instant_or_ago
    from carolctl.stats import stats as ask

    session = open_session(db)
    begin = None if since is None else instant_or_ago(since, session.now, field="since")
    found = ask(session, job_id, begin)
    if as_json:
        print_json(found.document())
    else:
        _print_job(found.jobs[0]) if job_id is not None else _print_fleet(found)
        _print_advice(found)
    return Exit.OK


def _print_fleet(found: Stats) -> None:
    from carolctl.cli import render

    if not found.jobs:
        print_lines(["no jobs"])
        return
    columns = [
        render.Column(name="job", least=12, overflow="fold"),
        render.Column(name="tries", least=5, justify="right"),
        render.Column(name="failed", least=6, justify="right"),
        render.Column(name="took p50", least=8, justify="right"),
        render.Column(name="p95", least=6, justify="right"),
        render.Column(name="trend", least=7, dispensable=1),
        render.Column(name="wait p95", least=8, justify="right", dispensable=2),
        render.Column(name="late p95", least=8, justify="right", dispensable=3),
        render.Column(name="turns p50", least=9, justify="right", dispensable=4),
        render.Column(name="skipped", least=7, justify="right", dispensable=5),
    ]
    render.table(None, columns, [_stats_row(one) for one in found.jobs])


def _stats_row(one: JobStats) -> list[object]:
    return [
        one.job_id,
        one.attempts,
        sum(one.failures.values()),
        _seconds(one.duration_ms.p50),
        _seconds(one.duration_ms.p95),
        one.duration_trend.word if one.attempts else None,
        _seconds(one.wait_ms.p95),
        _seconds(one.lateness_ms.p95),
        one.turns.p50,
        sum(one.skips.values()),
    ]


def _seconds(ms: int | None) -> str | None:
    if ms is None:
        return None
    return f"{ms / 1000:.1f} s" if abs(ms) < 100_000 else f"{ms / 60_000:.1f} m"


def _print_job(one: JobStats) -> None:
    from carolctl.cli import render

    columns = [
        render.Column(name="", least=9),
        *(render.Column(name=name, least=7, justify="right") for name in ("n", "p50", "p95", "p99", "max")),
        render.Column(name="trend", least=24, dispensable=1),
    ]
    lines = [
        _spread_row("wait", one.wait_ms, None),
        _spread_row("took", one.duration_ms, one.duration_trend.word),
        _spread_row("late", one.lateness_ms, None),
        [
            "turns",
            one.turns.count,
            one.turns.p50,
            one.turns.p95,
            one.turns.p99,
            one.turns.max,
            one.turns_trend.word,
        ],
    ]
    since = f" since {clock.iso(one.since)}" if one.since is not None else ""
    render.table(f"{one.job_id}: {one.attempts} attempts{since}", columns, lines)
    render.pairs(
        None,
        [
            ("failures", _counted(one.failures)),
            ("skipped slots", _counted(one.skips)),
            ("lease", f"{one.lease.lease_sec} s; {one.lease.over_share} attempts took over 80 % of it"),
        ],
    )


def _spread_row(name: str, values: Spread, trend: str | None) -> list[object]:
    shown = [_seconds(value) for value in (values.p50, values.p95, values.p99, values.max)]
    return [name, values.count, *shown, trend]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _print_advice(found: Stats) -> None:
    from carolctl.cli import render

    for told in found.warnings():
        render.line(f"WARNING: {told}", "warn")
    cap = found.cap
    if cap is None:
        return
    what = {
        "raise": f"raise it to {cap.to}: carolctl config set schedule.max_concurrent {cap.to}",
        "lower": f"lower it to {cap.to}: carolctl config set schedule.max_concurrent {cap.to}",
        "keep": "keep it",
        "too_early": "no advice yet",
    }[cap.advice]
    seen = cap.evidence
    print_lines(
        [
            f"cap {cap.cap}: {what} ({cap.because})",
            f"evidence of 7 days: {seen.firings:,} firings; at most {seen.peak} at once; waited over a minute:"
            f" {seen.waited:,} for the cap, {seen.waited_otherwise:,} for their own job or a pause; put off by"
            f" pressure: {seen.deferred:,}; rate-limited or out of memory: {seen.strained:,}",
        ]
    )
