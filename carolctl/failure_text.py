"""The class of a failure by what was said of it: the last resort, where nothing else names one. Pure.

An agent's own class, an HTTP status, a signal and a lease come first. Only words that name a cause by themselves count:
better ``exit_nonzero`` than a class that retries, or does not, for the wrong reason.
"""

from __future__ import annotations

import re

from carolctl.model import FailureClass

_LONGEST = 4000
_TIMEOUT_STATUS = 124
"""What timeout(1) exits with."""

#: Matched against text with blanks for underscores and dashes. In this order: of two things that are said, the one that
#: is not to be repeated counts.
_SIGNS: tuple[tuple[FailureClass, tuple[str, ...]], ...] = (
    (
        "turn_limit_exceeded",
        (
            r"\bmax(imum)? ?(number of )?turns\b",
            r"\bturns? (limit|budget|cap)\b",
            r"\b(limit|out) of (\d+ )?turns\b",
        ),
    ),
    (
        "auth_failed",
        (
            r"\b(auth|authentication|authorization) ?(failed|failure|error|required)\b",
            r"\bunauthori[sz]ed\b",
            r"\b(bad|invalid|expired|wrong|missing)( x)? (api key|credentials?|access token|token|password)\b",
            r"\b(api key|credentials?|token)( has| have| is)? expired\b",
            r"\b40[13] (client error|forbidden)\b",
            r"\bnot logged in\b",
        ),
    ),
    (
        "rate_limited",
        (
            r"\brate ?limit",
            r"\btoo many requests\b",
            r"\boverloaded error\b",
            r"\b(http|status|error)\W{0,3}429\b",
        ),
    ),
    (
        "budget_exceeded",
        (
            r"\b(budget|quota|credits?|(spend|spending|usage|cost) limit)( (is|was|has been))?"
            r" (exceeded|exhausted|reached|used up)\b",
            r"\b(exceeded|exhausted|reached) (its|the|your|my|our)( \w+)?"
            r" (budget|quota|(spend|spending|usage|cost) limit)\b",
            r"\binsufficient (quota|credits?|funds)\b",
            r"\bout of (credits?|budget)\b",
            r"\bcredit balance is too low\b",
        ),
    ),
    (
        "timeout",
        (
            r"\btimed ?out\b",
            r"timeout(error|exception|expired)\b",
            r"\b(read|connect|request) ?timeout\b",
            r"\bdeadline ?exceeded\b",
        ),
    ),
    (
        "aborted",
        (
            r"\baborterror\b",
            r"\bkeyboardinterrupt\b",
            r"\b(aborted|cancell?ed|interrupted) by (the )?(user|operator)\b",
        ),
    ),
)
_BLANKS = str.maketrans("_-", "  ")
_COMPILED = tuple((name, re.compile("|".join(signs), re.IGNORECASE)) for name, signs in _SIGNS)


def class_of(*texts: str | None) -> FailureClass | None:
    """The class that the first of `texts` to name one names; None when none does."""
    for text in filter(None, texts):
        words = text[:_LONGEST].translate(_BLANKS)
        for name, signs in _COMPILED:
            if signs.search(words):
                return name
    return None


def class_of_exit(status: int, *texts: str | None) -> FailureClass:
    """The class of an exit status other than 0: by the status where it tells, else by the texts."""
    return "timeout" if status == _TIMEOUT_STATUS else class_of(*texts) or "exit_nonzero"
