"""The access log: one line for each HTTP request and each gRPC call."""

from trpo_tf.serving.support.logs import emit, shown
from trpo_tf.serving.tracing.records import CallRecord, RequestRecord


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
