import dataclasses

import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import Config, PolicyConfig, SamplingConfig
from trpo_tf.estimation.targets import estimate
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.updates.local_problem import LocalProblem, Rows


def test_a_learned_baseline_lowers_the_variance_of_the_gradient_on_the_same_batches():
    """REINFORCE with and without: returns, against returns less the critic's value."""
    sampling = SamplingConfig(num_envs=8, batch_size=512, stagger=False, adaptive_lambda=False)
    config = Config("CartPole-v1", algo="vpg", sampling=sampling, policy=PolicyConfig(hidden_sizes=(8,)))
    learner = build_learner(config)
    state = learner.initial_state(8)

    @tf.function(autograph=False)
    def gradient(theta, rows):
        return LocalProblem(learner.policy, theta, Rows(*rows)).gradient()[1]

    gradients = {"return": [], "monte-carlo": []}
    with Experience(config, learner.policy) as experience:
        experience.restart()
        for _ in range(12):  # a critic that knows something
            state, _ = iterate(config, learner, experience, state)
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        rng = np.random.default_rng(0)
        for _ in range(20):
            batch, _, _ = experience.collect(rng, PhaseClock())
            for advantage, found in gradients.items():
                asked, networks = dataclasses.replace(sampling, advantage=advantage), learner.frozen(state)
                rows = estimate(asked, networks, batch, state.return_moments, state.carried_returns).rows
                found.append(gradient(tf.constant(state.theta), rows).numpy())

    def relative_variance(found):
        return np.sum(np.var(found, axis=0)) / np.sum(np.mean(found, axis=0) ** 2)

    assert relative_variance(gradients["monte-carlo"]) < 0.8 * relative_variance(gradients["return"])
