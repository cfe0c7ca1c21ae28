"""Evaluate the policy periodically while it is trained, so that training can end with the best one."""

import dataclasses
from typing import Any

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.envs.backends import make_vector_env, whole_worlds
from trpo_tf.envs.checked import not_finite
from trpo_tf.envs.info_sums import Sums, added, means
from trpo_tf.envs.vector import Step
from trpo_tf.errors import EnvironmentFailure, environment_failure
from trpo_tf.evaluation.evaluate import OnStep, longest_episode
from trpo_tf.learning.training_state import Best, TrainingState
from trpo_tf.policies.policy import Policy
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.actor import Actor
from trpo_tf.serving.runtime.observations import is_finite, map_parts, observation_of, write

FIRST_SEED = 2_000_000
"""Seed of the first episode; the others have the seeds that follow. The evaluation after training has other seeds."""


class PeriodicEvaluation:
    """Plays the policy's mode in `periodic_eval_episodes` episodes at once, with the same seeds each time."""

    def __init__(self, config: Config, policy: Policy) -> None:
        """Make the environments, which `close` closes."""
        episodes = whole_worlds(config.made_environment, config.periodic_eval_episodes)
        self._actor = Actor(acting_graph(policy), episodes)
        self._encoder = policy.encoder
        self._longest = longest_episode(config.made_environment, config.eval_interval, episodes)
        sampling = config.sampling
        self._envs = make_vector_env(
            config.made_environment,
            episodes,
            sampling.env_backend,
            limit_ends=sampling.time_feature,
        )

    def run(self, state: TrainingState, on_step: OnStep = lambda *_: None) -> tuple[TrainingState, dict[str, Any]]:
        """Evaluate the policy at `state`, and return the state and metrics.

        The policy becomes the state's best one if none was better. All periodic evaluations together take no more steps
        than training, unless the environment's own time limit requires more. Longer episodes are cut.

        Raises `EnvironmentFailure` if an environment raises, or returns a value that is not finite. Exceptions of
        `on_step` pass through.
        """
        self._actor.load(state.theta, self._encoder.normalizer(state.observation_moments))
        mean_return, steps, cut, info = self._play(on_step)
        state = dataclasses.replace(state, eval_steps=state.eval_steps + steps)
        if state.best is None or mean_return >= state.best.mean_return:
            best = Best(state.theta, state.observation_moments, mean_return, state.steps)
            state = dataclasses.replace(state, best=best)
        reported = {f"eval_info/{name}": value for name, value in means(info).items()}
        return state, {"eval_return": mean_return, "eval_episodes_cut": cut, **reported}

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _play(self, on_step: OnStep) -> tuple[float, int, int, Sums]:
        """Play an episode in each environment.

        Return mean undiscounted return, steps, number of cut episodes, and sums of the numbers in `info`.
        """
        actor, count, steps = self._actor, self._envs.num_envs, 0
        returns, running = np.zeros(count), np.ones(count, bool)
        observation = self._reset()
        actor.reset[:] = True
        self._envs.take_info()  # what the last evaluation left
        info: list[Sums] = []
        for _ in range(self._longest):
            write(actor.observation, observation_of(observation))
            if not is_finite(actor.observation):
                raise not_finite(map_parts(lambda part: part[np.newaxis], actor.observation), returns[np.newaxis])
            actor.run()
            actor.advance()
            actor.reset[:] = False
            observation, reward, terminated, truncated, _ = self._step()
            returns += np.where(running, reward, 0.0)
            steps += int(running.sum())
            ending = running & (terminated | truncated)
            if ending.any():  # what an environment reports after its first episode does not count
                info.append(self._envs.take_info(np.flatnonzero(ending).tolist()))
            running &= ~ending
            on_step(count - int(running.sum()), steps)
            if not running.any():
                break
        if not np.isfinite(returns).all():
            raise EnvironmentFailure("the environment gave a reward that is not finite", "a periodic evaluation")
        info.append(self._envs.take_info(np.flatnonzero(running).tolist()))
        return float(returns.mean()), steps, int(running.sum()), added(info)

    def _reset(self) -> Any:
        try:
            return self._envs.reset(seed=FIRST_SEED)[0]
        except Exception as error:
            raise environment_failure("reset", error, "a periodic evaluation") from error

    def _step(self) -> Step:
        try:
            # A copy, since an environment may keep its action, and the buffer will be written again.
            return self._envs.step(self._actor.action.copy())
        except Exception as error:
            raise environment_failure("step", error, "a periodic evaluation") from error
