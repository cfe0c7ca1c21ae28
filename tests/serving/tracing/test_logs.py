"""What the server writes on stderr, and what it says of a request."""

import hashlib
import json
import re
import signal
import socket
from datetime import UTC, datetime

import pytest

from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.support.logs import emit, shown
from trpo_tf.serving.tracing.records import grpc_client

INFER = "/v2/models/discrete/infer"
REQUEST = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BROKEN = (
    "import sys, trpo_tf.serving.runtime.policy as p, trpo_tf.serving.verify as v, trpo_tf.serving.__main__ as m\n"
    "infer, v._ONE_BY_ONE = p.Policy.infer, 0\n"
    "def fail(self, observations, *rest):\n"
    "    if len(observations) > 1:\n"  # the golden cases
    "        return infer(self, observations, *rest)\n"
    "    raise OSError('first\\nstart \\x1b[31m second')\n"
    "p.Policy.infer = fail\n"
    "sys.exit(m.main())"
)


def events(server) -> list[dict]:
    """All that it said from its start to its end."""
    status, said = server.stop(signal.SIGTERM)
    assert status == 0
    return [json.loads(line) for line in (server.announcement + said).splitlines()]


def test_in_json_each_line_is_an_event(start, discrete):
    with start(discrete, "--log-format", "json") as server:
        began, ended = events(server)
    assert (began["event"], began["level"], began["models"]) == ("start", "info", ["discrete"])
    assert began["listening"] == [f"http://127.0.0.1:{server.port}"]
    assert (ended["event"], ended["message"]) == ("stop", "stopped")
    times = [datetime.fromisoformat(event["time"]) for event in (began, ended)]
    assert times == sorted(times)
    assert abs((times[1] - datetime.now(UTC)).total_seconds()) < 60


def test_a_fault_has_its_traceback_in_one_field(start, discrete):
    with start(discrete, "--log-format", "json", code=BROKEN) as server:
        assert server.request("POST", INFER, REQUEST) == (500, {"error": "internal error"})
        _, fault, _ = events(server)
    assert (fault["event"], fault["level"], fault["path"]) == ("fault", "error", INFER)
    assert "in fail" in fault["traceback"]
    assert "OSError: first\nstart \x1b[31m second" in fault["traceback"]


def test_in_text_no_line_of_a_traceback_passes_for_an_event(start, discrete):
    with start(discrete, code=BROKEN) as server:
        server.request("POST", INFER, REQUEST)
        _, said = server.stop(signal.SIGTERM)
    first, *others = said.splitlines()
    assert first == f"{INFER} failed"
    assert "in fail" in said
    assert all(line.startswith("    ") for line in others)
    assert "\x1b" not in said


def test_access_log_has_a_line_for_each_request(start, discrete):
    with start(discrete, "--access-log", "--log-format", "json") as server:
        server.request("POST", INFER, REQUEST, {"x-request-id": "order-66", "traceparent": TRACE})
        server.request("GET", "/v2/models/other?a=b")
        _, good, missing, _ = events(server)
    assert good.pop("seconds") < 10
    assert good.pop("bytes") > 50
    assert good.pop("time")
    assert good == {
        "level": "info",
        "event": "request",
        "client": "127.0.0.1",
        "method": "POST",
        "path": INFER,
        "status": 200,
        "request_id": "order-66",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert (missing["path"], missing["status"]) == ("/v2/models/other?a=b", 404)
    assert not {"request_id", "trace_id"} & set(missing)


def test_access_log_has_a_line_for_each_call_over_grpc(start, discrete, tmp_path):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import SERVER_LIVE, SERVER_METADATA

    (tmp_path / "keys").write_text("robot:" + hashlib.sha256(b"secret").hexdigest() + "\n")
    options = ("--access-log", "--log-format", "json", "--grpc-port", "0", "--keys", str(tmp_path / "keys"))
    with start(discrete, *options) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            metadata = [("x-request-id", "order-66"), ("traceparent", TRACE), ("more-bin", b"\xff")]
            channel.unary_unary(SERVER_LIVE.path)(b"", metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(SERVER_METADATA.path)(b"", timeout=10)
        _, good, refused, _ = events(server)
    assert good.pop("seconds") < 10
    assert good.pop("time")
    assert good == {
        "level": "info",
        "event": "call",
        "client": "127.0.0.1",
        "method": SERVER_LIVE.path,
        "code": "OK",
        "request_id": "order-66",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert (refused["method"], refused["code"]) == (SERVER_METADATA.path, "UNAUTHENTICATED")


def test_access_log_in_text(start, discrete):
    with start(discrete, "--access-log") as server:
        server.request("GET", "/v2", headers={"x-request-id": "7"})
        _, said = server.stop(signal.SIGTERM)
    assert re.fullmatch(
        r"request client=127\.0\.0\.1 method=GET path=/v2 status=200 seconds=\S+ bytes=\d+ request_id=7\n", said
    )


def test_access_log_names_client_and_key(start, discrete, tmp_path):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import SERVER_LIVE, SERVER_METADATA

    (tmp_path / "keys").write_text("".join(f"{who}:{hashlib.sha256(who.encode()).hexdigest()}\n" for who in ("a", "b")))
    options = ("--access-log", "--log-format", "json", "--keys", str(tmp_path / "keys"), "--grpc-port", "0")
    with start(discrete, *options) as server:
        for authorization in ("Bearer b", "Bearer c", "Bearer a"):
            server.request("GET", "/v2", headers={"authorization": authorization})
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = channel.unary_unary(SERVER_METADATA.path)
            call(b"", metadata=[("authorization", "Bearer b")], timeout=10)
            with pytest.raises(grpc.RpcError):
                call(b"", metadata=[("authorization", "Bearer c")], timeout=10)
            channel.unary_unary(SERVER_LIVE.path)(b"", metadata=[("authorization", "Bearer a")], timeout=10)
        _, *seen, _ = events(server)
    assert {event["client"] for event in seen} == {"127.0.0.1"}
    assert [event.get("key") for event in seen] == ["b", None, "a", "b", None, "a"]
    assert [event.get("status", event.get("code")) for event in seen] == [200, 401, 200, "OK", "UNAUTHENTICATED", "OK"]


def test_access_log_tells_a_unix_socket(tmp_path, discrete, start):
    with start(discrete, "--access-log", "--uds", str(tmp_path / "socket")) as server:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "socket"))
            connection.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
            assert b"200 OK" in connection.recv(65536)
        _, said = server.stop(signal.SIGTERM)
    assert said.startswith("request client=unix method=GET ")


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::1%eth0"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:5000", "10.0.0.7"),
        ("unix:", "unix"),
        ("unix:/tmp/socket", "unix"),
    ],
)
def test_client_of_a_call(peer, client):
    assert grpc_client(peer) == client


def test_it_is_off_unless_asked_for(start, discrete):
    with start(discrete) as server:
        server.request("GET", "/v2")
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_stranger_sends_makes_no_lines_of_its_own(start, discrete, log_format):
    hostile = [
        b'GET /\x1b[2J"} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n',
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /%0astart HTTP/1.1\r\nHost: a\r\nx-request-id: a\x00b\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01 hello\n\nstart serving evil on http://evil:1\n\n",
        b'GET /\xff\xfe\xe2\x80\xa8 HTTP/1.1\r\nHost: a\r\nx-request-id: "; x=\r\nConnection: close\r\n\r\n',
    ]
    with start(discrete, "--access-log", "--log-format", log_format) as server:
        for request in hostile:
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(request)
                while connection.recv(65536):
                    pass
        _, said = server.stop(signal.SIGTERM)
    lines = [line for line in said.splitlines() if "stopped" not in line]
    assert len(lines) == len(hostile)
    assert said.isascii()
    assert said.replace("\n", "").isprintable()
    assert max(map(len, lines)) < 600
    assert all(line.startswith(("request ", "{")) for line in lines)
    assert "evil" not in said


def test_text_is_cut_and_escaped():
    assert shown(b'/a b"\\\n\xff') == r"/a\x20b\x22\x5c\x0a\xff"
    assert shown(b"x" * 300) == "x" * 256 + "..."


@pytest.mark.parametrize("result", ["loaded", "refused", "unloaded"])
def test_a_change_of_what_is_served_is_an_event(caplog, result):
    with caplog.at_level("INFO", "trpo_tf.serving"):
        Metrics().reloaded("walker", "3", result, "because")
    (record,) = caplog.records
    assert record.getMessage() == f"{result} walker version 3: because"
    assert record.event == "model"
    assert record.fields == {"model": "walker", "version": "3", "result": result, "reason": "because"}
    assert record.levelname == ("WARNING" if result == "refused" else "INFO")


def test_an_event_may_have_any_text(caplog):
    with caplog.at_level("INFO", "trpo_tf.serving"):
        emit("worker", "100 % of %s", slot=1)
    assert caplog.records[0].getMessage() == "100 % of %s"


# Request ids


@pytest.mark.parametrize("path", ["/v2", "/v2/models/other", INFER])
def test_a_sane_request_id_is_repeated(server, path):
    connection = server.connect()
    connection.request("GET", path, headers={"X-Request-ID": "a1._:/+=@-Z"})
    assert connection.getresponse().getheader("x-request-id") == "a1._:/+=@-Z"
    connection.close()


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, 'a"b', "a;b", "é", None])
def test_another_one_is_not(server, given):
    connection = server.connect()
    connection.request("GET", "/v2", headers={} if given is None else {"x-request-id": given.encode("latin-1")})
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("x-request-id") is None
    connection.close()
