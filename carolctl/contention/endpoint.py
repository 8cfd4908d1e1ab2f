"""An HTTP server on the loopback that answers nobody until it is told to: the slow agent of the contention test."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_LONGEST_SEC = 120.0


class SlowEndpoint:
    """``with SlowEndpoint() as endpoint``: every request waits for `release`, then gets 200 ``{}``."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._arrived = threading.Semaphore(0)
        self._server = _server_of(self)
        # It looks for the end ten times a second only, so as not to disturb what is measured.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> SlowEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it is to be called."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def wait_for(self, requests: int, *, timeout_sec: float) -> int:
        """Wait until so many requests more are in flight; how many came in time."""
        for arrived in range(requests):
            if not self._arrived.acquire(timeout=timeout_sec):
                return arrived
        return requests

    def release(self) -> None:
        """Answer everybody, from now on at once."""
        self._released.set()

    def hold(self) -> None:
        """Called by the handler of each request."""
        self._arrived.release()
        self._released.wait(_LONGEST_SEC)


def _server_of(endpoint: SlowEndpoint) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            endpoint.hold()
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    return _Server(("127.0.0.1", 0), Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that was killed meanwhile is no news."""
