"""What a request meets between decoding and running, whatever protocol it came by."""

from collections.abc import Callable

from trpo_tf.serving.codecs.v2_json import InferRequest, RequestError
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Model
from trpo_tf.serving.runtime.observation_bounds import bounds_check

Admission = Callable[[InferRequest], InferRequest]
"""A request as the policy may see it. It raises `RequestError`."""


def admission(model: Model, options: ServeOptions, metrics: Metrics, protocol: str) -> Admission:
    """Observations outside the space are refused, clipped, or may pass; what gets through is watched for drift."""
    check = bounds_check(model.policy.manifest.observation, options.out_of_bounds)
    watch = metrics.watch(model, protocol).asked

    def admit(request: InferRequest) -> InferRequest:
        admitted = request
        if check is not None:
            try:
                admitted = request._replace(observations=check(request.observations))
            except ValueError as error:
                raise RequestError(str(error)) from None
        watch(request.observations)
        return admitted

    return admit
