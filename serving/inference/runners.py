"""Runners of admitted requests: the interface, and a runner that runs each request at once.

`serving.inference.batching` runs several as one batch.
"""

from collections.abc import Callable
from typing import Protocol

from trpo_tf.serving.codecs.v2_json import InferRequest
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.policy import Policy

Outputs = dict[str, Array]
Done = Callable[[Outputs | Exception], None]


class Runner(Protocol):
    """Runs requests in the event loop's thread."""

    def run(self, policy: Policy, request: InferRequest, done: Done) -> None:
        """Run the request, now or later in this turn of the event loop, and call `done` with its outputs or error."""

    def flush(self) -> None:
        """Run all queued requests."""


class DirectRunner:
    """Runs each request by itself, at once."""

    def run(self, policy: Policy, request: InferRequest, done: Done) -> None:
        """Run the request, and call `done` before returning."""
        outputs: Outputs | Exception
        try:
            outputs = policy.infer(request.observations, request.noise, [*request.outputs])
        except Exception as error:  # noqa: BLE001 (each has its answer)
            outputs = error
        done(outputs)

    def flush(self) -> None:
        """Do nothing: no request is ever queued."""
