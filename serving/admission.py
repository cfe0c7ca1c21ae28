"""What a request meets between decoding and running, whatever protocol it came by."""

from collections.abc import Callable

from serving.bounds import bounds_check
from serving.codec import InferRequest, RequestError
from serving.options import ServeOptions
from serving.policy import Policy

Admission = Callable[[InferRequest], InferRequest]
"""A request as the policy may see it. It raises `RequestError`."""


def admission(policy: Policy, options: ServeOptions) -> Admission | None:
    """Observations outside the space are refused or clipped; None if all may pass."""
    check = bounds_check(policy.manifest.observation, options.out_of_bounds)
    if check is None:
        return None

    def admit(request: InferRequest) -> InferRequest:
        try:
            return request._replace(observations=check(request.observations))
        except ValueError as error:
            raise RequestError(str(error)) from None

    return admit
