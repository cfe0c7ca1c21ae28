"""Runners of admitted requests: the interface, and a runner that runs each request at once.

`serving.inference.batching` runs several as one batch.
"""

from collections.abc import Callable
from typing import Protocol

from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.policy import Policy

Outputs = dict[str, Array]
Done = Callable[[Outputs | Exception], None]


class Waiting:
    """A queued request. Its owner sets `done`, which is called with the outputs or the exception."""

    def __init__(self, request: InferRequest) -> None:
        self.request = request
        self.done: Done | None = None


class Runner(Protocol):
    """Runs requests in the event loop's thread."""

    def run(self, policy: Policy, request: InferRequest) -> Outputs | Waiting:
        """Run the request, or queue it until the end of this turn of the event loop. Raises as `Policy.infer` does."""

    def flush(self) -> None:
        """Run all queued requests."""


class DirectRunner:
    """Runs each request by itself, at once."""

    def run(self, policy: Policy, request: InferRequest) -> Outputs:
        """Run the request. Raises as `Policy.infer` does."""
        return policy.infer(request.observations, request.noise, [*request.outputs])

    def flush(self) -> None:
        """Do nothing: no request is ever queued."""
