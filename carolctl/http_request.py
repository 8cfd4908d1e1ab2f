"""The request of one HTTP dispatch: what is sent, and what is refused before anything leaves."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from requests.structures import CaseInsensitiveDict

from carolctl import __version__
from carolctl.http_rules import FRAMING_HEADERS, HEADER_NAME, HEADER_VALUE, METHODS, METHODS_WITH_BODY
from carolctl.model import HttpAction
from carolctl.references import Resolver

_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f-\x9f]+", re.IGNORECASE)


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


class Unsendable(ValueError):
    """The request cannot be put together; the message holds no value of a reference."""


def prepare(request: HttpRequest, resolver: Resolver) -> requests.PreparedRequest:
    """The request, checked and complete; made once, so that every try carries the same bytes."""
    method = _method(request.action)
    url = _url(resolver.resolve(request.action.url))
    if request.ca_file and url.lower().startswith("https:"):
        _check_ca_file(request.ca_file)
    headers = _headers(request, resolver)
    body = _body(request, resolver) if method in METHODS_WITH_BODY else None
    try:
        return requests.Request(method, url, headers=headers, data=body).prepare()
    except (requests.RequestException, ValueError) as error:
        raise Unsendable(f"the request cannot be built: {type(error).__name__}") from None


def _method(action: HttpAction) -> str:
    method = action.method.upper()
    if method not in METHODS:
        raise Unsendable(f"the method {method!r} is not one of {', '.join(METHODS)}")
    return method


def _check_ca_file(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise Unsendable(f"the CA file {path} cannot be used: {error.strerror or error}") from None


def _url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise Unsendable("the URL must be http:// or https://, without blanks or control characters")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
        if url.isascii():
            (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        raise Unsendable("the URL has no usable host or port")
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
            raise Unsendable(f"the value of the header {name} is not text")
        headers[name] = resolver.resolve(value).strip(" \t")
    headers["Idempotency-Key"] = request.idempotency_key
    headers["X-Carol-Run-Id"] = str(request.run_id)
    headers["X-Carol-Claim"] = str(request.claim_no)
    for name, value in headers.items():
        _check_header(name, value)
    return headers


def _check_header(name: str, value: str) -> None:
    if not HEADER_NAME.fullmatch(name):
        raise Unsendable(f"{name!r} cannot be the name of a header")
    if name.lower() in FRAMING_HEADERS:
        raise Unsendable(f"the header {name} belongs to the transport and cannot be set")
    if not HEADER_VALUE.fullmatch(value):
        raise Unsendable(
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
        raise Unsendable("the payload cannot be written as JSON") from None
