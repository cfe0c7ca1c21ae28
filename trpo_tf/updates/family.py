"""The table of named algorithms, which the command line, the tests and the docs read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config import Config
from trpo_tf.policies.policy import Policy
from trpo_tf.updates.directed import directed_update
from trpo_tf.updates.directions import FindDirection, compatible_weights, gradient_direction, natural_gradient
from trpo_tf.updates.inner import kl_penalty, ppo
from trpo_tf.updates.problem import LocalProblem, Rows
from trpo_tf.updates.result import Update
from trpo_tf.updates.steps import TakeStep, adaptive_radius, backtracking, kl_sphere, l2_ball

UpdateRule = Callable[[LocalProblem, Config, Any, Any], Update]
"""problem, settings, control (a scalar), minibatches int32 [steps, rows] -> update."""


class Algorithm(NamedTuple):
    """A named update: its rule, what its control starts from, and a line on what it is."""

    rule: UpdateRule
    initial_control: Callable[[Config], float]
    summary: str


def _max_kl(config: Config) -> float:
    return config.trust_region.max_kl


def _directed(find: FindDirection, take: TakeStep, summary: str) -> Algorithm:
    def rule(problem: LocalProblem, config: Config, control: Any, order: Any) -> Update:  # noqa: ARG001
        return directed_update(problem, find, take, config.trust_region, control)

    return Algorithm(rule, _max_kl, summary)


ALGORITHMS = {
    "trpo": _directed(natural_gradient, backtracking, "natural gradient, line search inside the trust region"),
    "trpo-adaptive": _directed(natural_gradient, adaptive_radius, "TRPO whose radius follows actual / predicted gain"),
    "npg": _directed(natural_gradient, kl_sphere, "natural gradient, step to the KL radius without a search"),
    "nac": _directed(compatible_weights, kl_sphere, "natural actor-critic: compatible weights, step as npg"),
    "vpg": _directed(gradient_direction, l2_ball, "plain policy gradient, step of fixed length in parameters"),
    "kl-penalty": Algorithm(
        kl_penalty, lambda config: config.inner.kl_coefficient, "surrogate less weighted KL, by Adam"
    ),
    "ppo": Algorithm(ppo, _max_kl, "clipped surrogate, by Adam"),
}


def compile_update(
    policy: Policy, config: Config, branches: int | None = None, *, xla: bool
) -> Callable[[Any, Rows, Any, Any], Update]:
    """The whole update as one compiled function of parameters [P], rows, control and minibatches.

    `branches` is that of `LocalProblem`.
    """
    algorithm = ALGORITHMS[config.algo]
    coefficient, max_kl = config.trust_region.entropy_coefficient, config.trust_region.max_kl

    def update(theta: Any, rows: Rows, control: Any, order: Any) -> Update:
        # Annealed, the control is what is left of max_kl.
        left = control / max_kl if config.anneal else 1.0
        entropy_coefficient = coefficient * left if coefficient > 0 else None
        problem = LocalProblem(policy, theta, Rows(*rows), branches, entropy_coefficient)
        return algorithm.rule(problem, config, control, order)

    return tf.function(update, autograph=False, jit_compile=xla)  # type: ignore[no-any-return]
