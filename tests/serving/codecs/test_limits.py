"""What is refused before it costs anything: pure functions, each limit at its edge."""

import gzip
import json
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from trpo_tf.serving import ArraySpec
from trpo_tf.serving.codecs.parsing.body_limits import MAX_DEPTH, TooLargeError, check_depth, decompress
from trpo_tf.serving.command_line import parse_arguments
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.keys import KeyFileError, KeyRing, read_keys
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.runtime.observation_bounds import bounds_check

CONTENT = b'{"inputs": []}' * 100


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_decompression_stops_at_the_limit(encoding, compress):
    body = compress(CONTENT)
    assert decompress(body, encoding, len(CONTENT)) == CONTENT
    with pytest.raises(TooLargeError):
        decompress(body, encoding, len(CONTENT) - 1)
    for damaged in (body[:-1], body + b"x", b"x" + body, b"", body + body):
        with pytest.raises(RequestError, match=encoding.decode()):
            decompress(damaged, encoding, len(CONTENT))


def test_a_decompression_bomb_costs_no_memory():
    import tracemalloc

    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        decompress(bomb, b"gzip", 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def nested(depth: int, text: str = "1") -> bytes:
    return ("[" * depth + text + "]" * depth).encode()


def test_depth_is_counted_exactly():
    check_depth(nested(MAX_DEPTH))
    with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} deep"):
        check_depth(nested(MAX_DEPTH + 1))
    check_depth(b"[" + b"[1]," * 1000 + b"[1]]")
    check_depth(b'{"a": "' + b"[" * 1000 + b'"}')
    check_depth(b'{"a": "\\"' + b"[" * 1000 + b'"}')
    with pytest.raises(RequestError):
        check_depth(b'["\\\\", ' + nested(MAX_DEPTH) + b"]")
    with pytest.raises(RequestError):
        check_depth(b'{"":' * 100_000)


def test_depth_takes_linear_time():
    """What makes a careless pattern look at every string again would take hours."""
    check_depth(b"[" * MAX_DEPTH + b'"' + b'\\"[' * 1_000_000)
    check_depth(b'"\\' * 2_000_000 + b"[" * 100)


BOX = (ArraySpec("obs", "float32", (2,), (-4.8, -np.inf), (0.1, np.inf)),)


def test_a_bound_itself_is_inside():
    edge = np.array([[0.1, 1e30], [-4.8, -1e30]], np.float32)
    assert bounds_check(BOX, "reject")(edge) is edge
    np.testing.assert_array_equal(bounds_check(BOX, "clip")(edge), edge)


def test_outside_is_refused_or_clipped_or_let_through():
    outside = np.array([[0.2, 0], [-5, 0]], np.float32)
    with pytest.raises(ValueError, match="'obs' is outside"):
        bounds_check(BOX, "reject")(outside)
    clipped = bounds_check(BOX, "clip")(outside)
    np.testing.assert_array_equal(clipped, np.array([[0.1, 0], [-4.8, 0]], np.float32))
    assert clipped.dtype == np.float32
    assert bounds_check(BOX, "allow") is None
    assert bounds_check((ArraySpec("obs", "float32", (2,)),), "reject") is None


def test_bounds_of_integers_and_of_parts():
    specs = (ArraySpec("a", "int64", (), 0, np.inf), ArraySpec("b", "bool", (1,), 0, 1))
    inside = {"a": np.array([0, 2**63 - 1]), "b": np.array([[True], [False]])}
    assert bounds_check(specs, "reject")(inside) is inside
    with pytest.raises(ValueError, match="'a'"):
        bounds_check(specs, "reject")({**inside, "a": np.array([-1, 0])})
    clipped = bounds_check(specs, "clip")({**inside, "a": np.array([-1, 2**63 - 1])})
    np.testing.assert_array_equal(clipped["a"], [0, 2**63 - 1])


@pytest.mark.parametrize(("mode", "status"), [("reject", 400), ("clip", 200), ("allow", 200)])
def test_the_option_decides_for_every_route(start, discrete, mode, status):
    with start(discrete, "--out-of-bounds", mode) as server:
        tensor = {"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [5, 0, 0, 0]}
        assert server.request("POST", "/v2/models/discrete/infer", {"inputs": [tensor]})[0] == status
        assert server.request("POST", "/v1/models/discrete:predict", {"instances": [[5, 0, 0, 0]]})[0] == status


# Keys


def make_key(name: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", name], capture_output=True, text=True, check=True
    )
    return done.stderr.strip(), done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two keys and their file."""
    (first, line), (second, other) = make_key("robot"), make_key("phone@home")
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may ask\n\n{line}{other}")
    assert first not in path.read_text()
    return path, first, second


def test_only_the_files_keys_are_known(keys):
    path, first, second = keys
    ring = KeyRing(path)
    assert [ring.name_of(b"Bearer " + key.encode()) for key in (first, second)] == ["robot", "phone@home"]
    for wrong in (
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + first.encode(),
        first.encode(),
        b"Bearer " + first[:-1].encode(),
    ):
        assert ring.name_of(wrong) is None


@pytest.mark.parametrize("text", ["", "# none\n", "robot\n", "robot:abc\n", f"ro bot:{'0' * 64}\n", f":{'0' * 64}"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=str(path)):
        read_keys(path)


def test_a_key_opens_everything_and_health_needs_none(start, discrete, keys):
    path, first, second = keys
    with start(discrete, "--keys", str(path)) as server:
        asked = ("POST", "/v2/models/discrete/infer", '{"inputs": []}')
        for key in (first, second):
            assert server.request(*asked, {"Authorization": f"Bearer {key}"})[0] == 400
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {first}"}):
            assert server.request(*asked, headers) == (401, {"error": "give a key: Authorization: Bearer KEY"})
        for key in ("x", first[:-1], f"{first}, {second}"):
            status, answer = server.request(*asked, {"Authorization": f"Bearer {key}"})
            assert (status, answer["error"].split(";")[0]) == (401, "the key is not known")
        for path in ("/v2", "/v2/models/discrete", "/v1/models/discrete", "/openapi.json", "/nothing"):
            assert server.request("GET", path)[0] == 401
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.request("GET", "/v2/health/ready")[0] == 200


# Options


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_another_address_needs_a_key_or_insecure(host, keys):
    with pytest.raises(ServeError, match="give --keys or --tls-client-ca, or --insecure"):
        ServeOptions(host=host)
    ServeOptions(host=host, insecure=True)
    ServeOptions(host=host, keys="file")
    ServeOptions(host=host, uds="path")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert ServeOptions(host=host).tcp_port == 8080


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "there is no --port 65536"),
        ({"max_body": 0}, "--max-body must be more than 0"),
        ({"timeout": float("nan")}, "--timeout must be more than 0"),
        ({"keep_alive": float("inf")}, "--keep-alive must"),
        ({"tls_cert": "c"}, "belong together"),
        *(({"uds_mode": mode}, "--uds-mode takes three octal digits") for mode in ("rw", "668", "1660", "60")),
        ({"uds": "s", "uds_mode": "666", "repository_api": True}, "with --uds-mode 600 or 660"),
        ({"tls_client_ca": "c"}, "needs --tls-cert"),
        ({"uds": "s", "grpc_uds": "s"}, "choose another --uds or --grpc-uds"),
        ({"grpc_uds": "s", "workers": 2}, "several --workers can't share --grpc-uds"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ServeError, match=message):
        ServeOptions(**options)


def test_the_port_is_the_options_or_the_environments(monkeypatch):
    assert parse_arguments(["b"], "p")[1].tcp_port == 8080
    monkeypatch.setenv("PORT", "9000")
    assert parse_arguments(["b"], "p")[1].tcp_port == 9000
    assert parse_arguments(["b", "--port", "0"], "p")[1].tcp_port == 0
    assert parse_arguments(["b", "--uds", "s"], "p")[1].tcp_port is None
    assert parse_arguments(["b", "--uds", "s", "--port", "1"], "p")[1].tcp_port == 1
    monkeypatch.setenv("PORT", "x")
    with pytest.raises(ServeError, match=re.escape("$PORT must be a number")):
        parse_arguments(["b"], "p")


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("X-GZip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_requests_are_answered_and_bombs_are_413(server, encoding, compress):
    tensor = {"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}
    path, headers = "/v2/models/discrete/infer", {"Content-Encoding": encoding}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert server.request("POST", path, compress(body), headers)[0] == 200
    assert server.request("POST", path, compress(body + b" " * 5_000_000), headers)[0] == 413
    assert server.request("POST", path, body, headers)[0] == 400


def test_json_nested_too_deep_is_400(server):
    status, body = server.request("POST", "/v2/models/discrete/infer", nested(MAX_DEPTH + 1))
    assert (status, "deep" in body["error"]) == (400, True)
