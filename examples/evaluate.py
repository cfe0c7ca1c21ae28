"""Play episodes of a Gymnasium environment with a bundle's policy: `python examples/evaluate.py BUNDLE ENVIRONMENT`.

Needs Gymnasium and what serving needs, no TensorFlow.
"""

import argparse
from pathlib import Path
from statistics import mean

import gymnasium as gym

from trpo_tf import serving


def play(policy: serving.Policy, env: gym.Env, seed: int) -> float:
    """Return the undiscounted return of one episode, acting deterministically."""
    observation, _ = env.reset(seed=seed)
    session, total, over = policy.start(), 0.0, False  # a session keeps what a policy remembers, if it remembers
    while not over:
        observation, reward, terminated, truncated, _ = env.step(session.act(observation))
        total, over = total + float(reward), terminated or truncated
    return total


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("environment", help="as Gymnasium names it, for example CartPole-v1")
    parser.add_argument("--episodes", type=int, default=10)
    arguments = parser.parse_args()
    policy = serving.load(arguments.bundle)
    with gym.make(arguments.environment) as env:
        returns = [play(policy, env, seed) for seed in range(arguments.episodes)]
    print(f"return {mean(returns):.2f} on average of {len(returns)} episodes, {min(returns):.2f} to {max(returns):.2f}")


if __name__ == "__main__":
    main()
