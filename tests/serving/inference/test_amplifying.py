"""What a request may cost, whatever it holds: requests that amplify, sent to a real server.

The bound is for messages of --max-body bytes: resident memory grows by eight times its size at most, and another
client waits 50 ms at most.
"""

import functools
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.amplifying import Request, grpc_requests, http_requests
from tests.support.paths import BUNDLES
from trpo_tf.serving.options import ServeOptions

BUNDLE = BUNDLES / "wide"
SIZE = ServeOptions.max_body - 1024
MOST_GROWTH, MOST_SECONDS = 8, 0.05
TRIES = 12
"""The machine may be busy with other things: the best try counts."""

RARE = ("/v2/repository/index", "/inference.GRPCInferenceService/ModelMetadata", "/grpc.health.v1.Health/Check")
"""Their bodies go through the same parsers as those of inference: every third message is sent to them."""


def thinned(requests: Iterable[Request]) -> list[tuple[str, str]]:
    """Name and path of all messages to inference, and of every third of those to the paths that are rare."""
    kept, seen = [], Counter()
    for request in requests:
        if request.path not in RARE or seen[request.path] % 3 == 0:
            kept.append((request.name, request.path))
        seen[request.path] += 1
    return kept


HTTP, GRPC = thinned(http_requests(2**16)), thinned(grpc_requests(2**16))


@functools.cache
def large(requests: Callable[[int], Iterable[Request]]) -> dict[tuple[str, str], Request]:
    """Messages of the size that is allowed, by name and path: made when a test asks for them."""
    return {(request.name, request.path): request for request in requests(SIZE)}


class Pinger(threading.Thread):
    """Another client, which asks again and again whether the server is alive.

    `longest` is how long it has waited, without the time in which the server's thread waited for a processor.
    """

    def __init__(self, server):
        super().__init__(daemon=True)
        self.longest, self.is_over = 0.0, False
        self._schedule = Path(f"/proc/{server.process.pid}/schedstat")
        self._connection = socket.create_connection(("127.0.0.1", server.port), 30)

    def run(self):
        while not self.is_over:
            asked = time.perf_counter() - self._queued()
            self._connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert self._connection.recv(4096).startswith(b"HTTP/1.1 200")
            self.longest = max(self.longest, time.perf_counter() - self._queued() - asked)
            time.sleep(0.001)
        self._connection.close()

    def _queued(self) -> float:
        return int(self._schedule.read_text().split()[1]) / 1e9


class Measured:
    """A server, what it takes when it has answered a few small requests, and another client of it."""

    def __init__(self, server):
        self.server = server
        self._process = Path(f"/proc/{server.process.pid}")
        self.baseline = 0

    def memory(self, name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", (self._process / "status").read_text())[1])

    def cost(self, send) -> tuple[float, float]:
        """Bytes of memory beyond the baseline at most, and the longest wait of another client in the best try."""
        growth, shortest = 0, np.inf
        for _ in range(TRIES):
            (self._process / "clear_refs").write_text("5")  # forget the peak
            pinger = Pinger(self.server)
            pinger.start()
            time.sleep(0.005)
            send()
            pinger.is_over = True
            pinger.join()
            growth = max(growth, self.memory("VmHWM") - self.baseline)
            shortest = min(shortest, pinger.longest)
            if shortest <= MOST_SECONDS:
                break
        return growth, shortest


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from tests.support.serving.server import serve

    options = ["--grpc-port", "0"] if grpc_is_installed() else []
    with serve(BUNDLE, tmp_path_factory.mktemp("amplifying"), *options) as server:
        one = Measured(server)
        for _ in range(3):
            answer_of(server, Request("small", HTTP[0][1], b"{}"))
        one.baseline = one.memory("VmRSS")
        yield one
        assert server.process.poll() is None


def grpc_is_installed() -> bool:
    try:
        import grpc  # noqa: F401
    except ImportError:
        return False
    return True


def answer_of(server, request: Request) -> tuple[int, object]:
    """Status and JSON; of a binary answer its one output as if it were JSON."""
    connection = server.connect()
    try:
        connection.request("POST", request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        content, length = response.read(), response.getheader("inference-header-content-length")
    finally:
        connection.close()
    if length is None:
        return response.status, json.loads(content)
    return response.status, {"outputs": [{"data": np.frombuffer(content[int(length) :], "<f4")}]}


def actions(answer) -> list[float]:
    return np.ravel(answer["predictions"] if "predictions" in answer else answer["outputs"][0]["data"]).tolist()


def assert_bounded(cost) -> None:
    growth, seconds = cost
    assert growth <= MOST_GROWTH * ServeOptions.max_body
    assert seconds <= MOST_SECONDS


@pytest.mark.parametrize("message", HTTP, ids=" ".join)
def test_over_http(measured, message):
    request_, answers = large(http_requests)[message], []
    cost = measured.cost(lambda: answers.append(answer_of(measured.server, request_)))
    assert_bounded(cost)
    for status, answer in answers:
        if request_.sums is None:
            assert status in {400, 404, 413}
        else:
            assert status == 200, answer
            np.testing.assert_allclose(actions(answer), np.multiply(request_.sums, 0.5), rtol=1e-4, atol=1e-3)


FRAMED = {
    "one header": (b"a:\r\n" * 60_000 + b"\r\n", 431),
    "headers": (b"".join(b"%x:\r\n" % number for number in range(40_000)) + b"\r\n", 431),
    "chunks of a byte": (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 500_000 + b"0\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", FRAMED)
def test_the_framing_of_http(measured, name):
    rest, status = FRAMED[name]
    seen = []

    def send():
        with socket.create_connection(("127.0.0.1", measured.server.port), 30) as connection:
            connection.sendall(b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: localhost\r\n" + rest)
            seen.append(int(connection.recv(4096).split()[1]))

    assert_bounded(measured.cost(send))
    assert {*seen} == {status}


@pytest.fixture(scope="module")
def channel(measured):
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{measured.server.grpc_port}") as channel:
        yield channel


@pytest.mark.parametrize("message", GRPC, ids=" ".join)
def test_over_grpc(measured, channel, message):
    request_, calls = large(grpc_requests)[message], []
    assert_bounded(measured.cost(lambda: calls.append(ended(channel, request_))))
    for code, content in calls:
        if request_.path.endswith("Check"):  # which has no unknown fields, but may have a service
            assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
        elif request_.sums is None:
            assert code in {"INVALID_ARGUMENT", "NOT_FOUND"}
        else:
            assert code == "OK"
            np.testing.assert_allclose(numbers_of(content), np.multiply(request_.sums, 0.5), rtol=1e-4, atol=1e-3)


def ended(channel, request: Request) -> tuple[str, bytes]:
    """How a call ends: its status, and its answer."""
    call = channel.unary_unary(request.path).future(request.body, timeout=30)
    error = call.exception()
    if error is None:
        return "OK", call.result()
    assert len(error.details()) < 1000
    return error.code().name, b""


def numbers_of(content: bytes) -> list[float]:
    from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER

    answer = MODEL_INFER.response.FromString(content)
    raw = answer.raw_output_contents
    return np.frombuffer(raw[0], "<f4").tolist() if raw else list(answer.outputs[0].contents.fp32_contents)
