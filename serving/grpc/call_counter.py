"""Counts calls in the metrics, and passes them to the access log and traces."""

from time import perf_counter
from typing import Any

import grpc

from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.keys import KeyRing
from trpo_tf.serving.metrics.series import Metrics, Series
from trpo_tf.serving.tracing.records import CallRecord, Observers, grpc_client, sane_id
from trpo_tf.serving.tracing.trace_context import parse_traceparent


class Progress:
    """Progress of a call, or of a request in a stream.

    Attributes:
        began: when it began.
        arrived: when its message had arrived; 0 until then.
        endpoint: the endpoint that answers it, once that is known.
    """

    __slots__ = ("arrived", "began", "endpoint")

    def __init__(self, arrived: float = 0.0) -> None:
        self.began, self.arrived = arrived or perf_counter(), arrived
        self.endpoint: InferenceEndpoint | None = None


class CallCounter:
    """Counts calls, and knows whose key a call has."""

    def __init__(self, metrics: Metrics, observers: Observers, keys: KeyRing | None) -> None:
        self._unrouted, self._observers, self._keys = metrics.series(None, "grpc"), observers.grpc, keys

    def key_of(self, context: Any) -> str:
        """Return the name of a call's key; empty without a valid key."""
        return (self._keys and self._keys.name_of(authorization_of(context))) or ""

    def count(
        self, context: Any, method: str, code: grpc.StatusCode, kind: str, progress: Progress | None = None
    ) -> None:
        """Count a call with its status; `kind` labels an error, and `method` is empty if the path is unknown."""
        now = perf_counter()
        endpoint = progress.endpoint if progress else None
        if progress is None or endpoint is None:
            self._unrouted.answered(code.name, None, kind)
        else:
            endpoint.series.answered(code.name, now - progress.arrived, kind)
        if self._observers:
            seconds = now - progress.began if progress else 0.0
            self._tell(context, method, code, kind, endpoint.series if endpoint else None, seconds)

    def _tell(
        self, context: Any, method: str, code: grpc.StatusCode, kind: str, series: Series | None, seconds: float
    ) -> None:
        """Pass a call to the observers, without its binary metadata."""
        given = {key: value.encode() for key, value in context.invocation_metadata() if isinstance(value, str)}
        record = CallRecord(
            method,
            code.name,
            code.value[0],
            kind,
            series,
            seconds,
            sane_id(given.get("x-request-id", b"")),
            parse_traceparent(given.get("traceparent", b"")),
            given.get("tracestate", b""),
            grpc_client(context.peer()),
            self.key_of(context),
        )
        for observe in self._observers:
            observe(record)


def authorization_of(context: Any) -> bytes:
    """Return a call's authorization metadata; empty if it has none, or none that is text."""
    given = dict(context.invocation_metadata()).get("authorization", "")
    return given.encode() if isinstance(given, str) else b""
