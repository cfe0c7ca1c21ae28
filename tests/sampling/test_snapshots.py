import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.errors import UserError
from trpo_tf.sampling.snapshots import check_restorable, restore, save

ENVIRONMENTS = [
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "InvertedPendulum-v5",
    "Hopper-v5",
    "Ant-v5",
    "Reacher-v5",
    "environments:Ring-v0",
]


def play(env, actions):
    """What happens under `actions`, until the episode's end."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((np.asarray(observation).copy(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return seen


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, other, strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*settotalmass")
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_restored_state_replays_the_identical_trajectory(env_id):
    """In the same environment after it went elsewhere, and in another one."""
    env, other = gym.make(env_id), gym.make(env_id)
    check_restorable(env)
    env.reset(seed=3)
    other.reset(seed=99)
    env.action_space.seed(0)
    warm_up, actions = ([env.action_space.sample() for _ in range(n)] for n in (7, 60))
    play(env, warm_up)
    state = save(env)
    expected = play(env, actions)
    for target in (other, env):
        restore(target, state, np.random.default_rng(0))
        assert same(play(target, actions), expected)
    env.close()
    other.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_the_time_limit_goes_on_from_where_it_was(env_id):
    env = gym.make(env_id, max_episode_steps=5)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, env.action_space.dtype)[()]
    play(env, [action] * 2)
    state = save(env)
    for _ in range(2):
        restore(env, state, np.random.default_rng(0))
        assert [step[3] for step in play(env, [action] * 3)] == [False, False, True]
    env.close()


def test_the_generator_is_the_intended_one():
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    restore(env, save(env), np.random.default_rng(5))
    drawn = env.unwrapped.np_random.random()
    assert drawn == np.random.default_rng(5).random()
    env.close()


def test_an_environment_that_can_not_be_restored_is_refused_by_name():
    with pytest.raises(UserError, match=r"the state of Walk can't be restored.*--sampler single-path"):
        check_restorable(gym.make("environments:Walk-v0"))
