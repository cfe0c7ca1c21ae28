"""gRPC: real servers, tritonclient, gRPC's own channels and health client, and what goes wrong."""

import gc
import json
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import DirectRunner
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.tracing.records import NO_OBSERVERS

grpc = pytest.importorskip("grpc")

from trpo_tf.serving.codecs.grpc_messages import (  # noqa: E402
    HEALTH_CHECK,
    HEALTH_WATCH,
    INFERENCE,
    MODEL_INFER,
    MODEL_METADATA,
    SERVER_LIVE,
    SERVER_READY,
)
from trpo_tf.serving.grpc.call_counter import CallCounter  # noqa: E402
from trpo_tf.serving.grpc.inference import Inference  # noqa: E402

ROW = np.float32([[0.1, -0.2, 0.05, 0.3]])
Code = grpc.StatusCode
BUSY = "too many calls at a time; come again"


@contextmanager
def channel_to(server, credentials=None, **options):
    address = f"127.0.0.1:{server.grpc_port}"
    given = [(f"grpc.{name}", value) for name, value in {"use_local_subchannel_pool": 1, **options}.items()]
    made = grpc.secure_channel(address, credentials, given) if credentials else grpc.insecure_channel(address, given)
    with made as channel:
        yield channel


@pytest.fixture
def channel(grpc_server):
    with channel_to(grpc_server) as made:
        yield made


@pytest.fixture
def triton(grpc_server):
    client = pytest.importorskip("tritonclient.grpc")
    with client.InferenceServerClient(f"127.0.0.1:{grpc_server.grpc_port}") as made:
        yield made


def request_for(rows, model="discrete", **fields):
    request = MODEL_INFER.request(model_name=model, raw_input_contents=[rows.tobytes()], **fields)
    request.inputs.add(name="obs", datatype="FP32", shape=rows.shape)
    return request


def call(channel, method, message=b"", *, wait=10, **more):
    """The response to a message, or to bytes that need not be one."""
    content = message if isinstance(message, bytes) else message.SerializeToString()
    invoke = channel.unary_unary(method.path, response_deserializer=method.response.FromString)
    return invoke(content, timeout=wait, **more)


def error_of(*arguments, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code(), caught.value.details()


def triton_input(rows, name="obs"):
    import tritonclient.grpc

    tensor = tritonclient.grpc.InferInput(name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


# Clients


def test_tritonclient_with_its_defaults(triton, discrete, golden):
    observations = golden(discrete)["obs"]
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("discrete")
    assert triton.is_model_ready("discrete", "1")
    assert not triton.is_model_ready("other")
    assert not triton.is_model_ready("discrete", "2")
    assert triton.get_server_metadata().name == "trpo-tf"
    metadata = triton.get_model_metadata("discrete")
    assert (metadata.versions, metadata.platform) == (["1"], "onnx_onnxv1")
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("obs", "FP32", [-1, 4]),
        ("noise", "FP32", [-1, 2]),
    ]
    result = triton.infer("discrete", [triton_input(observations)], request_id="7")
    assert result.get_response().id == "7"
    assert result.get_response().raw_output_contents
    np.testing.assert_array_equal(result.as_numpy("action"), serving.load(discrete).act_batch(observations))


def test_tritonclient_samples_and_gives_noise_and_a_version(triton, discrete, grpc_server):
    parameters = {"deterministic": False, "seed": 7}
    rows = np.repeat(ROW, 50, axis=0)
    sampled = triton.infer("discrete", [triton_input(rows)], "1", parameters=parameters).as_numpy("action")
    tensor = {"name": "obs", "datatype": "FP32", "shape": [50, 4], "data": rows.ravel().tolist()}
    _, answer = grpc_server.request("POST", "/v2/models/discrete/infer", {"inputs": [tensor], "parameters": parameters})
    assert sampled.tolist() == answer["outputs"][0]["data"]
    assert 0 < sampled.sum() < 50
    noise = np.float32([[-99, 99]])
    given = triton.infer("discrete", [triton_input(noise, "noise"), triton_input(ROW)])
    assert given.as_numpy("action").tolist() == [1]


def test_tritonclient_chooses_outputs(start, judged):
    client = pytest.importorskip("tritonclient.grpc")
    rows, policy = np.float32([[0.25, 1], [0.5, 2]]), serving.load(judged)
    with start(judged, "--grpc-port", "0") as server, channel_to(server) as channel:
        with client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as triton:
            everything = triton.infer("judged", [triton_input(rows)])
            for name, values in policy.infer(rows).items():
                np.testing.assert_array_equal(everything.as_numpy(name), values)
            chosen = triton.infer("judged", [triton_input(rows)], outputs=[client.InferRequestedOutput("value")])
            assert [output.name for output in chosen.get_response().outputs] == ["value"]
        bad = request_for(np.float32([[-1, 0]]), "judged")
        code, message = error_of(channel, MODEL_INFER, bad)
        assert (code, message.split(";")[0]) == (Code.INTERNAL, "output 'value' is not finite")
        bad.outputs.add(name="action")
        assert len(call(channel, MODEL_INFER, bad).outputs) == 1


def test_many_threads_get_each_its_own_answer(grpc_server, discrete):
    policy = serving.load(discrete)

    def ask(seed):
        rows = np.random.default_rng(seed).normal(size=(1 + seed % 3, 4)).astype(np.float32)
        answer = call(shared, MODEL_INFER, request_for(rows, id=str(seed)))
        actions = np.frombuffer(answer.raw_output_contents[0], np.int64)
        return answer.id == str(seed) and actions.tolist() == policy.act_batch(rows).tolist()

    with channel_to(grpc_server) as shared, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(300)))


def test_health_by_its_own_client(grpc_server, channel):
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    stub = pytest.importorskip("grpc_health.v1.health_pb2_grpc").HealthStub(channel)
    for service in ("", INFERENCE, "grpc.health.v1.Health"):
        assert stub.Check(health.HealthCheckRequest(service=service), timeout=10).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health.HealthCheckRequest(service="other"), timeout=10)
    assert caught.value.code() == Code.NOT_FOUND
    watch = stub.Watch(health.HealthCheckRequest(service="other"), timeout=10)
    assert next(watch).status == health.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


# What is wrong


def test_an_unknown_model_or_version_is_not_found(channel):
    assert error_of(channel, MODEL_INFER, request_for(ROW, "other")) == (Code.NOT_FOUND, "there is no model 'other'")
    code, message = error_of(channel, MODEL_INFER, request_for(ROW, model_version="9"))
    assert (code, message) == (Code.NOT_FOUND, "there is no model 'discrete', version '9'")


@pytest.mark.parametrize("content", [b"\xff" * 20, b"\x0a\xffdiscrete", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_the_senders_error(channel, content):
    code, message = error_of(channel, MODEL_INFER, content)
    assert (code, message) == (Code.INVALID_ARGUMENT, "the message is not a inference.ModelInferRequest")


def test_nan_and_too_large_a_batch_are_invalid(channel):
    code, message = error_of(channel, MODEL_INFER, request_for(np.float32([[0, 0, 0, np.nan]])))
    assert (code, "not finite" in message) == (Code.INVALID_ARGUMENT, True)
    code, message = error_of(channel, MODEL_INFER, request_for(np.zeros((4097, 4), np.float32)))
    assert (code, "send 4096 at most" in message) == (Code.INVALID_ARGUMENT, True)


def test_a_call_without_a_message_is_invalid(channel):
    empty = channel.stream_unary(MODEL_INFER.path)
    with pytest.raises(grpc.RpcError) as caught:
        empty(iter(()), timeout=10)
    assert caught.value.code() == Code.INVALID_ARGUMENT


def test_no_such_method_is_unimplemented(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{INFERENCE}/Other")(b"", timeout=10)
    assert caught.value.code() == Code.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_too_large_a_message_is_refused_also_once_decompressed(channel, compression):
    large = request_for(np.zeros((2**18, 4), np.float32))
    assert error_of(channel, MODEL_INFER, large, compression=compression)[0] == Code.RESOURCE_EXHAUSTED
    small = request_for(np.zeros((4096, 4), np.float32))
    assert call(channel, MODEL_INFER, small, compression=compression).outputs[0].shape == [4096]


def test_bounds_are_those_of_the_options(start, discrete):
    outside = np.float32([[99, 0, 0, 0]])
    with start(discrete, "--grpc-port", "0", "--out-of-bounds", "reject") as server, channel_to(server) as channel:
        code, message = error_of(channel, MODEL_INFER, request_for(outside))
        assert (code, "outside the observation space" in message) == (Code.INVALID_ARGUMENT, True)
        assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"


def test_an_action_that_is_not_finite_is_invalid_if_its_observation_is_absurd(start, continuous):
    with start(continuous, "--grpc-port", "0") as server, channel_to(server) as channel:
        request = MODEL_INFER.request(model_name="continuous")
        tensor = request.inputs.add(name="obs", datatype="FP64", shape=[1, 3])
        tensor.contents.fp64_contents.extend([1e308] * 3)
        code, message = error_of(channel, MODEL_INFER, request)
        assert (code, "not finite" in message) == (Code.INVALID_ARGUMENT, True)


def test_a_failure_of_the_runtime_is_internal_and_logged_without_its_words(start, discrete):
    code = """
import trpo_tf.serving.runtime.policy, trpo_tf.serving.verify, trpo_tf.serving.__main__, sys

infer = trpo_tf.serving.runtime.policy.Policy.infer
trpo_tf.serving.verify._ONE_BY_ONE = 0

def broken(self, observations, *rest):
    if len(observations) == 1:
        raise RuntimeError("the runtime's own words")
    return infer(self, observations, *rest)  # the golden cases

trpo_tf.serving.runtime.policy.Policy.infer = broken
trpo_tf.serving.__main__.main(sys.argv[1:])
"""
    with start(discrete, "--grpc-port", "0", code=code) as server:
        with channel_to(server) as channel:
            assert error_of(channel, MODEL_INFER, request_for(ROW)) == (Code.INTERNAL, "internal error")
            assert call(channel, SERVER_LIVE).live
        _, said = server.stop(signal.SIGTERM)
        assert "RuntimeError: the runtime's own words" in said


def test_a_message_that_does_not_come_ends_its_call_and_no_other(start, discrete):
    """More such calls than a pool of threads would have. Those that end because others wait may come again."""
    with start(discrete, "--grpc-port", "0", "--timeout", "2") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = [channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=20) for _ in range(40)]
        assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        said = Counter((answer.exception().code(), answer.exception().details()) for answer in stalled)
        late = (Code.DEADLINE_EXCEEDED, "the message did not arrive in time")
        assert set(said) == {late, (Code.RESOURCE_EXHAUSTED, BUSY)}
        assert said.total() == 40
        silence.set()


def never(silence):
    silence.wait(30)
    yield from ()


def test_more_calls_at_a_time_than_allowed_are_refused_and_counted(start, discrete, scrape):
    """Health is asked for all the same, and a place is free as soon as its call has ended."""
    with start(discrete, "--grpc-port", "0", "--max-connections", "3") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = [channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=20) for _ in range(3)]
        eventually(lambda: under_way(scrape(server)) == 3)
        assert error_of(channel, MODEL_INFER, request_for(ROW)) == (Code.RESOURCE_EXHAUSTED, BUSY)
        for method in (SERVER_LIVE, SERVER_READY, HEALTH_CHECK):
            call(channel, method)
        value = scrape(server)
        labels = {"model": "", "version": "", "protocol": "grpc"}
        assert value("trpo_tf_requests_total", code="RESOURCE_EXHAUSTED", **labels) == 1
        assert value("trpo_tf_errors_total", kind="busy", model="") == 1
        stalled[0].cancel()
        eventually(lambda: call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete")
        silence.set()


def under_way(value):
    return value("trpo_tf_requests_in_flight") - 1  # which the scrape itself is


def eventually(holds, seconds=10):
    """Waits until it holds, which a call that is refused does not."""
    until = time.monotonic() + seconds
    while True:
        with suppress(grpc.RpcError):
            if holds():
                return
        assert time.monotonic() < until
        time.sleep(0.02)


def watch(channel, service=""):
    invoke = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)
    return invoke(HEALTH_WATCH.request(service=service).SerializeToString(), timeout=30)


def test_watchers_take_no_places_of_calls(start, discrete, scrape):
    """Each connection may have some: one that asks for many does not keep others from theirs."""
    options = ("--grpc-port", "0", "--max-connections", "4")
    with start(discrete, *options) as server, channel_to(server) as greedy, channel_to(server) as other:
        mine = [watch(greedy) for _ in range(20)]
        told, refused = 0, []
        for stream in mine:
            try:
                told += next(stream).status == 1
            except grpc.RpcError as error:
                refused.append(error.code())
        assert (told, refused) == (8, [Code.RESOURCE_EXHAUSTED] * 12) or told < 8
        with pytest.raises(grpc.RpcError):  # two for each connection that is allowed
            next(watch(other))
        for channel in (greedy, other):
            assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        for stream in mine:
            stream.cancel()
        eventually(lambda: next(watch(other)).status == 1)
        assert scrape(server)("trpo_tf_errors_total", kind="busy", model="") >= 13


@pytest.mark.parametrize("service", ["", INFERENCE])
def test_idle_clients_that_check_health_live_beside_one_that_acts(start, discrete, service):
    """gRPC's own health check holds a watch open on each connection."""
    pytest.importorskip("grpc_health")
    import grpc_health.v1.health  # noqa: F401 (which makes gRPC know of it)

    config = json.dumps({"healthCheckConfig": {"serviceName": service}, "loadBalancingConfig": [{"round_robin": {}}]})
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    with start(discrete, "--grpc-port", "0", "--max-connections", "20") as server, ExitStack() as stack:
        address = f"ipv4:127.0.0.1:{server.grpc_port}"
        idle = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(30)]
        for channel in idle:
            grpc.channel_ready_future(channel).result(10)
        with channel_to(server) as acting:
            for _ in range(20):
                assert call(acting, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        assert call(idle[-1], MODEL_INFER, request_for(ROW)).model_name == "discrete"


def test_a_service_that_there_is_not_stays_watched(channel):
    stream = watch(channel, "x" * 100_000)
    assert next(stream).status == 3
    time.sleep(0.7)
    assert stream.is_active()
    stream.cancel()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_that_its_client_leaves_is_counted_and_no_more_under_way(start, discrete, scrape, how):
    code = {"cancel": "CANCELLED", "deadline": "DEADLINE_EXCEEDED"}[how]
    with start(discrete, "--grpc-port", "0") as server, channel_to(server) as channel:
        silence = threading.Event()
        left = channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=20 if how == "cancel" else 0.5)
        eventually(lambda: under_way(scrape(server)) == 1)
        if how == "cancel":
            left.cancel()
        eventually(lambda: under_way(scrape(server)) == 0)
        labels = {"model": "", "version": "", "protocol": "grpc"}
        eventually(lambda: scrape(server)("trpo_tf_requests_total", code=code, **labels) == 1)
        silence.set()
        server.stop(signal.SIGTERM)


def test_a_version_that_was_replaced_is_freed(discrete, catalog_of):
    catalogs, options, metrics, runner = [catalog_of(discrete)], ServeOptions(), Metrics(), DirectRunner()
    calls = CallCounter(metrics, NO_OBSERVERS, None)
    inference = Inference(lambda: catalogs[-1], options, metrics, runner, SequenceRunner(options, runner), calls)
    message = MODEL_INFER.request(model_name="discrete")
    before = weakref.ref(inference.find_endpoint(message).policy)
    catalogs[:] = [catalog_of(discrete)]
    assert inference.find_endpoint(message).policy is catalogs[0].find("discrete").policy

    def is_freed():
        gc.collect()  # collects nothing while another thread's collection is under way
        return before() is None

    eventually(is_freed)


def test_a_call_that_its_client_leaves_while_it_is_answered(start, discrete, scrape):
    code = """
import asyncio, sys, trpo_tf.serving.__main__
from trpo_tf.serving.grpc.inference import Inference
async def run(self, *_):
    await asyncio.sleep(60)
Inference._run = run
sys.exit(trpo_tf.serving.__main__.main(sys.argv[1:]))
"""
    with start(discrete, "--grpc-port", "0", code=code) as server, channel_to(server) as channel:
        assert error_of(channel, MODEL_INFER, request_for(ROW), wait=1)[0] == Code.DEADLINE_EXCEEDED
        eventually(lambda: under_way(scrape(server)) == 0)
        labels = {"model": "discrete", "version": "1", "protocol": "grpc"}
        eventually(lambda: scrape(server)("trpo_tf_requests_total", code="DEADLINE_EXCEEDED", **labels) == 1)


@pytest.mark.parametrize("name", ["x" * 20_000, "\U0001f916" * 20_000, "%\n" * 100_000])
def test_a_long_name_is_cut_in_what_is_answered(channel, name):
    for method, asked in (
        (MODEL_INFER, request_for(ROW, name)),
        (MODEL_INFER, request_for(ROW, model_version=name)),
        (MODEL_METADATA, MODEL_METADATA.request(name=name)),
        (HEALTH_CHECK, HEALTH_CHECK.request(service=name)),
    ):
        code, message = error_of(channel, method, asked)
        assert (code, len(message) < 300) == (Code.NOT_FOUND, True)
    request = request_for(ROW, id="7")
    request.inputs[0].name = name
    code, message = error_of(channel, MODEL_INFER, request)
    assert (code, len(message) <= 300) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("path", ["/x", f"/{INFERENCE}/" + "x" * 5000, "/%zz\u00e9", "//"])
def test_an_odd_method_is_unimplemented_and_counted(grpc_server, channel, scrape, path):
    labels = {"model": "", "version": "", "protocol": "grpc", "code": "UNIMPLEMENTED"}
    before = scrape(grpc_server)("trpo_tf_requests_total", **labels) or 0
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=10)
    assert (caught.value.code(), len(caught.value.details()) < 200) == (Code.UNIMPLEMENTED, True)
    assert scrape(grpc_server)("trpo_tf_requests_total", **labels) == before + 1


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_too_much_metadata_ends_its_call_alone(channel, size):
    code, _ = error_of(channel, SERVER_LIVE, metadata=(("x-large", "x" * size),))
    assert code in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.INTERNAL)
    eventually(lambda: call(channel, SERVER_LIVE).live)


# Keys and certificates


def test_keys_are_asked_for_as_over_http(start, discrete, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "robot"], capture_output=True, text=True, timeout=30, check=True
    )
    (tmp_path / "keys").write_text(made.stdout)
    key = made.stderr.strip()
    with start(discrete, "--grpc-port", "0", "--keys", str(tmp_path / "keys")) as server, channel_to(server) as channel:
        for wrong in ((), (("authorization", "Bearer no"),), (("authorization", key),), (("authorization", ""),)):
            code, message = error_of(channel, MODEL_INFER, request_for(ROW), metadata=wrong)
            assert (code, "Bearer KEY" in message) == (Code.UNAUTHENTICATED, True)
        right = (("authorization", f"Bearer {key}"),)
        assert call(channel, MODEL_INFER, request_for(ROW), metadata=right).model_name == "discrete"
        assert call(channel, SERVER_LIVE).live
        assert call(channel, HEALTH_CHECK).status == 1


def test_tls_and_client_certificates(start, discrete, certificates):
    def read(name):
        return (certificates / name).read_bytes()

    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    trusting = grpc.ssl_channel_credentials(read("ca.pem"))
    with start(discrete, "--grpc-port", "0", *own) as server:
        assert re.search(r"on https://\S+ and grpcs://127\.0\.0\.1:\d+$", server.announcement)
        with channel_to(server, trusting) as channel:
            assert call(channel, MODEL_INFER, request_for(ROW)).model_name == "discrete"
        with channel_to(server) as plain:
            assert error_of(plain, SERVER_LIVE)[0] == Code.UNAVAILABLE
    with start(discrete, "--grpc-port", "0", *own, "--tls-client-ca", str(certificates / "ca.pem")) as server:
        for name, known in (("client", True), ("stranger", False)):
            shown = grpc.ssl_channel_credentials(read("ca.pem"), read(f"{name}.key"), read(f"{name}.pem"))
            with channel_to(server, shown) as channel:
                if known:
                    assert call(channel, SERVER_LIVE).live
                else:
                    assert error_of(channel, SERVER_LIVE)[0] == Code.UNAVAILABLE
        with channel_to(server, trusting) as channel:
            assert error_of(channel, SERVER_LIVE)[0] == Code.UNAVAILABLE


# Start and end


def test_a_rolling_restart_fails_no_request(start, discrete):
    """Clients that know two servers, of which one ends under load, and then the other is all they have."""
    outcomes, is_over = Counter(), threading.Event()
    with start(discrete, "--grpc-port", "0") as first, start(discrete, "--grpc-port", "0") as second:
        address = f"ipv4:127.0.0.1:{first.grpc_port},127.0.0.1:{second.grpc_port}"
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]

        def ask():
            with grpc.insecure_channel(address, options) as channel:
                while not is_over.is_set():
                    try:
                        outcomes[len(call(channel, MODEL_INFER, request_for(ROW)).outputs)] += 1
                    except grpc.RpcError as error:
                        outcomes[f"{error.code()}: {error.details()}"] += 1

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            while outcomes.total() < 100:
                time.sleep(0.01)
            assert first.stop(signal.SIGTERM) == (0, "")
            before = outcomes.total()
            while outcomes.total() < before + 100:
                time.sleep(0.01)
        finally:
            is_over.set()
            for thread in threads:
                thread.join(10)
    assert set(outcomes) == {1}


def test_a_watcher_is_told_of_the_end_and_does_not_delay_it(start, discrete):
    with start(discrete, "--grpc-port", "0") as server, channel_to(server) as channel:
        watch = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)(b"")
        assert next(watch).status == 1
        server.process.send_signal(signal.SIGTERM)
        assert [answer.status for answer in watch] == [2]
        assert server.process.wait(8) == 0


def test_a_watcher_is_told_of_an_end_that_comes_while_it_is_told_of_the_beginning(start, discrete):
    code = """
import os, signal, sys, trpo_tf.serving.__main__
from trpo_tf.serving.grpc.server import GrpcServer
watch = GrpcServer._watch
async def watch_to_the_end(self, context):
    class Context:
        read = context.read
        async def write(self, message, stopping=self._stopping):
            await context.write(message)
            if not stopping.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                await stopping.wait()
    await watch(self, Context())
GrpcServer._watch = watch_to_the_end
sys.exit(trpo_tf.serving.__main__.main(sys.argv[1:]))
"""
    with start(discrete, "--grpc-port", "0", code=code) as server, channel_to(server) as channel:
        watch = channel.unary_stream(HEALTH_WATCH.path, response_deserializer=HEALTH_WATCH.response.FromString)(b"")
        assert [answer.status for answer in watch] == [1, 2]
        assert server.process.wait(8) == 0


def test_a_second_signal_ends_what_is_under_way(start, discrete):
    with start(discrete, "--grpc-port", "0", "--drain", "60") as server, channel_to(server) as channel:
        silence = threading.Event()
        stalled = channel.stream_unary(MODEL_INFER.path).future(never(silence), timeout=30)
        assert call(channel, SERVER_LIVE).live
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert stalled.exception().code() in (Code.CANCELLED, Code.UNAVAILABLE)
        silence.set()


def serve_fails(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "trpo_tf", "serve", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_one_line(grpc_server, discrete):
    port = grpc_server.grpc_port
    said = serve_fails(str(discrete), "--port", "0", "--grpc-port", str(port))
    assert said.startswith(f"error: can't listen on 127.0.0.1 port {port}: address already in use; choose")


def test_a_reachable_address_needs_keys_over_grpc_alone_too(discrete, tmp_path):
    said = serve_fails(str(discrete), "--uds", str(tmp_path / "socket"), "--host", "0.0.0.0", "--grpc-port", "0")
    assert "give --keys" in said


def test_grpc_is_imported_only_if_it_is_asked_for(start, discrete):
    absent = "import sys; sys.modules['grpc'] = None\n"
    absent += "from trpo_tf.serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    with start(discrete, code=absent) as server:
        assert server.request("GET", "/v2")[0] == 200
    done = subprocess.run(
        [sys.executable, "-c", absent, str(discrete), "--port", "0", "--grpc-port", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: --grpc-port needs grpc; pip install '.[grpc]' in a checkout of trpo-tf\n",
    )
