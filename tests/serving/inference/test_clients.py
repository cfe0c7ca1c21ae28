"""Clients that others have made, with their defaults, and the channels that they come by."""

import os
import signal
import socket
import stat
import subprocess
import sys

import numpy as np
import pytest

from trpo_tf import serving

requests = pytest.importorskip("requests")
INFER = "/v2/models/discrete/infer"
RAW = ("-H", "Inference-Header-Content-Length: 0", "--data-binary", "@-")


@pytest.fixture
def triton(server):
    httpclient = pytest.importorskip("tritonclient.http")
    with httpclient.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def triton_input(array, binary=True):
    import tritonclient.http as httpclient

    tensor = httpclient.InferInput("obs", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_tritonclient_with_its_defaults(triton, discrete, golden):
    observations = golden(discrete)["obs"]
    expected = serving.load(discrete).act_batch(observations)
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("discrete")
    assert triton.is_model_ready("discrete", "1")
    assert not triton.is_model_ready("other")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata("discrete")["inputs"][0] == {"name": "obs", "datatype": "FP32", "shape": [-1, 4]}
    result = triton.infer("discrete", [triton_input(observations)], request_id="7")
    assert result.get_response()["id"] == "7"
    assert "binary_data_size" in result.get_response()["outputs"][0]["parameters"]
    np.testing.assert_array_equal(result.as_numpy("action"), expected)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritonclient_every_way(triton, discrete, golden, binary_in, binary_out, compression):
    import tritonclient.http as httpclient

    observations = golden(discrete)["obs"]
    result = triton.infer(
        "discrete",
        [triton_input(observations, binary_in)],
        outputs=[httpclient.InferRequestedOutput("action", binary_data=binary_out)],
        model_version="1",
        parameters={"deterministic": True},
        request_compression_algorithm=compression,
        response_compression_algorithm="gzip",
    )
    np.testing.assert_array_equal(result.as_numpy("action"), serving.load(discrete).act_batch(observations))


def test_tritonclient_is_told_what_is_wrong(triton):
    import tritonclient.utils

    with pytest.raises(tritonclient.utils.InferenceServerException, match="not finite"):
        triton.infer("discrete", [triton_input(np.full((1, 4), np.nan, np.float32))])


def test_requests_keeps_its_session(server):
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(
                f"http://127.0.0.1:{server.port}/v1/models/discrete:predict",
                json={"instances": [[0, 0, 0, 0]]},
                timeout=10,
            )
            assert answer.json() == {"predictions": [0]}


def test_schemathesis_finds_no_fault_with_the_document(server, tmp_path):
    """Requests made from the schema, and against it. Data that fits its schema may still not fit its shape."""
    pytest.importorskip("schemathesis")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--max-examples", "8", "--seed", "1", "--generation-database", "none", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def curl(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess:
    command = ["curl", "-s", "--max-time", "10", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=20, check=False)


def test_a_unix_socket_is_its_users_alone_and_gone_in_the_end(discrete, tmp_path):
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--uds", str(path)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == f"serving discrete on unix:{path}\n"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            answer = curl("--unix-socket", path, f"http://localhost{INFER}", *RAW, data=bytes(16))
            assert b'"binary_data_size":8' in answer.stdout
            second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert second.returncode == 2
            assert "address already in use; choose another --uds" in second.stderr
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not path.exists()


def test_a_socket_left_by_a_killed_server_is_taken_over_and_a_file_is_not(start, discrete, tmp_path):
    path = tmp_path / "socket"
    with start(discrete, "--uds", str(path)) as server:
        server.stop(signal.SIGKILL)
    assert path.exists()
    with start(discrete, "--uds", str(path), "--uds-mode", "660") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert curl("--unix-socket", path, "http://localhost/v2").returncode == 0
        assert server.request("GET", "/v2")[0] == 200
    path.unlink(missing_ok=True)
    path.write_text("mine")
    command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--uds", str(path)]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 2
    assert path.read_text() == "mine"


def test_tls_and_client_certificates(start, discrete, certificates):
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    trust = ("--cacert", certificates / "ca.pem")
    with start(discrete, *own) as server:
        url = f"https://127.0.0.1:{server.port}/v2"
        assert "on https://127.0.0.1:" in server.announcement
        assert curl(*trust, url).stdout.startswith(b'{"name"')
        assert curl(url).returncode == 60
        plain = curl("-w", "%{http_code}", f"http://127.0.0.1:{server.port}/v2").stdout
        assert plain == b'{"error":"this port speaks HTTPS; begin the URL with https://"}400'
        too_large = curl(
            *trust, "-w", "%{http_code}", f"https://127.0.0.1:{server.port}{INFER}", *RAW, data=bytes(5_000_000)
        )
        assert too_large.stdout.endswith(b"413")
        assert curl(*trust, "--tls-max", "1.1", url).returncode != 0
    with start(discrete, *own, "--tls-client-ca", str(certificates / "ca.pem"), "--host", "0.0.0.0") as server:
        url = f"https://127.0.0.1:{server.port}/v2"
        for name, known in (("client", True), ("stranger", False)):
            given = ("--cert", certificates / f"{name}.pem", "--key", certificates / f"{name}.key")
            assert (curl(*trust, *given, url).returncode == 0) is known
        assert curl(*trust, url).returncode != 0


@pytest.mark.parametrize("argument", ["--tls-cert", "--keys"])
def test_files_that_cannot_be_used_are_one_line(discrete, tmp_path, argument):
    more = ["--tls-key", "nowhere"] if argument == "--tls-cert" else []
    command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--port", "0", argument, "nowhere", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_client_that_leaves_during_the_handshake_hurts_nobody(start, discrete, certificates):
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    with start(discrete, *own, "--timeout", "1") as server:
        for said in (b"", b"\x16\x03\x01", os.urandom(100)):
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(said)
        answer = curl("--cacert", certificates / "ca.pem", f"https://127.0.0.1:{server.port}/v2")
        assert answer.returncode == 0
        assert server.stop(signal.SIGTERM) == (0, "")
