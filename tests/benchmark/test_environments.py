"""The benchmark's own environments have the optima and the random scores that they say."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.benchmark import environments
from trpo_tf.benchmark.environments import Cue, DriftingMass, LateShift, ScoreAtEnd, SignalsAtEnd, ThirtyAxes
from trpo_tf.benchmark.suites import SUITES
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import action_spec

OWN = [env_id for name in ("unseen", "unseen-training") for env_id in SUITES[name] if environments.__name__ in env_id]


def returns(env: gym.Env, act, episodes: int) -> np.ndarray:
    """Of `act(observation, step)`."""
    totals = np.zeros(episodes)
    for k in range(episodes):
        observation, _ = env.reset(seed=k)
        over, step = False, 0
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation, step))
            totals[k] += reward
            over, step = terminated or truncated, step + 1
    return totals


@pytest.mark.parametrize("env_id", [env_id for env_id in OWN if "MiniGrid" not in env_id])
def test_each_is_made_by_its_id_and_keeps_to_its_spaces(env_id):
    env = make_env(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(600):
        action = env.action_space.sample()
        _, reward, terminated, truncated, _ = env.step(action)
        assert np.isfinite(reward)
        if terminated or truncated:
            env.reset()
    assert action_spec(env.action_space).name == "action"


def test_a_peer_is_trained_on_them_where_tensorflow_is_not_installed():
    code = """import sys
sys.modules["tensorflow"] = sys.modules["onnxruntime"] = None
import gymnasium
from trpo_tf.benchmark.suites import SUITES
(env_id,) = (env_id for env_id in SUITES["unseen"] if "Axes" in env_id)
print(gymnasium.make(env_id).action_space.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(30,)\n"), done.stderr


@pytest.mark.parametrize(
    ("partial", "whole", "seen"),
    [
        ("CartPoleWithoutVelocities-v0", "CartPole-v1", [0, 2]),
        ("PendulumWithoutVelocity-v0", "Pendulum-v1", [0, 1]),
        ("HopperWithoutVelocities-v0", "Hopper-v5", list(range(5))),
        ("Walker2dWithoutVelocities-v0", "Walker2d-v5", list(range(8))),
    ],
)
def test_what_no_sensor_measures_is_all_that_is_missing(partial, whole, seen):
    """The rest, the rewards and the time limit are the environment's own."""
    some, full = make_env(f"{environments.__name__}:{partial}"), make_env(whole)
    assert some.spec.max_episode_steps == full.spec.max_episode_steps
    np.testing.assert_array_equal(some.reset(seed=3)[0], full.reset(seed=3)[0][seen].astype(np.float32))
    full.action_space.seed(4)
    for _ in range(8):
        action = full.action_space.sample()
        (observation, *outcome), (all_of_it, *expected) = some.step(action), full.step(action)
        np.testing.assert_array_equal(observation, all_of_it[seen].astype(np.float32))
        assert outcome[:3] == expected[:3]


def test_the_choice_is_due_60_steps_after_the_cue():
    cue = {}

    def remembering(seen, step):
        if step == 0:
            cue["is"] = seen[0]
        assert (seen[0] != 0) == (step == 0)
        assert (seen[1] != 0) == (step == 60)
        return int(cue["is"] > 0)

    assert returns(Cue(), remembering, 5).tolist() == [1] * 5
    assert 0.3 < returns(Cue(), lambda *_: 1, 100).mean() < 0.7


def test_a_minigrid_is_its_picture_as_numbers():
    pytest.importorskip("minigrid")
    env = make_env(f"{environments.__name__}:MiniGrid-Empty-8x8-Flat-v0")
    observation, _ = env.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((147,), np.uint8)


def test_the_score_at_the_end_is_the_share_of_right_actions():
    assert returns(ScoreAtEnd(), lambda _, step: step % 4 == 0, 1) == 0.25
    assert returns(ScoreAtEnd(), lambda *_: 1, 1) == 1
    assert returns(SignalsAtEnd(), lambda seen, _: int(np.argmax(seen[:3])), 2).tolist() == [1, 1]
    constant = returns(SignalsAtEnd(), lambda *_: 2, 100)
    assert constant.mean() == pytest.approx(1 / 3, abs=0.02)
    assert constant.std() > 0.01  # the signals are drawn


def test_a_score_is_paid_at_the_end_alone():
    env = SignalsAtEnd()
    observation, _ = env.reset(seed=0)
    rewards = []
    for _ in range(env.steps):
        observation, reward, terminated, _, _ = env.step(int(np.argmax(observation[:3])))
        rewards.append(reward)
    assert terminated
    assert rewards == [0.0] * (env.steps - 1) + [1.0]


def test_the_mass_s_best_policy_is_the_riccati_equation_s_and_costs_2():
    env = DriftingMass()
    a, b = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [env.push]])
    state_cost, push_cost = np.diag([env.cost, 0.0]), np.array([[env.cost]])
    value, gains = np.zeros((2, 2)), []
    for _ in range(env.steps):
        gains.append(np.linalg.solve(push_cost + b.T @ value @ b, b.T @ value @ a))
        value = state_cost + a.T @ value @ (a - b @ gains[-1])
    gains.reverse()

    def act(observation, step):
        pushes = -gains[step] @ observation.reshape(2, 2)  # rows: place and velocity
        assert np.abs(pushes).max() < 1  # so that the bounds do not matter
        return pushes[0]

    start_variance = env.start**2 / 3
    expected = -2 * start_variance * np.trace(value)  # of both axes
    assert expected == pytest.approx(-2, abs=0.1)
    assert returns(env, act, 400).mean() == pytest.approx(expected, rel=0.1)


def test_random_pushes_let_the_mass_drift_as_far_as_is_told():
    env, push_variance = DriftingMass(), 1 / 3
    steps = np.arange(env.steps)
    place = env.start**2 / 3 * (1 + steps**2)
    place = place + env.push**2 * push_variance * np.array([np.sum(np.arange(max(t - 1, 0) + 1) ** 2) for t in steps])
    expected = -env.cost * 2 * (place.sum() + env.steps * push_variance)
    assert expected == pytest.approx(-91_000, rel=0.01)
    rng = np.random.default_rng(0)
    played = returns(env, lambda *_: rng.uniform(-1, 1, 2), 400)
    assert played.mean() == pytest.approx(expected, rel=0.15)


def test_the_late_shift_pays_for_both_parts_and_ends_by_itself():
    assert gym.spec("LateShift-v0").max_episode_steps is None
    env = LateShift()
    assert returns(env, lambda _, step: int(step >= env.shift), 1) == 7500
    assert returns(env, lambda *_: 0, 1) == 2500
    assert returns(env, lambda observation, _: int(observation[0] * env.steps > env.shift - 0.5), 1) == 7500


def test_the_carriages_best_policy_is_full_speed_until_there():
    env = ThirtyAxes()
    best = returns(env, lambda off, _: np.clip(off / env.speed, -1, 1), 400)
    expected = -sum((1 - env.speed * t) ** 3 / 3 for t in range(1, 5))
    assert expected == pytest.approx(-0.267, abs=1e-3)
    assert best.mean() == pytest.approx(expected, rel=0.05)
    rng = np.random.default_rng(0)
    drawn = returns(env, lambda *_: rng.uniform(-1, 1, env.axes), 40)
    variances = [1 / 3 + env.speed**2 / 3 * t for t in range(1, env.steps + 1)]
    assert drawn.mean() == pytest.approx(-sum(variances), rel=0.05)
    assert -sum(variances) == pytest.approx(-33.7, abs=0.05)


@pytest.mark.parametrize(
    ("units", "plain"), [("PendulumInOtherUnits-v0", "Pendulum-v1"), ("AcrobotInOtherUnits-v0", "Acrobot-v1")]
)
def test_other_units_change_numbers_and_not_the_task(units, plain):
    converted, original = gym.make(units, disable_env_checker=True), gym.make(plain, disable_env_checker=True)
    seen, known = converted.reset(seed=3)[0], original.reset(seed=3)[0]
    original.action_space.seed(0)
    for step in range(600):
        if step == 0:
            first = seen, known
        elif step == 1:
            scale = (seen.astype(float) - first[0]) / (known.astype(float) - first[1])
            assert np.abs(np.log10(np.abs(scale))).min() > 1.5
        action = original.action_space.sample()
        seen, reward, *ends, _ = converted.step(action)
        known, plain_reward, *plain_ends, _ = original.step(action)
        assert ends == plain_ends
        assert reward in (1000 * plain_reward, 0.001 * plain_reward)
        if any(ends):
            break
    assert any(ends)
