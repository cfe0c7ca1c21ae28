"""How well does sb3-contrib's TRPO do by its own defaults, on environments that nobody tuned? Trains a suite's runs.

`python benchmarks/peer_unseen.py unseen --seeds 5 --first-seed 100` adds rows to
trpo_tf/benchmark/peers/sb3-contrib.csv as runs end, and leaves out those that it has. It needs sb3-contrib, PyTorch and
the environments' packages, and of trpo-tf only what needs no TensorFlow: trpo_tf/benchmark/peers/README.md.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch
from peer import COLUMNS, EPISODES, FIRST_EVALUATION_SEED, SCORES, append

from trpo_tf.benchmark.suites import SUITES, UNTUNED

_SHORT_LIMIT = 1000


def measure(env_id: str, seed: int, steps: int) -> dict[str, Any]:
    """Play the new policy's samples, train, and play the trained policy's modes."""
    env = make(env_id)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    model = sb3_contrib.TRPO(policy, env, seed=seed, device="cpu")
    untrained = play(model, env_id, steps, deterministic=False)
    started = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - started
    returns = play(model, env_id, steps, deterministic=True)
    version = f"{sb3_contrib.__version__}, torch {torch.__version__}"
    score = returns.mean(), returns.std(), round(seconds, 1), version
    return dict(zip(COLUMNS, (env_id, seed, steps, *score, "default", untrained.mean()), strict=True))


def make(env_id: str) -> gym.Env[Any, Any]:
    """The environment, whose id may begin with the module that registers it."""
    return gym.make(env_id, disable_env_checker=True)


def play(model: sb3_contrib.TRPO, env_id: str, steps: int, *, deterministic: bool) -> np.ndarray[Any, Any]:
    """Returns of episodes from the seeds, and of the length at most, that `trpo-tf benchmark` has."""
    env = make(env_id)
    limit = env.spec.max_episode_steps if env.spec else None
    longest = max(steps // EPISODES, min(limit or 0, _SHORT_LIMIT))
    returns = np.zeros(EPISODES)
    for k in range(EPISODES):
        observation, _ = env.reset(seed=FIRST_EVALUATION_SEED + k)
        for _ in range(longest):
            action, _ = model.predict(observation, deterministic=deterministic)
            is_choice = isinstance(env.action_space, gym.spaces.Discrete)
            observation, reward, terminated, truncated, _ = env.step(int(action) if is_choice else action)
            returns[k] += float(reward)
            if terminated or truncated:
                break
    env.close()
    return returns


def is_known(path: Path, env_id: str, seed: int, steps: int) -> bool:
    """Whether the file has this run."""
    if not path.exists():
        return False
    rows = csv.DictReader(path.read_text().splitlines())
    wanted = (env_id, str(seed), str(steps), "default")
    return any((row["environment"], row["seed"], row["steps"], row["settings"]) == wanted for row in rows)


def main() -> None:
    """Train what is not there yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=sorted(UNTUNED))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=SCORES, help="CSV file to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for env_id, steps in SUITES[arguments.suite].items():
            if is_known(arguments.out, env_id, seed, steps):
                continue
            try:
                row = measure(env_id, seed, steps)
            except Exception as error:  # noqa: BLE001  a peer's failure is for the report, and the others go on
                print(f"{env_id} seed {seed} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            append(arguments.out, row)
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
