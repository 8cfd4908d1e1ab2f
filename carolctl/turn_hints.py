"""Hints on turn budgets when a job is made or changed: what its like took, a limit that only its payload speaks of."""

from __future__ import annotations

import json
import re
from statistics import median

from carolctl.config import Settings
from carolctl.model import CommandAction, Job
from carolctl.store.tx import ReadTx

_MOST_FIRINGS = 500
_SPOKEN_LIMIT = re.compile(
    r"\b(?:max(?:imum)?|at most|no more than|up to)\.?(?: of)?[ :=]{1,3}(\d{1,6}) turns\b"
    r"|\bmax[ _-]turns[ \"':=]{1,4}(\d{1,6})\b",
    re.IGNORECASE,
)


def hints(tx: ReadTx, job: Job, settings: Settings) -> list[str]:
    """What there is to say about the turn budget of `job`."""
    found = [_of_profile(tx, job), _of_payload(job, settings)]
    return [hint for hint in found if hint]


def _of_profile(tx: ReadTx, job: Job) -> str | None:
    if job.agent_profile is None:
        return None
    turns = tx.turns_of_profile(job.agent_profile, limit=_MOST_FIRINGS)
    if not turns:
        return None
    return (
        f"jobs with agent profile {job.agent_profile} take about {round(median(turns))} turns"
        f" (the median of {len(turns)} firing{'s' if len(turns) > 1 else ''})"
    )


def _of_payload(job: Job, settings: Settings) -> str | None:
    if (settings.max_turns if job.max_turns is None else job.max_turns) is not None:
        return None
    found = _SPOKEN_LIMIT.search(_words(job))
    if found is None:
        return None
    limit = found[1] or found[2]
    what = "command" if isinstance(job.action, CommandAction) else "payload"
    return f"the {what} says {found[0]!r}, but no turn budget is set: --max-turns {limit} has it enforced"


def _words(job: Job) -> str:
    if isinstance(job.action, CommandAction):
        return " ".join(job.action.argv)
    return json.dumps(job.action.payload, ensure_ascii=False)
