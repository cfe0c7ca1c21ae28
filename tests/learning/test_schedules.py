import dataclasses
import math

import numpy as np
import pytest

from trpo_tf.errors import UserError
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.learning.schedules import annealing, entropy_term, present_discount, radius_or_coefficient
from trpo_tf.sampling.sampler import Experience

TOTAL = 200


def at(config, steps):
    return dataclasses.replace(build_learner(config).initial_state(config.sampling.num_envs), steps=steps)


def test_the_horizon_goes_from_the_first_to_the_final_one_by_equal_factors(small_config):
    config = small_config(discount=0.99, final_discount=0.9, total_steps=TOTAL)
    horizons = [1 / (1 - present_discount(config, at(config, steps))) for steps in (0, 100, TOTAL)]
    np.testing.assert_allclose(horizons, [100, 1000**0.5, 10])
    config = small_config(discount=0.99)
    assert present_discount(config, at(config, TOTAL)) == 0.99


@pytest.mark.parametrize("anneal", [False, True])
def test_radius_and_weight_of_entropy_fall_together(anneal, small_config):
    config = small_config(anneal=anneal, max_kl=0.02, entropy_coefficient=0.2, total_steps=TOTAL)
    left = [1.0, 0.75, 0.0] if anneal else [1.0, 1.0, 1.0]
    learner = build_learner(config)
    for steps, expected in zip((0, 50, TOTAL), left, strict=True):
        state = at(config, steps)
        assert annealing(config, state) == expected
        np.testing.assert_allclose(radius_or_coefficient(config, state), 0.02 * expected)
        np.testing.assert_allclose(entropy_term(config, state, learner.policy.head).weight, 0.2 * expected)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_the_entropy_aimed_at_is_that_of_a_deviation_that_falls_by_equal_factors(state_dependent_std, small_config):
    settings = {"entropy_coefficient": 0.1, "initial_log_std": math.log(0.64), "final_std": 0.25, "unit_std": False}
    settings["state_dependent_std"] = state_dependent_std
    config = small_config("tests.support.environments:Reach-v0", total_steps=TOTAL, **settings)
    learner = build_learner(config)
    count = np.prod(learner.policy.spec.action.shape)
    for steps, deviation in ((0, 0.64), (100, 0.4), (TOTAL, 0.25)):
        target = entropy_term(config, at(config, steps), learner.policy.head).target
        entropy = count * math.log(deviation * math.sqrt(2 * math.pi * math.e))
        np.testing.assert_allclose(target, entropy, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_discount": 1.0}, "final_discount must be at least 0 and below 1"),
        ({"discount": 1.0, "final_discount": 0.9}, "discount must be below 1, with a final_discount"),
        ({"final_std": -0.1}, "final_std must be at least 0"),
        ({"final_std": 0.5}, "entropy_coefficient must be above 0, with a final_std"),
    ],
)
def test_schedules_that_can_not_work_are_refused(settings, message, small_config):
    with pytest.raises(UserError, match=message):
        small_config(**settings)


@pytest.mark.parametrize("setting", [{"final_std": 0.5}, {"state_dependent_std": True}])
def test_a_deviation_of_discrete_actions_is_refused(setting, small_config):
    with pytest.raises(UserError, match=f"{next(iter(setting))} is for Gaussian actions"):
        build_learner(small_config(entropy_coefficient=0.1, **setting))


def test_training_steers_entropy_to_the_final_deviation(small_config):
    config = small_config(
        "tests.support.environments:Reach-v0",
        total_steps=64 * 30,
        entropy_coefficient=1.0,
        initial_log_std=-0.5,
        final_std=0.1,
        censored=True,
    )
    learner = build_learner(config)
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        while state.steps < config.total_steps:
            target = entropy_term(config, state, learner.policy.head).target
            state, metrics = iterate(config, learner, experience, state)
            assert abs(metrics["entropy"] - target) < 0.5
    assert target < math.log(0.12 * math.sqrt(2 * math.pi * math.e)) * np.prod(learner.policy.spec.action.shape)
