"""Observers of requests: the access log and OpenTelemetry."""

from collections.abc import Iterator
from contextlib import contextmanager

from trpo_tf.serving.errors import install
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.support.logs import emit, shown
from trpo_tf.serving.support.signals import held_back
from trpo_tf.serving.tracing.records import CallRecord, Observers, RequestRecord


@contextmanager
def observers_of(options: ServeOptions) -> Iterator[Observers]:
    """Provide the observers that the options ask for, and deliver the last spans on exit. Enter it after a fork.
    Raises `ServeError` if OpenTelemetry is asked for and not installed.
    """
    log = Observers((log_access,), (log_call,)) if options.access_log else Observers()
    if options.otlp_endpoint is None:
        yield log
        return
    try:
        with held_back():
            from trpo_tf.serving.tracing.opentelemetry import Tracer
    except ImportError as error:
        raise ServeError(f"--otlp-endpoint: {error}; {install('tracing')}") from None
    tracer = Tracer(options.otlp_endpoint, "https" if options.tls_cert else "http")
    try:
        yield Observers((*log.http, tracer.request), (*log.grpc, tracer.call))
    finally:
        tracer.close()


def log_access(record: RequestRecord) -> None:
    """Log a request and its answer."""
    emit(
        "request",
        client=record.client,
        key=record.key,
        method=shown(record.method),
        path=shown(record.target),
        status=record.status,
        seconds=round(record.seconds, 6),
        bytes=record.body_bytes,
        request_id=record.request_id.decode(),
        trace_id=record.parent.trace_id if record.parent else "",
    )


def log_call(record: CallRecord) -> None:
    """Log a gRPC call and its status."""
    emit(
        "call",
        client=record.client,
        key=record.key,
        method=record.method,
        code=record.code,
        seconds=round(record.seconds, 6),
        request_id=record.request_id.decode(),
        trace_id=record.parent.trace_id if record.parent else "",
    )
