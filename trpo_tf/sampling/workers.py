"""Describe the rollout workers of a run: how many, and where they run."""

import pickle
from dataclasses import dataclass

import gymnasium as gym

from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config
from trpo_tf.envs.make import resolved_id
from trpo_tf.errors import UserError
from trpo_tf.sampling.ray_connection import check_address
from trpo_tf.serving.argument_checks import expect, expect_count
from trpo_tf.support.shell import option


@dataclass(frozen=True)
class Workers:
    """Number of workers that run the shards, where they run, and the longest time of one of their steps.

    Attributes:
        count: number of workers; 0 runs the shards in the learner's process.
        step_timeout: seconds after which a worker whose environments have not finished a step is replaced; 0: never.
        ray: address of the Ray cluster whose actors are the workers, "local" for Ray on this machine alone, "auto" for
            the cluster that this machine belongs to; None: processes on this machine, without Ray.
    """

    count: int = 0
    step_timeout: float = 0.0
    ray: str | None = None

    @classmethod
    def of(cls, workers: "Workers | int", config: Config) -> "Workers":
        """Return workers, given as such or as their number. Raises `UserError` if a run of `config` can't have them."""
        found = workers if isinstance(workers, cls) else cls(workers)  # type: ignore[arg-type]
        found._check(config)
        return found

    def _check(self, config: Config) -> None:
        expect_count(self.count, "workers", 0, UserError)
        expect(self.ray, str | None, "ray must be the address of a Ray cluster, or local or auto", UserError)
        if not self.step_timeout >= 0:
            raise UserError("step_timeout must be at least 0 seconds")
        if self.count == 0:
            if self.step_timeout:
                raise UserError(f"step_timeout needs {option('workers')}, which are replaced when they hang")
            if self.ray is not None:
                raise UserError(f"ray needs {option('workers')}, which are its actors")
            return
        if config.sampling.env_backend == "envpool":
            gymnasium = option("env_backend", "gymnasium")
            raise UserError(f"workers must be 0 for envpool, which has its own threads; or give {gymnasium}")
        shards = config.sampling.shards
        if self.count > shards:
            raise UserError(
                f"workers must be at most the run's shards, {shards}; start a run with "
                f"{option('shards', self.count)} (what it learns depends on the shards, not on the workers)"
            )
        registration(config.made_environment)
        if self.ray is not None:
            check_address(self.ray)


def registration(environment: Environment) -> bytes:
    """Return the environment's registration as a worker can load it: the pickled spec, or None if its module has it.

    Raises `UserError` if another process can't import it.
    """
    env_id = resolved_id(environment.env_id)
    spec = None if ":" in env_id else gym.registry.get(env_id)
    importable = "define it in a module that can be imported, and name it module:Name-v0, or give make_env from there"
    try:
        pickled = pickle.dumps(spec)
    except Exception as error:
        raise UserError(f"workers can't make {env_id}, since it can't be pickled ({error}); {importable}") from error
    if b"__main__" in pickled or "__main__" in repr(environment):
        raise UserError(f"workers can't make {env_id}, since __main__, the script itself, defines it; {importable}")
    return pickled
