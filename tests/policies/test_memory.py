"""The memory of a policy against a ring that the test keeps itself."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from trpo_tf.envs.make import make_env
from trpo_tf.envs.remaining_time import LOG_STEPS_LEFT, LimitEnds
from trpo_tf.envs.spaces import Spaces, action_spec, observation_kinds, observation_spec
from trpo_tf.errors import UserError
from trpo_tf.export.policy.outputs import started
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.memory import PREVIOUS_ACTION, make_memory
from trpo_tf.policies.running_stats import Normalizer

ROWS, STEPS, LIMIT = 4, 25, 6
BOX = Box(-3, 3, (2,), np.float32)
PARTS = Dict(
    {
        "arm": Box(-9, 9, (1, 2), np.float64),
        "bits": MultiBinary(3),
        "bytes": Box(0, 255, (4,), np.uint8),
        "choice": Discrete(3, start=1),
        "choices": MultiDiscrete([2, 4]),
        "short": Box(-99, 99, (2,), np.int16),
    }
)


def made(space, action=BOX, limit=0, **settings):
    spaces = Spaces(observation_spec(space), observation_kinds(space), action_spec(action), limit)
    return make_memory(spaces, counts_steps=limit > 0, **settings)


def one_hot(action, space):
    """One row of an action, a choice's options one after the other."""
    match space:
        case Box():
            return np.asarray(action)
        case Discrete():
            return np.eye(space.n)[action - space.start]
        case MultiBinary():
            return np.concatenate([np.eye(2)[bit] for bit in np.ravel(action)])
    counts, choices = np.ravel(space.nvec), np.ravel(action - space.start)
    return np.concatenate([np.eye(count)[choice] for count, choice in zip(counts, choices, strict=True)])


@pytest.mark.parametrize(
    ("history", "space", "action"),
    [
        (1, BOX, Discrete(3, start=2)),
        (2, PARTS, MultiDiscrete([[2, 3], [4, 2]])),
        (4, BOX, BOX),
        (4, PARTS, MultiBinary(3)),
    ],
    ids=["none", "two", "array", "parts"],
)
def test_what_the_network_sees_is_what_a_ring_holds(history, space, action):
    """Steps with resets at random, each row with its own, into a state that holds anything at first."""
    rng = np.random.default_rng(0)
    space.seed(1)
    action.seed(2)
    memory = made(space, action, history=history, previous_action=True, limit=LIMIT)
    state = {spec.name: np.full((ROWS, *spec.shape), 7, spec.dtype) for spec in memory.state}
    rings = [{} for _ in range(ROWS)]
    reset = np.ones(ROWS, bool)
    for _ in range(STEPS):
        rows = [parts_of(space.sample()) for _ in range(ROWS)]
        actions = np.stack([np.asarray(action.sample()) for _ in range(ROWS)])
        observation = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        given = observation if len(observation) > 1 else observation["obs"]
        initial = started(memory.state, state, reset)
        seen = memory.observe(given, initial, reset)
        for i, row in enumerate(rows):
            if reset[i]:
                rings[i] = {"seen": [row] * history, "action": None, "steps": 0}
            else:
                rings[i]["seen"] = [*rings[i]["seen"][1:], row]
            expected = {
                name: np.stack([np.asarray(each[name]) for each in rings[i]["seen"]]) if history > 1 else row[name]
                for name in row
            }
            before = rings[i]["action"]
            expected[PREVIOUS_ACTION] = np.zeros_like(one_hot(actions[i], action)) if before is None else before
            assert set(seen) == {*expected, LOG_STEPS_LEFT}
            for name, values in expected.items():
                np.testing.assert_array_equal(seen[name][i], values)
                assert name == PREVIOUS_ACTION or seen[name].dtype == observation[name].dtype
            left = LIMIT - rings[i]["steps"]
            np.testing.assert_allclose(seen[LOG_STEPS_LEFT][i], np.log1p([left], dtype=np.float32), rtol=3e-7)
            rings[i] |= {"action": one_hot(actions[i], action), "steps": min(rings[i]["steps"] + 1, LIMIT)}
        state = {name: np.asarray(values) for name, values in memory.advance(seen, initial, actions).items()}
        for spec in memory.state:
            assert (state[spec.name].shape, state[spec.name].dtype) == ((ROWS, *spec.shape), spec.dtype)
        reset = rng.random(ROWS) < 0.15
    assert max(ring["steps"] for ring in rings) == LIMIT


def parts_of(sample):
    return dict(sample) if isinstance(sample, dict) else {"obs": sample}


def test_the_first_observation_alone_fills_the_history():
    memory = made(BOX, history=3, previous_action=True)
    seen = memory.first(np.array([1.0, 2.0], np.float32))
    np.testing.assert_array_equal(seen["obs"], [[1, 2]] * 3)
    np.testing.assert_array_equal(seen[PREVIOUS_ACTION], [0, 0])


def test_a_choice_in_the_history_is_encoded_as_choices():
    memory = made(Discrete(3, start=1), history=2)
    encoder = make_encoder(memory.kinds, memory.observation, normalize=True)
    inputs = encoder(Normalizer(np.zeros(0, np.float32), np.zeros(0, np.float32)), np.array([[1, 3]]))
    np.testing.assert_array_equal(inputs, [[1, 0, 0, 0, 0, 1]])


@pytest.mark.parametrize(
    "env_id",
    ["Pendulum-v1", "tests.support.environments:Signals-dict-v0", "tests.support.environments:Signals-tuple-v0"],
)
def test_the_time_left_stands_where_former_releases_had_it_as_an_input(env_id):
    """So that the weights of their runs are for the same columns."""
    limits = {} if env_id == "Pendulum-v1" else {"max_episode_steps": 5}
    former = make_env(env_id, time_feature=True, checked=False, **limits).observation_space
    env = make_env(env_id, **limits)
    memory = made(env.observation_space, env.action_space, limit=env.spec.max_episode_steps)
    assert [spec.name for spec in memory.observation] == [spec.name for spec in observation_spec(former)]
    for normalize in (True, False):
        now, then = (
            make_encoder(kinds, memory.observation, normalize=normalize)
            for kinds in (memory.kinds, observation_kinds(former))
        )
        assert (now.inputs, now.statistics) == (then.inputs, then.statistics)


def test_what_has_no_memory_is_none():
    assert made(BOX) is None


def test_what_can_t_be_kept_is_said_in_a_line(small_config):
    with pytest.raises(UserError, match="history must be at least 1"):
        small_config(history=0)
    with pytest.raises(UserError, match=r"history must be at most the steps of an episode, 5 in \S+Walk-v0"):
        build_learner(small_config(history=6))
    build_learner(small_config(history=5))
    with pytest.raises(UserError, match=r"history must be 1: the observation 'obs' is an image; let a wrapper"):
        build_learner(small_config("tests.support.environments:Signals-picture-v0", history=2))
    for name, settings in (
        ("reset", {"history": 2}),
        ("history_b", {"history": 2}),
        ("next_steps", {"limit": 5}),
        ("steps", {"limit": 5}),
        (LOG_STEPS_LEFT, {"limit": 5}),
        (PREVIOUS_ACTION, {"previous_action": True}),
    ):
        with pytest.raises(UserError, match=f"an observation '{name}', which is the name of an array of the policy's"):
            made(Dict({name: BOX, "b": BOX}), **settings)


def test_a_wrapper_that_repeats_actions_is_not_counted_wrongly():
    class Twice(gym.Wrapper):
        def step(self, action):
            self.env.step(action)
            return self.env.step(action)

    env = make_env("Pendulum-v1", checked=False)
    counted = LimitEnds(Twice(env))
    counted.reset(seed=0)
    with pytest.raises(UserError, match="time_feature must be off: a wrapper repeats actions"):
        counted.step(np.zeros(1, np.float32))
