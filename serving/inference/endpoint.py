"""One model version over one transport: what a decoded request meets before it is run, and what an error means."""

from typing import NamedTuple

from trpo_tf.serving.codecs.body_limits import TooLargeError
from trpo_tf.serving.codecs.v2_json import InferRequest
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Model
from trpo_tf.serving.runtime.not_finite import NotFiniteError
from trpo_tf.serving.runtime.observation_bounds import bounds_check


class InferenceEndpoint:
    """One model version over one transport.

    Attributes:
        model: the version that acts.
        policy: its policy.
        series: where its requests over this transport are counted.
    """

    def __init__(self, model: Model, options: ServeOptions, metrics: Metrics, protocol: str) -> None:
        """`protocol` is "http" or "grpc", as metrics name it."""
        self.model, self.policy, self.options = model, model.policy, options
        self.series = metrics.series(model, protocol)
        self._check = bounds_check(model.policy.manifest.observation, options.out_of_bounds)
        self._watch = metrics.watch(model, protocol).asked

    def admit(self, request: InferRequest) -> InferRequest:
        """The request as the policy may see it; its observations are watched for drift.

        Observations outside the space are refused, clipped, or may pass, by the server's options. Raises
        `RequestError`.
        """
        if self._check is not None:
            try:
                request = request._replace(observations=self._check(request.observations))
            except ValueError as error:
                raise RequestError(str(error)) from None
        self._watch(request.observations)
        return request


class Failure(NamedTuple):
    """What an error means to the client, whatever the transport.

    Attributes:
        kind: what the error is called among those counted.
        message: what the client is told.
        is_clients: whether the client has to change its request.
        fault: the server's own fault, which is logged.
    """

    kind: str
    message: str
    is_clients: bool = True
    fault: Exception | None = None


def failure_of(error: Exception) -> Failure:
    """What an error means that parsing, admitting, running or rendering a request has raised."""
    match error:
        case RequestError():
            return Failure("bad_request", str(error))
        case TooLargeError():
            return Failure("too_large", str(error))
        case NotFiniteError(is_absurd=True):
            return Failure("not_finite", str(error))
        case FloatingPointError():
            return Failure("not_finite", str(error), is_clients=False)
    return Failure("internal", "internal error", is_clients=False, fault=error)
