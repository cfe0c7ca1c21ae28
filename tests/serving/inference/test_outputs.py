"""A policy that answers more than its action: `judged` has logits and a value, which is NaN for a negative number."""

import json

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving.codecs.v2_json import model_metadata

ALL = ["action", "logits", "value"]
ROWS = np.float32([[0.25, 0.5], [0.04, -1.0]])
ROW_WITHOUT_VALUE = np.float32([[-0.25, 0.5]])
INFER = "/v2/models/judged/infer"


def asked(rows, *names, **document):
    tensor = {"name": "obs", "datatype": "FP32", "shape": [len(rows), 2], "data": rows.ravel().tolist()}
    chosen = {"outputs": [{"name": name} for name in names]} if names else {}
    return {"inputs": [tensor], **chosen, **document}


@pytest.fixture(scope="module")
def policy(judged):
    return serving.load(judged)


@pytest.fixture(scope="module")
def expected(policy):
    """What the graph answers, by ONNX Runtime itself."""
    return dict(zip(ALL, policy._session.run(ALL, {"obs": ROWS}), strict=True))


def test_in_process_all_are_answered_or_those_that_are_named(policy, expected):
    answers = policy.infer(ROWS)
    assert list(answers) == ALL
    for name in ALL:
        np.testing.assert_array_equal(answers[name], expected[name])
        assert answers[name].dtype == expected[name].dtype
    np.testing.assert_allclose(answers["value"], [0.5, 0.2], rtol=1e-6)
    assert list(policy.infer(ROWS, outputs=["value", "action"])) == ["value", "action"]
    np.testing.assert_array_equal(policy.run(ROWS), expected["action"])


def test_what_is_not_finite_is_never_returned_and_what_is_not_asked_for_does_no_harm(policy):
    with pytest.raises(FloatingPointError, match="output 'value' is not finite"):
        policy.infer(ROW_WITHOUT_VALUE)
    assert policy.infer(ROW_WITHOUT_VALUE, outputs=["action", "logits"])["logits"].shape == (1, 3)
    assert policy.run(ROW_WITHOUT_VALUE).shape == (1,)
    assert policy.act(ROW_WITHOUT_VALUE[0]) == policy.run(ROW_WITHOUT_VALUE)[0]


def test_the_metadata_has_them(policy):
    assert model_metadata(policy.manifest, "1")["outputs"] == [
        {"name": "action", "datatype": "INT64", "shape": [-1]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "value", "datatype": "FP32", "shape": [-1]},
    ]


@pytest.mark.parametrize("names", [[], ["value"], ["value", "action"]])
def test_over_http(judged_server, expected, names):
    status, answer = judged_server.request("POST", INFER, asked(ROWS, *names))
    assert status == 200
    assert [output["name"] for output in answer["outputs"]] == (names or ALL)
    for output in answer["outputs"]:
        values = expected[output["name"]]
        assert output["shape"] == list(values.shape)
        np.testing.assert_array_equal(np.array(output["data"], values.dtype).reshape(values.shape), values)


def test_over_http_a_value_that_is_not_finite_is_500_unless_it_is_left_out(judged_server):
    status, answer = judged_server.request("POST", INFER, asked(ROW_WITHOUT_VALUE))
    assert (status, answer["error"].split(";")[0]) == (500, "output 'value' is not finite")
    assert judged_server.request("POST", INFER, asked(ROW_WITHOUT_VALUE, "action"))[0] == 200
    body = {"instances": ROW_WITHOUT_VALUE.tolist()}
    status, answer = judged_server.request("POST", "/v1/models/judged:predict", body)
    assert (status, len(answer["predictions"])) == (200, 1)


@pytest.mark.parametrize(("names", "part"), [(["other"], "not 'other'"), (["value", "value"], "'value' twice")])
def test_over_http_one_that_is_unknown_or_there_twice_is_refused(judged_server, names, part):
    status, answer = judged_server.request("POST", INFER, asked(ROWS, *names))
    assert status == 400
    assert part in answer["error"]


@pytest.mark.parametrize("binary", [{"action"}, {"logits", "value"}, set(ALL)])
def test_tritonclient_gets_each_as_it_asks_for_it(judged_server, expected, binary):
    httpclient = pytest.importorskip("tritonclient.http")
    tensor = httpclient.InferInput("obs", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)
    outputs = [httpclient.InferRequestedOutput(name, binary_data=name in binary) for name in ALL]
    with httpclient.InferenceServerClient(f"127.0.0.1:{judged_server.port}") as client:
        result = client.infer("judged", [tensor], outputs=outputs)
        everything = client.infer("judged", [tensor])
    for output in result.get_response()["outputs"]:
        assert ("data" in output) is (output["name"] not in binary)
    for name in ALL:
        np.testing.assert_array_equal(result.as_numpy(name), expected[name])
        np.testing.assert_array_equal(everything.as_numpy(name), expected[name])


def test_a_raw_request_is_answered_with_all(judged_server, expected):
    connection = judged_server.connect()
    connection.request("POST", INFER, ROWS.tobytes(), {"Inference-Header-Content-Length": "0"})
    response = connection.getresponse()
    body, length = response.read(), int(response.headers["inference-header-content-length"])
    connection.close()
    assert [output["name"] for output in json.loads(body[:length])["outputs"]] == ALL
    assert body[length:] == b"".join(expected[name].tobytes() for name in ALL)
