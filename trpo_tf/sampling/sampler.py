"""Make a run's environments, sample them, and make new ones at each checkpoint."""

from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.settings import Config
from trpo_tf.envs.info_sums import added, means
from trpo_tf.envs.make import environment_seed, spec_of
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.actor import ActingGraph
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.engines.choose_engine import engine_for
from trpo_tf.sampling.engines.pool import WorkerPool
from trpo_tf.sampling.engines.worker_shards import WorkerShards
from trpo_tf.sampling.join import in_chronological_order, one_after_the_other, side_by_side
from trpo_tf.sampling.shard import LocalShards, ShardPlan, Shards, Task, shard_bounds, streams
from trpo_tf.sampling.vine.build import build_vine
from trpo_tf.sampling.vine.sampler import Branches
from trpo_tf.sampling.workers import Workers
from trpo_tf.support.phase_timer import PhaseClock

_PERIODS = 5


class Sampled(NamedTuple):
    """Samples of one iteration: a batch, the episodes that ended in it, and the vine's rollouts from its states."""

    batch: Batch
    episodes: Episodes
    branches: Branches | None  # None for single paths

    @property
    def branch_steps(self) -> int:
        """Number of environment steps of the rollouts."""
        return 0 if self.branches is None else self.branches.steps

    @property
    def steps(self) -> int:
        """Number of environment steps of the batch and the rollouts."""
        return self.batch.steps + self.branch_steps


class Experience:
    """Sampler whose environments are replaced whenever the run passes a checkpoint.

    The state of an environment can't be saved in general. Every run therefore makes its environments at the same steps,
    with a seed that depends on the checkpoint's number. This lets a resumed run repeat an uninterrupted one.

    `graph` is the policy's graph, with the shapes of what is sampled. `pool` has the workers, if there are some.
    """

    def __init__(self, config: Config, policy: Policy, workers: Workers | None = None) -> None:
        """Convert the policy, and start the workers if there are some; no environment is made before `restart`."""
        self._config = config
        self._parameters: tuple[NDArray[np.float32], Normalizer] | None = None
        self._info: dict[str, float | None] = {}
        self._progress = 0.0
        self._every_episode_ended = False
        self.graph = acting_graph(policy)
        self.pool = _pool(config, workers) if workers is not None and workers.count else None
        self._plan = _plan(config, policy, self.graph)
        self._shards: Shards = (
            LocalShards(self._plan, range(self._plan.shards))
            if self.pool is None
            else WorkerShards(self._plan, self.pool)
        )

    def set_progress(self, progress: float) -> None:
        """Have the next `restart` and `collect` tell the environments the share of the run that is done."""
        self._progress = progress

    def restart(self, checkpoint: int = 0, longest_recent: int = 0) -> None:
        """Close the environments, and make those of the checkpoint with this number.

        `longest_recent` is the length of the longest of the latest episodes, 0 if it is not known.
        """
        self._every_episode_ended = False
        seed = environment_seed(self._config.seed, checkpoint)
        self._shards.restart(seed, self._longest_first(longest_recent), self._progress)

    def is_over(self, steps: int, steps_before: int, period: int) -> bool:
        """Return whether the environments have done `period` steps since the checkpoint and each has ended an episode.

        If episodes do not end, it is true after five periods, or after `steps_before` steps if those are more. The
        steps available for one episode thus double, however long episodes are. `steps` counts from the checkpoint,
        `steps_before` from the run's start to the checkpoint.
        """
        if steps < period:
            return False
        return self._every_episode_ended or steps >= max(_PERIODS * period, steps_before)

    def load(self, theta: NDArray[np.float32], normalizer: Normalizer) -> None:
        """Sample with these parameters [P] and statistics from the next `collect` on."""
        self._parameters = theta, normalizer

    def collect(self, rng: np.random.Generator, clock: PhaseClock, noise_correlation: float = 0.0) -> Sampled:
        """Sample with the loaded parameters; `noise_correlation` applies to single paths only."""
        if self._parameters is None:
            raise RuntimeError("call load before collect")
        task = Task(*self._parameters, streams(rng, self._config.sampling.shards), noise_correlation, self._progress)
        segments = self._shards.collect(task, clock)
        self._info = means(added(segment.info for segment in segments))
        self._every_episode_ended = all(segment.every_episode_ended for segment in segments)
        branches = [segment.branches for segment in segments if segment.branches is not None]
        return Sampled(
            side_by_side([segment.batch for segment in segments]),
            in_chronological_order([segment.episodes for segment in segments]),
            one_after_the_other(branches, self._plan.bounds) if branches else None,
        )

    def take_info(self) -> dict[str, float | None]:
        """Return means of the numbers in the environments' `info` of the latest `collect`."""
        return self._info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.close()

    def _longest_first(self, longest_recent: int) -> int:
        """Return the longest first episode: the time limit, or the longest of the latest episodes.

        It is 0 if neither is known, or without `stagger`.
        """
        if not self._config.sampling.stagger:
            return 0
        return spec_of(self._config.made_environment).max_episode_steps or longest_recent


def _pool(config: Config, workers: Workers) -> WorkerPool:
    return WorkerPool(workers, engine_for(workers), config.made_environment, config.sampling.shards, "shard")


def _plan(config: Config, policy: Policy, graph: ActingGraph) -> ShardPlan:
    sampling = config.sampling
    return ShardPlan(
        environment=config.made_environment,
        backend=sampling.env_backend,
        limit_ends=sampling.time_feature,
        graph=graph,
        length=config.rollout_length,
        bounds=shard_bounds(sampling.num_envs, sampling.shards),
        vine=build_vine(policy, graph.sample, config.vine) if config.sampler_is_vine else None,
    )
