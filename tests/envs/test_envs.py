import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, StickyAction

from trpo_tf.envs.make import make_env
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.errors import UserError


def layers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def test_atari_has_the_standard_preprocessing():
    """The standard stack's own first observation, from the same seed; then one frame more each step."""
    env, standard = make_env("ALE/Pong-v5"), gym.make("ALE/Pong-v5", frameskip=1)
    standard = FrameStackObservation(AtariPreprocessing(standard), 4)
    assert env.observation_space == standard.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.action_space == standard.action_space
    first, info = env.reset(seed=3)
    np.testing.assert_array_equal(first, standard.reset(seed=3)[0])
    assert first.dtype == np.uint8
    second, *_, later = env.step(2)
    np.testing.assert_array_equal(second[:3], first[1:])
    assert later["episode_frame_number"] == info["episode_frame_number"] + 4
    env.close()
    standard.close()


def test_a_frame_repeats_the_last_one_s_action_as_often_as_in_ale_s_own_environments():
    env = make_env("ALE/Pong-v5")
    env.reset(seed=0)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0
    [sticky] = [layer for layer in layers(env) if isinstance(layer, StickyAction)]
    probability = gym.spec("ALE/Pong-v5").kwargs["repeat_action_probability"]
    repeated, wanted = 0, 2
    for _ in range(1000):
        wanted = 2 if sticky.last_action == 3 else 3
        sticky.step(wanted)
        repeated += sticky.last_action != wanted
    assert abs(repeated / 1000 - probability) < 4 * np.sqrt(probability * (1 - probability) / 1000)
    env.close()


def test_atari_environments_side_by_side_do_what_they_do_alone():
    """Rewards as they are, too, and the reset in the step after an episode's end, here after a few frames."""
    vector, alone = make_vector_env("ALE/Pong-v5", 2), [make_env("ALE/Pong-v5") for _ in range(2)]
    for env in (*vector.envs, *alone):
        env.unwrapped.ale.setInt("max_num_frames_per_episode", 400)
    observations, _ = vector.reset(seed=5)
    assert observations.shape == (2, 4, 84, 84)
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(observations[i], env.reset(seed=5 + i)[0])
    over, ends, rewards = [False, False], 0, 0.0
    for actions in np.random.default_rng(0).integers(6, size=(150, 2)):
        observations, *numbers, _ = vector.step(actions)
        for i, env in enumerate(alone):
            expected = (env.reset()[0], 0.0, False, False) if over[i] else env.step(actions[i])[:4]
            np.testing.assert_array_equal(observations[i], expected[0])
            assert tuple(column[i] for column in numbers) == expected[1:]
            over[i] = expected[2] or expected[3]
            ends, rewards = ends + over[i], rewards + abs(expected[1])
    assert ends >= 2
    assert rewards > 0
    vector.close()
    for env in alone:
        env.close()


@pytest.mark.parametrize("missing", ["ale_py", "cv2"])
@pytest.mark.parametrize("make", [make_env, lambda env_id: make_vector_env(env_id, 2)])
def test_without_its_packages_atari_is_refused_with_what_to_install(monkeypatch, missing, make):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UserError, match=r"can't be made: Atari games need ale-py and OpenCV; pip install '\.\[atari\]'"
    ):
        make("ALE/Pong-v5")


def test_other_environments_import_nothing_of_atari():
    program = (
        "import sys, trpo_tf.envs.make, trpo_tf.envs.snapshots as s; s.check_restorable(trpo_tf.envs.make.make_env("
        "'CartPole-v1')); sys.exit(bool({'ale_py', 'cv2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_game_without_a_noop_is_refused():
    with pytest.raises(UserError, match="ALE/Backgammon-v5 isn't supported: it has no NOOP action"):
        make_env("ALE/Backgammon-v5")


def test_an_id_may_name_the_module_that_has_it():
    env = make_env("ale_py:ALE/Pong-v5")
    assert env.observation_space.shape == (4, 84, 84)
    env.close()


def test_an_unknown_game_is_refused():
    with pytest.raises(UserError, match="environment 'ALE/Pung-v5' can't be made"):
        make_env("ALE/Pung-v5")
