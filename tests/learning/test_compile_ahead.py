"""Compiling in another thread changes nothing but the time."""

import contextlib
import dataclasses

import numpy as np
import pytest

from trpo_tf.learning.compile_ahead import compiled_ahead
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.sampling.sampler import Experience

pytestmark = pytest.mark.usefixtures("own_functions")

LONG = 1_000_000
"""Steps of a run that XLA compiles for."""


def _arrays(state):
    return [state.theta, state.value_theta, *state.adam, state.carried_returns, *state.observation_moments]


def _trained(config, learner, ahead=compiled_ahead):
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience, ahead(config, learner, state, experience.graph):
        experience.restart()
        for _ in range(2):
            state, _ = iterate(config, learner, experience, state)
    return state


def test_an_iteration_compiles_nothing_again_and_gives_the_same_bits(small_config):
    config = small_config(total_steps=LONG)
    learner = build_learner(config)
    ahead = _trained(config, learner)
    for function in (learner.update, learner.value_function.fit, learner.value_function.values, learner.encode):
        assert function.experimental_get_tracing_count() == 1
    alone = _trained(config, learner, lambda *_: contextlib.nullcontext())
    for one, another in zip(_arrays(ahead), _arrays(alone), strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize(
    "options", [{"previous_action": True, "history": 2}, {"memory": "gru:4"}], ids=["history", "recurrent"]
)
def test_what_is_made_up_has_the_shapes_of_what_is_sampled(options, small_config):
    config = small_config(critic_memory=2)
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, **options))
    learner = dataclasses.replace(build_learner(config), xla=True)
    _trained(config, learner)
    assert learner.update.experimental_get_tracing_count() == 1


def test_an_error_is_that_of_the_iteration(small_config):
    config = small_config()

    def update(*_):
        raise FloatingPointError("the update can't be compiled")

    learner = dataclasses.replace(build_learner(config), xla=True, update=update)
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience:
        with compiled_ahead(config, learner, state, experience.graph):
            pass
        experience.restart()
        with pytest.raises(FloatingPointError, match="can't be compiled"):
            iterate(config, learner, experience, state)
