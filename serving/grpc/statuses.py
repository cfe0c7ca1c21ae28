"""Statuses of gRPC calls: what an error means to the client, and its label in metrics."""

import logging
from typing import Any

import grpc

from trpo_tf.serving.errors import quoted
from trpo_tf.serving.grpc.limits import BusyError, StoppingError
from trpo_tf.serving.inference.endpoint import failure_of
from trpo_tf.serving.support.logs import emit

MOST_DETAILS = 300
"""Limit on a status's message. Clients take 8 KiB of metadata, and a byte that isn't ASCII becomes three."""

LATE_SECONDS = 0.1
"""Time that a cancelled call may have left to count as late: its client's clock began earlier than the server's."""

BUSY = "too many calls at a time; come again"

STOPPING = "the server stops; open the stream again, at another server or once this one has started"

KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: "bad_request",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.INTERNAL: "internal",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "busy",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.UNIMPLEMENTED: "not_found",
    grpc.StatusCode.FAILED_PRECONDITION: "no_sequence",
}
"""Label of a status among the errors in metrics."""


_CODES = {
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "no_sequence": grpc.StatusCode.FAILED_PRECONDITION,
}
"""Statuses of errors by their kind, where they are neither INVALID_ARGUMENT nor INTERNAL."""


class CallError(Exception):
    """An error that ends a call with the status `code`."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def unknown_model(name: str, version: str) -> CallError:
    """Return the error for a model, or a version if it is not empty, that is not loaded."""
    shown = f"{quoted(name)}, version {quoted(version)}" if version else quoted(name)
    return CallError(grpc.StatusCode.NOT_FOUND, f"there is no model {shown}")


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status and the message of a call that raised `error`."""
    code, message = _status_of(error)
    return code, message if len(message) <= MOST_DETAILS else f"{message[: MOST_DETAILS - 3]}..."


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case CallError():
            return error.code, str(error)
        case BusyError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY
        case StoppingError():
            return grpc.StatusCode.UNAVAILABLE, STOPPING
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time"
    failure = failure_of(error)
    if failure.fault is not None:
        emit("fault", "a call failed", level=logging.ERROR, fault=failure.fault)
    otherwise = grpc.StatusCode.INVALID_ARGUMENT if failure.is_clients else grpc.StatusCode.INTERNAL
    return _CODES.get(failure.kind, otherwise), failure.message


def code_of_cancelled(context: Any) -> grpc.StatusCode:
    """Return the status of a cancelled call: its deadline had passed, or its client cancelled it."""
    remaining = context.time_remaining()
    is_late = remaining is not None and remaining < LATE_SECONDS
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
