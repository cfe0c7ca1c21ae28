"""The environments of a run: built, sampled, and built anew at each checkpoint."""

from types import TracebackType
from typing import Self

import numpy as np

from trpo_tf.config import Config
from trpo_tf.envs import environment_seed, make_vector_env
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.state import TrainingState


class Experience:
    """A sampler whose environments are built anew whenever the run passes a checkpoint.

    What an environment holds can't be saved in general. Building it at the same steps of every run, from a seed that
    the checkpoint's number gives, is what lets a resumed run repeat an uninterrupted one.
    """

    def __init__(self, config: Config, actor: Actor) -> None:
        """Nothing is built before `restart`."""
        self._config, self.actor = config, actor
        self._sampler: SinglePath | None = None

    def restart(self, state: TrainingState) -> None:
        """Close the environments, and build those that belong to the state's checkpoint."""
        self._close()
        envs = make_vector_env(self._config.env_id, self._config.sampling.num_envs)
        seed = environment_seed(self._config.seed, state.checkpoint)
        self._sampler = SinglePath(envs, self.actor, seed)

    def collect(self, rng: np.random.Generator) -> tuple[Batch, Episodes]:
        """A batch, with the actor's present parameters."""
        if self._sampler is None:
            raise RuntimeError("call restart before collect")
        return self._sampler.collect(self._config.rollout_length, rng)

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
