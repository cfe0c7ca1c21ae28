"""Result of a policy update."""

from enum import IntEnum
from typing import Any, NamedTuple


class UpdateStatus(IntEnum):
    """Whether an update was accepted, and if not, why the old parameters were kept."""

    ACCEPTED = 0
    ZERO_GRADIENT = 1
    NON_FINITE_GRADIENT = 2
    NON_POSITIVE_CURVATURE = 3
    NON_FINITE_SOLUTION = 4
    LINE_SEARCH_FAILED = 5
    NON_FINITE_STEP = 6


class Update(NamedTuple):
    """New parameters, and the update's metrics; docs/reference/metrics.md defines each."""

    theta: Any  # [P], exactly the old ones unless status is ACCEPTED
    status: Any  # int32, an UpdateStatus
    adapted: Any  # the radius, or the KL coefficient, for the next update; see `Algorithm.adapts`
    surrogate_gain: Any
    expected_gain: Any
    mean_kl: Any
    max_state_kl: Any  # largest of one row
    entropy: Any
    gradient_norm: Any
    cg_iterations: Any
    cg_residual: Any
    line_search_tries: Any
