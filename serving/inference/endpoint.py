"""One model version over one transport: checks before a request runs, and the meaning of errors to the client."""

from typing import NamedTuple

from trpo_tf.serving.codecs.parsing.body_limits import TooLargeError
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.errors import NoSequenceError, RequestError, TooManySequencesError
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Model
from trpo_tf.serving.runtime.not_finite import NotFiniteError
from trpo_tf.serving.runtime.observation_bounds import observation_check


class InferenceEndpoint:
    """Checks and metrics of one model version over one transport.

    Attributes:
        model: the model version.
        policy: its policy.
        series: metrics of its requests over this transport.
    """

    def __init__(self, model: Model, options: ServeOptions, metrics: Metrics, protocol: str) -> None:
        """Prepare the checks and metrics. `protocol` is "http" or "grpc", the label of metrics."""
        self.model, self.policy, self.options = model, model.policy, options
        self.series = metrics.series(model, protocol)
        self._check = observation_check(model.policy.manifest, options.out_of_bounds)
        self._watch = metrics.watch(model, protocol).asked

    def admit(self, request: InferRequest) -> InferRequest:
        """Return the request with checked observations, and record them for drift detection.

        The server's options say whether observations outside the space are refused, clipped or accepted. Raises
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
    """Meaning of an error to the client, for every transport.

    Attributes:
        kind: label of the error in metrics.
        message: text for the client.
        is_clients: whether the client has to change its request.
        fault: an unexpected exception, which is logged.
    """

    kind: str
    message: str
    is_clients: bool = True
    fault: Exception | None = None


def failure_of(error: Exception) -> Failure:
    """Classify an error that parsing, admitting, running or rendering a request raised."""
    match error:
        case NoSequenceError():
            return Failure("no_sequence", str(error))
        case TooManySequencesError():
            return Failure("busy", str(error), is_clients=False)
        case RequestError():
            return Failure("bad_request", str(error))
        case TooLargeError():
            return Failure("too_large", str(error))
        case NotFiniteError(is_absurd=True):
            return Failure("not_finite", str(error))
        case FloatingPointError():
            return Failure("not_finite", str(error), is_clients=False)
    return Failure("internal", "internal error", is_clients=False, fault=error)
