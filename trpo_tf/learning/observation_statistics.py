"""Update the statistics of observations, and change the first layers so that the networks' outputs stay the same."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.settings import Config
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.training_state import TrainingState


def with_observations(
    config: Config, learner: Learner, state: TrainingState, measured: NDArray[np.float64]
) -> TrainingState:
    """Add observations [n, statistics] to the state's statistics; the networks' outputs stay the same.

    New statistics change the networks' standardised inputs. The first layers are changed the other way, so policy and
    critic stay the same functions of the observation, up to clipping. Only the update, bounded by the trust region,
    changes the policy.

    If a network is not a chain of dense layers, no layer is changed. The statistics are then those of the whole run,
    which soon hardly change.
    """
    networks = learner.policy.network, learner.value_function.network
    window = config.sampling.statistics_window if all(network.is_chain for network in networks) else 0
    before, after = state.observation_moments, state.observation_moments.updated(measured, window)
    state = dataclasses.replace(state, observation_moments=after)
    if window == 0 or before.total == 0:
        return state
    critic = learner.value_function.network
    least = learner.policy.encoder.least_deviation
    return dataclasses.replace(
        state,
        theta=learner.policy.recentred(state.theta, before, after, least),
        value_theta=critic.recentred(state.value_theta, before, after, least),
    )
