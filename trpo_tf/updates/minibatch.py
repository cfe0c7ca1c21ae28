"""Maximise any objective of a policy by Adam over minibatches, as the KL penalty and PPO do."""

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
