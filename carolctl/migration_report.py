"""What a migration of the legacy job table did, or would do: as a value, as JSON, and in plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any, Literal

from carolctl.errors import Exit
from carolctl.legacy_columns import Layout

_WIDTH = 79
SHOWN = 20
"""How many of a kind are listed for people; JSON has them all."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A job that was left as it is, and why: changed here or there, removed or made here, or damaged."""

    job_id: str
    why: Literal["changed_here", "changed_there", "removed_here", "made_here", "damaged_here"]
    #: What differs: columns of the source for `changed_there`, else fields of the job.
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a migration did, or would do."""

    layout: Layout
    source_rows: int
    migrated: int
    unchanged: int
    overwritten: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    #: Job id and reason.
    paused: dict[str, str]
    shell_commands: tuple[str, ...]
    already_past: tuple[str, ...]
    gone_there: tuple[str, ...]
    source_checksum: str
    target_checksum: str
    dry_run: bool

    @property
    def exit_code(self) -> int:
        """1 while something needs a person."""
        return Exit.FAILED if self.conflicts or self.paused else Exit.OK

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "source_rows": self.source_rows,
            "migrated": self.migrated,
            "unchanged": self.unchanged,
            "conflicts": len(self.conflicts),
            "source_checksum": self.source_checksum,
            "target_checksum": self.target_checksum,
            "dry_run": self.dry_run,
            "conflict_jobs": [asdict(conflict) for conflict in self.conflicts],
            "overwritten": list(self.overwritten),
            "paused": [{"job_id": job_id, "reason": reason} for job_id, reason in self.paused.items()],
            "shell_commands": list(self.shell_commands),
            "already_past": list(self.already_past),
            "gone_there": list(self.gone_there),
            "mapping": self.layout.columns,
        }

    def lines(self) -> list[str]:
        """The report for people."""
        done = "would be migrated" if self.dry_run else "migrated"
        return [
            *_column_lines(self.layout),
            f"rows     {self.source_rows} read: {self.migrated} {done}, {self.unchanged} unchanged,"
            f" {len(self.conflicts)} in conflict",
            *listed("paused", [f"{job_id}: {reason}" for job_id, reason in self.paused.items()]),
            *listed("conflict", [_conflict_line(conflict) for conflict in self.conflicts]),
            *_shell_lines(self.shell_commands),
            *listed("past", [f"{job_id}: its one time has passed" for job_id in self.already_past]),
            *listed("gone", [f"{job_id}: no longer in the source; kept here" for job_id in self.gone_there]),
            f"source   sha256 {self.source_checksum}",
            f"target   sha256 {self.target_checksum}",
            f"{'':8} equal: every row was read back and mapped back",
            *_next_steps(self),
        ]


def _column_lines(layout: Layout) -> list[str]:
    mapped = [s if s == t else f"{s} as {t}" for s, t in layout.columns.items() if t]
    kept = [source for source, target in layout.columns.items() if target is None]
    return [
        *wrap(f"columns  mapped: {', '.join(mapped)}", width=_WIDTH, subsequent_indent=" " * 9),
        *wrap(f"kept as they are: {', '.join(kept) or 'none'}", width=_WIDTH, initial_indent=" " * 9,
              subsequent_indent=" " * 9),
    ]  # fmt: skip


def listed(word: str, items: Sequence[str]) -> list[str]:
    """One line for each item behind `word`, the first ones of many."""
    more = [f"{'':8} and {len(items) - SHOWN} more (--json shows all)"] if len(items) > SHOWN else []
    return [f"{word:8} {item}" for item in items[:SHOWN]] + more


def _conflict_line(conflict: Conflict) -> str:
    fields = f" ({', '.join(conflict.fields)})" if conflict.fields else ""
    return f"{conflict.job_id}: {conflict.why.replace('_', ' ')}{fields}"


def _shell_lines(job_ids: Sequence[str]) -> list[str]:
    if not job_ids:
        return []
    return [
        f'shell    {len(job_ids)} command lines run as ["/bin/sh","-c",LINE], as the shell read them before:',
        f"{'':8} {', '.join(job_ids[:SHOWN])}{' ...' if len(job_ids) > SHOWN else ''}",
    ]


def _next_steps(report: Report) -> list[str]:
    steps = []
    if report.paused:
        steps.append("next     mend each paused job with carolctl edit-job, then carolctl resume JOB")
    if report.conflicts:
        steps.append("next     conflicts were left as they are; --overwrite gives the source the last word")
    if report.dry_run:
        return [*steps, "next     nothing was written (--dry-run); run it again without"]
    return [
        *steps,
        "next     switch the old scheduler off, then carolctl list-jobs; its table was not touched",
    ]
