"""Play the episodes of an evaluation in worker processes, with the results of one process."""

from dataclasses import dataclass

from trpo_tf.config.environment import Environment
from trpo_tf.evaluation.evaluate import Episode, Evaluation, longest_of, played_episodes
from trpo_tf.sampling.engines.pool import WorkerPool
from trpo_tf.sampling.engines.process_engine import ProcessEngine
from trpo_tf.sampling.engines.worker import Worker
from trpo_tf.sampling.workers import Workers
from trpo_tf.serving import Manifest, Policy


@dataclass(frozen=True)
class _EpisodesJob:
    """Job of a worker: the episodes with its numbers."""

    model: bytes
    manifest: Manifest
    environment: Environment
    seed: int
    deterministic: bool
    longest: int

    def __call__(self, worker: Worker) -> list[Episode]:
        """Play the episodes."""
        policy = Policy(self.model, self.manifest)
        return played_episodes(
            policy,
            self.environment,
            worker.numbers,
            self.seed,
            self.deterministic,
            self.longest,
            lambda *_: worker.step_taken(),
        )


def evaluate_in_workers(
    model: bytes,
    manifest: Manifest,
    environment: str | Environment,
    *,
    workers: int,
    episodes: int,
    seed: int,
    deterministic: bool,
    longest: int | None,
) -> Evaluation:
    """Evaluate the policy with this graph and manifest in worker processes; the result is that of `evaluate`.

    There are at most as many workers as episodes. Raises the errors of `evaluate`, and `UserError` for an environment
    that other processes can't make.
    """
    environment = Environment.of(environment)
    longest = longest or longest_of(manifest, environment, episodes)
    job = _EpisodesJob(model, manifest, environment, seed, deterministic, longest)
    chosen = Workers(min(workers, episodes))
    with WorkerPool(chosen, ProcessEngine(), environment, episodes, "episode") as pool:
        return Evaluation.of(pool.run(job), longest)
