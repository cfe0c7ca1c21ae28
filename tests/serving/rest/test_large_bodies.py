"""Large bodies are decoded in a thread: answers keep their order, and whatever else happens meanwhile has its place."""

import gzip
import json
import socket
import time
from contextlib import closing

import pytest

from tests.support.serving.server import serve
from tests.support.serving.waiting import wait_for

SMALL = json.dumps(
    {"id": "small", "inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0, 0, 0]}]}
).encode()
LARGE = SMALL.replace(b"small", b"large").replace(b"0.1", b"0.1" + b" " * 400_000)
WRONG = LARGE.replace(b"[1, 4]", b"[1, 5]")


def request(body: bytes, *headers: bytes) -> bytes:
    head = (b"POST /v2/models/discrete/infer HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join((*head, b"", body))


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict]]:
    """Status and document of the next answers."""
    found = []
    with connection.makefile("rb") as file:
        for _ in range(count):
            status, length = int(file.readline().split()[1]), 0
            while (line := file.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            found.append((status, json.loads(file.read(length))))
    return found


@pytest.fixture(scope="module", params=[(), ("--batching",)], ids=["alone", "batching"])
def server(request, discrete, tmp_path_factory):
    bounds = ("--max-body", str(2**20), "--max-buffered", str(2**22))
    with serve(discrete, tmp_path_factory.mktemp("large"), *bounds, *request.param) as server:
        yield server


@pytest.fixture
def connection(server):
    with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as connection:
        yield connection


def test_a_connection_goes_on_after_a_large_body(connection):
    for _ in range(3):
        connection.sendall(request(LARGE))
        assert [document["id"] for _, document in answers(connection, 1)] == ["large"]


def test_requests_sent_at_once_are_answered_in_their_order(connection):
    connection.sendall(request(SMALL) + request(LARGE) + request(SMALL) + request(LARGE) + request(LARGE))
    got = answers(connection, 5)
    assert [document["id"] for _, document in got] == ["small", "large", "small", "large", "large"]
    assert len({document["outputs"][0]["data"][0] for _, document in got}) == 1


def test_a_compressed_body_is_followed_by_others_in_the_same_packet(connection):
    """It is so small that what follows has been read already while it is decoded."""
    packed = gzip.compress(LARGE)
    assert len(packed) < 2000
    connection.sendall(request(packed, b"Content-Encoding: gzip") + request(SMALL) * 3)
    assert [document["id"] for _, document in answers(connection, 4)] == ["large", "small", "small", "small"]


def test_what_is_no_http_is_refused_after_the_answer(connection):
    packed = gzip.compress(LARGE)
    connection.sendall(request(packed, b"Content-Encoding: gzip") + b"\0\0\r\n\r\n")
    (first, document), (second, _) = answers(connection, 2)
    assert (first, document["id"], second) == (200, "large", 400)
    assert connection.recv(1) == b""


def test_a_wrong_one_is_refused_and_the_connection_goes_on(connection):
    connection.sendall(request(WRONG))
    ((status, document),) = answers(connection, 1)
    assert status == 400
    assert "must have shape [batch, 4]" in document["error"]
    connection.sendall(request(SMALL))
    assert answers(connection, 1)[0][0] == 200


def test_a_client_that_sends_no_more_has_its_answer(connection):
    connection.sendall(request(LARGE))
    connection.shutdown(socket.SHUT_WR)
    assert [document["id"] for _, document in answers(connection, 1)] == ["large"]
    assert connection.recv(1) == b""


def test_connection_close_is_heeded(connection):
    connection.sendall(request(LARGE, b"Connection: close"))
    assert answers(connection, 1)[0][0] == 200
    assert connection.recv(1) == b""


def test_clients_that_leave_take_nothing_with_them(server):
    """Each one's body counts among `--max-buffered`, of which these would take six times as much."""
    for pause in (0.0, 0.001, 0.01) * 20:
        leaving = socket.create_connection(("127.0.0.1", server.port), 20)
        leaving.sendall(request(LARGE))
        time.sleep(pause)
        leaving.close()
    wait_for(lambda: server.request("POST", "/v2/models/discrete/infer", LARGE)[0] == 200)
