"""Sequences, whose state the server keeps: by tritonclient's own calls over HTTP and gRPC, and what is refused."""

import gzip
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import BUNDLES, ROOT
from tests.support.serving.server import serve
from tests.support.serving.waiting import wait_for
from trpo_tf import serving
from trpo_tf.serving.rest.openapi import infer_request

BUNDLE = BUNDLES / "recurrent"
INFER = "/v2/models/recurrent/infer"
SEEN = np.random.default_rng(0).uniform(-2, 2, (40, 2)).astype(np.float32)
TRANSPORTS = pytest.mark.parametrize("transport", ["http", "grpc"])


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


class Triton:
    """tritonclient over one transport, as its users call it."""

    def __init__(self, server, transport: str, model: str = "recurrent", headers=None):
        self.module = pytest.importorskip(f"tritonclient.{transport}")
        port = server.grpc_port if transport == "grpc" else server.port
        self.client, self.model, self.headers = self.module.InferenceServerClient(f"127.0.0.1:{port}"), model, headers

    def tensor(self, name: str, array: np.ndarray):
        datatypes = {"float32": "FP32", "bool": "BOOL", "float64": "FP64"}
        made = self.module.InferInput(name, list(array.shape), datatypes[str(array.dtype)])
        made.set_data_from_numpy(array)
        return made

    def step(self, observations: np.ndarray, sequence_id, *, start=False, end=False, version="", **more):
        """The answer to one step: `more` are further inputs."""
        inputs = [self.tensor(name, array) for name, array in ({"obs": observations} | more).items()]
        return self.client.infer(
            self.model,
            inputs,
            model_version=version,
            sequence_id=sequence_id,
            sequence_start=start,
            sequence_end=end,
            headers=self.headers,
        )

    def act(self, observation: np.ndarray, sequence_id, **flags) -> np.ndarray:
        return self.step(observation[np.newaxis], sequence_id, **flags).as_numpy("action")[0]

    def refusal(self, observations: np.ndarray, sequence_id, **more) -> str:
        with pytest.raises(self.module.InferenceServerException) as refused:
            self.step(observations, sequence_id, **more)
        return f"{refused.value.status()}: {refused.value.message()}"

    def end(self, *sequence_ids):
        for sequence_id in sequence_ids:
            self.act(SEEN[0], sequence_id, end=True)


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


HIDDEN = np.zeros((1, 8), np.float32)
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


def document(sequence_id, observation=SEEN[0], **parameters):
    data = np.ravel(observation).tolist()
    return {
        "inputs": [{"name": "obs", "datatype": "FP32", "shape": [len(data) // 2, 2], "data": data}],
        "parameters": {"sequence_id": sequence_id, **parameters},
    }


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


@contextmanager
def clients(server, transport, *headers):
    made = [Triton(server, transport, headers=header) for header in headers]
    yield made
    for each in made:
        each.client.close()


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


@TRANSPORTS
def test_an_idle_sequence_expires_and_is_told_from_one_that_never_began(transport, start, scrape):
    with (
        start(BUNDLE, "--grpc-port", "0", "--sequence-idle", "0.2") as server,
        clients(server, transport, None) as (triton,),
    ):
        triton.act(SEEN[0], 1, start=True)
        wait_for(lambda: scrape(server)("trpo_tf_sequences_expired_total", model="recurrent") == 1)
        assert "there is no sequence 1: it expired after 0.2 s without a step" in triton.refusal(SEEN[:1], 1)
        assert "there is no sequence 2: it never began" in triton.refusal(SEEN[:1], 2)
        assert scrape(server)("trpo_tf_errors_total", model="recurrent", kind="no_sequence") == 2
        triton.act(SEEN[0], 1, start=True)


def put(bundle: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(shutil.copytree(bundle, folder.parent / f".{folder.name}")).rename(folder)


@TRANSPORTS
def test_a_sequence_stays_on_its_version_across_a_reload(transport, tmp_path, start, policy, scrape):
    models = tmp_path / "models"
    put(BUNDLE, models / "walk" / "1")
    with start(models, "--poll", "0.05", "--grpc-port", "0") as server:
        triton, session = Triton(server, transport, "walk"), policy.start()
        for number in range(12):
            if number == 4:
                put(BUNDLE, models / "walk" / "2")
                wait_for(lambda: server.request("GET", "/v2/models/walk")[1]["versions"] == ["2"])
            if number == 8:
                put(BUNDLE, models / "walk" / "3")
                wait_for(lambda: server.request("GET", "/v2/models/walk")[1]["versions"] == ["3"])
                triton.act(SEEN[0], 2, start=True)
            answer = triton.step(SEEN[number : number + 1], 1, start=number == 0)
            assert np.array_equal(answer.as_numpy("action")[0], session.act(SEEN[number]))
            told = answer.get_response()
            assert (told["model_version"] if transport == "http" else told.model_version) == "1"
        sample = scrape(server)
        assert [sample("trpo_tf_sequences", model="walk", version=version) for version in "123"] == [1, None, 1]
        shutil.rmtree(models / "walk")
        wait_for(lambda: scrape(server)("trpo_tf_sequences", model="walk", version="1") is None)
        put(BUNDLE, models / "walk" / "4")
        wait_for(lambda: server.request("GET", "/v2/models/walk")[1].get("versions") == ["4"])
        assert "there is no sequence 1: its model was unloaded" in triton.refusal(SEEN[:1], 1)
        triton.client.close()


@TRANSPORTS
def test_a_sequence_that_names_its_version_goes_on_after_it_is_unloaded(transport, tmp_path, start, policy):
    """But no other request reaches the version, nor does a start, nor a step after the end."""
    models, session = tmp_path / "models", policy.start()
    put(BUNDLE, models / "walk" / "1")
    with start(models, "--poll", "0.05", "--grpc-port", "0") as server:
        triton = Triton(server, transport, "walk")
        for number in range(8):
            if number in (2, 4):
                put(BUNDLE, models / "walk" / str(number))
                wait_for(lambda number=number: server.request("GET", "/v2/models/walk")[1]["versions"] == [str(number)])
            action = triton.act(SEEN[number], 1, version="1", start=number == 0, end=number == 7)
            assert np.array_equal(action, session.act(SEEN[number]))
            if number == 5:
                for asked in (
                    {"sequence_id": 0, "hidden": HIDDEN},
                    *({"sequence_id": n, "start": True} for n in (1, 2)),
                ):
                    refusal = triton.refusal(SEEN[:1], version="1", **asked)
                    assert "NOT_FOUND" in refusal or "404: model 'walk' has no version '1' that is loaded" in refusal
                assert re.search("NOT_FOUND|there is no sequence 2", triton.refusal(SEEN[:1], 2, version="1"))
        is_gone = "NOT_FOUND|404: model 'walk' has no version '1' that is loaded"
        wait_for(lambda: re.search(is_gone, triton.refusal(SEEN[:1], 1, version="1")))
        triton.client.close()


@TRANSPORTS
def test_a_canary_counts_sequences_not_their_steps(transport, tmp_path, start):
    for version in "12":
        put(BUNDLE, tmp_path / "models" / "walk" / version)
    options = ("--poll", "0", "--versions", "2", "--canary", "0.25", "--grpc-port", "0")
    with start(tmp_path / "models", *options) as server:
        triton = Triton(server, transport, "walk")
        versions = []
        for sequence in range(1, 9):
            acted = set()
            for step in range(4):
                told = triton.step(SEEN[:1], sequence, start=step == 0, end=step == 3).get_response()
                acted.add(told["model_version"] if transport == "http" else told.model_version)
            versions += acted
        assert versions == ["1", "1", "1", "2"] * 2
        triton.client.close()


@TRANSPORTS
def test_a_sequence_is_its_key_s_alone(transport, tmp_path, start, policy):
    keys, shown = tmp_path / "keys", []
    for name in ("robot", "stranger"):
        command = [sys.executable, "-m", "trpo_tf.serving.keys", name]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        keys.write_text((keys.read_text() if shown else "") + made.stdout)
        shown.append({"authorization": f"Bearer {made.stderr.split()[-1]}"})
    with (
        start(BUNDLE, "--keys", str(keys), "--grpc-port", "0") as server,
        clients(server, transport, *shown) as (robot, stranger),
    ):
        sessions = [policy.start(), policy.start()]
        assert np.array_equal(robot.act(SEEN[0], 1, start=True), sessions[0].act(SEEN[0]))
        assert "there is no sequence 1: it never began" in stranger.refusal(SEEN[:1], 1)
        assert np.array_equal(stranger.act(SEEN[5], 1, start=True), sessions[1].act(SEEN[5]))
        stranger.act(SEEN[6], 1, end=True)
        assert np.array_equal(robot.act(SEEN[1], 1), sessions[0].act(SEEN[1]))


@pytest.mark.parametrize(
    ("options", "why"), [(["--workers", "2"], "has 2 workers"), (["--max-sequences", "0"], "has --max-sequences 0")]
)
def test_a_server_that_keeps_no_state_says_so(options, why, start):
    with start(BUNDLE, *options) as server:
        status, answer = server.request("POST", INFER, document(1, sequence_start=True))
        assert status == 400
        assert answer["error"] == (
            f"sequence_id is not served: the server {why} and keeps no state; send the state with each request"
        )
        assert server.request("GET", "/v2")[1]["extensions"] == ["binary_tensor_data"]


def test_at_sigterm_steps_are_answered_and_a_restarted_server_knows_no_sequence(start, policy):
    session = policy.start()
    with start(BUNDLE) as server:
        connection = server.connect()
        for number in range(8):
            if number == 4:
                server.process.send_signal(signal.SIGTERM)
            connection.request("POST", INFER, json.dumps(document(1, SEEN[number], sequence_start=number == 0)))
            answer = json.loads(connection.getresponse().read())
            assert np.array_equal(np.float32(answer["outputs"][0]["data"]), session.act(SEEN[number]))
        connection.close()
        assert server.process.wait(20) == 0
    with start(BUNDLE) as server:
        status, answer = server.request("POST", INFER, document(1))
        assert status == 409
        assert "there is no sequence 1: it never began, or a server before this one had it" in answer["error"]


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


def test_a_bundle_that_is_replaced_in_its_place_keeps_its_sequences(tmp_path, start, policy):
    put(BUNDLE, tmp_path / "models" / "walk")
    path, session = "/v2/models/walk/infer", policy.start()
    with start(tmp_path / "models", "--poll", "0.05") as server:
        log = server.follow()
        for number in range(6):
            if number == 3:
                put(BUNDLE, tmp_path / "models" / ".new")
                (tmp_path / "models" / "walk").rename(tmp_path / "models" / ".old")
                (tmp_path / "models" / ".new").rename(tmp_path / "models" / "walk")
                wait_for(lambda: "loaded walk" in "".join(log))
            status, answer = server.request("POST", path, document(1, SEEN[number], sequence_start=number == 0))
            assert status == 200, answer
            assert np.array_equal(np.float32(answer["outputs"][0]["data"]), session.act(SEEN[number]))
