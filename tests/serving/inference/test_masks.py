"""A policy with a mask of legal actions over HTTP and gRPC: a mask without an action is the client's error alone."""

import threading

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from tests.support.serving.server import serve
from trpo_tf import serving
from trpo_tf.serving.runtime.action_masks import legal_rows

BUNDLE = BUNDLES / "masked"
INFER = "/v2/models/masked/infer"
WORDS = "'action_mask' allows no action{}: one option of each of the 2 choices must be 1 or true"
SEEN = np.random.default_rng(0).uniform(-3, 3, (40, 2)).astype(np.float32)
MASK = np.tile(np.int8([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 1, 0, 1, 1], [0, 0, 1, 1, 1]]), (10, 1))


@pytest.fixture(scope="module", params=["reject", "clip", "allow"])
def running(request, tmp_path_factory):
    """One of the servers joins requests to batches."""
    arguments = ["--out-of-bounds", request.param, *(["--batching"] if request.param == "clip" else [])]
    with serve(BUNDLE, tmp_path_factory.mktemp("server"), *arguments) as server:
        yield server


def asked(mask, seen=SEEN):
    return {
        "inputs": [
            {"name": "obs", "datatype": "FP32", "shape": seen.shape, "data": seen.ravel().tolist()},
            {"name": "action_mask", "datatype": "INT8", "shape": mask.shape, "data": mask.ravel().tolist()},
        ]
    }


def test_actions_are_those_in_process_and_legal(running):
    for deterministic in (True, False):
        status, answer = running.request("POST", INFER, asked(MASK) | {"parameters": {"deterministic": deterministic}})
        assert status == 200, answer
        actions = np.reshape(answer["outputs"][0]["data"], (40, 2))
        policy = serving.load(BUNDLE)
        assert legal_rows(actions, {"action_mask": MASK}, "action_mask", policy.manifest.action).all()
        if deterministic:
            np.testing.assert_array_equal(actions, policy.act_batch({"obs": SEEN, "action_mask": MASK}))


def test_a_mask_without_an_action_is_refused_in_words_and_the_others_are_answered(running):
    answers = {}

    def ask(place):
        mask = MASK[:3].copy()
        if place % 2:
            mask[2, 3:] = 0  # no option of the second choice
        answers[place] = running.request("POST", INFER, asked(mask, SEEN[:3]))

    threads = [threading.Thread(target=ask, args=[place]) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, (status, answer) in answers.items():
        assert (status, "error" in answer) == ((400, True) if place % 2 else (200, False)), answer
        if place % 2:
            assert WORDS.format(" in row 2") in answer["error"]
    status, answer = running.request("POST", INFER, asked(0 * MASK[:1], SEEN[:1]))
    assert (status, WORDS.format("") in answer["error"]) == (400, True)


def test_tensorflow_serving_s_form_and_grpc_say_the_same(tmp_path):
    grpc = pytest.importorskip("grpc")
    tritonclient = pytest.importorskip("tritonclient.grpc")
    with serve(BUNDLE, tmp_path, "--grpc-port", "0") as server:
        row = {"obs": SEEN[0].tolist(), "action_mask": [0, 0, 0, 1, 1]}
        status, answer = server.request("POST", "/v1/models/masked:predict", {"instances": [row]})
        assert (status, WORDS.format("") in answer["error"]) == (400, True)
        inputs = []
        for name, datatype, array in (("obs", "FP32", SEEN[:2]), ("action_mask", "INT8", 0 * MASK[:2])):
            inputs.append(tritonclient.InferInput(name, array.shape, datatype))
            inputs[-1].set_data_from_numpy(array)
        with tritonclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            with pytest.raises(tritonclient.InferenceServerException, match="allows no action in row 0") as error:
                client.infer("masked", inputs)
            assert error.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
            inputs[1].set_data_from_numpy(MASK[:2])
            actions = client.infer("masked", inputs).as_numpy("action")
        expected = serving.load(BUNDLE).act_batch({"obs": SEEN[:2], "action_mask": MASK[:2]})
        np.testing.assert_array_equal(actions, expected)
