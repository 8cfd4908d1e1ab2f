"""The connection of one HTTP try: how far the request got, and the timer that ends it at the deadline.

"Surely not sent" is measured here: until connecting (TLS included) is over, not a byte of the request has left.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse, RemoteDisconnected
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from carolctl.model import FailureClass

CONNECT_TIMEOUT_SEC = 10.0

_METADATA_ADDRESSES = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}


class Wire:
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

    def refuse_if_cut(self) -> None:
        """Raise TimeoutError if the deadline came while connecting: nothing of the request has left."""
        if self.cut:
            self.why = self.why or "the deadline passed before the connection stood"
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
    """Dials through its `Wire`, and tells it when the connection stands."""

    response_class = _WholeHeaders

    def __init__(self, wire: Wire, *args: Any, **kwargs: Any) -> None:
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
        # A socket that the timer has shut down looks unconnected, and the TLS handshake is left out without a word.
        self._wire.refuse_if_cut()
        self.sock.settimeout(self._wire.grace())
        self._wire.sent = True


class _TlsConnection(_Connection, HTTPSConnection):
    """The same; TLS is part of connecting, so a certificate is refused before anything is sent."""


class WireAdapter(HTTPAdapter):
    """Gives every connection it opens the `Wire` of the try."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._wire = wire

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        kind = _TlsConnection if pool.scheme == "https" else _Connection
        pool.ConnectionCls = partial(kind, self._wire)
        return pool
