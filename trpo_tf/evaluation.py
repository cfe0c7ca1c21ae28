"""How well a policy does: whole episodes, through its exported graph."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving import Policy
from trpo_tf.envs import make_env
from trpo_tf.errors import UserError

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

    Raises `UserError` if the policy's observations or actions are not the environment's.
    """
    if episodes < 1:
        raise UserError("episodes must be at least 1")
    env = make_env(env_id)
    space = env.observation_space
    spec = policy.manifest.observation
    if space.shape != spec.shape or space.dtype != spec.dtype:
        raise UserError(f"the policy observes {spec.dtype}{list(spec.shape)}, {env_id} gives {space}")
    rng = np.random.default_rng(seed)
    returns, lengths = [], []
    for k in range(episodes):
        observation, _ = env.reset(seed=seed + k)
        total, length, over = 0.0, 0, False
        while not over:
            action = policy.act(np.asarray(observation), deterministic=deterministic, rng=rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, length = total + float(reward), length + 1
            over = terminated or truncated or length >= LONGEST_EPISODE
        returns.append(total)
        lengths.append(length)
    env.close()
    return Evaluation(
        float(np.mean(returns)),
        float(np.std(returns)),
        float(np.min(returns)),
        float(np.max(returns)),
        float(np.mean(lengths)),
        episodes,
    )
