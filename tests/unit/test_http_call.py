"""The HTTP dispatch against a real server on the loopback: what is sent, how each answer is judged, what is
tried again, and that nothing outlasts the deadline or gives a secret away."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from carolctl import failpoints, http_wire, lockguard
from carolctl.http_call import HttpResult, send
from carolctl.http_request import HttpRequest
from carolctl.model import HttpAction
from tests.endpoint import Endpoint, Reply, redirect

CANARY = "canary-9f31-do-not-tell"
AT_ONCE = {"Retry-After": "0"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAROL_TEST_TOKEN", CANARY)
    return "${env:CAROL_TEST_TOKEN}"


def request(url: str, *, seconds: float = 5.0, ca_file: str | None = None, **action: Any) -> HttpRequest:
    return HttpRequest(
        run_id=41,
        job_id="nightly",
        claim_no=3,
        scheduled_for_iso="2026-03-01T02:30:00Z",
        attempt=2,
        max_turns=50,
        idempotency_key="store-uuid:41",
        action=HttpAction(url=url, **action),
        deadline_monotonic=time.monotonic() + seconds,
        ca_file=ca_file,
    )


def call(url: str, **options: Any) -> HttpResult:
    return send(request(url, **options))


@contextlib.contextmanager
def taking_at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# --- what is sent ---------------------------------------------------------------------------------------


def test_the_request_says_whose_call_it_is(endpoint: Endpoint, token: str) -> None:
    result = call(
        endpoint.url("/job?x=1"),
        headers={"Authorization": f"Bearer {token}", "idempotency-key": "mine"},
        payload={"prompt": "go", "key": token},
    )
    [seen] = endpoint.seen
    assert (seen.method, seen.path) == ("POST", "/job?x=1")
    assert seen.json == {
        "run_id": 41,
        "job_id": "nightly",
        "claim": 3,
        "scheduled_for": "2026-03-01T02:30:00Z",
        "attempt": 2,
        "max_turns": 50,
        "payload": {"prompt": "go", "key": CANARY},
    }
    assert seen.headers["idempotency-key"] == "store-uuid:41"
    assert seen.headers["x-carol-run-id"] == "41"
    assert seen.headers["x-carol-claim"] == "3"
    assert seen.headers["authorization"] == f"Bearer {CANARY}"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["user-agent"].startswith("carolctl/")
    assert result == HttpResult(kind="completed", http_status=200, tries=1)


@pytest.mark.parametrize(
    ("method", "has_body"),
    [("GET", False), ("HEAD", False), ("PUT", True), ("patch", True), ("DELETE", True)],
)
def test_other_methods(endpoint: Endpoint, method: str, has_body: bool) -> None:
    result = call(endpoint.url("/m"), method=method, payload={"a": 1})
    [seen] = endpoint.seen
    assert result.kind == "completed"
    assert seen.method == method.upper()
    assert (seen.json is not None) == has_body


@pytest.mark.parametrize(
    "action",
    [
        {"headers": {"X-A": "one\r\nX-Injected: two"}},
        {"headers": {"X-A": "one\ntwo"}},
        {"headers": {"X-A\r\nX-B": "one"}},
        {"headers": {"X A": "one"}},
        {"headers": {"": "one"}},
        {"headers": {"X-A": 5}},
        {"headers": {"X-A": "nul\0"}},
        {"headers": {"X-A": "snowman ☃"}},
        {"headers": {"X-A": "${env:CAROL_TEST_NO_SUCH}"}},
        {"headers": {"X-A": "${file:/no/such/file}"}},
        {"headers": {"Content-Length": "7"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"payload": {"deep": "${env:CAROL_TEST_NO_SUCH}"}},
        {"payload": float("nan")},
        {"payload": {"not json": object()}},
        {"method": "TRACE"},
        {"method": "GET /x HTTP/1.1\r\nA: b"},
    ],
)
def test_what_cannot_be_sent_is_refused_here(shared: Endpoint, action: dict[str, Any]) -> None:
    before = len(shared.seen)
    result = call(shared.url("/never"), **action)
    assert (result.kind, result.failure_reason, result.tries) == ("failed", "launch_failed", 0)
    assert result.summary
    assert len(shared.seen) == before


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "/relative",
        "http://",
        "http:///path",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nX-A: b",
        " http://127.0.0.1/",
        f"http://{'a' * 70}.test/",
        "http://.test/",
    ],
)
def test_only_sound_http_urls_are_called(url: str) -> None:
    result = call(url, seconds=0.5)
    assert (result.failure_reason, result.tries) == ("launch_failed", 0)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200"]
)
def test_link_local_and_metadata_addresses_are_refused(host: str) -> None:
    result = call(f"http://{host}/latest/meta-data/", seconds=2)
    assert result.failure_reason == "launch_failed"
    assert "never called" in (result.summary or "")


def test_a_name_that_leads_to_a_metadata_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: answer)
    assert call("http://innocent.test/").failure_reason == "launch_failed"


# --- how answers are judged -----------------------------------------------------------------------------


def test_a_json_answer_is_read(shared: Endpoint) -> None:
    url = shared.on(
        "/ok", Reply(status=201, json={"turns": 12, "summary": "all done", "failure_reason": None})
    )
    assert call(url) == HttpResult(kind="completed", http_status=201, turns=12, summary="all done", tries=1)


@pytest.mark.parametrize("turns", [-1, 1.5, "3", True, None, [], 10**30])
def test_turns_that_are_no_count_are_left_out(shared: Endpoint, turns: Any) -> None:
    result = call(shared.on("/turns", Reply(json={"turns": turns, "summary": 5})))
    assert (result.kind, result.turns, result.summary) == ("completed", None, None)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("turn_limit_exceeded", "turn_limit_exceeded"),
        ("aborted", "aborted"),
        ("no_such_class", "sdk_error"),
        (["odd"], "sdk_error"),
    ],
)
def test_a_failure_named_in_the_answer_counts(shared: Endpoint, named: Any, reason: str) -> None:
    result = call(shared.on("/named", Reply(json={"failure_reason": named, "turns": 9})))
    assert (result.kind, result.failure_reason, result.http_status) == ("failed", reason, 200)
    assert (result.turns, result.tries) == (9, 1)


def test_a_plain_text_answer_is_its_own_summary(shared: Endpoint) -> None:
    result = call(shared.on("/text", Reply(body=b"\x1b[31mred\x07  and\r\n\xe2\x80\xaeplain " + b"z" * 500)))
    assert result.kind == "completed"
    assert (result.summary or "").startswith("[31mred and plain zzz")
    assert len(result.summary or "") == 200


def test_a_long_summary_is_cut(shared: Endpoint) -> None:
    result = call(shared.on("/long", Reply(json={"summary": "s" * 9000})))
    assert result.summary == "s" * 2000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60000,
        b'{"a":' * 12000,
        b'{"turns": ' + b"9" * 60000 + b"}",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'"text"',
        b"",
        b"{",
    ],
)
def test_hostile_and_odd_bodies_are_completed_without_turns(shared: Endpoint, body: bytes) -> None:
    result = call(shared.on("/odd", Reply(body=body)))
    assert (result.kind, result.turns) == ("completed", None)


def test_accepted_is_accepted_without_waiting_for_the_body(shared: Endpoint) -> None:
    url = shared.on("/accepted", Reply(status=202, manner="drip_body"))
    with taking_at_most(1):
        assert call(url, seconds=5) == HttpResult(kind="accepted", http_status=202, tries=1)


@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (304, "http_error", 1),
        (400, "http_error", 1),
        (401, "auth_failed", 1),
        (403, "auth_failed", 1),
        (404, "http_error", 1),
        (407, "http_error", 1),
        (408, "timeout", 5),
        (409, "http_error", 1),
        (429, "rate_limited", 5),
        (500, "http_error", 5),
        (503, "http_error", 5),
        (799, "http_error", 1),
    ],
)
def test_every_status_has_its_class_and_its_tries(
    endpoint: Endpoint, status: int, reason: str, tries: int
) -> None:
    url = endpoint.on("/s", Reply(status=status, headers=AT_ONCE, json={"summary": "because", "turns": 4}))
    result = call(url)
    assert (result.kind, result.failure_reason, result.http_status) == ("failed", reason, status)
    assert (result.tries, len(endpoint.seen)) == (tries, tries)
    assert (result.summary or "").startswith(f"HTTP {status}")
    assert {seen.headers["idempotency-key"] for seen in endpoint.seen} == {"store-uuid:41"}
    assert len({seen.raw for seen in endpoint.seen}) == 1


# --- trying again ---------------------------------------------------------------------------------------


def test_a_passing_trouble_is_outlived(endpoint: Endpoint) -> None:
    busy = Reply(status=503, headers=AT_ONCE)
    result = call(endpoint.on("/flaky", busy, Reply(status=429, headers=AT_ONCE), Reply(json={"turns": 1})))
    assert result == HttpResult(kind="completed", http_status=200, turns=1, tries=3)


def test_without_retry_after_there_is_a_pause(endpoint: Endpoint) -> None:
    result = call(endpoint.on("/pause", Reply(status=500), Reply(json={})))
    first, second = endpoint.seen
    assert result.kind == "completed"
    assert 0.2 < second.at - first.at < 1.5


@pytest.mark.parametrize("form", ["seconds", "date", "date by a server clock an hour slow"])
def test_retry_after_is_obeyed(endpoint: Endpoint, form: str) -> None:
    server_now = datetime.now(UTC).replace(microsecond=0)
    if "slow" in form:
        server_now -= timedelta(hours=1)
    later = format_datetime(server_now + timedelta(seconds=1), usegmt=True)
    headers = {"Retry-After": "1" if form == "seconds" else later}
    raw = f"HTTP/1.1 429 Slow\r\nDate: {format_datetime(server_now, usegmt=True)}\r\n".encode()
    raw += f"Retry-After: {headers['Retry-After']}\r\nContent-Length: 0\r\n\r\n".encode()
    result = call(endpoint.on("/ra", Reply(manner="raw", body=raw), Reply(json={})))
    first, second = endpoint.seen
    assert (result.kind, result.tries) == ("completed", 2)
    assert 0.95 < second.at - first.at < 1.6


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_past_the_deadline_is_not_begun(endpoint: Endpoint, status: int) -> None:
    url = endpoint.on("/later", Reply(status=status, headers={"Retry-After": "120"}))
    with taking_at_most(1):
        result = call(url, seconds=3)
    assert (result.tries, result.retry_after_sec) == (1, 120.0)


@pytest.mark.parametrize("text", ["-5", "soon", "1e3", "9" * 40, "Thu, 99 Foo 2026", ""])
def test_a_senseless_retry_after_is_ignored(endpoint: Endpoint, text: str) -> None:
    result = call(endpoint.on("/nonsense", Reply(status=429, headers={"Retry-After": text})), seconds=0.2)
    assert (result.failure_reason, result.retry_after_sec) == ("rate_limited", None)


# --- surely not sent, and sent without an answer --------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_refused_connection_is_tried_again_within_the_deadline() -> None:
    with taking_at_most(2):
        result = call(f"http://127.0.0.1:{closed_port()}/", seconds=1.5)
    assert (result.failure_reason, result.summary) == ("http_error", "connection refused")
    assert result.tries >= 2


def test_a_server_that_comes_up_meanwhile_gets_the_call() -> None:
    port = closed_port()
    got: list[bytes] = []

    def serve() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as server, server.accept()[0] as peer:
            got.append(peer.recv(65536))
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    result = call(f"http://127.0.0.1:{port}/", seconds=8)
    thread.join()
    assert result.kind == "completed"
    assert result.tries >= 2
    assert b"store-uuid:41" in got[0]


def test_an_unknown_name_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: Any, **_kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = call("http://no-such-host.invalid/", seconds=0.2)
    assert (result.failure_reason, result.summary) == ("http_error", "the host name was not resolved")


def test_a_name_server_that_hangs_does_not_outlast_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: release.wait(10))
    with taking_at_most(1):
        result = call("http://slow-name.invalid/", seconds=0.4)
    release.set()
    assert (result.failure_reason, result.tries) == ("http_error", 1)


def test_the_next_address_of_a_name_is_tried(shared: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real, dead = shared.port, closed_port()
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (dead, real)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: answer)
    assert call(f"http://two-addresses.test:{real}/x").kind == "completed"


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose queue is full: a further SYN is dropped, so that connecting times out."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])


def test_a_connect_timeout_was_not_sent_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "CONNECT_TIMEOUT_SEC", 0.2)
    with full_backlog() as port, taking_at_most(2.5):
        result = call(f"http://127.0.0.1:{port}/", seconds=2)
    assert (result.failure_reason, result.summary) == ("http_error", "connect timeout")
    assert result.tries >= 2


@pytest.mark.parametrize("manner", ["reset", "hang_up"])
def test_a_connection_lost_after_sending_is_never_sent_again(endpoint: Endpoint, manner: Any) -> None:
    result = call(endpoint.on("/lost", Reply(manner=manner)))
    assert (result.kind, result.failure_reason, result.tries) == ("failed", "outcome_unknown", 1)
    assert len(endpoint.seen) == 1


@pytest.mark.parametrize("manner", ["bad_chunks", "cut_short"])
def test_a_success_that_breaks_off_is_unknown(endpoint: Endpoint, manner: Any) -> None:
    result = call(endpoint.on("/broken", Reply(manner=manner, body=b'{"turns": 3')))
    assert (result.failure_reason, result.http_status, result.tries) == ("outcome_unknown", 200, 1)


@pytest.mark.parametrize("manner", ["bad_chunks", "cut_short"])
def test_a_refusal_that_breaks_off_is_still_a_refusal(endpoint: Endpoint, manner: Any) -> None:
    result = call(endpoint.on("/broken", Reply(status=403, manner=manner)))
    assert result.failure_reason == "auth_failed"


GARBAGE = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 99999 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
    b"\x00\x01\x02\x03",
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    b"HTTP/1.1 202 Accepted\r\nX: y\r\n",
]


@pytest.mark.parametrize("raw", GARBAGE)
def test_an_answer_that_is_no_http_is_unknown(endpoint: Endpoint, raw: bytes) -> None:
    result = call(endpoint.on("/garbage", Reply(manner="raw", body=raw)))
    assert (result.failure_reason, result.tries) == ("outcome_unknown", 1)


def test_old_and_terse_answers_are_understood(endpoint: Endpoint) -> None:
    for raw in (b"HTTP/1.0 200 OK\r\n\r\ndone", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\n\ndone"):
        assert call(endpoint.on("/terse", Reply(manner="raw", body=raw))).summary == "done"


def test_no_answer_whatever_raises(endpoint: Endpoint) -> None:
    rng = random.Random(20260301)
    sound = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Encoding: gzip\r\nRetry-After: 0\r\nContent-Length: 12\r\n\r\nc\r\n"
        + b'{"turns": 3}\r\n0\r\n\r\n'
    )
    for _ in range(150):
        mangled = bytearray(sound)
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(mangled))
            mangled[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        result = call(endpoint.on("/fuzz", Reply(manner="raw", body=bytes(mangled))), seconds=1)
        assert result.kind in ("completed", "failed", "accepted")


# --- the deadline and the caps --------------------------------------------------------------------------


def test_a_deadline_that_has_passed_sends_nothing(shared: Endpoint) -> None:
    before = len(shared.seen)
    result = call(shared.url("/late"), seconds=-1)
    assert (result.failure_reason, result.tries) == ("timeout", 0)
    assert len(shared.seen) == before


@pytest.mark.parametrize(
    "reply",
    [
        Reply(manner="drip_headers"),
        Reply(manner="drip_body"),
        Reply(manner="drip_body", body=b'{"turns": 1}'),
        Reply(delay=10),
    ],
)
def test_nothing_outlasts_the_deadline(endpoint: Endpoint, reply: Reply) -> None:
    with taking_at_most(1.0):
        result = call(endpoint.on("/drip", reply), seconds=0.5)
    assert (result.failure_reason, result.tries) == ("outcome_unknown", 1)


def test_a_request_nobody_reads_does_not_outlast_the_deadline() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        prepared = request(
            f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=0.8, payload="x" * 8_000_000
        )
        with taking_at_most(2):
            result = send(prepared)
    assert (result.failure_reason, result.tries) == ("outcome_unknown", 1)


@pytest.mark.parametrize("status, kind", [(200, "completed"), (400, "failed")])
def test_an_endless_body_is_cut_at_the_cap(endpoint: Endpoint, status: int, kind: str) -> None:
    with taking_at_most(2):
        result = call(endpoint.on("/endless", Reply(status=status, manner="endless")))
    assert (result.kind, result.http_status) == (kind, status)
    assert "x" * 100 in (result.summary or "")


def test_redirects_are_not_followed(endpoint: Endpoint, token: str) -> None:
    with Endpoint() as other:
        url = endpoint.on("/moved", redirect(other.url("/thief"), status=307, body=b"y" * 1000))
        result = call(url, headers={"Authorization": token})
        assert other.seen == []
    assert (result.failure_reason, result.http_status, result.tries) == ("http_error", 307, 1)
    assert "redirects are not followed" in (result.summary or "")


def test_a_redirect_to_nonsense_with_an_endless_body(endpoint: Endpoint) -> None:
    reply = Reply(status=302, headers={"Location": "http://[bad"}, manner="endless")
    with taking_at_most(2):
        assert call(endpoint.on("/moved", reply)).failure_reason == "http_error"


# --- surroundings ---------------------------------------------------------------------------------------


def test_proxies_and_netrc_of_the_environment_are_ignored(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login carol password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Endpoint() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        monkeypatch.delenv("no_proxy", raising=False)
        assert call(endpoint.url("/direct")).kind == "completed"
        assert proxy.seen == []
    [seen] = endpoint.seen
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(
    "reply",
    [
        Reply(json={"summary": f"your token {CANARY} is fine"}),
        Reply(body=f"<pre>Authorization: Bearer {CANARY}</pre>".encode()),
        Reply(status=500, headers=AT_ONCE, body=f"trace {CANARY}".encode()),
        Reply(json={"failure_reason": CANARY}),
        Reply(json={"summary": CANARY[:8] + "\x00" + CANARY[8:]}),
        Reply(json={"summary": "x" * 1990 + CANARY}),
        Reply(body=b"x" * 190 + CANARY.encode()),
        Reply(status=302, headers={"Location": f"http://x/{CANARY}"}),
        Reply(manner="reset"),
    ],
)
def test_no_secret_is_left_in_a_result(shared: Endpoint, token: str, reply: Reply) -> None:
    result = call(f"{shared.on('/echo', reply)}?key={token}", headers={"Authorization": f"Bearer {token}"})
    assert CANARY in shared.seen[-1].headers["authorization"]
    assert CANARY[:6] not in repr(result)


def test_a_secret_that_cannot_be_a_header_is_not_told(
    shared: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_text(f"{CANARY}\nsecond line\n")
    result = call(shared.url(), headers={"X-Key": f"${{file:{tmp_path}/key.pem}}"})
    assert result.failure_reason == "launch_failed"
    assert CANARY not in repr(result)
    monkeypatch.setenv("CAROL_TEST_HOST", f"gopher://{CANARY}")
    assert CANARY not in repr(call("${env:CAROL_TEST_HOST}/x"))


def test_nothing_is_sent_under_the_write_lock(shared: Endpoint) -> None:
    lockguard.set_write_open(True)
    try:
        with pytest.raises(lockguard.IOUnderLock):
            call(shared.url("/locked"))
    finally:
        lockguard.set_write_open(False)
    assert shared.seen_at("/locked") == []


@pytest.mark.parametrize(
    ("point", "sent"), [("http-before-send", 0), ("http-after-send", 1), ("http-before-send:raise:2", 1)]
)
def test_failpoints_stand_on_both_sides_of_the_send(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, point: str, sent: int
) -> None:
    monkeypatch.setattr(failpoints, "_passages", {})
    monkeypatch.setenv("CAROL_FAILPOINT", point if ":" in point else f"{point}:raise")
    endpoint.on("/", Reply(status=503, headers=AT_ONCE))
    with pytest.raises(failpoints.FailpointReached):
        call(endpoint.url())
    assert len(endpoint.seen) == sent


def test_many_threads_at_once(endpoint: Endpoint) -> None:
    def one(number: int) -> HttpResult:
        return call(endpoint.on(f"/t{number}", Reply(json={"turns": number}, delay=0.05)))

    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(one, range(96)))
    assert [result.turns for result in results] == list(range(96))


def test_threads_and_descriptors_are_given_back(endpoint: Endpoint) -> None:
    open_files = Path("/proc/self/fd")
    call(endpoint.url())
    threads, files = threading.active_count(), len(list(open_files.iterdir()))
    manners: tuple[Any, ...] = ("plain", "reset", "cut_short", "plain")
    for manner in manners:
        call(endpoint.on("/x", Reply(manner=manner)))
        call(f"http://127.0.0.1:{closed_port()}/", seconds=0.1)
    until = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert len(list(open_files.iterdir())) <= files


# --- TLS ------------------------------------------------------------------------------------------------

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate for `name`, such as ``IP:127.0.0.1``."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=test", "-addext"]
    subprocess.run([*argv, f"subjectAltName={name}"], check=True, capture_output=True)
    return cert, key


@needs_openssl
def test_a_certificate_nobody_vouches_for_is_refused_before_sending(tmp_path: Path, token: str) -> None:
    cert, key = certificate(tmp_path, "IP:127.0.0.1")
    with Endpoint(cert=cert, key=key) as endpoint:
        result = call(endpoint.url("/tls"), headers={"Authorization": token})
        assert endpoint.seen == []
    assert (result.failure_reason, result.tries) == ("http_error", 1)
    assert "certificate verify failed" in (result.summary or "")


@needs_openssl
def test_a_ca_file_of_ones_own_is_trusted_for_its_names_only(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "IP:127.0.0.1")
    with Endpoint(cert=cert, key=key) as endpoint:
        endpoint.on("/tls", Reply(json={"turns": 2}))
        assert call(endpoint.url("/tls"), ca_file=cert).turns == 2
        wrong = call(endpoint.url("/tls", host="localhost"), ca_file=cert)
        assert len(endpoint.seen) == 1
    assert "certificate verify failed" in (wrong.summary or "")


@needs_openssl
@pytest.mark.parametrize("manner", ["drip_headers", "drip_body"])
def test_a_drip_inside_tls_ends_at_the_deadline(tmp_path: Path, manner: Any) -> None:
    cert, key = certificate(tmp_path, "IP:127.0.0.1")
    with Endpoint(cert=cert, key=key) as endpoint, taking_at_most(1.5):
        result = call(endpoint.on("/drip", Reply(manner=manner)), seconds=0.6, ca_file=cert)
    assert result.failure_reason == "outcome_unknown"


def test_a_server_that_speaks_no_tls_was_not_sent_anything(shared: Endpoint) -> None:
    result = call(shared.url("/plain").replace("http:", "https:"), seconds=1)
    assert result.failure_reason == "http_error"
    # The deadline may cut the last try short at any point before it stood.
    assert any(
        word in (result.summary or "") for word in ("TLS", "connect timeout", "deadline passed before")
    )
    assert shared.seen_at("/plain") == []


def test_a_deadline_in_the_middle_of_a_handshake_is_not_taken_for_a_sent_request(shared: Endpoint) -> None:
    url = shared.url("/plain").replace("http:", "https:")
    results = [call(url, seconds=0.002 + 0.0005 * step) for step in range(60)]
    assert {result.failure_reason for result in results} <= {"http_error", "timeout"}


def test_a_tls_handshake_without_an_end_does_not_outlast_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, taking_at_most(1.2):
        result = call(f"https://127.0.0.1:{server.getsockname()[1]}/", seconds=0.6)
    assert result.failure_reason == "http_error"


@pytest.mark.parametrize("ca_file", ["/no/such/ca.pem", "/etc/hostname"])
def test_a_ca_file_that_cannot_be_used_refuses_https_and_leaves_http_alone(
    shared: Endpoint, ca_file: str
) -> None:
    url = shared.url("/plain")
    assert call(url, ca_file=ca_file).kind == "completed"
    refused = call(url.replace("http:", "https:"), ca_file=ca_file)
    assert (refused.failure_reason, refused.tries) == ("launch_failed", 0)
