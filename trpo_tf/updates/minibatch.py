"""Updates that maximise an objective of their own by Adam over minibatches: KL penalty and PPO."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.config.settings import Config
from trpo_tf.solvers.adam import AdamState, adam
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import Update, UpdateStatus

Objective = Callable[[LocalProblem, Any], Any]
"""problem over a minibatch, theta [P] -> scalar to maximise."""

_LEAST_COEFFICIENT, _MOST_COEFFICIENT = 1e-3, 1e3


def kl_penalty(problem: LocalProblem, config: Config, coefficient: Any, batches: Any) -> Update:
    """Maximise surrogate - coefficient x mean KL(old || new) (Schulman et al. 2015, section 4; 2017, eq 8).

    With `adapt_kl` the coefficient changes for the next update (Schulman et al. 2017, section 4). It is doubled if the
    mean KL is above 1.5 `max_kl`, and halved if it is below `max_kl` / 1.5. After a rejected update it stays the same.
    """

    def objective(part: LocalProblem, theta: Any) -> Any:
        return part.surrogate(theta) - coefficient * part.kl(theta)[0]

    update = maximised(problem, objective, config, coefficient, batches)
    if not config.inner.adapt_kl:
        return update
    target = config.trust_region.max_kl
    factor = tf.where(update.mean_kl > 1.5 * target, tf.constant(2.0, coefficient.dtype), tf.ones_like(coefficient))
    factor = tf.where(update.mean_kl < target / 1.5, tf.constant(0.5, coefficient.dtype), factor)
    factor = tf.where(update.status == UpdateStatus.ACCEPTED, factor, 1.0)
    return update._replace(adapted=tf.clip_by_value(coefficient * factor, _LEAST_COEFFICIENT, _MOST_COEFFICIENT))


def ppo(problem: LocalProblem, config: Config, adapted: Any, batches: Any) -> Update:
    """Maximise the clipped surrogate (Schulman et al. 2017, eq 7); `adapted` is returned unchanged."""
    clip = config.inner.clip_range

    def objective(part: LocalProblem, theta: Any) -> Any:
        ratio = part.ratio(theta)
        clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
        return part.mean(tf.minimum(ratio * part.advantage, clipped * part.advantage))

    return maximised(problem, objective, config, adapted, batches)


def maximised(problem: LocalProblem, objective: Objective, config: Config, adapted: Any, batches: Any) -> Update:
    """Maximise the objective by one step of Adam for each minibatch of `batches`, int32 [steps, rows].

    A zero gradient, or a result that is not finite, is rejected.
    """
    surrogate, gradient = problem.gradient()

    def body(i: Any, theta: Any, state: AdamState) -> tuple[Any, Any, AdamState]:
        part = problem.rows(batches[i])
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = objective(part, theta)
        theta, state = adam(theta, state, -tape.gradient(value, theta), config.inner.policy_learning_rate)
        return i + 1, theta, state

    zeros = tf.zeros_like(problem.theta)
    state = AdamState(zeros[0], zeros, zeros)
    _, theta, _ = tf.while_loop(lambda i, *_: i < batches.shape[0], body, (0, problem.theta, state))

    gain = problem.surrogate(theta) - surrogate
    norm = tf.norm(gradient)
    status = tf.constant(UpdateStatus.ACCEPTED, tf.int32)
    sound = tf.math.is_finite(gain) & tf.reduce_all(tf.math.is_finite(theta))
    status = tf.where(sound, status, int(UpdateStatus.NON_FINITE_STEP))
    status = tf.where(norm == 0, int(UpdateStatus.ZERO_GRADIENT), status)
    status = tf.where(tf.math.is_finite(norm), status, int(UpdateStatus.NON_FINITE_GRADIENT))
    accepted = status == UpdateStatus.ACCEPTED
    theta = tf.where(accepted, theta, problem.theta)
    mean_kl, max_state_kl = problem.kl(theta)
    return Update(
        theta=theta,
        status=status,
        adapted=adapted,
        surrogate_gain=tf.where(accepted, gain, tf.zeros_like(gain)),
        expected_gain=tf.tensordot(gradient, theta - problem.theta, 1),
        mean_kl=mean_kl,
        max_state_kl=max_state_kl,
        entropy=problem.entropy(),
        gradient_norm=norm,
        cg_iterations=tf.constant(0),
        cg_residual=tf.zeros_like(norm),
        line_search_tries=tf.constant(0),
    )


def minibatches(rng: np.random.Generator, count: int, size: int, epochs: int) -> NDArray[np.int32]:
    """Return the rows of each minibatch, int32 [steps, size].

    Each epoch is a new permutation of `count` rows, without the remainder that does not fill a minibatch.
    """
    permutations = [rng.permutation(count)[: count - count % size].reshape(-1, size) for _ in range(epochs)]
    return np.concatenate(permutations).astype(np.int32)
