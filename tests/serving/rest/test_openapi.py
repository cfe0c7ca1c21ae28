"""The document that the server publishes of itself: what it allows is what the server takes, and it stays small."""

import copy
import json
import time
from dataclasses import replace

import pytest

from trpo_tf.serving.bundle.specs import ArraySpec
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.canary import make_release
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.repository.discovery import resolve_source
from trpo_tf.serving.repository.loading import load_model
from trpo_tf.serving.rest.openapi import describe, infer_request
from trpo_tf.serving.rest.routes import make_routes

jsonschema = pytest.importorskip("jsonschema")

OBS = {"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
NOISE = {"name": "noise", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}
OTHER = {**OBS, "name": "other"}
MODELS = 500


def is_valid(document, schema, value) -> bool:
    return jsonschema.Draft202012Validator({**document, **schema}).is_valid(value)


def request_schema(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"inputs": [OBS]}, True),
        ({"inputs": [NOISE, OBS], "id": "7"}, True),
        ({"inputs": [OBS], "outputs": [{"name": "action"}]}, True),
        ({"inputs": [{**OBS, "shape": [2, 4], "data": [[0] * 4] * 2}]}, True),
        ({}, False),
        ({"inputs": []}, False),
        ({"inputs": [NOISE]}, False),
        ({"inputs": [OTHER]}, False),
        ({"inputs": [OBS, OBS]}, False),
        ({"inputs": [OBS, OTHER]}, False),
        ({"inputs": [{**OBS, "datatype": "FP64"}]}, False),
        ({"inputs": [{**OBS, "shape": [4]}]}, False),
        ({"inputs": [OBS], "outputs": [{"name": "other"}]}, False),
    ],
)
def test_the_document_and_the_server_agree_on_a_request(server, body, fits):
    document = server.request("GET", "/openapi.json")[1]
    schema = request_schema(document, "/v2/models/discrete/infer")
    assert is_valid(document, schema, body) is fits
    assert server.request("POST", "/v2/models/discrete/infer", body)[0] == (200 if fits else 400)


def test_each_of_several_inputs_is_required(catalog_of, discrete):
    manifest = catalog_of(discrete).find("discrete").policy.manifest
    specs = ArraySpec("a", "float32", ()), ArraySpec("b", "bool", (2,))
    schema = infer_request(replace(manifest, observation=specs))
    a = {"name": "a", "datatype": "FP32", "shape": [1], "data": [0]}
    b = {"name": "b", "datatype": "BOOL", "shape": [1, 2], "data": [True, False]}
    assert is_valid({}, schema, {"inputs": [b, a]})
    for inputs in ([a], [b], [a, a], [a, b, b]):
        assert not is_valid({}, schema, {"inputs": inputs})


def test_answers_fit_the_document(server):
    document = server.request("GET", "/openapi.json")[1]
    for path, body in (
        ("v2/models/discrete/infer", {"inputs": [OBS]}),
        ("v1/models/discrete:predict", {"instances": [[0] * 4]}),
    ):
        reference = document["paths"][f"/{path}"]["post"]["responses"]["200"]["$ref"].rpartition("/")[2]
        schema = document["components"]["responses"][reference]["content"]["application/json"]["schema"]
        assert is_valid(document, schema, server.request("POST", f"/{path}", body)[1])
        assert not is_valid(document, schema, {"error": "no"})


@pytest.fixture(scope="module")
def many(discrete, continuous):
    """A catalog of many models, of two kinds."""
    loaded = [load_model(resolve_source(bundle).only) for bundle in (discrete, continuous)]

    def model(number: int):
        kind = loaded[number % 2]
        return replace(kind, name=f"model {number}", policy=copy.copy(kind.policy))

    return Catalog({f"model {number}": make_release([model(number)]) for number in range(MODELS)})


def test_models_alike_share_their_schemas(many):
    document = describe(many, ServeOptions())
    assert {path for path in document["paths"] if path.endswith("/versions/1/infer")} == {
        f"/v2/models/model%20{number}/versions/1/infer" for number in range(MODELS)
    }
    assert len(document["components"]["schemas"]) == 1 + 2 * 4
    assert len(json.dumps(document)) < 1_300_000
    schema = request_schema(document, "/v2/models/model%200/infer")
    assert is_valid(document, schema, {"inputs": [OBS]})
    assert not is_valid(document, request_schema(document, "/v2/models/model%201/infer"), {"inputs": [OBS]})


def test_what_one_more_model_costs_does_not_grow_with_the_others(many):
    known, options, metrics = {}, ServeOptions(), Metrics()

    def seconds(catalog) -> float:
        started = time.perf_counter()
        make_routes(catalog, options, metrics, known)
        return time.perf_counter() - started

    first = seconds(many)
    more = []
    for number in range(5):
        release = make_release(
            [replace(many.find("model 0"), name="more", policy=copy.copy(many.find("model 0").policy))]
        )
        catalog = Catalog({**many.releases, f"more {number}": release})
        more.append(seconds(catalog))
    assert min(more) < first / 5
    routes = make_routes(catalog, options, metrics, known)
    assert routes["/v2/models/more 4/infer"].select().policy is release.versions["1"].policy
    assert "/v2/models/more 3/infer" not in routes
