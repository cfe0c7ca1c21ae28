"""Make a run's environments, sample them, and make new ones at each checkpoint."""

from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.envs.backends import make_vector_env
from trpo_tf.envs.make import environment_seed, make_env, spec_of
from trpo_tf.envs.vector import make_sync_env
from trpo_tf.policies.policy import Policy
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.sampling.vine import Branches, Vine
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
    """

    def __init__(self, config: Config, policy: Policy) -> None:
        """Make the actor; no environment is made before `restart`."""
        self._config, self._head = config, policy.head
        self.actor = Actor(policy, config.sampling.num_envs)
        self._sampler: SinglePath | Vine | None = None

    def restart(self, checkpoint: int = 0, longest_recent: int = 0) -> None:
        """Close the environments, and make those of the checkpoint with this number.

        `longest_recent` is the length of the longest of the latest episodes, 0 if it is not known.
        """
        self._close()
        config, n, timed = self._config, self._config.sampling.num_envs, self._config.sampling.time_feature
        seed = environment_seed(config.seed, checkpoint)
        if config.sampler_is_vine:
            trunk = make_sync_env(config.made_environment, n, limit_ends=timed)
            rollout_envs = [make_env(config.made_environment, limit_ends=timed) for _ in range(n)]
            self._sampler = Vine(trunk, rollout_envs, self.actor, seed, self._longest_first(longest_recent))
        else:
            envs = make_vector_env(config.made_environment, n, config.sampling.env_backend, limit_ends=timed)
            self._sampler = SinglePath(envs, self.actor, seed, self._longest_first(longest_recent))

    def is_over(self, steps: int, steps_before: int, period: int) -> bool:
        """Return whether the environments have done `period` steps since the checkpoint and each has ended an episode.

        If episodes do not end, it is true after five periods, or after `steps_before` steps if those are more. The
        steps available for one episode thus double, however long episodes are. `steps` counts from the checkpoint,
        `steps_before` from the run's start to the checkpoint.
        """
        if steps < period or self._sampler is None:
            return False
        return self._sampler.every_episode_ended or steps >= max(_PERIODS * period, steps_before)

    def _longest_first(self, longest_recent: int) -> int:
        """Return the longest first episode: the time limit, or the longest of the latest episodes.

        It is 0 if neither is known, or without `stagger`.
        """
        if not self._config.sampling.stagger:
            return 0
        return spec_of(self._config.made_environment).max_episode_steps or longest_recent

    def collect(self, rng: np.random.Generator, clock: PhaseClock, noise_correlation: float = 0.0) -> Sampled:
        """Sample with the actor's present parameters; `noise_correlation` applies to single paths only."""
        length, vine = self._config.rollout_length, self._config.vine
        match self._sampler:
            case Vine() as sampler:
                batch, episodes, starts = sampler.collect(length, vine.rollout_states, rng, clock)
                branches = sampler.branch(self._head, vine, batch, starts, rng, clock)
                return Sampled(batch, episodes, branches)
            case SinglePath() as sampler:
                batch, episodes = sampler.collect(length, rng, clock, noise_correlation=noise_correlation)
                return Sampled(batch, episodes, None)
        raise RuntimeError("call restart before collect")

    def take_info(self) -> dict[str, float]:
        """Return means of the numbers in the environments' `info` since the last call."""
        return {} if self._sampler is None else self._sampler.take_info()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
