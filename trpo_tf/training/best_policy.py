"""Evaluate the policy periodically while it is trained, so that training can end with the best one."""

import dataclasses
import pickle
from typing import Any

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.envs.info_sums import added, means
from trpo_tf.envs.vector.backends import whole_worlds
from trpo_tf.evaluation.evaluate import OnStep, longest_episode
from trpo_tf.learning.training_state import Best, TrainingState
from trpo_tf.policies.policy import Policy
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.engines.pool import WorkerPool
from trpo_tf.sampling.play_episodes import Players, PlayJob
from trpo_tf.sampling.shard import ShardPlan, shard_bounds

FIRST_SEED = 2_000_000
"""Seed of the first episode; the others have the seeds that follow. The evaluation after training has other seeds."""


class PeriodicEvaluation:
    """Plays the policy's mode in `periodic_eval_episodes` episodes at once, with the same seeds each time.

    They are in as many groups as the run has shards, so that workers can share them.
    """

    def __init__(self, config: Config, policy: Policy, pool: WorkerPool | None = None) -> None:
        """Make the environments, which `close` closes. A pool's workers make theirs when they are first needed."""
        environment, sampling = config.made_environment, config.sampling
        episodes, agents = whole_worlds(environment, config.periodic_eval_episodes), whole_worlds(environment, 1)
        worlds = episodes // agents
        plan = ShardPlan(
            environment=environment,
            backend=sampling.env_backend,
            limit_ends=sampling.time_feature,
            graph=acting_graph(policy),
            length=longest_episode(environment, config.eval_interval, episodes),
            bounds=tuple(agents * bound for bound in shard_bounds(worlds, min(sampling.shards, worlds))),
        )
        self._encoder, self._pool, self._plan = policy.encoder, pool, pickle.dumps(plan)
        self._players = Players(plan, range(plan.shards)) if pool is None else None

    def run(self, state: TrainingState, on_step: OnStep = lambda *_: None) -> tuple[TrainingState, dict[str, Any]]:
        """Evaluate the policy at `state`, and return the state and metrics.

        The policy becomes the state's best one if none was better. All periodic evaluations together take no more steps
        than training, unless the environment's own time limit requires more. Longer episodes are cut.

        Raises `EnvironmentFailure` if an environment raises, or returns a value that is not finite. Exceptions of
        `on_step` pass through; it is not called for episodes in workers.
        """
        normalizer = self._encoder.normalizer(state.observation_moments)
        if self._players is not None:
            played = self._players.play(state.theta, normalizer, FIRST_SEED, on_step)
        else:
            assert self._pool is not None
            played = self._pool.run(PlayJob(self._plan, state.theta, normalizer, FIRST_SEED))
        mean_return = float(np.concatenate([part.returns for part in played]).mean())
        state = dataclasses.replace(state, eval_steps=state.eval_steps + sum(part.steps for part in played))
        if state.best is None or mean_return >= state.best.mean_return:
            best = Best(state.theta, state.observation_moments, mean_return, state.steps)
            state = dataclasses.replace(state, best=best)
        reported = {f"eval_info/{name}": value for name, value in means(added(part.info for part in played)).items()}
        return state, {"eval_return": mean_return, "eval_episodes_cut": sum(part.cut for part in played), **reported}

    def close(self) -> None:
        """Close the environments of this process."""
        if self._players is not None:
            self._players.close()
