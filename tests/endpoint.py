"""A small HTTP server on the loopback for tests: scripted answers per path, and a record of every request.

    with Endpoint() as endpoint:
        endpoint.on("/job", Reply(status=503), Reply(json={"turns": 3}))
        ...  # call endpoint.url("/job")
        assert [seen.path for seen in endpoint.seen] == ["/job", "/job"]

The replies of a path are used in turn, the last one for ever; a path without a script answers 200 ``{}``.
All waiting is on one event, so that leaving the block ends a drip or a delay at once.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Manner = Literal[
    "plain", "reset", "hang_up", "drip_headers", "drip_body", "endless", "bad_chunks", "cut_short", "raw"
]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One scripted answer.

    plain: status, headers, body. reset: RST without an answer; hang_up: FIN without one. drip_headers and
    drip_body: a byte per `pace`, without end. endless: a body that never stops, at full speed. bad_chunks: a
    chunked body with a broken length. cut_short: less body than was announced. raw: `body` as it is, no
    status line.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    json: Any = None
    #: Seconds before anything is said.
    delay: float = 0.0
    #: The answer waits until this is set (or the endpoint closes).
    hold: threading.Event | None = None
    manner: Manner = "plain"
    pace: float = 0.05

    def content(self) -> bytes:
        return self.body if self.json is None else jsonlib.dumps(self.json).encode()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def is_whole(self) -> bool:
        """Whether the body came as long as it was announced: whoever sent it may have died in the middle."""
        return len(self.raw) == int(self.headers.get("content-length", "0"))

    @property
    def json(self) -> Any:
        """The parsed body; None without one."""
        return jsonlib.loads(self.raw) if self.raw else None


def redirect(location: str, status: int = 302, body: bytes = b"") -> Reply:
    """A reply that points elsewhere."""
    return Reply(status=status, headers={"Location": location}, body=body)


class Endpoint:
    """The server; `cert` and `key` are PEM files, and make it HTTPS."""

    def __init__(self, *, cert: str | None = None, key: str | None = None) -> None:
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._scripts: dict[str, list[Reply]] = {}
        self._seen: list[Seen] = []
        self._scheme = "https" if cert else "http"
        self._server = _Server(self, _tls_context(cert, key) if cert else None)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="endpoint")

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.drop_connections()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/", *, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def on(self, path: str, *replies: Reply) -> str:
        """Script `path`; returns its URL."""
        with self._lock:
            self._scripts[path] = list(replies)
        return self.url(path)

    @property
    def seen(self) -> list[Seen]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return list(self._seen)

    def seen_at(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    def wait_for(self, count: int, *, path: str | None = None, timeout: float = 10.0) -> list[Seen]:
        """The requests (to `path`), once there are `count` of them."""
        until = time.monotonic() + timeout
        while True:
            seen = self.seen if path is None else self.seen_at(path)
            if len(seen) >= count:
                return seen
            if time.monotonic() > until:
                raise AssertionError(f"{len(seen)} of {count} requests after {timeout} s")
            time.sleep(0.005)

    def take(self, seen: Seen) -> Reply:
        """Record a request and choose its reply; called by the handler."""
        with self._lock:
            self._seen.append(seen)
            script = self._scripts.get(seen.path.partition("?")[0])
            if not script:
                return Reply(json={})
            return script.pop(0) if len(script) > 1 else script[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for the handlers
    request_queue_size = 128

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        self.endpoint = endpoint
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        # Here, in the handler's thread, so that a refused handshake delays nobody else.
        request.settimeout(10)
        with self._tls.wrap_socket(request.dup(), server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
            super().shutdown_request(request)

    def drop_connections(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests are about; anything else is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def _answer(self) -> None:
        at = time.monotonic()
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(method=self.command, path=self.path, headers=headers, raw=raw, at=at)
        reply = self.server.endpoint.take(seen)
        self._wait(reply)
        getattr(self, f"_reply_{reply.manner}")(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def log_message(self, *_args: object) -> None:
        """Nothing on stderr."""

    def _wait(self, reply: Reply) -> None:
        stopping = self.server.endpoint.stopping
        if reply.delay:
            stopping.wait(reply.delay)
        while reply.hold is not None and not stopping.is_set():
            if reply.hold.wait(0.02):
                return

    def _head(self, reply: Reply, **more: str) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, **more}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _until_stopped(self, say: Callable[[], object], pace: float) -> None:
        self.close_connection = True
        while not self.server.endpoint.stopping.wait(pace):
            say()

    def _reply_plain(self, reply: Reply) -> None:
        content = reply.content()
        self._head(reply, Content_Length=str(len(content)))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reply_reset(self, _reply: Reply) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed for good, and at once: a shutdown first would send FIN, not RST.
        socket.close(self.connection.detach())

    def _reply_hang_up(self, _reply: Reply) -> None:
        self.close_connection = True

    def _reply_drip_headers(self, reply: Reply) -> None:
        self.wfile.write(f"HTTP/1.1 {reply.status} OK\r\nX-Drip: ".encode())
        self._until_stopped(lambda: self.wfile.write(b"."), reply.pace)

    def _reply_drip_body(self, reply: Reply) -> None:
        self._head(reply, Connection="close")
        self.wfile.write(reply.content())
        self._until_stopped(lambda: self.wfile.write(b"."), reply.pace)

    def _reply_endless(self, reply: Reply) -> None:
        self._head(reply, Connection="close")
        self._until_stopped(lambda: self.wfile.write(b"x" * 65536), 0)

    def _reply_bad_chunks(self, reply: Reply) -> None:
        self._head(reply, Transfer_Encoding="chunked")
        self.wfile.write(b"5\r\nhello\r\nnot a length\r\n")
        self.close_connection = True

    def _reply_cut_short(self, reply: Reply) -> None:
        content = reply.content()
        self._head(reply, Content_Length=str(len(content) + 10))
        self.wfile.write(content)
        self.close_connection = True

    def _reply_raw(self, reply: Reply) -> None:
        self.wfile.write(reply.body)
        self.close_connection = True


def _tls_context(cert: str, key: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
