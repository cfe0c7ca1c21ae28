"""The vine in shards and rollout workers: what they sample, whatever happens to them, is what one process samples."""

import contextlib
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.training.rollouts import assert_same, learner_for, pids_of, sampled
from trpo_tf.config.settings import VineConfig
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.engines.worker import digest
from trpo_tf.sampling.shard import LocalShards, Segment, ShardPlan, Task, streams
from trpo_tf.sampling.vine.build import build_vine
from trpo_tf.sampling.workers import Workers
from trpo_tf.serving.runtime.observations import take
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import resume, train

ROLLOUTS = "tests.support.environments:FaultyRollouts-v0"
MEMORY = {"history": 2, "previous_action": True, "memory": "gru:3"}
KINDS = {
    "masks and all memory": {
        "env_id": "tests.support.masked_environments:Legal-v0",
        "env_kwargs": json.dumps({"source": "info", "counts": [3, 2]}),
        "action_mask": "info",
        **MEMORY,
    },
    "squashed, after a cell": {"env_id": "Pendulum-v1", "squash": True, "memory": "lstm:3", "time_feature": True},
    "MuJoCo": {"env_id": "InvertedPendulum-v5"},
}


@pytest.fixture(scope="module")
def branching(small_config):
    """Configs of a vine of 10 states, in shards of one, one and two environments."""
    vine = VineConfig(rollout_states=10, branch_length=3)
    return functools.partial(small_config, vine=vine, sampler="vine", num_envs=4, shards=3)


@pytest.fixture(scope="module")
def branched(branching):
    return sampled(branching(ROLLOUTS), 0)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_workers_samples_the_same(count, branching, branched):
    assert_same(sampled(branching(ROLLOUTS), count), branched)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_sample_the_same_without_tensorflow(kind, branching):
    config, maps = branching(**KINDS[kind]), []

    def look(_iteration):
        pids = pids_of("engines.process_engine", os.getpid())
        maps.extend(Path(f"/proc/{pid}/maps").read_text() for pid in pids)

    alone = sampled(config, 0)
    assert all(branches.steps > 20 for *_, branches in alone)
    assert_same(sampled(config, 2, before=look), alone)
    assert maps
    assert not any("tensorflow" in text for text in maps)


def test_each_shard_branches_from_its_own_environments(branched):
    """States are in proportion to environments, and rows are those of the whole batch."""
    for batch, _, _, branches in branched:
        shard = np.minimum(branches.rows % 4, 2)
        np.testing.assert_array_equal(shard, [0] * 2 + [1] * 3 + [2] * 5)
        np.testing.assert_array_equal(branches.observation, take(batch.rows(), branches.rows))
        np.testing.assert_array_equal(branches.weight, batch.weight.ravel()[branches.rows])
        counted = branches.weight > 0
        assert (branches.length[counted] >= 1).all()
        place = branches.observation[counted, 1]
        one_long = branches.length[counted] == 1
        moved = branches.final_observation[counted][..., 1] - place[:, np.newaxis]
        np.testing.assert_array_equal(moved[one_long], np.where(branches.sample[counted] == 1, 1, -1)[one_long])


@pytest.mark.parametrize(
    ("fault", "told"), [("kill", "was killed by SIGKILL"), ("hang", "did not finish a step in 10 s")]
)
def test_a_worker_that_is_lost_in_a_rollout_is_replaced_and_repeats(fault, told, branching, branched, tmp_path):
    kwargs = json.dumps({"fault": fault, "after": 30, "once": str(tmp_path / "lost")})
    workers = Workers(2, step_timeout=10 if fault == "hang" else 0)
    with pytest.warns(UserWarning, match=rf"shards? .* of 3: .* {told}; a new one"):
        assert_same(sampled(branching(ROLLOUTS, env_kwargs=kwargs), workers), branched)
    assert (tmp_path / "lost").exists()


def test_an_exception_in_a_rollout_comes_with_its_traceback_shard_and_seed(branching):
    config = branching(ROLLOUTS, env_kwargs=json.dumps({"fault": "raise", "after": 5}))
    where = r"shard \d of 3 \(seeds? (from )?\d+\), a rollout of the vine, .*the motor is too hot"
    with pytest.raises(EnvironmentFailure, match=where) as raised:
        sampled(config, 2)
    cause = raised.value.cause
    assert isinstance(cause, ArithmeticError)
    assert "in step\n    raise ArithmeticError" in "".join(cause.__notes__)


def test_a_rollout_that_differs_when_it_is_repeated_is_seen(branched):
    batch, episodes, _, branches = branched[0]
    found = digest([Segment(batch, episodes, {}, True, branches)])
    for name in ("reward", "terminated", "final_observation"):
        other = np.array(getattr(branches, name))
        other.flat[-1] += 1
        assert digest([Segment(batch, episodes, {}, True, branches._replace(**{name: other}))]) != found


def test_each_step_of_a_rollout_is_told_so_that_only_a_step_may_take_too_long(branching):
    """Of two shards of one environment each, whose rollouts are one after the other."""
    config = branching(ROLLOUTS)
    learner = learner_for(config)
    state, graph = learner.initial_state(4), acting_graph(learner.policy)
    vine = build_vine(learner.policy, graph.sample, config.vine)
    plan = ShardPlan(config.made_environment, "gymnasium", False, graph, 16, (0, 1, 2), vine)
    told = []
    with contextlib.closing(LocalShards(plan, range(2), visit=lambda: told.append(None))) as shards:
        shards.restart(0, 0, 0.0)
        normalizer = learner.policy.encoder.normalizer(state.observation_moments)
        task = Task(state.theta, normalizer, streams(np.random.default_rng(0), 2), 0.0, 0.0)
        segments = shards.collect(task, PhaseClock())
    assert len(told) == 2 * 16 + sum(segment.branches.steps for segment in segments)


def test_training_with_workers_and_resuming_with_another_number_gives_the_same_weights(branching, tmp_path):
    config = branching(ROLLOUTS, total_steps=500, checkpoint_steps=100, eval_interval=200, periodic_eval_episodes=3)
    alone = train(config, tmp_path / "alone", progress=False)

    class Stop(BaseException):
        """As a kill: no checkpoint is saved for it."""

    def stop(metrics):
        if metrics["steps"] > 250:
            raise Stop

    with pytest.raises(Stop):
        train(config, tmp_path / "stopped", workers=2, observer=stop, progress=False)
    resumed = resume(tmp_path / "stopped", workers=3, progress=False)
    for name in ("theta", "value_theta", "eval_steps"):
        np.testing.assert_array_equal(getattr(resumed.state, name), getattr(alone.state, name))
    assert pids_of("engines.process_engine", os.getpid()) == []


def test_a_shard_has_a_state_at_least(small_config):
    with pytest.raises(UserError, match="rollout_states must be at least as many as shards, 4"):
        small_config(ROLLOUTS, vine=VineConfig(rollout_states=3), sampler="vine", shards=4)
