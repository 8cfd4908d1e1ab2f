"""What an HTTP request may hold: checked when a job is written, and again when its references are resolved. Pure."""

from __future__ import annotations

import re

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")

FRAMING_HEADERS = frozenset({"connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade"})
"""They belong to the transport."""

OWN_HEADERS = frozenset({"idempotency-key", "x-carol-run-id", "x-carol-claim"})
"""They say whose call it is."""
