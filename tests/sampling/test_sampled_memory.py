"""What the network sees in a batch, and in what branches off it, against a ring kept from the observations."""

import numpy as np
import pytest

from trpo_tf.config.settings import Config, PolicyConfig, SamplingConfig, VineConfig
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.memory import PREVIOUS_ACTION
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock

HISTORY = 4


def sampled(env_id: str, batches: int = 2, *, vine: VineConfig | None = None, **sampling):
    """Batches one after the other, each with what branches off it."""
    sampler = "vine" if vine else "single-path"
    config = Config(
        env_id,
        sampling=SamplingConfig(**({"num_envs": 4, "batch_size": 320, "sampler": sampler} | sampling)),
        policy=PolicyConfig(hidden_sizes=(8,), history=HISTORY, previous_action=True),
        vine=vine or VineConfig(),
    )
    learner = build_learner(config)
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience:
        experience.restart(longest_recent=7)
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        rng = np.random.default_rng(0)
        collected = [experience.collect(rng, PhaseClock()) for _ in range(batches)]
    return learner, collected


def in_turn(batches, name):
    """One part of the observations of batches that follow on each other, with what comes after the last step."""
    parts = [batch.observation[name][:-1] for batch in batches]
    return np.concatenate([*parts, batches[-1].observation[name][-1:]])


def check_rows(learner, batches):
    """Compare each row that counts, and the one after an episode's end, with a ring of the newest observations.

    Return the numbers of episodes and of rows that were compared.
    """
    observation, previous = in_turn(batches, "obs"), in_turn(batches, PREVIOUS_ACTION)
    counted = np.concatenate([batch.weight for batch in batches]) > 0
    sample = np.concatenate([batch.sample for batch in batches])
    action = learner.policy.head.action(sample.reshape(-1, *sample.shape[2:])).numpy().reshape(*sample.shape[:2], -1)
    if action.dtype.kind == "i":
        action = np.eye(2)[action[..., 0]]
    steps, begun, compared = len(sample), 0, 0
    for i in range(observation.shape[1]):
        ring, before = [], None
        for t in range(steps + 1):
            newest = observation[t, i, -1]
            if t == 0 or not counted[t - 1, i]:  # the row before it only reset
                ring, before, begun = [newest] * HISTORY, np.zeros(previous.shape[-1]), begun + 1
            else:
                ring = [*ring[1:], newest]
            if t == steps or counted[t, i] or counted[t - 1, i]:
                np.testing.assert_array_equal(observation[t, i], ring)
                np.testing.assert_array_equal(previous[t, i], before)
                compared += 1
            before = action[t, i] if t < steps else None
    return begun, compared


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("tests.support.environments:Walk-v0", "gymnasium"),
        ("Pendulum-v1", "gymnasium"),
        ("CartPole-v1", "gymnasium"),
        ("Reacher-v5", "envpool"),
        ("CartPole-v1", "envpool"),
    ],
    ids=["walk", "pendulum", "cartpole", "reacher-envpool", "cartpole-envpool"],
)
def test_every_row_sees_its_episode_s_latest_observations_and_action(env_id, backend):
    """Through ends, limits, first episodes that are cut, and from batch to batch."""
    learner, collected = sampled(env_id, env_backend=backend)
    batches = [batch for batch, _, _ in collected]
    begun, compared = check_rows(learner, batches)
    assert begun > 4
    assert compared > 500


def test_a_batch_ends_with_what_the_next_one_begins_with():
    _, [(first, _, _), (second, _, _)] = sampled("tests.support.environments:Walk-v0")
    for name in first.observation:
        np.testing.assert_array_equal(first.observation[name][-1], second.observation[name][0])


def test_the_reference_sees_a_memory_that_is_wrong():
    """A row with another episode's observation, or with a wrong action, does not pass."""
    learner, collected = sampled("tests.support.environments:Walk-v0", batches=1)
    for name in ("obs", PREVIOUS_ACTION):
        batch = collected[0][0]
        wrong = {key: part.copy() for key, part in batch.observation.items()}
        wrong[name][3, 0].flat[0] += 1
        with pytest.raises(AssertionError):
            check_rows(learner, [batch._replace(observation=wrong)])


def test_a_rollout_of_the_vine_remembers_its_trunk_and_the_trunk_forgets_the_rollout():
    """On a ring of six places each step leads to a neighbour, so that a history tells its own actions."""
    learner, collected = sampled(
        "tests.support.environments:Ring-v0", vine=VineConfig(rollout_states=60, branch_length=2), batch_size=160
    )
    check_rows(learner, [batch for batch, _, _ in collected])
    for _, _, branches in collected:
        real = branches.weight > 0
        start = branches.observation["obs"][real].argmax(axis=-1)
        final = branches.final_observation["obs"][real].argmax(axis=-1)
        np.testing.assert_array_equal(branches.length[real], 2)
        # Two steps on, the two newest of the start are the two oldest of the end.
        np.testing.assert_array_equal(final[..., :2], np.broadcast_to(start[:, np.newaxis, -2:], final[..., :2].shape))
        moves = (np.diff(final[..., 1:], axis=-1) + 3) % 6 - 3
        np.testing.assert_array_equal(np.abs(moves), 1)
        np.testing.assert_array_equal(moves[..., 0], np.where(branches.sample[real] == 1, 1, -1))
        last = branches.final_observation[PREVIOUS_ACTION][real].argmax(axis=-1)
        np.testing.assert_array_equal(moves[..., 1], np.where(last == 1, 1, -1))


def test_a_rollout_that_ends_early_keeps_what_it_saw_last():
    """Of CartPoles, some fall while others go on; the newest in the history is where each ended."""
    _, [(_, _, branches)] = sampled("CartPole-v1", batches=1, vine=VineConfig(rollout_states=200, branch_length=12))
    real = branches.weight > 0
    fell, length = branches.terminated[real], branches.length[real]
    final = branches.final_observation["obs"][real]
    assert 0 < fell.sum() < fell.size
    assert len(set(length[fell].tolist())) > 3
    place, angle = np.abs(final[..., -1, 0]), np.abs(final[..., -1, 2])
    np.testing.assert_array_equal((place > 2.4) | (angle > np.deg2rad(12)), fell)
    before = np.abs(final[..., -2, 2])[length > 1]
    assert (before <= np.deg2rad(12)).all()


def test_continuous_first_actions_of_rollouts_are_of_the_remembering_policy():
    """One step on, the previous action is the sample that was drawn for it, in the action's units and clipped."""
    learner, [(_, _, branches)] = sampled("Pendulum-v1", batches=1, vine=VineConfig(rollout_states=30, branch_length=1))
    real = branches.weight > 0
    action = learner.policy.head.action(branches.sample[real].reshape(-1, 1)).numpy()
    np.testing.assert_allclose(branches.final_observation[PREVIOUS_ACTION][real].reshape(-1, 1), action, rtol=1e-6)
