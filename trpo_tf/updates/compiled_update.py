"""Compile the update of a named algorithm as one function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.settings import Config
from trpo_tf.policies.policy import Policy
from trpo_tf.updates.local_problem import LocalProblem, Rows
from trpo_tf.updates.result import Update


class EntropyTerm(NamedTuple):
    """Weight of the entropy term in the objective, and its target entropy in nats.

    Without `final_std` the target is not used.
    """

    weight: Any
    target: Any


def compile_update(
    policy: Policy, config: Config, branches: int | None = None, *, xla: bool
) -> Callable[[Any, Rows, Any, Any, EntropyTerm], Update]:
    """Compile the whole update as one function.

    It takes parameters [P], rows, the radius or KL coefficient, minibatches, and the entropy term. `branches` is passed
    to `LocalProblem`.
    """
    algorithm, steered = find_algorithm(config.algo), config.policy.final_std > 0

    def update(theta: Any, rows: Rows, adapted: Any, batches: Any, entropy: EntropyTerm) -> Update:
        weight, target = entropy

        def gain(present: Any) -> Any:
            return -0.5 * weight * (target - present) ** 2 if steered else weight * present

        gain_of_entropy = gain if config.trust_region.entropy_coefficient > 0 else None
        problem = LocalProblem(policy, theta, Rows(*rows), branches, gain_of_entropy)
        return algorithm.rule(problem, config, adapted, batches)

    return tf.function(update, autograph=False, jit_compile=xla)  # type: ignore[no-any-return]
