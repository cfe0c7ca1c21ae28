"""The server as a program: how it starts and ends, and which errors keep it from starting."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trpo_tf.serving.listening.sockets import listen
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.workers.serve import serve

INFER = "/v2/models/discrete/infer"
REQUEST = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_nothing_on_stderr(start, discrete, number):
    with start(discrete) as server:
        connection = server.connect()
        connection.request("GET", "/v2/health/ready")
        connection.getresponse().read()
        started = time.monotonic()
        assert server.stop(number) == (0, "")
        assert time.monotonic() - started < 3, "an idle connection must not delay it"
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            server.connect().connect()


def test_a_request_under_way_is_finished_before_it_ends(start, discrete):
    body = json.dumps(REQUEST).encode()
    with start(discrete) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:10])
            assert server.request("GET", "/v2/health/live")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(body[10:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(10) == 0


def test_killed_it_can_be_started_again_on_the_same_port(start, discrete):
    with start(discrete) as first:
        assert first.request("GET", "/v2")[0] == 200
        assert first.stop(signal.SIGKILL)[0] == -signal.SIGKILL
        with start(discrete, "--port", str(first.port)) as second:
            assert second.port == first.port
            assert second.request("POST", INFER, REQUEST)[0] == 200


def test_it_says_where_it_serves(server):
    assert server.announcement == f"serving discrete on http://127.0.0.1:{server.port}\n"


def test_it_serves_the_only_bundle_of_a_folder(start, damaged):
    with start(damaged.parent) as server:
        assert server.request("GET", f"/v2/models/{damaged.name}")[0] == 200


def test_the_version_is_the_one_of_the_provenance(start, damaged):
    path = damaged / "manifest.json"
    document = json.loads(path.read_text())
    document["provenance"]["model_version"] = 7
    path.write_text(json.dumps(document))
    with start(damaged) as server:
        assert server.request("GET", "/v2/models/discrete/versions/7")[1]["versions"] == ["7"]
        assert server.request("GET", "/v2/models/discrete/versions/1")[0] == 404
        assert server.request("POST", INFER, REQUEST)[1]["model_version"] == "7"


def fail_to_start(*arguments: object, **options) -> str:
    command = [sys.executable, "-m", "trpo_tf", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


def test_a_port_in_use_is_one_line(server, discrete, tmp_path):
    error = fail_to_start(discrete, "--port", server.port, cwd=tmp_path)
    assert re.fullmatch(rf"error: .*127\.0\.0\.1 port {server.port}: address already in use; choose .*\n", error)


def test_a_port_in_use_is_an_exception_in_python():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="address already in use"):
        listen("127.0.0.1", taken.getsockname()[1])


async def _in_a_loop(serves):
    serves()


@pytest.mark.parametrize(
    "called",
    [lambda serves: ThreadPoolExecutor(1).submit(serves).result(), lambda serves: asyncio.run(_in_a_loop(serves))],
    ids=["in a thread", "in a loop"],
)
def test_where_it_cannot_run_it_says_so(discrete, called):
    with pytest.raises(ServeError, match="call it in the main thread, outside of asyncio and notebooks"):
        called(lambda: serve(discrete, ServeOptions(port=0)))


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("192.0.2.1", 0, "cannot assign"),
        ("no.such.host.invalid", 0, "--host no.such.host.invalid can't be resolved"),
    ],
)
def test_an_address_that_cannot_be_had_is_explained(host, port, message):
    with pytest.raises(ServeError, match=message):
        listen(host, port)


def test_a_changed_byte_is_one_line(damaged):
    path = damaged / "policy.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert re.fullmatch(
        r"error: .*policy\.onnx is not what was exported \(its sha256 differs\); export it again\n",
        fail_to_start(damaged, "--port", 0, cwd=damaged.parent),
    )


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    error = fail_to_start(tmp_path, "--port", 0, cwd=tmp_path)
    ignored = f"ignored in {tmp_path}: 'notes.txt' (it is no folder)"
    assert error == f"error: {tmp_path} neither is nor holds a bundle ({ignored}); make one with `trpo-tf export`\n"


def test_debug_shows_where_an_error_comes_from(tmp_path):
    command = [sys.executable, "-m", "trpo_tf", "serve", str(tmp_path / "absent"), "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_help_says_what_to_give(tmp_path):
    command = [sys.executable, "-m", "trpo_tf", "serve", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert "--port" in done.stdout


def test_the_server_imports_nothing_of_training_or_export(run_python):
    modules = run_python("import sys, trpo_tf.serving.workers.worker; print(*sys.modules)").split()
    absent = {"tensorflow", "keras", "tensorflow_probability", "onnx", "tf2onnx", "gymnasium"}
    assert not absent & {module.split(".")[0] for module in modules}
    assert {module.split(".")[1] for module in modules if module.startswith("trpo_tf.")} == {
        "serving",
        "lazy_attributes",
    }
    assert "onnxruntime" in modules
