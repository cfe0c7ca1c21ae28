"""Observers of requests: the access log and OpenTelemetry."""

from collections.abc import Iterator
from contextlib import contextmanager

from trpo_tf.serving.errors import install
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.support.signals import held_back
from trpo_tf.serving.tracing.access_log import log_access, log_call
from trpo_tf.serving.tracing.records import Observers


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
