"""W3C trace context, and spans as a real OTLP collector gets them."""

import http.server
import signal
import socket
import subprocess
import sys
import threading

import pytest

from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.tracing.trace_context import TraceParent, parse_traceparent

INFER = "/v2/models/discrete/infer"
REQUEST = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
MODEL_INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NOT_FINITE = (
    "import sys, trpo_tf.serving.runtime.policy as p, trpo_tf.serving.verify as v, trpo_tf.serving.__main__ as m\n"
    "infer, v._ONE_BY_ONE = p.Policy.infer, 0\n"
    "def fail(self, observations, *rest):\n"
    "    if len(observations) > 1:\n"  # the golden cases
    "        return infer(self, observations, *rest)\n"
    "    raise FloatingPointError('not finite')\n"
    "p.Policy.infer = fail\n"
    "sys.exit(m.main())"
)


# As in the standard, section 3.2, and its table of versions.
@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-02", False),
        (f"01-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-will-be", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-", True),
    ],
)
def test_a_traceparent_is_read(value, sampled):
    assert parse_traceparent(value.encode()) == TraceParent(TRACE_ID, SPAN_ID, sampled)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID.upper()}-01",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}0-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}0-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}-0g",
        f"00-{TRACE_ID}-{SPAN_ID}-01-",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.more",
        f"cc-{TRACE_ID}-{SPAN_ID}-012",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00_{TRACE_ID}_{SPAN_ID}_01",
        f" 00-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
    ],
)
def test_anything_else_is_no_traceparent(value):
    assert parse_traceparent(value.encode()) is None


class Collector:
    """An OTLP/HTTP collector on loopback: the spans it got, with their resource."""

    def __init__(self):
        message = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        self.resources, self.spans, self.paths = [], [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                request = message.ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                collector.paths.append((self.path, self.headers["content-type"]))
                for resource in request.resource_spans:
                    collector.resources.append(attributes(resource.resource))
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def attributes(holder) -> dict:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in holder.attributes}


@pytest.fixture
def collector():
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_each_request_is_a_span(start, discrete, collector):
    with start(discrete, "--otlp-endpoint", collector.url) as server:
        server.request("POST", INFER, REQUEST, {"x-request-id": "order-66"})
        server.request("GET", "/v2/models/other?secret=1")
        server.request("PROPFIND", "/v2")
        assert server.stop(signal.SIGTERM) == (0, "")
    infer, missing, other = collector.spans
    assert set(collector.paths) == {("/v1/traces", "application/x-protobuf")}
    assert collector.resources[0]["service.name"] == "trpo-tf"
    assert infer.name == f"POST {INFER}"
    assert infer.kind == infer.SPAN_KIND_SERVER
    assert attributes(infer) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": INFER,
        "url.path": INFER,
        "url.scheme": "http",
        "trpo_tf.model.name": "discrete",
        "trpo_tf.model.version": "1",
        "trpo_tf.request_id": "order-66",
    }
    assert infer.parent_span_id == b""
    assert 0 < infer.end_time_unix_nano - infer.start_time_unix_nano < 10e9
    assert missing.name == "GET"
    assert attributes(missing) == {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "url.path": "/v2/models/other",
        "url.scheme": "http",
    }
    assert (other.name, attributes(other)["http.request.method"]) == ("HTTP", "_OTHER")
    assert len({span.trace_id for span in collector.spans}) == 3


def test_a_span_belongs_to_its_callers_trace_if_that_is_recorded(start, discrete, collector):
    with start(discrete, "--otlp-endpoint", collector.url) as server:
        for flags in ("01", "00"):
            headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-{flags}", "tracestate": "vendor=value"}
            server.request("POST", INFER, REQUEST, headers)
        server.request("POST", INFER, REQUEST, {"traceparent": f"00-{TRACE_ID.upper()}-{SPAN_ID}-01"})
        server.stop(signal.SIGTERM)
    child, root = collector.spans
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert child.trace_state == "vendor=value"
    assert root.trace_id.hex() != TRACE_ID
    assert root.parent_span_id == b""


def test_a_fault_is_an_error(start, discrete, collector):
    with start(discrete, "--otlp-endpoint", collector.url, code=NOT_FINITE) as server:
        assert server.request("POST", INFER, REQUEST)[0] == 500
        server.stop(signal.SIGTERM)
    (span,) = collector.spans
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "not_finite"


def test_a_collector_that_is_not_there_stops_nothing(start, discrete):
    pytest.importorskip("opentelemetry.sdk")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with start(discrete, "--otlp-endpoint", f"http://127.0.0.1:{taken.getsockname()[1]}") as server:
            assert server.request("POST", INFER, REQUEST)[0] == 200
            assert server.stop(signal.SIGTERM)[0] == 0


def infer_message(model="discrete") -> bytes:
    from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER

    request = MODEL_INFER.request(model_name=model)
    request.inputs.add(name="obs", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([0.1, -0.2, 0.05, 0.3])
    return request.SerializeToString()


def test_each_call_over_grpc_is_a_span(start, discrete, collector):
    grpc = pytest.importorskip("grpc")
    metadata = [("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"), ("tracestate", "vendor=value"), ("x-request-id", "66")]
    with start(discrete, "--grpc-port", "0", "--otlp-endpoint", collector.url) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            infer = channel.unary_unary(MODEL_INFER_PATH)
            infer(infer_message(), metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError):
                infer(infer_message("other"), timeout=10)
        server.stop(signal.SIGTERM)
    good, missing = collector.spans
    assert (good.name, good.kind) == ("inference.GRPCInferenceService/ModelInfer", good.SPAN_KIND_SERVER)
    assert (good.trace_id.hex(), good.parent_span_id.hex(), good.trace_state) == (TRACE_ID, SPAN_ID, "vendor=value")
    assert attributes(good) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "trpo_tf.model.name": "discrete",
        "trpo_tf.model.version": "1",
        "trpo_tf.request_id": "66",
    }
    assert 0 < good.end_time_unix_nano - good.start_time_unix_nano < 10e9
    assert attributes(missing)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert missing.trace_id != good.trace_id
    assert missing.status.code == missing.status.STATUS_CODE_UNSET  # the client's mistake


def test_a_fault_over_grpc_is_an_error(start, discrete, collector):
    grpc = pytest.importorskip("grpc")
    with start(discrete, "--grpc-port", "0", "--otlp-endpoint", collector.url, code=NOT_FINITE) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(MODEL_INFER_PATH)(infer_message(), timeout=10)
        server.stop(signal.SIGTERM)
    (fault,) = collector.spans
    assert fault.status.code == fault.status.STATUS_CODE_ERROR
    assert attributes(fault)["error.type"] == "not_finite"
    assert attributes(fault)["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]


def test_nothing_is_imported_without_the_option(start, discrete):
    code = (
        "import sys, trpo_tf.serving.__main__ as m\n"
        "status = m.main()\n"
        "sys.stderr.write(','.join(name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))))\n"
        "sys.exit(status)"
    )
    with start(discrete, code=code) as server:
        server.request("POST", INFER, REQUEST, {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"})
        assert server.stop(signal.SIGTERM) == (0, "")


def test_where_it_is_not_installed_the_option_says_so(discrete):
    code = "import sys; sys.modules['opentelemetry'] = None; import trpo_tf.serving.__main__ as m; sys.exit(m.main())"
    command = [sys.executable, "-c", code, str(discrete), "--port", "0", "--otlp-endpoint", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install '.[tracing]' in a checkout of trpo-tf" in done.stderr


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(url):
    with pytest.raises(ServeError, match=r"--otlp-endpoint (must be a URL|is empty)"):
        ServeOptions(otlp_endpoint=url)
