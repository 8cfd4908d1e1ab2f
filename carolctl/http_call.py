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

import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import requests
import tenacity
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from carolctl import __version__
from carolctl.errors import BadConfig
from carolctl.failpoints import failpoint
from carolctl.lockguard import require_unlocked
from carolctl.model import FAILURE_CLASSES, FailureClass, HttpAction
from carolctl.references import Resolver

MAX_TRIES = 5
CONNECT_TIMEOUT_SEC = 10.0
LONGEST_PAUSE_SEC = 30.0
BODY_CAP_BYTES = 64 * 1024
SUMMARY_CAP = 2000
TEXT_SUMMARY_CAP = 200
LARGEST_TURN_COUNT = 2**31 - 1

_READ_BYTES = 4096
_METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
_METHODS_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}
_FRAMING_HEADERS = {"connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade"}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f-\x9f]+", re.IGNORECASE)
_METADATA_ADDRESSES = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}
_REASON_BY_STATUS: dict[int, FailureClass] = {
    401: "auth_failed",
    403: "auth_failed",
    408: "timeout",
    429: "rate_limited",
}
_NETWORK_ERRORS = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError, ArithmeticError)
"""All that the libraries let through for what a peer does; ValueError is a garbled number or name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One claim of a run to be dispatched; `deadline_monotonic` is when all must be over."""

    run_id: int
    job_id: str
    claim_no: int
    scheduled_for_iso: str | None
    attempt: int
    max_turns: int | None
    idempotency_key: str
    action: HttpAction
    deadline_monotonic: float
    ca_file: str | None = None


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
        prepared = _prepare(request, resolver)
    except (BadConfig, _Unsendable) as error:
        return _failed("launch_failed", resolver.redact(str(error)))
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


# --- the request -----------------------------------------------------------------------------------------


class _Unsendable(ValueError):
    """The request cannot be put together; the message holds no value of a reference."""


def _prepare(request: HttpRequest, resolver: Resolver) -> requests.PreparedRequest:
    """The request, checked and complete; made once, so that every try carries the same bytes."""
    method = _method(request.action)
    if request.ca_file:
        _check_ca_file(request.ca_file)
    url = _url(resolver.resolve(request.action.url))
    headers = _headers(request, resolver)
    body = _body(request, resolver) if method in _METHODS_WITH_BODY else None
    try:
        return requests.Request(method, url, headers=headers, data=body).prepare()
    except (requests.RequestException, ValueError) as error:
        raise _Unsendable(f"the request cannot be built: {type(error).__name__}") from None


def _method(action: HttpAction) -> str:
    method = action.method.upper()
    if method not in _METHODS:
        raise _Unsendable(f"the method {method!r} is not one of {', '.join(sorted(_METHODS))}")
    return method


def _check_ca_file(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise _Unsendable(f"the CA file {path} cannot be used: {error.strerror or error}") from None


def _url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise _Unsendable("the URL must be http:// or https://, without blanks or control characters")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
        if url.isascii():
            (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        raise _Unsendable("the URL has no usable host or port")
    return url


def _headers(request: HttpRequest, resolver: Resolver) -> CaseInsensitiveDict[str]:
    """The action's own headers over the defaults, and over all of them those that say whose call it is."""
    headers = CaseInsensitiveDict(
        {
            "User-Agent": f"carolctl/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
    )
    for name, value in request.action.headers.items():
        if not isinstance(value, str):
            raise _Unsendable(f"the value of the header {name} is not text")
        headers[name] = resolver.resolve(value).strip(" \t")
    headers["Idempotency-Key"] = request.idempotency_key
    headers["X-Carol-Run-Id"] = str(request.run_id)
    headers["X-Carol-Claim"] = str(request.claim_no)
    for name, value in headers.items():
        _check_header(name, value)
    return headers


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise _Unsendable(f"{name!r} cannot be the name of a header")
    if name.lower() in _FRAMING_HEADERS:
        raise _Unsendable(f"the header {name} belongs to the transport and cannot be set")
    if not _HEADER_VALUE.fullmatch(value):
        raise _Unsendable(
            f"the value of the header {name} holds a line break or another character not allowed"
        )


def _body(request: HttpRequest, resolver: Resolver) -> bytes:
    try:
        document = {
            "run_id": request.run_id,
            "job_id": request.job_id,
            "claim": request.claim_no,
            "scheduled_for": request.scheduled_for_iso,
            "attempt": request.attempt,
            "max_turns": request.max_turns,
            "payload": resolver.resolve_document(request.action.payload),
        }
        return json.dumps(document, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        raise _Unsendable("the payload cannot be written as JSON") from None


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
        wire = _Wire(self._deadline)
        with wire:
            answer = self._exchange(wire)
        tried = _judge(answer, self._resolver) if answer else _without_answer(wire)
        summary = tried.result.summary and self._resolver.redact(tried.result.summary)
        return replace(tried, result=replace(tried.result, summary=summary, tries=self._tries))

    def _exchange(self, wire: _Wire) -> _Answer | None:
        """The answer, or None when none came; `wire` knows how far it got."""
        failpoint("http-before-send")
        with closing(_Adapter(wire)) as adapter:
            try:
                response = adapter.send(
                    self._prepared, stream=True, timeout=wire.grace(), verify=self._verify, proxies={}
                )
            except _NETWORK_ERRORS:
                return None
            with response:
                failpoint("http-after-send")
                return _read_answer(response, wire)


def _read_answer(response: requests.Response, wire: _Wire) -> _Answer:
    status = response.status_code
    # Accepted is accepted: its body says nothing about an outcome, and a slow one would hold the thread.
    body, ending = (b"", "whole") if status == 202 else _read_body(response, wire)
    return _Answer(status, body, cast(Any, ending), _retry_after(response))


def _read_body(response: requests.Response, wire: _Wire) -> tuple[bytes, str]:
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


def _without_answer(wire: _Wire) -> _Tried:
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
        cast(FailureClass, named) if known else "sdk_error",
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


# --- the connection --------------------------------------------------------------------------------------


class _Wire:
    """The connection of one try: how far the request got, and the timer that ends it at the deadline.

    The timer shuts down a duplicate of the socket's descriptor: the original is handed on (TLS wraps it,
    http.client reads through a file), the duplicate stays good until the end of the try.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._timer = threading.Timer(max(0.0, deadline - time.monotonic()), self._shut_down)
        self._timer.daemon = True
        #: The connection stands: from here on some of the request may have left.
        self.sent = False
        #: The deadline came first.
        self.cut = False
        self.why = ""
        self.reason: FailureClass = "http_error"
        self.may_repeat = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()
        self._timer.join()
        if self._handle is not None:
            self._handle.close()

    def grace(self) -> float:
        """A timeout for single reads and writes that the timer always forestalls."""
        return max(0.0, self._deadline - time.monotonic()) + 1.0

    def _shut_down(self) -> None:
        with self._lock:
            self.cut = True
            if self._handle is not None:
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            self._handle = sock.dup()
            if self.cut:
                raise TimeoutError

    def dial(self, host: str, port: int) -> socket.socket:
        """A connected socket to `host`; on failure `why` says in a few words what was wrong."""
        try:
            return self._dial(host, port)
        except OSError as error:
            self.why = self.why or _in_a_few_words(error)
            raise

    def _dial(self, host: str, port: int) -> socket.socket:
        until = min(self._deadline, time.monotonic() + CONNECT_TIMEOUT_SEC)
        addresses = [found for found in _look_up(host, port, until) if not _forbidden(found[4][0])]
        if not addresses:
            self.refuse("link-local and metadata addresses are never called", "launch_failed")
            raise PermissionError
        sock = _connect_to_one(addresses, until)
        try:
            self._hold(sock)
        except OSError:
            sock.close()
            raise
        sock.settimeout(max(0.001, until - time.monotonic()))
        return sock

    def refuse(self, why: str, reason: FailureClass) -> None:
        """No further try would go better."""
        self.why, self.reason, self.may_repeat = why, reason, False


_AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


def _look_up(host: str, port: int, until: float) -> list[_AddressInfo]:
    """getaddrinfo, in a thread that is left behind when it takes too long: it cannot be interrupted."""
    found: list[list[_AddressInfo] | Exception] = []

    def ask() -> None:
        try:
            found.append(cast(Any, socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, ValueError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="carolctl-look-up", daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if not found:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer in time")
    if isinstance(found[0], Exception):
        raise found[0] if isinstance(found[0], OSError) else socket.gaierror(socket.EAI_NONAME, "bad name")
    return found[0]


def _forbidden(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_link_local or ip in _METADATA_ADDRESSES


def _connect_to_one(addresses: list[_AddressInfo], until: float) -> socket.socket:
    """The first address that answers; each may use its share of the time that is left."""
    last: OSError = TimeoutError()
    for position, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            share = (until - time.monotonic()) / (len(addresses) - position)
            sock.settimeout(max(0.001, share))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last


def _in_a_few_words(error: OSError) -> str:
    match error:
        case socket.gaierror():
            return "the host name was not resolved"
        case TimeoutError():
            return "connect timeout"
        case ConnectionRefusedError():
            return "connection refused"
    return f"no connection: {error.strerror or type(error).__name__}"


class _Lines:
    """A stream that remembers the last line read from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def readline(self, limit: int = -1) -> bytes:
        self.last = self._stream.readline(limit)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _WholeHeaders(HTTPResponse):
    """An answer whose headers end with an empty line; http.client is content when the connection ends."""

    def begin(self) -> None:
        stream = self.fp
        lines: Any = _Lines(stream)
        self.fp = lines
        super().begin()
        if self.fp is lines:
            self.fp = stream
        if lines.last not in (b"\r\n", b"\n"):
            raise RemoteDisconnected("the connection ended amid the headers")


class _Connection(HTTPConnection):
    """Dials through its `_Wire`, and tells it when the connection stands."""

    response_class = _WholeHeaders

    def __init__(self, wire: _Wire, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wire = wire

    def _new_conn(self) -> socket.socket:
        try:
            return self._wire.dial(self._dns_host, self.port)
        except OSError as error:
            # Not as it is: urllib3 takes a bare ECONNRESET for one that came after sending.
            raise NewConnectionError(self, self._wire.why) from error

    def connect(self) -> None:
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            self._wire.refuse(f"certificate verify failed: {error.verify_message}", "http_error")
            raise
        except OSError as error:
            self._wire.why = self._wire.why or f"the TLS handshake failed: {error.strerror or error}"
            raise
        self.sock.settimeout(self._wire.grace())
        self._wire.sent = True


class _TlsConnection(_Connection, HTTPSConnection):
    """The same; TLS is part of connecting, so a certificate is refused before anything is sent."""


class _Adapter(HTTPAdapter):
    """Gives every connection it opens the `_Wire` of the try."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._wire = wire

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        kind = _TlsConnection if pool.scheme == "https" else _Connection
        pool.ConnectionCls = partial(kind, self._wire)
        return pool
