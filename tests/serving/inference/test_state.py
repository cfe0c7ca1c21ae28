"""A policy with state over HTTP and gRPC: the state goes out with the action, and comes back with the next step."""

import json

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from tests.support.serving.server import serve
from trpo_tf import serving
from trpo_tf.serving.bundle.interface import breaking_change, interface_of
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.codecs.v2_binary import HEADER
from trpo_tf.serving.codecs.v2_json import decode_request, model_metadata
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.rest.openapi import infer_request, infer_response

BUNDLE = BUNDLES / "remembering"
INFER = "/v2/models/remembering/infer"
SEEN = np.random.default_rng(0).uniform(-2, 2, (20, 2)).astype(np.float32)
DATATYPES = {"obs": "FP32", "history": "FP32", "steps": "INT64", "reset": "BOOL"}


@pytest.fixture(scope="module")
def policy():
    return serving.load(BUNDLE)


@pytest.fixture(scope="module", params=["direct", "batching"])
def running(request, tmp_path_factory):
    arguments = ["--batching"] if request.param == "batching" else []
    with serve(BUNDLE, tmp_path_factory.mktemp("server"), *arguments) as server:
        yield server


def tensors(**arrays):
    return [
        {"name": name, "datatype": DATATYPES[name], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]


def arrays_of(answer):
    dtypes = {"FP32": np.float32, "INT64": np.int64}
    return {
        each["name"]: np.array(each["data"], dtypes[each["datatype"]]).reshape(each["shape"])
        for each in answer["outputs"]
    }


def json_step(server, **arrays):
    status, answer = server.request("POST", INFER, {"inputs": tensors(**arrays)})
    assert status == 200, answer
    return arrays_of(answer)


def binary_step(server, **arrays):
    """Everything in binary, as tritonclient sends it by default."""
    inputs, tail = [], []
    for name, array in arrays.items():
        tail.append(array.tobytes())
        inputs.append(
            {
                "name": name,
                "datatype": DATATYPES[name],
                "shape": array.shape,
                "parameters": {"binary_data_size": len(tail[-1])},
            }
        )
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    connection = server.connect()
    connection.request("POST", INFER, head + b"".join(tail), {HEADER.decode(): str(len(head))})
    response = connection.getresponse()
    body, length = response.read(), int(response.headers[HEADER.decode()])
    connection.close()
    answers, place, dtypes = {}, length, {"FP32": np.float32, "INT64": np.int64}
    for each in json.loads(body[:length])["outputs"]:
        size = each["parameters"]["binary_data_size"]
        values = np.frombuffer(body[place : place + size], dtypes[each["datatype"]])
        answers[each["name"]], place = values.reshape(each["shape"]), place + size
    return answers


@pytest.mark.parametrize("step", [json_step, binary_step])
def test_an_episode_is_that_of_a_session_in_process(step, running, policy):
    session = policy.start()
    answers = step(running, obs=SEEN[:1], reset=np.array([True]))
    for number in range(20):
        assert np.array_equal(answers["action"][0], session.act(SEEN[number]))
        assert {name: answers[f"next_{name}"].tolist() for name in session.state} == {
            name: array.tolist() for name, array in session.state.items()
        }
        if number < 19:
            state = {name: answers[f"next_{name}"] for name in ("history", "steps")}
            answers = step(running, obs=SEEN[number + 1 : number + 2], **state)


def test_fresh_and_running_rows_are_one_batch(running, policy):
    history, steps = np.float32([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), np.array([4, 9])
    reset = np.array([False, True])
    answers = json_step(running, obs=SEEN[:2], history=history, steps=steps, reset=reset)
    action, state = policy.step(SEEN[:2], {"history": history, "steps": steps}, reset)
    assert np.array_equal(answers["action"], action)
    assert answers["next_steps"].tolist() == state["steps"].tolist() == [5, 1]
    assert np.array_equal(answers["next_history"][1], [SEEN[1], SEEN[1]])


def test_outputs_that_are_named_are_answered_alone(running):
    document = {"inputs": tensors(obs=SEEN[:1], reset=np.array([True])), "outputs": [{"name": "next_steps"}]}
    status, answer = running.request("POST", INFER, document)
    assert (status, list(arrays_of(answer))) == (200, ["next_steps"])


ONE = {"obs": SEEN[:1], "history": np.zeros((1, 2, 2), np.float32), "steps": np.zeros(1, np.int64)}
WRONG = {
    "input 'history' is missing; send output 'next_history' of the step before": {"obs": ONE["obs"]},
    "input 'steps' is missing": {name: ONE[name] for name in ("obs", "history")},
    "input 'history' is missing; .*or input 'reset' with true in every row to start": {
        "obs": SEEN[:2],
        "reset": np.array([True, False]),
    },
    r"input 'history' must have shape \[batch, 2, 2\], not \[1, 4\]": ONE | {"history": np.zeros((1, 4), np.float32)},
    "input 'history' must have the batch size of the observations, 1": ONE
    | {"history": np.zeros((2, 2, 2), np.float32)},
    r"input 'reset' must have shape \[batch\], not \[1, 1\]": ONE | {"reset": np.zeros((1, 1), bool)},
    "input 'reset' must have the batch size of the observations, 1": ONE | {"reset": np.zeros(2, bool)},
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_state_that_is_wrong_is_named_over_http(reason, running):
    status, answer = running.request("POST", INFER, {"inputs": tensors(**WRONG[reason])})
    assert status == 400
    with pytest.raises(RequestError, match=reason):
        raise RequestError(answer["error"])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"datatype": "FP64"}, "input 'history' must have datatype FP32"),
        ({"data": [1, 2, 3]}, "input 'history' must have 4 elements of data, not 3"),
        ({"data": [1, 2, 3, 1e39]}, "input 'history' holds a number out of range for FP32"),
        ({"data": [1, 2, 3, None]}, "input 'history' must hold nothing but FP32 data"),
    ],
)
def test_a_damaged_state_is_named(changed, reason, policy):
    inputs = tensors(**ONE)
    inputs[1] |= changed
    with pytest.raises(RequestError, match=reason):
        decode_request(json.dumps({"inputs": inputs}).encode(), policy.manifest)


def test_a_state_that_is_not_finite_is_refused_in_binary(running):
    connection, worst = running.connect(), ONE | {"history": np.full((1, 2, 2), np.nan, np.float32)}
    inputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in worst.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    body = head + b"".join(array.tobytes() for array in worst.values())
    connection.request("POST", INFER, body, {HEADER.decode(): str(len(head))})
    response = connection.getresponse()
    assert response.status == 400
    assert "input 'history' holds a value that is not finite" in json.loads(response.read())["error"]
    connection.close()


def test_what_can_t_hold_a_state_says_where_to_send_it(running):
    status, answer = running.request("POST", "/v1/models/remembering:predict", {"instances": SEEN[:1].tolist()})
    assert status == 400
    assert "or send the state to /v2/models/NAME/infer" in answer["error"]
    raw = {HEADER.decode(): "0"}
    status, answer = running.request("POST", INFER, SEEN[:1].tobytes(), raw)
    assert status == 400
    assert "a raw request has no place for a state or a sequence_id; send a JSON part" in answer["error"]
    document = {"inputs": tensors(**ONE), "parameters": {"sequence_id": 7}}
    status, answer = running.request("POST", INFER, document)
    assert status == 400
    assert "give input 'history' or sequence_id, whose state the server keeps, not both" in answer["error"]


def test_metadata_say_what_is_optional_and_which_output_comes_back(policy):
    document = model_metadata(policy.manifest, "1")
    assert {each["name"]: each.get("parameters") for each in document["inputs"]} == {
        "obs": None,
        "history": {"optional": True, "next": "next_history"},
        "steps": {"optional": True, "next": "next_steps"},
        "reset": {"optional": True},
        "noise": {"optional": True, "law": "normal"},
    }
    assert [each["name"] for each in document["outputs"]] == ["action", "next_history", "next_steps"]


def test_the_schema_takes_the_state(policy):
    jsonschema = pytest.importorskip("jsonschema")
    schema, answer = infer_request(policy.manifest), infer_response(policy.manifest)
    for arrays in (ONE, {"obs": SEEN[:1], "reset": np.array([True])}):
        document = json.loads(json.dumps({"inputs": tensors(**arrays)}))
        jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inputs": []}, schema)
    assert len(answer["properties"]["outputs"]["items"]["anyOf"]) == 3


def test_another_state_breaks_clients(policy):
    manifest = policy.manifest
    old, without = interface_of(manifest), interface_of(read_manifest(BUNDLES / "continuous"))
    assert breaking_change(old, old) == ""
    assert "its inputs are" in breaking_change(without, old)


@pytest.fixture(scope="module")
def grpc_running(tmp_path_factory):
    pytest.importorskip("grpc")
    with serve(BUNDLE, tmp_path_factory.mktemp("server"), "--grpc-port", "0") as server:
        yield server


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_tritonclient_plays_an_episode(transport, grpc_running, policy):
    client = pytest.importorskip(f"tritonclient.{transport}")
    port = grpc_running.grpc_port if transport == "grpc" else grpc_running.port

    def tensor(name, array):
        made = client.InferInput(name, list(array.shape), DATATYPES[name])
        made.set_data_from_numpy(array)
        return made

    session, given = policy.start(), {"reset": np.array([True])}
    with client.InferenceServerClient(f"127.0.0.1:{port}") as triton:
        for number in range(8):
            given["obs"] = SEEN[number : number + 1]
            result = triton.infer("remembering", [tensor(name, array) for name, array in given.items()])
            assert np.array_equal(result.as_numpy("action")[0], session.act(SEEN[number]))
            given = {name: result.as_numpy(f"next_{name}") for name in ("history", "steps")}
        with pytest.raises(Exception, match="input 'history' is missing"):
            triton.infer("remembering", [tensor("obs", SEEN[:1])])
