"""The critic's fit to an iteration's targets."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.config.settings import Config
from trpo_tf.estimation.targets import CriticRows
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.schedules import annealing
from trpo_tf.learning.training_state import Purpose, TrainingState
from trpo_tf.solvers.adam import AdamState
from trpo_tf.updates.minibatch import minibatches


class CriticFit(NamedTuple):
    """The critic after a fit, and the fit's mean loss."""

    theta: NDArray[np.float32]  # [Q]
    adam: AdamState
    loss: float


def fit_critic(config: Config, learner: Learner, state: TrainingState, rows: CriticRows) -> CriticFit:
    """Fit the critic to the rows.

    If a parameter is not finite afterwards, the result has the old parameters and Adam's old state, and NaN as loss.
    """
    critic, n = config.critic, config.sampling.num_envs
    width = critic.memory * n
    # The memory's batches from before the first iteration are zeros.
    known = np.arange(len(rows.targets)).reshape(-1, width)[:, -n * (state.iteration + 1) :].ravel()
    # With a memory there are more rows to choose from, but no more steps.
    count = len(rows.targets) // critic.memory
    epochs = -(-critic.epochs * count // len(known))
    batches = minibatches(state.rng(config.seed, Purpose.CRITIC), len(known), critic.batch_size, epochs)
    batches = known.astype(np.int32)[batches[: critic.epochs * (count // critic.batch_size)]]
    # This runs in a thread of its own, whose time the phase clock does not see.
    with tf.profiler.experimental.Trace("critic"):
        theta, adam, loss = learner.value_function.fit(
            state.value_theta,
            state.adam,
            *rows,
            batches,
            np.float32(critic.learning_rate * annealing(config, state)),
        )
        theta, adam = theta.numpy(), AdamState(*(value.numpy() for value in adam))
    if not np.isfinite(theta).all():
        return CriticFit(state.value_theta, state.adam, float("nan"))
    return CriticFit(theta, adam, float(loss))
