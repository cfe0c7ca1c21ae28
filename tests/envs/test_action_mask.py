"""Masks of legal actions as environments give them: where they come from, and what is wrong with one."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config, EnvironmentConfig, PolicyConfig, SamplingConfig, VineConfig
from trpo_tf.envs.action_mask import LegalActions, warn_of_unused_mask
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import MASK, Spaces
from trpo_tf.envs.vector.vector_env import make_sync_env
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock

LEGAL = "tests.support.masked_environments:Legal-v0"
SOURCES = {"observation": "auto", "info": "info", "method": "method"}


def made(source="observation", setting=None, **arguments):
    return Environment(
        LEGAL, json.dumps({"source": source, **arguments}), action_mask=SOURCES[source] if setting is None else setting
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_mask_from_anywhere_is_the_same_part_of_the_observation(source):
    env = make_env(made(source, counts=[3, 2]))
    spaces = Spaces.of(env)
    assert [(spec.name, spec.dtype, spec.shape) for spec in spaces.observation] == [
        ("action_mask", "int8", (5,)),
        ("obs", "float32", (5,)),
    ]
    assert (spaces.mask, spaces.kinds) == ("action_mask", (MASK, "Box"))
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation["action_mask"], env.unwrapped._mask)
    assert observation["action_mask"].dtype == np.int8
    action = [np.flatnonzero(part)[0] for part in np.split(observation["action_mask"], [3])]
    observation, *_ = env.step(np.array(action))
    np.testing.assert_array_equal(observation["action_mask"], env.unwrapped._mask)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", "int64"])
def test_a_declared_mask_keeps_its_type(dtype):
    env = make_env(made(dtype=dtype))
    assert Spaces.of(env).observation[0].dtype == dtype
    assert env.reset(seed=0)[0]["action_mask"].dtype == dtype


def test_several_masks_stand_side_by_side():
    env = make_env(made("info", counts=[3, 2], wrong="mask = tuple(parts)"))
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        action = [np.flatnonzero(part)[0] for part in np.split(observation["action_mask"], [3])]
        observation, *_ = env.step(np.array(action))
    np.testing.assert_array_equal(observation["action_mask"], env.unwrapped._mask)


def test_masks_are_off_without_a_key_and_when_they_are_switched_off():
    assert Spaces.of(make_env(made("info", "auto"))).mask is None
    off = Spaces.of(make_env(made("observation", "off")))
    assert (off.mask, off.kinds) == (None, ("Box", "Box"))
    # A policy that was trained with a mask needs one, from where the environment has it.
    for source in ("info", "method"):
        env = make_env(Environment(LEGAL, json.dumps({"source": source})), masked=True)
        assert env.reset(seed=0)[0]["action_mask"].any()


@pytest.mark.parametrize(("source", "told"), [("info", r"info\['action_mask'\]"), ("method", "method action_masks")])
def test_a_mask_that_is_passed_over_is_told(source, told):
    env = make_env("tests.support.masked_environments:Legal-v0", source=source)
    if source == "info":  # every environment of this class has the method
        env.has_wrapper_attr = lambda _: False
    with pytest.warns(UserWarning, match=rf"\({told}\), and the policy does not see it: use action_mask=.{source}"):
        warn_of_unused_mask(env, "auto")
    for setting in ("off", source):
        warn_of_unused_mask(env, setting)


class Spaced(gym.Env):
    def __init__(self, mask, action=None, other=True):
        parts = {"action_mask": mask} | ({"obs": Box(-1, 1, (2,))} if other else {})
        self.observation_space, self.action_space = Dict(parts), action or Discrete(4)


FIT = [
    (Discrete(4, start=3), MultiBinary(4)),
    (MultiDiscrete([2, 3]), MultiBinary(5)),
    (MultiDiscrete([2, 3]), Tuple([MultiBinary(2), Box(0, 1, (3,), np.int8)])),
    (MultiBinary(2), MultiBinary(4)),
    (Discrete(4), Box(0.0, 1.0, (4,))),
]


@pytest.mark.parametrize(("action", "mask"), FIT)
def test_a_space_of_a_mask_fits_the_options_of_the_actions(action, mask):
    env = LegalActions(Spaced(mask, action), "observation")
    assert isinstance(env.observation_space, Dict)
    assert env.observation_space["action_mask"].shape == (5 if isinstance(action, MultiDiscrete) else 4,)


UNFIT = {
    "no mask of Discrete": lambda: Spaced(MultiBinary(3)),
    "has 4 numbers in a row": lambda: Spaced(Box(0, 1, (2, 2), np.int8)),
    "has 5 numbers in a row": lambda: Spaced(Box(0, 1, (2, 3), np.int8), MultiDiscrete([2, 3])),
    "is Discrete": lambda: Spaced(Discrete(4)),
    "is Text": lambda: Spaced(gym.spaces.Text(4)),
    "is Tuple": lambda: Spaced(Tuple([Discrete(2), MultiBinary(2)])),
    "action_mask must be off: actions of Box": lambda: Spaced(MultiBinary(3), Box(-1, 1, (3,))),
    "observes nothing but 'action_mask'": lambda: Spaced(MultiBinary(4), other=False),
}


@pytest.mark.parametrize("words", UNFIT)
def test_a_space_that_is_no_mask_is_one_line(words):
    with pytest.raises(UserError, match=words) as error:
        LegalActions(UNFIT[words](), "observation")
    assert "\n" not in str(error.value)


def test_settings_that_the_environment_does_not_have_are_one_line():
    with pytest.raises(UserError, match="action_mask must be auto or off: the observation has 'action_mask' itself"):
        make_env(made("observation", "info"))
    with pytest.raises(UserError, match=r"action_mask must be another than method: .* no method action_masks"):
        make_env(Environment("CartPole-v1", action_mask="method"))
    with pytest.raises(UserError, match="action_mask must be off: actions of Box"):
        make_env(Environment("Pendulum-v1", action_mask="info"))
    with pytest.raises(UserError, match="action_mask must be one of auto, info, method, off"):
        EnvironmentConfig(action_mask="yes")
    with pytest.raises(EnvironmentFailure, match="gave no 'action_mask' in info"):
        make_env(Environment("CartPole-v1", action_mask="info")).reset()


WRONG = {
    "mask = mask * 0": "allows no action",
    "mask = mask[:-1]": r"of int8\[3\], not 4 numbers, one for each option",
    "mask = mask[None]": r"of int8\[1, 4\], not 4 numbers",
    "mask = 'all'": "not 4 numbers",
    "mask = None": "no 'action_mask'",
    "mask = [[1, 0], [1]]": "not 4 numbers",
    "mask = mask * 2": "with 2; it must be 1 for what is legal and else 0",
    "mask = mask - 1": "with -1; it must be 1",
    "mask = np.where(mask, np.nan, 0)": "with nan; it must be 1",
    "mask = np.where(mask, 1, 0.5)": "with 0.5; it must be 1",
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("source", ["observation", "info"])
def test_a_wrong_mask_names_its_environment_and_step(source, wrong):
    envs = make_sync_env(made(source, counts=[4], wrong=wrong), 2)
    observation, _ = envs.reset(seed=0)
    observation, *_ = envs.step(observation["action_mask"].argmax(axis=1))
    with pytest.raises(EnvironmentFailure, match=WRONG[wrong]) as error:
        envs.step(observation["action_mask"].argmax(axis=1))
    assert "environment 1 of 2" in str(error.value)
    env = make_env(made(source, counts=[4], wrong=wrong))
    seen, _ = env.reset(seed=0)
    seen, *_ = env.step(int(seen["action_mask"].argmax()))
    with pytest.raises(EnvironmentFailure, match=r"Legal-v0, step 2 of the episode: .*" + WRONG[wrong]):
        env.step(int(seen["action_mask"].argmax()))
    envs.close()


def sampled(sampling, policy=None, source="observation", **arguments):
    config = Config(
        LEGAL,
        environment=EnvironmentConfig(made(source, **arguments).env_kwargs, action_mask=SOURCES[source]),
        sampling=SamplingConfig(num_envs=4, batch_size=128, **sampling),
        policy=policy or PolicyConfig(hidden_sizes=(8,)),
        vine=VineConfig(rollout_states=20, branch_length=3),
    )
    learner = build_learner(config)
    state = learner.initial_state(4)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        rng = np.random.default_rng(0)
        return learner, [experience.collect(rng, PhaseClock()) for _ in range(2)]


@pytest.mark.parametrize("counts", [[4], [3, 2]])
@pytest.mark.parametrize("source", SOURCES)
def test_sampling_takes_legal_actions_alone(source, counts):
    """The environment fails at an illegal one; each episode ends with a mask that allows none."""
    _, collected = sampled({}, source=source, counts=counts)
    for batch, episodes, _ in collected:
        assert len(episodes.returns) > 8
        assert batch.observation["action_mask"].shape == (33, 4, sum(counts))
        assert (~batch.observation["action_mask"].any(axis=-1)).sum() > 8


@pytest.mark.parametrize("counts", [[4], [7], [3, 2]])
def test_the_vine_tries_legal_actions_alone_each_about_as_often(counts):
    memory = PolicyConfig(hidden_sizes=(8,), history=2, previous_action=True)
    _, collected = sampled({"sampler": "vine"}, memory, counts=counts)
    for _, _, branches in collected:
        assert branches.steps > 50
        for row in np.flatnonzero(branches.weight):
            legal = branches.observation["action_mask"][row] != 0
            first = np.split(legal, np.cumsum(counts)[:-1])[0]
            times = np.bincount(branches.sample[row].reshape(4, -1)[:, 0], minlength=counts[0])
            assert not times[~first].any()
            assert times[first].max() - times[first].min() <= 1
