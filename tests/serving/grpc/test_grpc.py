"""gRPC: real servers, tritonclient, gRPC's own channels and health client, and what goes wrong."""

import gc
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.serving.broken_runtime import BROKEN_RUNTIME
from trpo_tf import serving
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import DirectRunner
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.tracing.records import NO_OBSERVERS

grpc = pytest.importorskip("grpc")

from tests.support.serving.grpc_client import (  # noqa: E402
    ROW,
    Code,
    call,
    channel_to,
    error_of,
    eventually,
    never,
    request_for,
    triton_input,
    under_way,
)
from trpo_tf.serving.codecs.grpc_messages import (  # noqa: E402
    FORMER_REFLECTION_INFO,
    HEALTH_CHECK,
    INFERENCE,
    MODEL_INFER,
    MODEL_METADATA,
    REFLECTION_INFO,
    SERVER_LIVE,
    SERVICES,
    compiled_file,
)
from trpo_tf.serving.grpc.call_counter import CallCounter  # noqa: E402
from trpo_tf.serving.grpc.inference import Inference  # noqa: E402

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


@pytest.mark.parametrize("method", [REFLECTION_INFO, FORMER_REFLECTION_INFO])
def test_tools_learn_the_messages_of_every_service(channel, method):
    """As grpcurl and Postman do. What there is not is an answer, what is no question ends the stream."""
    invoke = channel.stream_stream(method.path, response_deserializer=method.response.FromString)

    def ask(*questions):
        return list(invoke((method.request(**each).SerializeToString() for each in questions), timeout=10))

    (listed,) = ask({"list_services": "*"})
    names = [service.name for service in listed.list_services_response.service]
    assert names == list(SERVICES)
    symbols = [*names, f"{INFERENCE}.ModelInfer", "inference.ModelInferRequest.InferInputTensor"]
    found = ask(*({"file_containing_symbol": symbol} for symbol in symbols))
    files = [answer.file_descriptor_response.file_descriptor_proto for answer in found]
    expected = ("open_inference.proto", "health.proto", "reflection.proto", *["open_inference.proto"] * 2)
    assert files == [[compiled_file(name)] for name in expected]
    named, extensions, *absent = ask(
        {"file_by_filename": "health.proto", "host": "here"},
        {"all_extension_numbers_of_type": "inference.InferParameter"},
        {"file_by_filename": "other.proto"},
        {"file_containing_symbol": "inference.Nothing"},
        {"all_extension_numbers_of_type": "\0"},
        {"file_containing_extension": {"containing_type": "inference.InferParameter", "extension_number": 100}},
    )
    assert (named.valid_host, named.original_request.file_by_filename) == ("here", "health.proto")
    assert named.file_descriptor_response.file_descriptor_proto == [compiled_file("health.proto")]
    assert extensions.all_extension_numbers_response.base_type_name == "inference.InferParameter"
    assert [answer.error_response.error_code for answer in absent] == [Code.NOT_FOUND.value[0]] * 4
    assert absent[1].error_response.error_message == "there is no symbol 'inference.Nothing'"
    for wrong in (b"\xff", b"", method.request(list_services="x" * 5000).SerializeToString()):
        with pytest.raises(grpc.RpcError) as caught:
            next(invoke(iter([wrong]), timeout=10))
        assert caught.value.code() is Code.INVALID_ARGUMENT


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


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Other", "there is no such method"),
        ("ModelConfig", "there is no method ModelConfig: ModelMetadata has the inputs and outputs"),
        ("ModelStatistics", "there is no method ModelStatistics: GET /metrics has the numbers of every model"),
        ("RepositoryModelLoad", "RepositoryModelLoad: with --repository-api, models are loaded and unloaded over HTTP"),
        ("CudaSharedMemoryRegister", "CudaSharedMemoryRegister: send tensors in the request"),
    ],
)
def test_no_such_method_is_unimplemented(channel, method, message):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{INFERENCE}/{method}")(b"", timeout=10)
    assert caught.value.code() == Code.UNIMPLEMENTED
    assert message in caught.value.details()


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
    with start(discrete, "--grpc-port", "0", code=BROKEN_RUNTIME) as server:
        with channel_to(server) as channel:
            assert error_of(channel, MODEL_INFER, request_for(ROW)) == (Code.INTERNAL, "internal error")
            assert call(channel, SERVER_LIVE).live
        _, said = server.stop(signal.SIGTERM)
        assert "RuntimeError: the runtime's own words" in said


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


# Start and end
