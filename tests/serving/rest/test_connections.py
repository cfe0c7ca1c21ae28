"""Who gets a place when there are more connections than places, and what unread answers may hold."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from tests.support.serving.server import serve
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import DirectRunner
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.connection import Connection
from trpo_tf.serving.rest.routes import make_routes
from trpo_tf.serving.rest.server_state import ServerState

PLACES = 6
INFER = "/v2/models/discrete/infer"
BODY = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"GET /v2 HTTP/1.1\r\nX-Slow: "
UNREAD = 4_000_000


@pytest.fixture(scope="module")
def narrow(discrete, tmp_path_factory):
    """A server of few places."""
    limits = ("--max-connections", str(PLACES), "--max-buffered", str(UNREAD), "--timeout", "30")
    with serve(discrete, tmp_path_factory.mktemp("narrow"), *limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _places_are_free_again(narrow):
    yield
    deadline = time.monotonic() + 10
    while connections(narrow) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def counted(server, name: str) -> float:
    with closing(server.connect()) as connection:
        connection.request("GET", "/metrics")
        found = re.search(rf"^{name} (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    return float(found[1]) if found else -1


def connections(server) -> float:
    return counted(server, "trpo_tf_connections")


def fill(stack: ExitStack, server, said: bytes, count: int = PLACES) -> list[socket.socket]:
    made = []
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        connection.sendall(said)
        if said == LIVE:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        made.append(connection)
        time.sleep(0.005)
    time.sleep(0.1)
    return made


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("said", [b"", LIVE, HALF], ids=["silent", "idle", "half a head"])
def test_health_is_answered_when_all_places_are_taken(narrow, said):
    with ExitStack() as stack:
        fill(stack, narrow, said)
        for _ in range(3):
            assert narrow.request("GET", "/v2/health/ready")[0] == 200
            assert narrow.request("GET", "/v2/health/live") == (200, {"live": True})
            assert narrow.request("GET", "/v2/models/discrete/ready")[0] == 200
        with closing(narrow.connect()) as connection:
            connection.request("POST", INFER, json.dumps(BODY))
            answer = connection.getresponse()
            assert answer.status == 503
            assert (answer.getheader("retry-after"), answer.getheader("connection")) == ("1", "close")


@pytest.mark.parametrize("said", [b"", LIVE], ids=["silent", "idle"])
def test_who_asks_takes_the_place_of_the_longest_idle(narrow, said):
    with ExitStack() as stack:
        held = fill(stack, narrow, said)
        time.sleep(1.2)
        held[0].sendall(LIVE)  # so it is not the longest idle any more
        assert held[0].recv(1000).startswith(b"HTTP/1.1 200 ")
        assert narrow.request("POST", INFER, BODY)[0] == 200
        assert is_closed(held[1])
        assert not any(map(is_closed, [held[0], *held[2:]]))


def test_a_place_goes_to_one_that_asks_and_not_to_one_that_is_silent(narrow):
    before = counted(narrow, "trpo_tf_connections_evicted_total")
    with ExitStack() as stack:
        held = fill(stack, narrow, LIVE)
        time.sleep(1.2)
        fill(stack, narrow, b"")
        fill(stack, narrow, HALF)
        assert not any(map(is_closed, held))
        assert narrow.request("POST", INFER, BODY)[0] == 200
    assert counted(narrow, "trpo_tf_connections_evicted_total") == before + 1


def test_what_is_under_way_keeps_its_place(narrow):
    body = json.dumps(BODY).encode()
    half = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
    with ExitStack() as stack:
        held = fill(stack, narrow, half)
        time.sleep(1.2)
        assert narrow.request("POST", INFER, BODY)[0] == 503
        for connection in held:
            connection.sendall(body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_clients_that_ask_again_and_again_keep_their_connections(narrow):
    lost, is_over = [], threading.Event()

    def ask():
        with closing(narrow.connect()) as connection:
            while not is_over.wait(0.1):
                try:
                    connection.request("POST", INFER, json.dumps(BODY))
                    assert connection.getresponse().read().startswith(b'{"model_name"')
                except Exception as error:  # noqa: BLE001
                    lost.append(error)
                    return

    threads = [threading.Thread(target=ask) for _ in range(PLACES)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    end = time.monotonic() + 2
    statuses = set()
    while time.monotonic() < end:
        statuses.add(narrow.request("POST", INFER, BODY)[0])
    is_over.set()
    for thread in threads:
        thread.join(10)
    assert (lost, statuses) == ([], {503})


def established(server) -> int:
    """Connections to the server's port, as the system has them."""
    lines = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()
    return sum(line.split()[1].endswith(f":{server.port:04X}") and line.split()[3] == "01" for line in lines)


@pytest.mark.parametrize("said", [b"", HALF], ids=["silent", "half a head"])
def test_a_flood_is_bounded_and_does_not_shut_health_out(narrow, said):
    with ExitStack() as stack:
        fill(stack, narrow, said, 200)
        assert narrow.request("GET", "/v2/health/ready")[0] == 200
        deadline = time.monotonic() + 5
        while established(narrow) > PLACES + 64 and time.monotonic() < deadline:
            time.sleep(0.05)  # those that had to go are being closed
        assert established(narrow) <= PLACES + 64


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "TLS"])
def test_who_has_asked_stays_when_many_come_at_once(start, discrete, certificates, has_tls):
    """They all wait when the server goes on, and it has read nothing yet."""
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    context = ssl.create_default_context(cafile=certificates / "ca.pem") if has_tls else None
    with start(discrete, "--max-connections", str(PLACES), *(own if has_tls else ())) as server, ExitStack() as stack:
        stack.enter_context(suspended(server.process.pid))
        asked = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        if context is None:
            asked.sendall(LIVE)
        answers = stack.enter_context(ThreadPoolExecutor(1)).submit(live_over, asked, context)
        time.sleep(0.1)  # for the first bytes of a handshake
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        os.kill(server.process.pid, signal.SIGCONT)
        assert answers.result(10).startswith(b"HTTP/1.1 200 ")


def live_over(connection: socket.socket, context: ssl.SSLContext | None) -> bytes:
    if context is None:
        return connection.recv(1000)
    with context.wrap_socket(connection, server_hostname="127.0.0.1") as over:
        over.sendall(LIVE)
        return over.recv(1000)


@contextmanager
def suspended(pid: int):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_one_of_the_reserve_has_a_place_once_one_is_free(narrow):
    with ExitStack() as stack:
        fill(stack, narrow, HALF, PLACES - 1)
        place = stack.enter_context(socket.create_connection(("127.0.0.1", narrow.port), 10))
        place.sendall(HALF)
        waiting = stack.enter_context(closing(narrow.connect()))
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 200)):
            waiting.request("GET", path)
            answer = waiting.getresponse()
            assert (answer.status, bool(answer.read())) == (status, True)
        place.close()
        time.sleep(0.2)
        waiting.request("GET", "/v2")
        answer = waiting.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)


def resident(server) -> int:
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) * 1024


def test_unread_answers_over_tls_are_freed_with_their_connection(start, discrete, certificates):
    """Clients leave as much as they may, one after the other."""
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with start(discrete, *own) as server:
        for turn in range(60):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(10)
            raw.connect(("127.0.0.1", server.port))
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
                connection.settimeout(0.2)
                with suppress(OSError):
                    connection.sendall(ask)
            if turn == 5:
                before = resident(server)
        assert resident(server) - before < 4e6


def test_a_body_that_never_fits_is_too_large_rather_than_to_come_again(narrow):
    """It is smaller than `--max-body`, and larger than all bodies together may be."""
    with socket.create_connection(("127.0.0.1", narrow.port), 10) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {UNREAD + 10}\r\n\r\n".encode())
        with suppress(OSError):  # it may be refused before all of it is sent
            connection.sendall(b" " * (UNREAD + 1))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_unread_answers_are_bounded_together(start, discrete):
    """Each of the clients may leave a mebibyte unread, but not all of them."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 300
    with start(discrete, "--max-buffered", str(UNREAD)) as server, ExitStack() as stack:
        assert server.request("GET", "/openapi.json")[0] == 200
        before, peak = resident(server), 0
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.2)
            with suppress(OSError):
                connection.sendall(ask)
            peak = max(peak, resident(server))
        assert server.request("POST", INFER, BODY)[0] == 200
        assert peak - before < 4 * UNREAD


def test_a_request_that_is_not_read_yet_is_answered_by_a_server_that_stops(discrete, catalog_of):
    async def stopped() -> bytes:
        metrics, options = Metrics(), ServeOptions()
        state = ServerState(make_routes(catalog_of(discrete), options, metrics), options, metrics)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with closing(theirs):
            runner = DirectRunner()
            sequences = SequenceRunner(options, runner)
            await loop.connect_accepted_socket(lambda: Connection(state, runner, sequences), ours)
            theirs.sendall(LIVE)
            state.stop()
            theirs.setblocking(False)
            return await asyncio.wait_for(loop.sock_recv(theirs, 1000), 10)

    answer = uvloop.run(stopped())
    assert (answer[:15], b"connection: close" in answer) == (b"HTTP/1.1 200 OK", True)
