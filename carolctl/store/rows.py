"""Rows to values and back, in one place. Rows never leave the store as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

from carolctl.model import (
    Action,
    ActionKind,
    Job,
    Run,
    action_document,
    action_from_document,
    action_kind,
)

#: The columns of scheduled_jobs in the order of the fields of `Job`; the action takes two.
JOB_COLUMNS: tuple[str, ...] = ("action_kind", *(field.name for field in fields(Job)))
RUN_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Run))


def column_list(columns: Sequence[str], prefix: str = "") -> str:
    """``a, b, c``, each behind `prefix`."""
    return ", ".join(prefix + column for column in columns)


def job_from_row(row: Sequence[Any]) -> Job:
    """A `Job` from a row of `JOB_COLUMNS`. Raises ValueError, KeyError or TypeError for a damaged document."""
    values = dict(zip(JOB_COLUMNS, row, strict=True))
    kind = values.pop("action_kind")
    values["action"] = action_from_text(kind, values["action"])
    values["legacy"] = json.loads(values["legacy"]) if values["legacy"] is not None else None
    values["idempotent"] = bool(values["idempotent"])
    values["may_schedule"] = bool(values["may_schedule"])
    return Job(**values)


def job_to_values(job: Job) -> dict[str, Any]:
    """The column values of a job, by column name."""
    values: dict[str, Any] = {name: getattr(job, name) for name in JOB_COLUMNS if name != "action_kind"}
    values["action_kind"] = action_kind(job.action)
    values["action"] = to_json(action_document(job.action))
    values["legacy"] = to_json(job.legacy) if job.legacy is not None else None
    values["idempotent"] = int(job.idempotent)
    values["may_schedule"] = int(job.may_schedule)
    return values


def action_from_text(kind: str, text: str) -> Action:
    """The action from its two columns."""
    return action_from_document(cast(ActionKind, kind), json.loads(text))


def run_from_row(row: Sequence[Any]) -> Run:
    """A `Run` from a row of `RUN_COLUMNS`."""
    values = dict(zip(RUN_COLUMNS, row, strict=True))
    values["forced"] = bool(values["forced"])
    return Run(**values)


def to_json(value: object) -> str:
    """Compact JSON; lone surrogates stay escaped, so that any text survives."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text
