import copy
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from trpo_tf.envs.checked import CheckedEnv
from trpo_tf.envs.make import make_env
from trpo_tf.envs.snapshots import check_restorable, restore, save
from trpo_tf.envs.spaces import observation_spec
from trpo_tf.errors import UserError

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
    "tests.support.environments:Ring-v0",
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
    with pytest.raises(UserError, match=r"the state of Walk can't be restored.*sampler='single-path'"):
        check_restorable(gym.make("tests.support.environments:Walk-v0"))


class Smoothed(gym.RewardWrapper):
    """Rewards are means of the latest ones, discounted by a step's number."""

    def __init__(self, env):
        super().__init__(env)
        self._latest, self._count = deque(maxlen=3), 0

    def reward(self, reward):
        self._latest.append(reward + self._count)
        self._count += 1
        return float(np.mean(self._latest))


class Own(Smoothed):
    """Keeps its state in an object, which it saves itself."""

    class Box:
        value = 0.0

    def __init__(self, env):
        super().__init__(env)
        self._box = self.Box()

    def reward(self, reward):
        self._box.value += reward
        return self._box.value


class Saved(Own):
    def save_state(self):
        return self._box.value

    def restore_state(self, state):
        self._box.value = state


@pytest.mark.parametrize("wrap", [Smoothed, Saved, lambda env: FrameStackObservation(env, 3)])
def test_wrappers_go_on_from_where_they_were(wrap):
    """The one that is saved has no checks around it, as those of the trunk."""
    env = wrap(gym.make("CartPole-v1"))
    other = wrap(gym.make("CartPole-v1"))
    other = CheckedEnv(other, observation_spec(other.observation_space), "CartPole-v1")
    env.reset(seed=3)
    other.reset(seed=99)
    check_restorable(other)
    play(env, [0, 1, 0, 0])
    state = save(env)
    expected = play(env, [1, 0, 1, 1])
    play(env, [1, 0])
    for target in (env, other):
        restore(target, state, np.random.default_rng(0))
        assert same(play(target, [1, 0, 1, 1]), expected)


def test_a_wrapper_whose_state_can_not_be_saved_is_refused_by_name():
    with pytest.raises(UserError, match=r"the wrapper Own keeps '_box', .*save_state\(\) and restore_state"):
        check_restorable(Own(gym.make("CartPole-v1")))


def noted(env, actions):
    """As `play`, with the lives and frames that the emulator counts."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, reward, terminated, truncated, info["lives"], info["episode_frame_number"]))
        if terminated or truncated:
            break
    return seen


def atari(name, count=2, frames=None):
    """Environments of one game, each from a seed of its own, an episode of at most `frames` frames."""
    envs = [make_env(f"ALE/{name}-v5") for _ in range(count)]
    for seed, env in enumerate(envs):
        if frames is not None:
            env.unwrapped.ale.setInt("max_num_frames_per_episode", frames)
        env.reset(seed=seed)
    return envs


def actions_of(env, count, seed=0):
    return np.random.default_rng(seed).integers(env.action_space.n, size=count)


@pytest.mark.parametrize("name", ["Pong", "Breakout", "SpaceInvaders"])
def test_atari_replays_the_identical_trajectory(name):
    """From many states, in the environment itself after it went on, and in another one."""
    env, other = atari(name)
    check_restorable(env)
    noted(other, actions_of(other, 50, seed=9))
    trunk = actions_of(env, 200)
    for start in range(0, len(trunk), 20):
        noted(env, trunk[start : start + 20])
        state, actions = save(env), actions_of(env, 15, seed=start)
        replays = []
        for target in (env, other, env):
            restore(target, state, np.random.default_rng(start))
            replays.append(noted(target, actions))
        assert replays[0][0][0].dtype == np.uint8
        assert same(replays[0], replays[1])
        assert same(replays[0], replays[2])
        restore(env, state, np.random.default_rng(start))
    env.close()
    other.close()


def test_saving_atari_changes_nothing_and_its_generator_s_state_is_all_else_that_counts():
    """What the saved environment itself does next, sticky actions and all, given a generator in the same state."""
    env, other, undisturbed = atari("Pong", 3)
    undisturbed.reset(seed=0)
    actions = actions_of(env, 150)
    for start in range(0, len(actions), 10):
        rng = copy.deepcopy(env.unwrapped.np_random)
        state, part = save(env), actions[start : start + 10]
        expected = noted(undisturbed, part)
        assert same(noted(env, part), expected)
        restore(other, state, rng)
        assert same(noted(other, part), expected)
    for each in (env, other, undisturbed):
        each.close()


def test_atari_goes_on_across_the_end_of_a_life_and_of_the_game():
    env, other = atari("Breakout")
    rng = copy.deepcopy(env.unwrapped.np_random)
    state, actions = save(env), actions_of(env, 2000)
    expected = noted(env, actions)
    assert {step[4] for step in expected} == {0, 1, 2, 3, 4, 5}
    assert expected[-1][2]
    restore(other, state, rng)
    assert same(noted(other, actions), expected)
    env.close()
    other.close()


def test_atari_s_limit_of_frames_goes_on_from_where_it_was():
    env, other = atari("Pong", frames=300)
    actions = actions_of(env, 100)
    noted(env, actions[:20])
    rng, state = copy.deepcopy(env.unwrapped.np_random), save(env)
    expected = noted(env, actions[20:])
    assert expected[-1][3]
    restore(other, state, rng)
    assert same(noted(other, actions[20:]), expected)
    env.close()
    other.close()


def test_atari_draws_from_the_intended_generator():
    """Sticky actions and the no-ops of the next reset: the same from the same generator, others from another."""
    env, other = atari("Pong")
    noted(env, actions_of(env, 30))
    state, actions = save(env), actions_of(env, 60, seed=1)
    rollouts, resets, generators = [], [], []
    for target, seed in ((env, 5), (other, 5), (env, 6)):
        generators.append(np.random.default_rng(seed))
        restore(target, state, generators[-1])
        assert target.unwrapped.np_random is generators[-1]
        rollouts.append(noted(target, actions))
        resets.append(target.reset())
    assert same(rollouts[0], rollouts[1])
    assert not same(rollouts[0], rollouts[2])
    np.testing.assert_array_equal(resets[0][0], resets[1][0])
    assert resets[0][1] == resets[1][1]
    assert generators[0].bit_generator.state == generators[1].bit_generator.state
    expected = np.random.default_rng(5)
    expected.uniform(size=4 * 60)
    assert resets[0][1]["episode_frame_number"] == expected.integers(1, 31)
    env.close()
    other.close()


def test_atari_s_last_action_is_part_of_its_state():
    """The generator is one that repeats it for all four frames of the next step, whatever the action is."""
    env, other = atari("Pong")
    seed = next(seed for seed in range(10_000) if (np.random.default_rng(seed).uniform(size=4) < 0.25).all())
    noted(env, [0] * 30)
    up_and_down = []
    for action in (2, 3):
        noted(env, [action] * 3)
        state, replays = save(env), []
        noted(other, [5 - action] * 3)
        for target in (env, other):
            restore(target, state, np.random.default_rng(seed))
            replays.append(noted(target, [0] * 3))
        assert same(replays[0], replays[1])
        up_and_down.append(replays[0])
    assert not same(*up_and_down)
    env.close()
    other.close()


def test_lives_are_counted_on_where_their_loss_ends_an_episode():
    make_env("ALE/Breakout-v5").close()
    inner = [gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0) for _ in range(2)]
    env, other = (AtariPreprocessing(each, terminal_on_life_loss=True) for each in inner)
    env.reset(seed=0)
    other.reset(seed=1)
    actions = actions_of(env, 400)
    assert noted(env, actions)[-1][2]
    state = save(env)
    expected = noted(env, actions)
    restore(other, state, np.random.default_rng(0))
    assert len(expected) > 1
    assert same(noted(other, actions), expected)
    env.close()
    other.close()


def test_ale_s_own_sticky_actions_are_refused():
    """Their last action is not in the emulator's state."""
    make_env("ALE/Pong-v5").close()
    with pytest.raises(UserError, match="the state of AtariEnv can't be restored"):
        check_restorable(gym.make("ALE/Pong-v5", frameskip=1))
    check_restorable(gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0))
