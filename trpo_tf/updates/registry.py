"""The table of named algorithms, which the command line, the tests and the docs read."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config.settings import Config
from trpo_tf.policies.policy import Policy
from trpo_tf.updates.composed import directed_update
from trpo_tf.updates.directions import FindDirection, compatible_weights, gradient_direction, natural_gradient
from trpo_tf.updates.local_problem import LocalProblem, Rows
from trpo_tf.updates.minibatch import kl_penalty, ppo
from trpo_tf.updates.result import Update
from trpo_tf.updates.steps import TakeStep, adaptive_radius, backtracking, kl_sphere, l2_ball

UpdateRule = Callable[[LocalProblem, Config, Any, Any], Update]
"""Problem, settings, radius or KL coefficient (a scalar), minibatches int32 [steps, rows] -> update."""


class EntropyTerm(NamedTuple):
    """Weight of the entropy term in the objective, and its target entropy in nats.

    Without `final_std` the target is not used.
    """

    weight: Any
    target: Any


class Algorithm(NamedTuple):
    """A named update.

    Attributes:
        rule: function that computes the update.
        adapts: metric that `Update.adapted` is reported as, `radius` (of the trust region) or `kl_coefficient`; None if
            the update uses neither.
        initial: config -> radius or coefficient of the first update.
        summary: description of one line.
    """

    rule: UpdateRule
    adapts: str | None
    initial: Callable[[Config], float]
    summary: str


def _max_kl(config: Config) -> float:
    return config.trust_region.max_kl


def _directed(find: FindDirection, take: TakeStep, summary: str) -> Algorithm:
    def rule(problem: LocalProblem, config: Config, radius: Any, batches: Any) -> Update:  # noqa: ARG001
        return directed_update(problem, find, take, config.trust_region, radius)

    return Algorithm(rule, None if take is l2_ball else "radius", _max_kl, summary)


ALGORITHMS = {
    "trpo": _directed(natural_gradient, backtracking, "natural gradient, line search inside the trust region"),
    "trpo-adaptive": _directed(natural_gradient, adaptive_radius, "TRPO whose radius follows actual / predicted gain"),
    "npg": _directed(natural_gradient, kl_sphere, "natural gradient, step to the KL radius without a search"),
    "nac": _directed(compatible_weights, kl_sphere, "natural actor-critic: compatible weights, step as npg"),
    "vpg": _directed(gradient_direction, l2_ball, "plain policy gradient, step of fixed length in parameters"),
    "kl-penalty": Algorithm(
        kl_penalty,
        "kl_coefficient",
        lambda config: config.inner.kl_coefficient,
        "surrogate less weighted KL, by Adam",
    ),
    "ppo": Algorithm(ppo, None, _max_kl, "clipped surrogate, by Adam"),
}


def compile_update(
    policy: Policy, config: Config, branches: int | None = None, *, xla: bool
) -> Callable[[Any, Rows, Any, Any, EntropyTerm], Update]:
    """Compile the whole update as one function.

    It takes parameters [P], rows, the radius or KL coefficient, minibatches, and the entropy term. `branches` is passed
    to `LocalProblem`.
    """
    algorithm, steered = ALGORITHMS[config.algo], config.policy.final_std > 0

    def update(theta: Any, rows: Rows, adapted: Any, batches: Any, entropy: EntropyTerm) -> Update:
        weight, target = entropy

        def gain(present: Any) -> Any:
            return -0.5 * weight * (target - present) ** 2 if steered else weight * present

        gain_of_entropy = gain if config.trust_region.entropy_coefficient > 0 else None
        problem = LocalProblem(policy, theta, Rows(*rows), branches, gain_of_entropy)
        return algorithm.rule(problem, config, adapted, batches)

    return tf.function(update, autograph=False, jit_compile=xla)  # type: ignore[no-any-return]
