"""What an update answers."""

from enum import IntEnum
from typing import Any, NamedTuple


class UpdateStatus(IntEnum):
    """Whether the update was made, and if not, why the old parameters stand."""

    ACCEPTED = 0
    ZERO_GRADIENT = 1
    NON_FINITE_GRADIENT = 2
    NON_POSITIVE_CURVATURE = 3
    NON_FINITE_SOLUTION = 4
    LINE_SEARCH_FAILED = 5
    NON_FINITE_STEP = 6


class Update(NamedTuple):
    """New parameters, and scalars about how they came; docs/reference/metrics.md defines each."""

    theta: Any  # [P], the old ones to the bit unless status is ACCEPTED
    status: Any  # int32, an UpdateStatus
    adapted: Any  # the radius, or the KL coefficient, for the next update; see `Algorithm.adapts`
    surrogate_gain: Any
    expected_gain: Any
    mean_kl: Any
    max_state_kl: Any  # of one row
    entropy: Any
    gradient_norm: Any
    cg_iterations: Any
    cg_residual: Any
    line_search_tries: Any
