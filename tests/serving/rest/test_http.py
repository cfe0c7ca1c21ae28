import json
import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from tests.support.serving.broken_runtime import BROKEN_RUNTIME
from tests.support.serving.server import serve
from trpo_tf import serving
from trpo_tf.serving.inference.runners import DirectRunner
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.routes import make_routes
from trpo_tf.serving.verify import agree

INFER = "/v2/models/discrete/infer"
OBSERVATION = {"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}
BINARY = {"name": "obs", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
REQUEST = {"inputs": [OBSERVATION]}
MAX_BODY = ServeOptions().max_body
HEALTHCHECK = Path(serving.__file__).parent / "healthcheck.py"


def tensor(spec, array):
    datatype = {"float32": "FP32", "float64": "FP64"}[array.dtype.name]
    return {"name": spec.name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def raw(port: int, request: bytes) -> bytes:
    """Everything that the server says until it closes or falls silent."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(request)
        connection.settimeout(0.5)
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            pass
    return received


# Routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 200) for path in ("/v2/health/ready", "/v2/models/discrete", "/metrics", "/openapi.json", "/")),
        ("HEAD", "/v2/health/live", 200),
        ("GET", "/v2/models/late/ready", 404),
    ],
)
def test_no_cache_between_keeps_an_answer(server, method, path, status):
    """Varnish, as it is installed, answers for two minutes from what has no `Cache-Control`, a 404 too."""
    answer = raw(server.port, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 %d " % status)
    assert head.count(b"cache-control:") == head.count(b"\r\ncache-control: no-store") == 1


@pytest.mark.parametrize("slash", ["", "/"])
def test_server_metadata(server, slash):
    status, body = server.request("GET", f"/v2{slash}")
    assert (status, body["name"], body["version"]) == (200, "trpo-tf", version("trpo-tf"))
    assert body["extensions"] == ["binary_tensor_data", "sequence"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/discrete/ready", {"name": "discrete", "ready": True}),
        ("/v2/models/discrete/versions/1/ready", {"name": "discrete", "ready": True}),
    ],
)
def test_health(server, path, body):
    assert server.request("GET", path) == (200, body)
    assert server.request("HEAD", path) == (200, None)


@pytest.mark.parametrize("path", ["/v2/models/discrete", "/v2/models/discrete/versions/1"])
def test_model_metadata(server, path):
    status, body = server.request("GET", path)
    assert status == 200
    assert (body["name"], body["versions"], body["platform"]) == ("discrete", ["1"], "onnx_onnxv1")


@pytest.mark.parametrize("path", [INFER, "/v2/models/discrete/versions/1/infer"])
def test_infer(server, path, discrete):
    action = serving.load(discrete).act(OBSERVATION["data"])
    assert server.request("POST", path, {**REQUEST, "id": "42"}) == (
        200,
        {
            "model_name": "discrete",
            "model_version": "1",
            "id": "42",
            "outputs": [{"name": "action", "datatype": "INT64", "shape": [1], "data": [int(action)]}],
        },
    )


def test_answers_are_the_golden_ones(server, continuous_server, discrete, continuous, golden):
    for running, bundle in ((server, discrete), (continuous_server, continuous)):
        manifest, cases = serving.load(bundle).manifest, golden(bundle)
        inputs = [
            tensor(manifest.observation[0], cases["obs"]),
            tensor(manifest.noise, cases["noise"]),
        ]
        status, body = running.request("POST", f"/v2/models/{manifest.name}/infer", {"inputs": inputs})
        assert status == 200
        (output,) = body["outputs"]
        actions = np.array(output["data"], cases["action"].dtype).reshape(output["shape"])
        assert agree(actions, cases["action"])


def test_a_batch_without_noise_is_deterministic(continuous_server, continuous):
    observations = np.random.default_rng(0).normal(size=(5, 3))
    policy = serving.load(continuous)
    body = {"inputs": [tensor(policy.manifest.observation[0], observations)]}
    _, response = continuous_server.request("POST", "/v2/models/continuous/infer", body)
    (output,) = response["outputs"]
    one_by_one = np.array([policy.act(observation) for observation in observations])
    assert agree(np.array(output["data"], np.float32).reshape(5, 2), one_by_one)


def test_a_seeded_sample_repeats(continuous_server):
    body = {
        "inputs": [{"name": "obs", "shape": [1, 3], "datatype": "FP64", "data": [0.1, 0.2, 0.3]}],
        "parameters": {"deterministic": False, "seed": 5},
    }
    path = "/v2/models/continuous/infer"
    first, second = (continuous_server.request("POST", path, body)[1] for _ in range(2))
    body["parameters"]["deterministic"] = True
    del body["parameters"]["seed"]
    assert first == second != continuous_server.request("POST", path, body)[1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing", "nothing at /nothing"),
        ("/v1", "nothing at /v1"),
        ("/v2/health", "nothing at"),
        ("/v2/models//", "nothing at"),
        ("/v2/models//infer", "nothing at"),
        ("/v2/models/other", "there is no model 'other'"),
        ("/v2/models/other/infer", "there is no model 'other'"),
        ("/v2/models/Discrete", "there is no model 'Discrete'"),
        ("/v2/models/discrete/versions/2", "model 'discrete' has no version '2'"),
        ("/v2/models/discrete/versions/2/infer", "model 'discrete' has no version '2'"),
        ("/v2/models/discrete/versions", "nothing at"),
        ("/v1/models/discrete/versions/2:predict", "model 'discrete' has no version '2'"),
        ("/v1/models/other:predict", "there is no model 'other'"),
        ("/v2/models/discrete:predict", "there is no model 'discrete:predict'"),
        ("/v2/models/discrete%2Finfer", "there is no model 'discrete/infer'"),
        ("/v2%2Fmodels", "nothing at /v2%2Fmodels"),
        ("/v2/models/discrete/../discrete", "nothing at"),
        ("/v2//models/discrete", "nothing at"),
        ("/v2/models/discrete//infer", "nothing at"),
        ("/v2/models/discrete/infer/..", "nothing at"),
        ("/v2/models/discrete/versions/1/infer/x", "nothing at"),
        ("/v2/models/%2e%2e/ready", "there is no model '..'"),
        ("/v2/models/%00%ff", "there is no model"),
        ("/v2/models/discrete/config", "nothing at /v2/models/discrete/config; GET /v2/models/NAME has the inputs"),
        ("/v2/models/discrete/versions/1/stats", "versions/1/stats; GET /metrics has the numbers of every model"),
        ("/v2/models/stats", "there is no model 'stats'; GET /metrics has the numbers of every model"),
        ("/v2/models/discrete/trace/setting", "trace/setting; the server sends traces with --otlp-endpoint"),
        ("/v2/logging", "nothing at /v2/logging; the server has --log-format and --access-log"),
        ("/v2/systemsharedmemory/region/a/register", "a/register; send tensors in the request"),
        ("/v1/models/discrete/metadata", "discrete/metadata; GET /v2/models/NAME has the inputs and outputs"),
        ("/v1/models/discrete:explain", "'discrete:explain'; POST /v1/models/NAME:predict answers actions"),
        ("/v1/models/discrete/versions/1:classify", "1:classify' that is loaded; POST /v1/models/NAME:predict"),
        ("/predict", "nothing at /predict; POST /v2/models/NAME/infer answers actions"),
        ("/healthz", "nothing at /healthz; probes ask /v2/health/live and /v2/health/ready"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(server, method, path, message):
    status, body = server.request(method, path)
    assert status == 404
    assert message in body["error"]


@pytest.mark.parametrize("path", ["/v2/models/", "/v1/models/", "/nothing/", "/v2/models/discrete/"])
def test_a_long_path_is_cut_short_in_the_message(server, path):
    status, body = server.request("GET", path + "x" * 10_000)
    assert status == 404
    assert len(body["error"]) < 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("PUT", INFER, "POST"),
        ("DELETE", INFER, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("DELETE", "/v2/models/discrete", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_says_the_right_one(server, method, path, allowed):
    connection = server.connect()
    connection.request(method, path)
    response = connection.getresponse()
    assert (response.status, response.headers["allow"]) == (405, allowed)
    assert allowed in json.loads(response.read())["error"]
    connection.close()


def test_models_are_listed(server):
    expected = {"models": [{"name": "discrete", "versions": ["1"], "state": "READY"}]}
    for path in ("/v2/models", "/v2/models/", "/v2/models?ready=true"):
        assert server.request("GET", path) == (200, expected)


NAMES = ("a", "ready", "infer", "versions", "50%", "x y", "%2F", "café")


@pytest.fixture(scope="module")
def oddly_named(discrete, tmp_path_factory):
    """A server of bundles whose names are parts of paths, or have to be encoded in one."""
    folder = tmp_path_factory.mktemp("names")
    for name in NAMES:
        shutil.copytree(discrete, folder / "models" / name)
    (folder / "models" / "broken").mkdir()
    (folder / "models" / "broken" / "manifest.json").write_text("{")
    with serve(folder / "models", folder) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_a_model_may_be_named_like_a_part_of_a_path(oddly_named, name):
    path = quote(name, safe="")
    assert oddly_named.request("GET", f"/v2/models/{path}")[1]["versions"] == ["1"]
    assert oddly_named.request("GET", f"/v2/models/{path}/ready") == (200, {"name": name, "ready": True})
    assert oddly_named.request("POST", f"/v2/models/{path}/infer", REQUEST)[0] == 200
    assert oddly_named.request("POST", f"/v2/models/{path}/versions/1/infer", REQUEST)[0] == 200
    assert oddly_named.request("GET", f"/v1/models/{path}")[0] == 200
    assert oddly_named.request("POST", f"/v1/models/{path}:predict", {"instances": [[0] * 4]})[0] == 200


def test_predict_asks_the_model_before_the_colon(oddly_named):
    """However the colon is written; no model can be named so, and the other protocol has no such path."""
    for path in ("/v1/models/a:predict", "/v1/models/a%3apredict"):
        assert oddly_named.request("GET", path)[0] == 405
        assert oddly_named.request("POST", path, {"instances": [[0] * 4]})[0] == 200
    for path in ("/v2/models/a:predict", "/v2/models/a:predict/infer"):
        assert oddly_named.request("POST", path, REQUEST) == (404, {"error": "there is no model 'a:predict'"})
    assert oddly_named.request("GET", "/v2/models/broken") == (404, {"error": "model 'broken' is not loaded"})
    listed = oddly_named.request("GET", "/v2/models")[1]["models"]
    assert [model["name"] for model in listed] == sorted([*NAMES, "broken"])
    assert [model["name"] for model in listed if model["state"] != "READY"] == ["broken"]


# Bad requests


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"inputs": [{"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [NaN, 0, 0, 0]}]}', "not JSON"),
        ({"inputs": [{**OBSERVATION, "data": [1e39, 0, 0, 0]}]}, "out of range for FP32"),
        ({"inputs": [{**OBSERVATION, "shape": [4]}]}, "must have shape [batch, 4]"),
        ({"inputs": [{**OBSERVATION, "datatype": "FP64"}]}, "must have datatype FP32"),
        ({"inputs": [{**OBSERVATION, "name": "x"}]}, "not 'x'"),
        ({}, "'obs' is missing"),
        ({"instances": [[0] * 4]}, "'obs' is missing; instances are for /v1/models/NAME:predict"),
        ({"inputs": [BINARY]}, "data as a list; binary tensors need the header Inference-Header-Content-Length"),
        (json.dumps({"inputs": [BINARY]}) + "0" * 16, "binary tensors need the header Inference-Header-Content-Length"),
    ],
)
def test_a_bad_request_is_400_and_says_why(server, body, message):
    status, answer = server.request("POST", INFER, body)
    assert status == 400
    assert message in answer["error"]
    assert list(answer) == ["error"]


def test_a_form_is_said_to_be_one(server):
    body = '--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n{}\r\n--x--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = server.request("POST", INFER, body, form)
    assert (status, answer["error"].partition("; ")[2][:22]) == (400, "it is a multipart form")
    assert server.request("POST", INFER, REQUEST, form)[0] == 200


def test_an_action_that_is_not_finite_is_the_client_s_error_if_its_observation_is_absurd(continuous_server):
    body = {"inputs": [{"name": "obs", "shape": [1, 3], "datatype": "FP64", "data": [1e308] * 3}]}
    status, answer = continuous_server.request("POST", "/v2/models/continuous/infer", body)
    assert status == 400
    assert answer["error"] == "output 'action' is not finite; input 'obs' holds an absurd value"


def test_an_encoding_that_is_not_supported_is_415(server):
    status, body = server.request("POST", INFER, REQUEST, {"Content-Encoding": "br"})
    assert status == 415
    assert body["error"] == "Content-Encoding 'br' is not supported; send gzip, deflate or an uncompressed body"


def test_a_declared_length_above_the_limit_is_413_before_the_body_is_sent(server):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    assert raw(server.port, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_above_the_limit_is_413(server):
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = raw(server.port, head + chunk * (MAX_BODY // 65536 + 1) + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("excess", "status"), [(0, 200), (1, 413)])
def test_the_limit_is_exact(server, excess, status):
    body = json.dumps(REQUEST)
    body += " " * (MAX_BODY - len(body) + excess)
    assert server.request("POST", INFER, body)[0] == status


def test_a_chunked_body_is_read_whole(server):
    body = json.dumps(REQUEST).encode()
    parts = [body[i : i + 7] for i in range(0, len(body), 7)]
    connection = server.connect()
    connection.request("POST", INFER, iter(parts), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET /v\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nA" + b"a" * 100_000,
    ],
)
def test_what_is_not_http_hurts_nobody_else(server, request_):
    answer = raw(server.port, request_)
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert server.request("POST", INFER, REQUEST)[0] == 200


@pytest.mark.parametrize(
    ("beginning", "told"),
    [
        (b"PROXY TCP4 10.0.0.7 10.0.0.1 4321 80\r\n", b"PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", b"PROXY protocol"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/2; for gRPC ask the port of --grpc-port"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"TLS; begin the URL with http://"),
    ],
)
def test_another_protocol_is_named_with_what_to_do(server, beginning, told):
    answer = raw(server.port, beginning + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert told in answer


def test_a_client_that_leaves_in_the_middle_hurts_nobody_else(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert server.request("POST", INFER, REQUEST)[0] == 200


# Connections


def test_a_connection_serves_many_requests_even_after_an_error(server):
    connection = server.connect()
    for body, status in ((REQUEST, 200), ({}, 400), (REQUEST, 200)):
        connection.request("POST", INFER, json.dumps(body))
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert response.headers["content-type"] == "application/json"
    connection.close()


def test_pipelined_requests_are_answered_in_order(server):
    bodies = [json.dumps({**REQUEST, "id": f"request {i}"}) for i in range(5)]
    requests = "".join(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}" for body in bodies
    )
    assert re.findall(rb"request \d", raw(server.port, requests.encode())) == [b"request %d" % i for i in range(5)]


def test_blanks_behind_a_header_are_no_part_of_it(server):
    body = json.dumps(REQUEST).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\t \r\nInference-Header-Content-Length: {len(body)} \t\r\n"
    head += f"Content-Encoding: identity \r\nConnection: close\r\nContent-Length: {len(body)} \r\n\r\n"
    assert raw(server.port, head.encode() + body).startswith(b"HTTP/1.1 200")


def test_a_host_may_be_missing_in_http_1_0_alone(server):
    for _ in range(2):
        assert raw(server.port, b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert raw(server.port, b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_expect_continue_is_honoured(server):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert raw(server.port, head.encode()) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_concurrent_clients_each_get_their_own_answer(server, discrete, golden):
    manifest, cases = serving.load(discrete).manifest, golden(discrete)

    def play(client: int) -> None:
        connection = server.connect()
        for case in range(client, len(cases["action"]), 4):
            chosen = {name: array[case : case + 1] for name, array in cases.items()}
            inputs = [
                tensor(manifest.observation[0], chosen["obs"]),
                tensor(manifest.noise, chosen["noise"]),
            ]
            connection.request("POST", INFER, json.dumps({"inputs": inputs, "id": f"{client} {case}"}))
            answer = json.loads(connection.getresponse().read())
            assert answer["id"] == f"{client} {case}"
            assert answer["outputs"][0]["data"] == chosen["action"].tolist()
        connection.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(play, range(16)))


# The routes alone


def test_a_failure_of_the_runtime_is_500_and_logged_without_its_words(discrete, start, tmp_path):
    with start(discrete, code=BROKEN_RUNTIME) as server:
        assert server.request("POST", INFER, REQUEST) == (500, {"error": "internal error"})
        assert server.request("GET", "/v2/health/live")[0] == 200
        _, said = server.stop(signal.SIGTERM)
        assert "RuntimeError: the runtime's own words" in said


def test_actions_that_are_not_finite_never_leave_a_route(continuous, catalog_of):
    routes = make_routes(catalog_of(continuous), ServeOptions(), Metrics())
    body = json.dumps({"instances": [[1e308] * 3]}).encode()
    endpoint = routes["/v1/models/continuous:predict"].select()
    with pytest.raises(FloatingPointError) as raised:
        DirectRunner().run(endpoint.policy, endpoint.admit(endpoint.parse({}, body)))
    assert "not finite" in str(endpoint.refusal(raised.value))
