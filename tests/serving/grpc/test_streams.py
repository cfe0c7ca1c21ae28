"""ModelStreamInfer: tritonclient's streams of sequences, errors inside a stream, limits, and the end of a server."""

import asyncio
import queue
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from tests.support.paths import BUNDLES, ROOT
from tests.support.serving.server import serve
from tests.support.serving.waiting import wait_for
from trpo_tf import serving

grpc = pytest.importorskip("grpc")
tritonclient = pytest.importorskip("tritonclient.grpc")

from trpo_tf.serving.codecs.grpc_messages import MODEL_STREAM_INFER  # noqa: E402
from trpo_tf.serving.grpc.limits import LOOK_SECONDS, BusyError, StoppingError, StreamReader  # noqa: E402

BUNDLE = BUNDLES / "recurrent"
SEEN = np.random.default_rng(0).uniform(-2, 2, (40, 2)).astype(np.float32)
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def policy():
    return serving.load(BUNDLE)


@pytest.fixture(scope="module", params=["direct", "batching"])
def running(request, tmp_path_factory):
    with serve(
        BUNDLE,
        tmp_path_factory.mktemp("server"),
        *["--grpc-port", "0", "--max-buffered", str(8 * 2**20), "--access-log"],
        *(["--batching"] if request.param == "batching" else []),
    ) as server:
        server.log = server.follow()
        yield server


class Stream:
    """A stream of tritonclient, used as its sequence example does."""

    def __init__(self, server, headers=None, **more):
        self.client = tritonclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), headers=headers, **more)

    def send(self, observations, sequence_id, *, start=False, end=False, **more):
        tensor = tritonclient.InferInput("obs", list(np.shape(observations)), "FP32")
        tensor.set_data_from_numpy(np.asarray(observations))
        self.client.async_stream_infer(
            "recurrent", [tensor], sequence_id=sequence_id, sequence_start=start, sequence_end=end, **more
        )

    def receive(self):
        """The next answer, and its error."""
        return self.answers.get(timeout=20)

    def action(self):
        result, error = self.receive()
        assert error is None, error
        return result.as_numpy("action")[0]

    def close(self, *, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


@contextmanager
def stream(server, **more):
    made = Stream(server, **more)
    try:
        yield made
    finally:
        made.close(cancel=True)


def test_two_interleaved_episodes_sent_without_waiting_are_those_of_sessions(running, policy, scrape):
    """Answers come in the order of the requests, each with its id, and each request is counted and logged."""
    labels = {"model": "recurrent", "version": "1", "protocol": "grpc", "code": "OK"}
    before = scrape(running)("trpo_tf_requests_total", **labels) or 0
    episodes = {1007: SEEN, "backwards": SEEN[::-1]}
    with stream(running) as made:
        for number in range(40):
            for name, observations in episodes.items():
                flags = {"start": number == 0, "end": number == 39}
                made.send(observations[number : number + 1], name, **flags, request_id=f"{name}-{number}")
        sessions = {name: policy.start() for name in episodes}
        for number in range(40):
            for name, observations in episodes.items():
                result, error = made.receive()
                assert error is None, error
                answer = result.get_response()
                assert (answer.id, answer.model_version) == (f"{name}-{number}", "1")
                assert answer.parameters["triton_final_response"].bool_param
                assert np.array_equal(result.as_numpy("action")[0], sessions[name].act(observations[number]))
        made.client.stop_stream()  # which returns once the server has ended the stream
    value = scrape(running)
    assert value("trpo_tf_requests_total", **labels) == before + 80
    assert value("trpo_tf_requests_in_flight") == 1  # the scrape
    assert value("trpo_tf_sequences", model="recurrent", version="1") is None
    wait_for(lambda: sum(f"method={STREAM} code=OK" in line for line in running.log) >= 80)


def test_a_request_that_fails_is_answered_in_its_turn_and_the_stream_goes_on(running, policy, scrape):
    session = policy.start()
    with stream(running) as made:
        made.send(SEEN[:1], 5, start=True)
        made.send(np.full((1, 2), np.nan, np.float32), 5, request_id="not finite")
        made.send(SEEN[:1], 77)
        made.send(np.zeros((2**18, 2), np.float32), 5)
        made.send(SEEN[1:2], 5)
        assert np.array_equal(made.action(), session.act(SEEN[0]))
        for reason in (
            "input 'obs' holds a value that is not finite",
            "there is no sequence 77: it never began, or a server before this one had it; begin one",
            "send 4096 at most",
        ):
            result, error = made.receive()
            assert result is None
            assert reason in error.message()
        assert np.array_equal(made.action(), session.act(SEEN[1]))
        made.send(SEEN[2:3], 5, end=True)
        assert np.array_equal(made.action(), session.act(SEEN[2]))
    value = scrape(running)
    assert value("trpo_tf_errors_total", kind="no_sequence", model="recurrent") >= 1
    assert value("trpo_tf_errors_total", kind="bad_request", model="recurrent") >= 2


def raw_stream(server, contents):
    """Answers to messages of any bytes."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        invoke = channel.stream_stream(STREAM, response_deserializer=MODEL_STREAM_INFER.response.FromString)
        yield from invoke(iter(contents), timeout=20)


def test_messages_that_are_none_or_name_no_model_are_answered_in_words(running):
    unknown = MODEL_STREAM_INFER.request(model_name="other", id="9").SerializeToString()
    broken, missing, large = raw_stream(running, [b"\xff" * 20, unknown, b"\xff" * 100_000])
    assert broken.error_message == large.error_message == "the message is not a inference.ModelInferRequest"
    assert (missing.error_message, missing.infer_response.id) == ("there is no model 'other'", "9")
    assert list(raw_stream(running, [])) == []


def test_a_message_beyond_max_body_ends_its_stream(running):
    with pytest.raises(grpc.RpcError) as refused:
        list(raw_stream(running, [bytes(5 * 2**20)]))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_vanishes_leaves_its_sequence_to_others_and_nothing_under_way(running, policy, scrape):
    session = policy.start()
    code = f"""
import os, numpy, tritonclient.grpc as triton
client = triton.InferenceServerClient("127.0.0.1:{running.grpc_port}")
client.start_stream(lambda result, error: os._exit(error is not None))
tensor = triton.InferInput("obs", [1, 2], "FP32")
tensor.set_data_from_numpy(numpy.float32([{SEEN[0].tolist()}]))
client.async_stream_infer("recurrent", [tensor], sequence_id=31, sequence_start=True)
for _ in range(200):
    client.async_stream_infer("recurrent", [tensor], sequence_id=32, sequence_start=True)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    session.act(SEEN[0])
    with stream(running) as made:
        made.send(SEEN[1:2], 31, end=True)
        assert np.array_equal(made.action(), session.act(SEEN[1]))
        made.send(SEEN[1:2], 32, start=True, end=True)
        made.action()
    wait_for(lambda: scrape(running)("trpo_tf_requests_in_flight") == 1)
    assert not any("rror" in line for line in running.log)


def test_a_deadline_ends_a_stream(running):
    with stream(running, stream_timeout=0.5) as made:
        _, error = made.receive()
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_streams_that_wait_hold_nobody_up_and_may_wait(running):
    """Two messages of --max-body fit into --max-buffered; more streams may wait, since they take no memory."""
    waiting = [Stream(running) for _ in range(5)]
    with stream(running) as asking:
        for number in range(100):
            asking.send(SEEN[:1], "asks", start=number == 0, end=number == 99)
            asking.action()
    for number, made in enumerate(waiting):
        made.send(SEEN[:1], number + 1, start=True, end=True)
        made.action()
        made.close()


def test_more_streams_than_allowed_are_refused_and_ask_for_a_key(start, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "robot"], capture_output=True, text=True, timeout=30, check=True
    )
    keys = tmp_path / "keys"
    keys.write_text(made.stdout)
    headers = {"authorization": f"Bearer {made.stderr.strip()}"}
    options = ("--grpc-port", "0", "--max-connections", "1", "--keys", str(keys), "--poll", "0.1")
    with start(BUNDLE, *options) as server:
        with stream(server) as closed:
            assert closed.receive()[1].status() == "StatusCode.UNAUTHENTICATED"
        with stream(server, headers=headers) as first:
            first.send(SEEN[:1], 1, start=True)
            first.action()
            with stream(server, headers=headers) as second:
                assert second.receive()[1].status() == "StatusCode.RESOURCE_EXHAUSTED"
            keys.write_text(f"other:{'0' * 64}\n")

            def is_refused():
                first.send(SEEN[:1], 1)
                _, error = first.receive()
                return error is not None and error.status() == "StatusCode.UNAUTHENTICATED"

            server.process.send_signal(signal.SIGHUP)
            wait_for(is_refused)


def test_a_stop_answers_what_has_come_and_ends_open_streams_in_words(start):
    with start(BUNDLE, "--grpc-port", "0", "--drain", "60") as server, stream(server) as busy, stream(server) as idle:
        server.process.send_signal(signal.SIGTERM)
        answered, ends = 0, []
        for number in range(10_000):
            time.sleep(0.01)
            with suppress(tritonclient.InferenceServerException):  # the end has been told already
                busy.send(SEEN[:1], 1, start=number == 0)
            result, error = busy.receive()
            if error:
                ends.append(error)
                break
            answered += result is not None
        ends.append(idle.receive()[1])
        assert answered
        assert {error.status() for error in ends} == {"StatusCode.UNAVAILABLE"}
        assert all("the server stops; open the stream again" in error.message() for error in ends)
        assert server.process.wait(10) == 0, "long before --drain"


class Arriving:
    """A stream's context, whose message arrives after a while."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    async def read(self) -> bytes:
        await asyncio.sleep(self.seconds)
        return b"message"


def test_streams_that_waited_longest_end_if_memory_grows_and_all_at_the_end():
    async def outcomes():
        reader = StreamReader(2, 16 * 2**20)
        reads = [asyncio.ensure_future(reader.read(Arriving(seconds))) for seconds in (60, 0.01, 60, 60, 60, 60)]
        assert await reads[1] == b"message"
        await asyncio.sleep(5 * LOOK_SECONDS)
        assert sum(read.done() for read in reads) == 1, "without growth they may wait"
        grown = b"x" * (64 * 2**20)
        _, left = await asyncio.wait(reads, timeout=20 * LOOK_SECONDS)
        assert left == {*reads[4:]}
        del grown
        reader.close()
        ends = await asyncio.gather(*reads, reader.read(Arriving(0)), return_exceptions=True)
        return [end if isinstance(end, bytes) else type(end) for end in ends]

    expected = [BusyError, b"message", BusyError, BusyError, StoppingError, StoppingError, StoppingError]
    assert asyncio.run(outcomes()) == expected


def test_the_snippet_of_the_page_plays_an_episode(running, capsys):
    page = (ROOT / "docs" / "reference" / "serve" / "grpc.md").read_text()
    (snippet,) = re.findall(r"```python\n(import queue, numpy.*?)```", page, re.DOTALL)
    exec(snippet.replace("127.0.0.1:8081", f"127.0.0.1:{running.grpc_port}"), {})
    assert len(re.findall(r"^\[\[?[-.0-9e]+\]?\]$", capsys.readouterr().out, re.MULTILINE)) == 100
