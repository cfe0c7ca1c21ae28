"""Sequences, whose state the server keeps: by tritonclient's own calls over HTTP and gRPC, and what is refused."""

import gzip
import json
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import BUNDLES, ROOT
from tests.support.serving.server import serve
from tests.support.serving.triton_sequences import BUNDLE, HIDDEN, INFER, SEEN, TRANSPORTS, Triton, clients, document
from trpo_tf import serving
from trpo_tf.serving.rest.openapi import infer_request


@pytest.fixture(scope="module")
def policy():
    return serving.load(BUNDLE)


@pytest.fixture(scope="module", params=["direct", "batching"])
def running(request, tmp_path_factory):
    """A server that keeps eight sequences, over HTTP and gRPC."""
    pytest.importorskip("grpc")
    arguments = ["--grpc-port", "0", "--max-sequences", "8", *(["--batching"] if request.param == "batching" else [])]
    with serve(BUNDLE, tmp_path_factory.mktemp("server"), *arguments) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def triton(request, running):
    made = Triton(running, request.param)
    yield made
    made.client.close()


def test_an_episode_is_that_of_a_session_in_process(triton, policy):
    session = policy.start()
    for number, observation in enumerate(SEEN):
        action = triton.act(observation, 1, start=number == 0, end=number == len(SEEN) - 1)
        assert np.array_equal(action, session.act(observation))
    assert "409" in (refusal := triton.refusal(SEEN[:1], 1)) or "FAILED_PRECONDITION" in refusal
    assert "there is no sequence 1: it has ended; begin one with sequence_start" in refusal


def test_interleaved_sequences_do_not_touch(triton, policy):
    sessions = {7: policy.start(), "7": policy.start(), "x" * 128: policy.start(), 2**63 - 1: policy.start()}
    for number in range(8):
        for offset, (name, session) in enumerate(sessions.items()):
            observation = SEEN[number + 7 * offset]
            assert np.array_equal(triton.act(observation, name, start=number == 0), session.act(observation))
    triton.end(*sessions)


def test_a_start_begins_a_running_sequence_anew(triton, policy):
    session = policy.start()
    for number in range(6):
        if number == 3:
            session.reset()
        action = triton.act(SEEN[number], 5, start=number in (0, 3))
        assert np.array_equal(action, session.act(SEEN[number]))
    triton.end(5)


def test_rows_are_episodes_in_step_and_reset_starts_some_of_them(triton, policy):
    session = policy.start(3)
    for number in range(6):
        observations, reset = SEEN[3 * number : 3 * number + 3], np.array([False, number == 2, number > 3])
        if number:
            session.reset(reset)
        answer = triton.step(observations, 5, start=number == 0, **({"reset": reset} if number else {}))
        np.testing.assert_array_equal(answer.as_numpy("action"), session.act(observations))
    assert "sequence 5 has 3 rows, not 2; give as many in each step" in triton.refusal(SEEN[:2], 5)
    triton.step(SEEN[:3], 5, end=True)


def test_the_next_state_is_answered_where_it_is_asked_for(triton, policy):
    assert triton.step(SEEN[:1], 5, start=True).as_numpy("next_hidden") is None
    inputs, output = [triton.tensor("obs", SEEN[1:2])], triton.module.InferRequestedOutput("next_hidden")
    answer = triton.client.infer("recurrent", inputs, outputs=[output], sequence_id=5)
    session = policy.start()
    session.act(SEEN[0])
    session.act(SEEN[1])
    assert np.array_equal(answer.as_numpy("next_hidden"), session.state["hidden"])
    assert answer.as_numpy("action") is None
    assert np.array_equal(triton.act(SEEN[2], 5), session.act(SEEN[2]))
    triton.end(5)


WRONG = {
    "there is no sequence 99: it never began, or a server before this one had it; begin one with sequence_start": {
        "sequence_id": 99
    },
    "there is no sequence '99'": {"sequence_id": "99"},
    "a text of at most 128 characters": {"sequence_id": "x" * 129, "start": True},
    "give input 'hidden' or sequence_id, whose state the server keeps, not both": {"hidden": HIDDEN},
    "input 'reset' must have shape [batch], not [1, 1]": {"reset": np.zeros((1, 1), bool)},
    "input 'reset' must have the batch size of the observations, 1": {"reset": np.zeros(2, bool)},
    "input 'reset' must have datatype BOOL": {"reset": np.zeros(1, np.float32)},
    "a sequence may have 8 rows at most, not 9": {"observations": SEEN[:9], "start": True},
    "input 'obs' holds a value that is not finite": {"observations": np.full((1, 2), np.nan, np.float32)},
    "input 'obs' must have shape [batch, 2]": {"observations": SEEN[:1, :1], "start": True},
    "input 'obs' must have datatype FP32": {"observations": SEEN[:1].astype(np.float64), "end": True},
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_is_wrong_is_named_and_the_sequence_stays_as_it_was(reason, triton, policy):
    session = policy.start()
    assert np.array_equal(triton.act(SEEN[0], 5, start=True), session.act(SEEN[0]))
    assert reason in triton.refusal(**{"observations": SEEN[:1], "sequence_id": 5} | WRONG[reason])
    assert np.array_equal(triton.act(SEEN[1], 5, end=True), session.act(SEEN[1]))


STATES = {
    "input 'hidden' is missing; send output 'next_hidden' of the step before": {},
    "input 'hidden' must have shape [batch, 8], not [1, 7]": {"hidden": HIDDEN[:, :7]},
    "input 'hidden' must have datatype FP32": {"hidden": HIDDEN.astype(np.float64)},
    "input 'hidden' must have the batch size of the observations, 1": {"hidden": np.zeros((2, 8), np.float32)},
    "input 'hidden' holds a value that is not finite": {"hidden": np.full((1, 8), np.inf, np.float32)},
    "input 'reset' must have shape [batch], not [1, 1]": {"hidden": HIDDEN, "reset": np.zeros((1, 1), bool)},
}


@pytest.mark.parametrize("reason", STATES)
def test_a_state_of_the_client_that_is_wrong_is_named(reason, triton):
    assert reason in triton.refusal(SEEN[:1], 0, **STATES[reason])


@pytest.mark.parametrize("reason", ["holds a number out of range|not finite", "must have shape", "is missing"])
@pytest.mark.parametrize("is_raw", [True, False])
def test_typed_and_raw_contents_say_the_same(reason, is_raw, running):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER

    request = MODEL_INFER.request(model_name="recurrent")
    numbers = {"obs": SEEN[:1], "hidden": np.full((1, 7 if "shape" in reason else 8), np.nan, np.float32)}
    for name, array in numbers.items():
        if name == "obs" or "missing" not in reason:
            tensor = request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            if is_raw:
                request.raw_input_contents.append(array.tobytes())
            else:
                tensor.contents.fp32_contents.extend(array.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        call = channel.unary_unary(MODEL_INFER.path, MODEL_INFER.request.SerializeToString)
        with pytest.raises(grpc.RpcError, match=reason) as refused:
            call(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_json_plays_an_episode_and_names_what_is_wrong(running, policy):
    session = policy.start()
    for number in range(4):
        asked = document(2**64 - 1, SEEN[number], sequence_start=number == 0, sequence_end=number == 3)
        status, answer = running.request("POST", INFER, asked)
        assert status == 200, answer
        assert [output["name"] for output in answer["outputs"]] == ["action"]
        assert np.array_equal(np.float32(answer["outputs"][0]["data"]), session.act(SEEN[number]))
    for parameters, reason in [
        ({"sequence_id": 1.5}, "sequence_id must be an integer of 64 bits, or a text"),
        ({"sequence_id": True}, "sequence_id must be an integer of 64 bits, or a text"),
        ({"sequence_id": 2**64}, "JSON|sequence_id must be an integer of 64 bits"),
        ({"sequence_id": None}, "sequence_id must be an integer of 64 bits, or a text"),
        ({"sequence_id": 0, "sequence_start": True}, "need a sequence_id, which is neither 0 nor empty"),
        ({"sequence_end": True}, "need a sequence_id, which is neither 0 nor empty"),
        ({"sequence_id": 1, "sequence_start": 1}, "sequence_start and sequence_end must be true or false"),
    ]:
        status, answer = running.request("POST", INFER, document(0) | {"parameters": parameters})
        assert status == 400
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(answer["error"])
    assert running.request("POST", INFER, document(3))[0] == 409
    # 0, as tritonclient has it, is no sequence: the state is the client's.
    assert "input 'hidden' is missing" in running.request("POST", INFER, document(0))[1]["error"]


def test_the_schema_takes_a_sequence_of_a_policy_with_state(policy):
    jsonschema = pytest.importorskip("jsonschema")
    schema = infer_request(policy.manifest)
    for sequence_id in (7, "seven"):
        jsonschema.validate(document(sequence_id, sequence_start=True), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document(1.5), schema)
    stateless = infer_request(serving.load(BUNDLES / "discrete").manifest)
    assert "sequence_id" not in json.dumps(stateless)


def test_the_snippet_of_the_page_plays_an_episode(running):
    pytest.importorskip("tritonclient.http")
    page = (ROOT / "docs" / "reference" / "serve" / "http.md").read_text()
    (snippet,) = re.findall(r"```python\n(import numpy, tritonclient.*?)```", page, re.DOTALL)
    code = snippet.replace("127.0.0.1:8080", f"127.0.0.1:{running.port}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 100), done.stderr


def test_predictions_keep_their_state_on_the_server_too(running, policy):
    session, path = policy.start(), "/v1/models/recurrent:predict"
    for number in range(4):
        parameters = {"sequence_id": "walk", "sequence_start": number == 0, "sequence_end": number == 3}
        asked = {"instances": [SEEN[number].tolist()], "parameters": parameters}
        status, answer = running.request("POST", path, asked)
        assert status == 200, answer
        assert np.array_equal(np.float32(answer["predictions"][0]), session.act(SEEN[number]))
    status, answer = running.request("POST", path, {"instances": [SEEN[0].tolist()]})
    assert status == 400
    assert "give parameters.sequence_id, whose state the server keeps" in answer["error"]


@TRANSPORTS
def test_beyond_max_sequences_none_begins_and_those_that_run_go_on(transport, running, policy, scrape):
    refused = scrape(running)("trpo_tf_sequences_refused_total", model="recurrent") or 0
    with clients(running, transport, None) as (triton,):
        triton.step(SEEN[:6], "six", start=True)
        for number in (1, 2):
            triton.act(SEEN[0], number, start=True)
        assert scrape(running)("trpo_tf_sequences", model="recurrent", version="1") == 3
        refusal = triton.refusal(SEEN[:1], 3, start=True)
        assert "503" in refusal or "RESOURCE_EXHAUSTED" in refusal
        assert "too many sequences are running; come again" in refusal
        triton.act(SEEN[1], 1, start=True)  # anew, in its own place
        session = policy.start()
        session.act(SEEN[1])
        assert np.array_equal(triton.act(SEEN[2], 1), session.act(SEEN[2]))
        triton.end(1)
        triton.act(SEEN[0], 3, start=True)
        triton.step(SEEN[:6], "six", end=True)
        triton.end(2, 3)
    sample = scrape(running)
    assert sample("trpo_tf_sequences_refused_total", model="recurrent") == refused + 1
    assert sample("trpo_tf_sequences", model="recurrent", version="1") is None
    status, answer = running.request("POST", INFER, document(9, SEEN[:9], sequence_start=True))
    assert (status, answer["error"]) == (400, "a sequence may have 8 rows at most, not 9")


def test_samples_and_compressed_bodies_belong_to_a_sequence_too(running, policy):
    session, connection = policy.start(), running.connect()
    for number in range(4):
        asked = document("gz", SEEN[number], sequence_start=number == 0, deterministic=False, seed=number)
        body = gzip.compress(json.dumps(asked).encode())
        connection.request("POST", INFER, body, {"content-encoding": "gzip"})
        (answer,) = json.loads(connection.getresponse().read())["outputs"]
        rng = np.random.default_rng(number)
        expected = session.act(SEEN[number], deterministic=False, rng=rng)
        assert np.array_equal(np.float32(answer["data"]), expected)
    connection.close()
    assert running.request("POST", INFER, document("gz", sequence_end=True))[0] == 200


def test_steps_that_are_sent_without_waiting_are_made_in_order(running, policy):
    session, steps = policy.start(), b""
    for number in range(6):
        body = json.dumps(document("fast", SEEN[number], sequence_start=number == 0, sequence_end=number == 5)).encode()
        steps += b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (INFER.encode(), len(body), body)
    with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
        connection.sendall(steps)
        received = b""
        while received.count(b"]}]}") < 6:
            received += connection.recv(65536)
    found = [float(number) for number in re.findall(rb'"data":\[([-+.e0-9]+)\]', received)]
    assert np.array_equal(np.float32(found), [session.act(SEEN[number])[0] for number in range(6)])
