"""HTTP/1.1 on raw sockets: framing, limits and time-outs, as a stranger may send them."""

import json
import re
import signal
import socket
import time
from contextlib import contextmanager

import pytest

INFER = "/v2/models/discrete/infer"
BODY = json.dumps(
    {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
).encode()
POST = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
GOOD = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        yield connection


def until_closed(connection) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def one_answer(connection) -> bytes:
    """One response with its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    assert len(body) == length
    return head + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def hasty(discrete, tmp_path_factory):
    """A server of small limits and short time-outs."""
    from tests.support.serving.server import serve

    limits = {
        "timeout": 0.6,
        "keep-alive": 1.2,
        "max-body": 100_000,
        "max-buffered": 150_000,
        "max-connections": 4,
        "max-batch": 3,
        "drain": 1,
    }
    arguments = [text for name, value in limits.items() for text in (f"--{name}", str(value))]
    with serve(discrete, tmp_path_factory.mktemp("hasty"), *arguments) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_serves(request):
    """Whatever a client does, the next one is answered."""
    yield
    for name in ("server", "hasty"):
        if name in request.fixturenames:
            running = request.getfixturevalue(name)
            deadline = time.monotonic() + 5
            while (status := running.request("POST", INFER, json.loads(BODY))[0]) == 503:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert status == 200


# Framing


def test_a_request_byte_by_byte_is_the_same_request(server):
    with connected(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GOOD:
            connection.sendall(bytes([byte]))
        assert statuses(one_answer(connection)) == [200]


def test_chunks_extensions_and_trailers_are_understood(server):
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    request = POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Sum: 1\r\nHost: y\r\n\r\n"
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert statuses(one_answer(connection)) == [200]


def test_pipelined_good_and_bad_requests_keep_their_order(server):
    wrong = GOOD.replace(b"POST", b"PUT").replace(b"/infer", b"/inferx")
    last = LIVE.replace(b"Host", b"Connection: close\r\nHost")
    with connected(server) as connection:
        connection.sendall(GOOD + wrong + LIVE + GOOD + wrong + last + LIVE)
        assert statuses(until_closed(connection)) == [200, 404, 200, 200, 404, 200]


def test_http_1_0_is_closed_unless_it_asks_not_to_be(server):
    with connected(server) as connection:
        connection.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert b"connection: close" in until_closed(connection)
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"connection: keep-alive" in one_answer(connection)


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_no_other_version_is_answered_whatever_follows(server, version):
    """A proxy need not agree on the framing of such a request, so nothing behind its head is read."""
    head = GOOD[: GOOD.index(b"Content-Length")].replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    with connected(server) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LIVE)
        answer = until_closed(connection)
    assert statuses(answer) == [400]
    assert f"not HTTP/1.1, but HTTP/{version}".encode() in answer


def test_a_half_closed_client_has_its_answer(server):
    with connected(server) as connection:
        connection.sendall(GOOD + GOOD)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(connection)) == [200, 200]
    with connected(server) as connection:
        connection.sendall(GOOD[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection) == b""


@pytest.mark.parametrize("path", ["/v2/repository/models/discrete/load", "/v2/repository/models/absent/unload"])
def test_a_half_closed_client_has_an_answer_that_takes_longer(controlled, path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(controlled))
        connection.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path.encode())
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    assert statuses(answer) == [404 if "absent" in path else 200]
    assert b"\r\nconnection: close\r\n" in answer


def test_expect_continue_then_the_body(server):
    with connected(server) as connection:
        connection.sendall(POST + b"Expect: 100-Continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert statuses(one_answer(connection)) == [200]


@pytest.mark.parametrize(
    ("path", "length", "status"), [(INFER, 10**7, 413), (INFER, 10**17, 413), (INFER + "x", 10, 404), ("/v2", 10, 405)]
)
def test_expect_continue_is_refused_by_the_head_alone(server, path, length, status):
    with connected(server) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert statuses(until_closed(connection)) == [status]


OFFERS = {
    "Java": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n",
    "websocket": b"connection: upgrade\r\nUPGRADE: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "TLS": b"Upgrade: TLS/1.0\r\nConnection: keep-alive, Upgrade\r\n",
    "two": b"Upgrade: h2c\r\nUpgrade: TLS/1.0\r\nConnection: close-not\r\nConnection: upgrade\r\n",
    "no connection": b"Upgrade: h2c\r\n",
}


def offering(request: bytes, offer: str) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    return head + b"\r\n" + OFFERS[offer] + b"\r\n" + body


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_ignored_and_the_connection_kept(server, offer):
    """As RFC 9110 has it in 7.8: the body is read, and what was pipelined behind it answered."""
    requests = [GOOD, CHUNKED, LIVE, GOOD, LIVE.replace(b"GET", b"HEAD"), LIVE, GOOD + GOOD]
    with connected(server) as connection:
        connection.sendall(b"".join(offering(request, offer) for request in requests) + GOOD)
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    assert statuses(answer) == [200] * 9
    assert answer.count(b'"data":[0]') == 6
    assert answer.count(b'{"live":true}') == 2


@pytest.mark.parametrize("request_", [GOOD, CHUNKED])
def test_an_offer_may_come_byte_by_byte(server, request_):
    with connected(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in offering(request_, "Java"):
            connection.sendall(bytes([byte]))
        assert statuses(one_answer(connection)) == [200]
        connection.sendall(LIVE)
        assert statuses(one_answer(connection)) == [200]


def test_an_offer_is_ignored_by_http_1_0_with_close_with_expect_and_when_it_is_wrong(server):
    old = offering(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), "Java")
    last = offering(GOOD, "Java").replace(b"Connection: Upgrade", b"Connection: close, Upgrade")
    for request in (old, last):
        with connected(server) as connection:
            connection.sendall(request + LIVE)
            answer = until_closed(connection)
            assert statuses(answer) == [200]
            assert b"\r\nconnection: close\r\n" in answer
    with connected(server) as connection:
        head, _, body = offering(GOOD, "Java").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert statuses(one_answer(connection)) == [200]
        connection.sendall(offering(GOOD.replace(BODY, b"x" * len(BODY)), "websocket"))
        assert statuses(one_answer(connection)) == [400]
        connection.sendall(LIVE)
        assert statuses(one_answer(connection)) == [200]


def test_a_large_body_behind_an_offer_is_held_to_the_limits(hasty):
    for length, status in ((90_000, 400), (200_000, 413)):
        with connected(hasty) as connection:
            connection.sendall(offering(POST + b"Content-Length: %d\r\n\r\n" % length, "Java"))
            connection.sendall(b" " * min(length, 100_000))
            assert statuses(one_answer(connection)) == [status]


def test_many_offers_at_once_cost_little(server):
    started = time.monotonic()
    with connected(server) as connection:
        connection.sendall(offering(LIVE, "websocket") * 1000)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(connection)) == [200] * 1000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("target", [b"example.com:443", b"/v2", b"x:1"])
def test_connect_is_refused_and_what_follows_is_not_read(server, target):
    with connected(server) as connection:
        connection.sendall(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % target + LIVE)
        answer = until_closed(connection)
    assert statuses(answer) == [405]
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /v2?a=b HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /v2/health/%6cive HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET //x/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400),
        (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: +2\r\n\r\n{}", 400),
        (POST + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nhOST: y\r\nHost: z\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost:\r\n\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200),
        (b"GET http://other:1/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET http://evil.example/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)
def test_what_a_target_or_head_may_be(server, request_, status):
    with connected(server) as connection:
        connection.sendall(request_)
        assert statuses(one_answer(connection)) == [status]


def test_head_has_the_length_but_not_the_body(server):
    with connected(server) as connection:
        connection.sendall(LIVE.replace(b"GET", b"HEAD") + LIVE)
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
    assert statuses(answer) == [200, 200]
    assert answer.count(b"content-length: 13") == 2
    assert answer.count(b'{"live":true}') == 1


HEAD = b"HEAD %b HTTP/1.1\r\nHost: x\r\n%b\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD % (b"/nothing", b""), 404),
        (HEAD % (INFER.encode(), b""), 405),
        (HEAD % (INFER.encode(), b"Upgrade: h2c\r\nConnection: upgrade\r\n"), 405),
        (HEAD % (b"/v2", b"Transfer-Encoding: gzip, chunked\r\n") + b"0\r\n\r\n", 501),
        (HEAD % (b"/v2", b"Content-Length: 100000000\r\n"), 413),
        (HEAD % (b"/" + b"a" * 20_000, b""), 431),
        (b"HEAD /v2 HTTP/1.1\r\nX: " + b"a" * 20_000, 431),
        (b"HEAD /v2 HTTP/1.1\r\n\r\n", 400),
        (b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
    ],
)
def test_no_answer_to_head_has_a_body(server, request_, status):
    with connected(server) as connection:
        connection.sendall(request_)
        connection.settimeout(2)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        assert statuses(head) == [status]
        if b"connection: close" not in head:
            connection.sendall(LIVE)
            body += one_answer(connection)
            assert statuses(body) == [200]
        else:
            body += until_closed(connection)
            assert body == b""
        assert not body.startswith(b"{")


def test_a_slow_head_is_408_without_a_body(hasty):
    with connected(hasty) as connection:
        connection.sendall(b"HEAD /v2 HTTP/1.1\r\nX-Slow: ")
        answer = until_closed(connection)
    assert statuses(answer) == [408]
    assert answer.endswith(b"\r\n\r\n")


# Limits


@pytest.mark.parametrize("size", [20_000, 400_000])
@pytest.mark.parametrize("start", [b"GET /", b"GET /v2 HTTP/1.1\r\nHost: ", b"GET /v2 HTTP/1.1\r\nX"])
def test_an_endless_head_is_431(server, start, size):
    with connected(server) as connection:
        connection.sendall(start + b"a" * size)
        assert statuses(until_closed(connection)) == [431]


def test_trailers_change_nothing(server):
    """Neither where the next request begins, nor whose it is."""
    trailers = b"0\r\nHost: evil.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\nOrigin: null\r\n\r\n"
    with connected(server) as connection:
        connection.sendall(CHUNKED.partition(b"0\r\nX-Sum")[0] + trailers + LIVE)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(connection)) == [200, 200]


def test_many_small_headers_are_431(server):
    with connected(server) as connection:
        connection.sendall(LIVE[:-2] + b"".join(b"h%d: 1\r\n" % i for i in range(5000)) + b"\r\n")
        assert statuses(until_closed(connection)) == [431]


@pytest.mark.parametrize("part", [b"a: " + b"b" * 300_000, b"a: b\r\n" * 50_000])
def test_endless_trailers_are_431(server, part):
    with connected(server) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + part)
        assert statuses(until_closed(connection)) == [431]


def test_one_connection_too_many_is_503_and_told_when_to_come_back(hasty):
    held = [socket.create_connection(("127.0.0.1", hasty.port), 10) for _ in range(4)]
    for connection in held:
        connection.sendall(LIVE)
        assert statuses(one_answer(connection)) == [200]
    with connected(hasty) as connection:
        connection.sendall(GOOD)
        answer = until_closed(connection)
    assert statuses(answer) == [503]
    assert b"\r\nretry-after: 1\r\n" in answer
    held[0].sendall(GOOD)
    assert statuses(one_answer(held[0])) == [200]
    for connection in held:
        connection.close()


def test_bodies_that_are_too_much_together_are_503(hasty):
    head = POST + b"Content-Length: 90000\r\n\r\n"
    with connected(hasty) as first, connected(hasty) as second:
        first.sendall(head + b" " * 80_000)
        time.sleep(0.2)
        second.sendall(head + b" " * 80_000)
        answer = until_closed(second)
        assert statuses(answer) == [503]
        assert b"\r\nretry-after: 1\r\n" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("too many requests")


# Time


@pytest.mark.parametrize("part", [b"GET /v2 HTTP/1.1\r\nX-Slow: ", POST + b"Content-Length: 100\r\n\r\n"])
def test_a_slow_request_is_408_however_it_trickles(hasty, part):
    with connected(hasty) as connection:
        connection.sendall(part)
        started = time.monotonic()
        connection.settimeout(0.05)
        received = b""
        while time.monotonic() - started < 5:
            try:
                connection.sendall(b"a")
                chunk = connection.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not chunk:
                break
            received += chunk
    assert statuses(received) == [408]
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("said", [b"", LIVE, b"\r\n"])
def test_an_idle_connection_is_closed(hasty, said):
    with connected(hasty) as connection:
        connection.sendall(said)
        started = time.monotonic()
        assert statuses(until_closed(connection)) == ([200] if said == LIVE else [])
        assert 0.3 < time.monotonic() - started < 4


def test_what_came_while_the_process_did_not_run_is_answered(hasty):
    with connected(hasty) as idle, connected(hasty) as half:
        for connection, after in ((idle, b""), (half, GOOD[:-20])):
            connection.sendall(LIVE)
            assert statuses(one_answer(connection)) == [200]
            connection.sendall(after)
        time.sleep(0.1)
        hasty.process.send_signal(signal.SIGSTOP)
        time.sleep(1.4)
        idle.sendall(LIVE)
        half.sendall(GOOD[-20:])
        hasty.process.send_signal(signal.SIGCONT)
        for connection in (idle, half):
            assert statuses(one_answer(connection)) == [200]


def test_a_client_that_does_not_read_is_dropped(hasty):
    with connected(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.settimeout(0.5)
        started = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe|abort"):  # noqa: PT012
            while time.monotonic() - started < 10:
                try:
                    connection.sendall(request * 100)
                except TimeoutError:
                    continue


def test_a_client_that_pipelines_without_reading_costs_little_memory(server):
    def resident() -> int:
        with open(f"/proc/{server.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1])

    before = resident()
    for _ in range(3):
        with connected(server) as connection:
            connection.settimeout(0.3)
            try:
                for _ in range(20):
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
            except OSError:
                pass
    assert resident() - before < 20_000


def test_what_is_under_way_has_only_so_long_after_sigterm(start, discrete):
    with start(discrete, "--drain", "0.5") as server, connected(server) as connection:
        connection.sendall(GOOD[:-1])
        time.sleep(0.2)
        started = time.monotonic()
        assert server.stop(15) == (0, "")
        assert 0.3 < time.monotonic() - started < 4


# Batch


def test_a_batch_beyond_the_limit_is_400(hasty):
    for rows, status in ((3, 200), (4, 400)):
        tensor = {"name": "obs", "shape": [rows, 4], "datatype": "FP32", "data": [0] * (4 * rows)}
        assert hasty.request("POST", INFER, {"inputs": [tensor]})[0] == status
        assert hasty.request("POST", "/v1/models/discrete:predict", {"instances": [[0] * 4] * rows})[0] == status
        raw = {"Inference-Header-Content-Length": "0"}
        connection = hasty.connect()
        connection.request("POST", INFER, b"\0" * (16 * rows), raw)
        assert connection.getresponse().status == status
        connection.close()
