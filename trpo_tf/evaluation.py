"""How well a policy does: whole episodes, through its exported graph."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from serving import ArraySpec, Policy
from serving.arguments import expect, expect_count
from serving.observations import is_finite, observation_of
from trpo_tf.envs import action_spec, make_env, observation_spec
from trpo_tf.errors import UserError, environment_failure, not_finite_failure
from trpo_tf.time_feature import observes_time

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as over, for environments that set no limit."""

FIRST_SEED = 1_000_000
"""Evaluation episodes start from seeds counted from here, which training never uses in practice."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns over whole episodes; `std_return` is over episodes, with n in the denominator."""

    mean_return: float
    std_return: float
    min_return: float
    max_return: float
    mean_length: float
    episodes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def evaluate(
    policy: Policy, env_id: str, *, episodes: int = 20, seed: int = FIRST_SEED, deterministic: bool = True
) -> Evaluation:
    """Play `episodes` episodes, the k-th from seed + k.

    Raises:
        UserError: the policy's observations or actions are not the environment's.
        EnvironmentFailure: the environment raised an exception, or gave a value that is not finite.
    """
    wanted = "policy must be a serving.Policy: of a run in_process(run.policy, name), of a bundle serving.load(folder)"
    expect(policy, Policy, wanted, UserError)
    expect(env_id, str, "env_id must be the id of a registered environment", UserError)
    expect_count(episodes, "episodes", 1, UserError)
    expect_count(seed, "seed", 0, UserError)
    env = make_env(env_id, time_feature=observes_time(policy.manifest.observation))
    try:
        check_spaces(policy, env, env_id)
        rng = np.random.default_rng(seed)
        played = [list(play(policy, env, seed + k, deterministic=deterministic, rng=rng)) for k in range(episodes)]
    finally:
        env.close()
    returns, lengths = np.array([sum(rewards) for rewards in played]), np.array([len(rewards) for rewards in played])
    return Evaluation(
        float(returns.mean()),
        float(returns.std()),
        float(returns.min()),
        float(returns.max()),
        float(lengths.mean()),
        episodes,
    )


def play(
    policy: Policy, env: gym.Env[Any, Any], seed: int, *, deterministic: bool, rng: np.random.Generator
) -> Iterator[float]:
    """One episode from `seed`: the reward of each step, once it is taken.

    Raises `EnvironmentFailure` if the environment raises an exception, or gives a value that is not finite.
    """
    try:
        observation, _ = env.reset(seed=seed)
    except Exception as error:
        raise environment_failure("reset", error) from error
    for _ in range(LONGEST_EPISODE):
        seen = observation_of(observation)
        if not is_finite(seen):
            raise not_finite_failure()
        action = policy.act(seen, deterministic=deterministic, rng=rng)
        try:
            observation, reward, terminated, truncated, _ = env.step(action)
        except Exception as error:
            raise environment_failure("step", error) from error
        if not math.isfinite(reward):
            raise not_finite_failure()
        yield float(reward)
        if terminated or truncated:
            return


def check_spaces(policy: Policy, env: gym.Env[Any, Any], env_id: str) -> None:
    """Raise `UserError` unless the policy's observations and actions are the environment's."""
    for verb, specs, own in (
        ("observes", policy.manifest.observation, observation_spec(env.observation_space)),
        ("gives", (policy.manifest.action,), (action_spec(env.action_space),)),
    ):
        if {_described(spec) for spec in specs} != {_described(spec) for spec in own}:
            takes, has = (", ".join(map(_described, group)) for group in (specs, own))
            raise UserError(f"the policy {verb} {takes}, {env_id} has {has} there")


def _described(spec: ArraySpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"
