"""Outputs that are not finite: the client's error where its observation explains them, else the server's own."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec, Statistics
from trpo_tf.serving.runtime.not_finite import NotFiniteError, check_finite

INFER = "/v2/models/judged/infer"
NAN = np.float32(np.nan)


@pytest.fixture(scope="module")
def manifest(judged):
    return serving.load(judged).manifest


def is_absurd(manifest, rows, values=None, **more) -> bool:
    values = np.full(len(rows), NAN) if values is None else np.float32(values)
    with pytest.raises(NotFiniteError, match="'value' is not finite") as raised:
        check_finite({"value": values}, {manifest.observation[0].name: rows, **more}, manifest)
    return raised.value.is_absurd


def test_finite_outputs_and_integers_pass(manifest):
    check_finite({"value": np.float32([1]), "action": np.int64([1])}, {"obs": np.float32([[1e30, 0]])}, manifest)


def test_without_bounds_and_statistics_absurd_is_what_has_no_square(manifest):
    assert is_absurd(manifest, np.float32([[0, -1e30]]))
    assert not is_absurd(manifest, np.float32([[0, 1e19]]))
    spec = replace(manifest.observation[0], dtype="float64")
    assert is_absurd(replace(manifest, observation=(spec,)), np.array([[0, 1e30]]))
    spec = replace(spec, dtype="float16")
    assert is_absurd(replace(manifest, observation=(spec,)), np.float16([[0, 300]]))


def test_every_row_that_is_not_finite_must_be_explained(manifest):
    rows = np.float32([[1e30, 0], [1, 1], [2, 2]])
    assert is_absurd(manifest, rows, [NAN, 0, 0])
    assert not is_absurd(manifest, rows, [NAN, NAN, 0])
    assert not is_absurd(manifest, rows, [0, 0, np.inf])


def test_bounds_and_training_say_what_is_absurd(manifest):
    bounded = replace(manifest, observation=(replace(manifest.observation[0], low=(-4.8, -np.inf), high=4.8),))
    assert is_absurd(bounded, np.float32([[5, 0]]))
    assert not is_absurd(bounded, np.float32([[4.8, -1e9]])), "a float32 at its bound is inside"
    trained = replace(manifest, statistics={"obs": Statistics((100.0, 0.0), (1.0, 1e-3))})
    assert is_absurd(trained, np.float32([[100, 2e3]]))
    assert not is_absurd(trained, np.float32([[9e5, 0]]))


def test_noise_and_parts_may_be_absurd_too(manifest):
    row = np.float32([[1, 1]])
    assert is_absurd(manifest, row, noise=np.float32([[0, 1e30, 0]]))
    assert not is_absurd(manifest, row, noise=np.float32([[0, 9, 0]]))
    parts = replace(
        manifest,
        observation=(
            ArraySpec("a", "float32", ()),
            ArraySpec("b", "uint8", (2, 2)),
            ArraySpec("c", "bool", (1,), 0, 1),
        ),
        noise=NoiseSpec("normal", (1,)),
    )
    plain = {"b": np.full((1, 2, 2), 255, np.uint8), "c": np.array([[True]])}
    assert is_absurd(parts, np.float32([1e30]), **plain)
    assert not is_absurd(parts, np.float32([1]), **plain)


@pytest.fixture(scope="module", params=[(), ("--batching",)], ids=["alone", "batching"])
def trained_server(request, judged, tmp_path_factory):
    """Of a bundle that says what it was trained on: its value is the square root of the first number."""
    from tests.support.serving.server import serve

    folder = tmp_path_factory.mktemp("trained")
    bundle = shutil.copytree(judged, folder / "judged")
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["statistics"] = {"obs": {"mean": [1.0, 0.0], "stddev": [1.0, 1.0]}}
    path.write_text(json.dumps(document))
    with serve(bundle, folder, *request.param, "--grpc-port", "0") as running:
        yield running


def tensor(*row):
    return {"name": "obs", "datatype": "FP32", "shape": [1, 2], "data": row}


def test_an_absurd_observation_is_no_error_of_the_server(trained_server, scrape):
    """The alert counts 5xx, and so what a client did wrong must not be among them; what the policy did must."""
    pytest.importorskip("grpc")
    client = pytest.importorskip("tritonclient.grpc")
    for first, status in ((-1e8, 400), (-2.0, 500), (2.0, 200)):
        answer = trained_server.request("POST", INFER, {"inputs": [tensor(first, 0)]})
        assert answer[0] == status, answer
    with client.InferenceServerClient(f"127.0.0.1:{trained_server.grpc_port}") as triton:
        for first, status in ((-1e8, "INVALID_ARGUMENT"), (-2.0, "INTERNAL")):
            asked = client.InferInput("obs", [1, 2], "FP32")
            asked.set_data_from_numpy(np.float32([[first, 0]]))
            with pytest.raises(Exception, match="not finite") as raised:
                triton.infer("judged", [asked])
            assert raised.value.status() == f"StatusCode.{status}"
    value = scrape(trained_server)
    for protocol, code in (("http", "400"), ("http", "500"), ("grpc", "INVALID_ARGUMENT"), ("grpc", "INTERNAL")):
        labels = {"model": "judged", "version": "1", "protocol": protocol, "code": code}
        assert value("trpo_tf_requests_total", **labels) == 1
    assert value("trpo_tf_errors_total", model="judged", kind="not_finite") == 4
    assert value("trpo_tf_errors_total", model="judged", kind="internal") is None
