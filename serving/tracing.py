"""A span a request, sent to an OpenTelemetry collector. Imported only if one is named."""

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

from serving import __version__
from serving.events import shown
from serving.exchange import Exchange
from serving.traceparent import TraceParent

FLUSH_SECONDS = 3.0
"""How long the last spans may take to be delivered when the server ends."""

_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"}


class Tracer:
    """Sends spans to `endpoint`/v1/traces, in batches and from a thread of its own; make it after a fork.

    OpenTelemetry's environment variables say the rest: sampling, headers, certificates, the service's name. Without
    them every request is recorded whose caller does not say otherwise.
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

    def __call__(self, exchange: Exchange) -> None:
        """Record a request and its answer."""
        ended, response = time.time_ns(), exchange.response
        method = exchange.method.decode() if exchange.method in _METHODS else "_OTHER"
        path = shown(exchange.target.partition(b"?")[0])
        attributes: dict[str, str | int] = {
            HTTP_REQUEST_METHOD: method,
            HTTP_RESPONSE_STATUS_CODE: response.status,
            URL_PATH: path,
            URL_SCHEME: self._scheme,
        }
        if exchange.is_known:
            attributes[HTTP_ROUTE] = path
        if response.status >= 500:
            attributes[ERROR_TYPE] = response.error
        if response.series is not None:
            attributes["trpo_tf.model.name"] = response.series.model
            attributes["trpo_tf.model.version"] = response.series.version
        if exchange.request_id:
            attributes["trpo_tf.request_id"] = exchange.request_id.decode()
        shown_method = "HTTP" if method == "_OTHER" else method
        span = self._tracer.start_span(
            f"{shown_method} {path}" if exchange.is_known else shown_method,
            context=_context(exchange.parent, exchange.headers.get(b"tracestate", b"")),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=ended - round(exchange.seconds * 1e9),
        )
        if response.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    def close(self) -> None:
        """Deliver what is left, if the collector takes it within `FLUSH_SECONDS`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)


def _context(parent: TraceParent | None, state: bytes) -> Context:
    """The caller's span, or an empty context: never what this thread happens to have."""
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
