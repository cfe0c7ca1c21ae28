"""From a checked request to its answers: what every protocol does between decoding and encoding."""

from collections.abc import Callable

from serving.bounds import bounds_check
from serving.codec import InferRequest, RequestError
from serving.observations import Array
from serving.options import ServeOptions
from serving.policy import Policy

Acting = Callable[[InferRequest], dict[str, Array]]
"""From a request to the outputs [batch, ...] that it asks for. It raises `RequestError` and `FloatingPointError`."""


def acting(policy: Policy, options: ServeOptions) -> Acting:
    """How `policy` answers, with observations outside the space refused, clipped or let through."""
    check = bounds_check(policy.manifest.observation, options.out_of_bounds)

    def act(request: InferRequest) -> dict[str, Array]:
        observations = request.observations
        if check is not None:
            try:
                observations = check(observations)
            except ValueError as error:
                raise RequestError(str(error)) from None
        return policy.infer(observations, request.noise, [*request.outputs])

    return act
