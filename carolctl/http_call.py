"""One HTTP dispatch: send the run's request, wait for the answer until the deadline, say what became of it.

Incident: a dispatch that waited on a slow endpoint held a database lock all the while, and one that lost its
connection was simply sent again, so that some jobs ran twice. Decision: a dispatch is a function of its own,
entered with no transaction open; it tells apart what was surely not sent (tried again, with the same
Idempotency-Key), what was answered (judged by its status) and what was sent and not answered. Consequence:
the last kind ends as ``outcome_unknown`` and is never sent a second time from here.

The rules:

- "Surely not sent" is measured, not guessed from the text of an error: each try watches its own connection,
  and until connecting (TLS included) is over not a byte of the request has left.
- The deadline is one instant for all tries. A timer shuts the socket down at that instant, so neither a drip
  of headers nor a drip of body, each of whose reads is quick, outlasts it; looking up a name is waited
  for no longer either.
- Nothing comes from the environment (proxies, .netrc, CA bundles), no redirect is followed, no cookie kept:
  the transport adapter of requests is used by itself, because a session reads the whole body of a redirect
  even where it is told not to follow it.
- Link-local and cloud metadata addresses are refused after the look-up, on the very address that would be
  connected to.
- No secret value is left in a result.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Literal, cast

import requests
import tenacity
from urllib3.exceptions import HTTPError

from carolctl.errors import BadConfig
from carolctl.failpoints import failpoint
from carolctl.failure_text import class_of
from carolctl.http_request import HttpRequest, Unsendable, prepare
from carolctl.http_wire import Wire, WireAdapter
from carolctl.lockguard import require_unlocked
from carolctl.model import FAILURE_CLASSES, FailureClass
from carolctl.references import Resolver

MAX_TRIES = 5
LONGEST_PAUSE_SEC = 30.0
BODY_CAP_BYTES = 64 * 1024
SUMMARY_CAP = 2000
TEXT_SUMMARY_CAP = 200
LARGEST_TURN_COUNT = 2**31 - 1

_READ_BYTES = 4096
_REASON_BY_STATUS: dict[int, FailureClass] = {
    401: "auth_failed",
    403: "auth_failed",
    408: "timeout",
    429: "rate_limited",
}
_NETWORK_ERRORS = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError, ArithmeticError)
"""All that the libraries let through for what a peer does; ValueError is a garbled number or name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResult:
    """What became of it. ``accepted``: the other side goes on by itself and reports its end later."""

    kind: Literal["completed", "accepted", "failed"]
    failure_reason: FailureClass | None = None
    http_status: int | None = None
    turns: int | None = None
    summary: str | None = None
    retry_after_sec: float | None = None
    #: How often something was sent or tried to be; 0 when the request was refused here.
    tries: int = 0


def send(request: HttpRequest) -> HttpResult:
    """Dispatch `request`; whatever the network or the other side does comes back as a result."""
    require_unlocked("HTTP dispatch")
    resolver = Resolver()
    try:
        prepared = prepare(request, resolver)
    except (BadConfig, Unsendable) as error:
        hint = f" ({error.hint})" if isinstance(error, BadConfig) and error.hint else ""
        return _failed("launch_failed", resolver.redact(f"{error}{hint}"))
    if time.monotonic() >= request.deadline_monotonic:
        return _failed("timeout", "the deadline had passed before anything was sent")
    dispatch = _Dispatch(prepared, request, resolver)
    pace = _Pace(request.deadline_monotonic)
    retrying = tenacity.Retrying(retry=pace.goes_on, wait=pace.pause)
    return retrying(dispatch.try_once).result


def _failed(
    reason: FailureClass,
    summary: str,
    *,
    http_status: int | None = None,
    turns: int | None = None,
    retry_after_sec: float | None = None,
) -> HttpResult:
    return HttpResult(
        kind="failed",
        failure_reason=reason,
        http_status=http_status,
        turns=turns,
        summary=summary[:SUMMARY_CAP],
        retry_after_sec=retry_after_sec,
    )


# --- one try ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tried:
    """The result that stands if this was the last try, and whether another one is allowed."""

    result: HttpResult
    may_repeat: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    #: ``capped``: there was more than is ever read; ``broken``: it ended before its end.
    ending: Literal["whole", "capped", "broken"]
    retry_after_sec: float | None


class _Dispatch:
    """All tries of one request; each has a connection, a timer and a pool of its own."""

    def __init__(self, prepared: requests.PreparedRequest, request: HttpRequest, resolver: Resolver) -> None:
        self._prepared = prepared
        self._deadline = request.deadline_monotonic
        self._verify: bool | str = request.ca_file or True
        self._resolver = resolver
        self._tries = 0

    def try_once(self) -> _Tried:
        self._tries += 1
        wire = Wire(self._deadline)
        with wire:
            answer = self._exchange(wire)
        tried = _judge(answer, self._resolver) if answer else _without_answer(wire)
        summary = tried.result.summary and self._resolver.redact(tried.result.summary)
        return replace(tried, result=replace(tried.result, summary=summary, tries=self._tries))

    def _exchange(self, wire: Wire) -> _Answer | None:
        """The answer, or None when none came; `wire` knows how far it got."""
        failpoint("http-before-send")
        with closing(WireAdapter(wire)) as adapter:
            try:
                response = adapter.send(
                    self._prepared, stream=True, timeout=wire.grace(), verify=self._verify, proxies={}
                )
            except _NETWORK_ERRORS:
                return None
            with response:
                failpoint("http-after-send")
                return _read_answer(response, wire)


def _read_answer(response: requests.Response, wire: Wire) -> _Answer:
    status = response.status_code
    # Accepted is accepted: its body says nothing about an outcome, and a slow one would hold the thread.
    body, ending = (b"", "whole") if status == 202 else _read_body(response, wire)
    return _Answer(status, body, cast(Any, ending), _retry_after(response))


def _read_body(response: requests.Response, wire: Wire) -> tuple[bytes, str]:
    body = bytearray()
    try:
        for chunk in response.iter_content(_READ_BYTES):
            body += chunk
            if len(body) > BODY_CAP_BYTES:
                return bytes(body[:BODY_CAP_BYTES]), "capped"
            if wire.cut:
                break
    except _NETWORK_ERRORS:
        return bytes(body), "broken"
    # A body without a length ends where the connection does, also where the timer ended it.
    return bytes(body), "broken" if wire.cut else "whole"


def _retry_after(response: requests.Response) -> float | None:
    """Seconds to wait, from the header in either of its forms; a date is counted from the server's own."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    until = _http_date(text)
    if until is None:
        return None
    now = _http_date(response.headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


# --- the verdict -----------------------------------------------------------------------------------------


def _without_answer(wire: Wire) -> _Tried:
    """No status line came: by whether the request had left."""
    if not wire.sent:
        return _Tried(_failed(wire.reason, wire.why or "no connection was made"), may_repeat=wire.may_repeat)
    why = (
        "the deadline passed before the answer" if wire.cut else "the connection ended without a valid answer"
    )
    return _Tried(_failed("outcome_unknown", f"sent, but {why}"))


def _judge(answer: _Answer, resolver: Resolver) -> _Tried:
    if answer.status == 202:
        return _Tried(HttpResult(kind="accepted", http_status=202))
    document = _document(answer)
    if 200 <= answer.status < 300:
        return _Tried(_judge_success(answer, document, resolver))
    said = _said(answer, document, resolver)
    note = "redirects are not followed" if 300 <= answer.status < 400 else said
    result = _failed(
        _REASON_BY_STATUS.get(answer.status, "http_error"),
        f"HTTP {answer.status}: {note}" if note else f"HTTP {answer.status}",
        http_status=answer.status,
        turns=_turns(document),
        retry_after_sec=answer.retry_after_sec,
    )
    return _Tried(result, may_repeat=answer.status in (408, 429) or 500 <= answer.status < 600)


def _judge_success(answer: _Answer, document: dict[str, Any] | None, resolver: Resolver) -> HttpResult:
    if answer.ending == "broken":
        why = f"HTTP {answer.status}, but the answer broke off before its end"
        return _failed("outcome_unknown", why, http_status=answer.status)
    said = _said(answer, document, resolver)
    named = (document or {}).get("failure_reason")
    if named in (None, ""):
        return HttpResult(
            kind="completed", http_status=answer.status, turns=_turns(document), summary=said or None
        )
    known = isinstance(named, str) and named in FAILURE_CLASSES
    return _failed(
        cast(FailureClass, named) if known else class_of(str(named), said) or "sdk_error",
        said or ("" if known else f"unknown failure reason {_readable(str(named), resolver)[:100]!r}"),
        http_status=answer.status,
        turns=_turns(document),
    )


def _document(answer: _Answer) -> dict[str, Any] | None:
    """The JSON object of the answer; None where there is none, or one made to break a parser."""
    if answer.ending != "whole":
        return None
    try:
        document = json.loads(answer.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _turns(document: dict[str, Any] | None) -> int | None:
    turns = (document or {}).get("turns")
    counts = type(turns) is int and 0 <= turns <= LARGEST_TURN_COUNT
    return turns if counts else None


def _said(answer: _Answer, document: dict[str, Any] | None, resolver: Resolver) -> str:
    """The summary of a JSON answer; of any other, how its text begins."""
    if document is not None:
        summary = document.get("summary")
        return _readable(summary, resolver)[:SUMMARY_CAP] if isinstance(summary, str) else ""
    text = _readable(answer.body.decode("utf-8", "replace"), resolver)
    return " ".join(text.split())[:TEXT_SUMMARY_CAP]


def _readable(text: str, resolver: Resolver) -> str:
    """Printable and free of secrets: looked for before and after the filter, which may join their parts."""
    kept = "".join(char for char in resolver.redact(text) if char.isprintable() or char in "\n\t")
    return resolver.redact(kept).strip()


# --- trying again ----------------------------------------------------------------------------------------


class _Pace:
    """When to try again: as long as the answer says, else a growing random pause; never past the deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._backoff = tenacity.wait_random_exponential(multiplier=1, min=0.25, max=LONGEST_PAUSE_SEC)
        self._pause = 0.0

    def goes_on(self, state: tenacity.RetryCallState) -> bool:
        outcome = state.outcome
        if outcome is None or outcome.failed:
            return False
        tried: _Tried = outcome.result()
        told = tried.result.retry_after_sec
        self._pause = float(self._backoff(state)) if told is None else told
        in_time = time.monotonic() + self._pause < self._deadline
        return tried.may_repeat and in_time and state.attempt_number < MAX_TRIES

    def pause(self, _state: tenacity.RetryCallState) -> float:
        return self._pause
