"""Spans of requests, sent to an OpenTelemetry collector. Imported only if a collector is configured."""

import os
import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from trpo_tf.serving import __version__
from trpo_tf.serving.metrics.series import Series
from trpo_tf.serving.support.logs import shown
from trpo_tf.serving.tracing.records import CallRecord, RequestRecord
from trpo_tf.serving.tracing.trace_context import TraceParent

FLUSH_SECONDS = 3.0
"""Timeout of delivering the last spans when the server ends."""

_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"}

_GRPC_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Statuses that are the server's fault, after OpenTelemetry's conventions for gRPC."""


class Tracer:
    """Sends spans to `endpoint`/v1/traces in batches, from a thread of its own. Make it after a fork.

    OpenTelemetry's environment variables set sampling, headers, certificates and the service's name. By default every
    request is recorded, unless its `traceparent` says that the caller does not record it.
    """

    def __init__(self, endpoint: str, scheme: str) -> None:
        self._scheme = scheme
        name = os.environ.get("OTEL_SERVICE_NAME", "trpo-tf")
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("trpo-tf", __version__)

    def request(self, record: RequestRecord) -> None:
        """Record a request and its response as a span."""
        method = record.method.decode() if record.method in _METHODS else "_OTHER"
        path = shown(record.target.partition(b"?")[0])
        attributes: dict[str, str | int] = {
            HTTP_REQUEST_METHOD: method,
            HTTP_RESPONSE_STATUS_CODE: record.status,
            URL_PATH: path,
            URL_SCHEME: self._scheme,
        }
        if record.is_known:
            attributes[HTTP_ROUTE] = path
        if record.status >= 500:
            attributes[ERROR_TYPE] = record.error
        shown_method = "HTTP" if method == "_OTHER" else method
        self._record(
            f"{shown_method} {path}" if record.is_known else shown_method,
            _context(record.parent, record.headers.get(b"tracestate", b"")),
            attributes | _whose(record.series, record.request_id),
            record.seconds,
            is_fault=record.status >= 500,
        )

    def call(self, record: CallRecord) -> None:
        """Record a gRPC call and its status as a span."""
        service, _, method = record.method.strip("/").rpartition("/")
        attributes: dict[str, str | int] = {"rpc.system": "grpc", "rpc.grpc.status_code": record.number}
        if method:
            attributes |= {"rpc.service": service, "rpc.method": method}
        if is_fault := record.code in _GRPC_FAULTS:
            attributes[ERROR_TYPE] = record.kind
        self._record(
            record.method.strip("/") or "gRPC",
            _context(record.parent, record.state),
            attributes | _whose(record.series, record.request_id),
            record.seconds,
            is_fault=is_fault,
        )

    def _record(
        self, name: str, context: Context, attributes: dict[str, str | int], seconds: float, *, is_fault: bool
    ) -> None:
        ended = time.time_ns()
        span = self._tracer.start_span(
            name,
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=ended - round(seconds * 1e9),
        )
        if is_fault:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    def close(self) -> None:
        """Deliver the remaining spans, waiting at most `FLUSH_SECONDS`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)


def _whose(series: Series | None, request_id: bytes) -> dict[str, str | int]:
    """Return the span attributes of the model and of the client's request id."""
    whose: dict[str, str | int] = {}
    if series is not None and series.model:
        whose |= {"trpo_tf.model.name": series.model, "trpo_tf.model.version": series.version}
    if request_id:
        whose["trpo_tf.request_id"] = request_id.decode()
    return whose


def _context(parent: TraceParent | None, state: bytes) -> Context:
    """Return a context with the caller's span, or an empty one; never the thread's current context."""
    if parent is None:
        return Context()
    return trace.set_span_in_context(
        NonRecordingSpan(
            SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
                trace_state=TraceState.from_header([state.decode("ascii", "replace")]),
            )
        ),
        Context(),
    )
