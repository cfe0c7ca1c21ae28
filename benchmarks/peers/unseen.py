"""Train sb3-contrib's TRPO with its own defaults on environments that nobody tuned, and record its scores.

`python -m benchmarks.peers.unseen unseen --seeds 5 --first-seed 100` adds rows to
trpo_tf/benchmark/peers/sb3-contrib.csv as runs end, and leaves out those that it has. It needs sb3-contrib, PyTorch and
the environments' packages, and of trpo-tf only what needs no TensorFlow: trpo_tf/benchmark/peers/README.md.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch

from benchmarks.peers.tuned import COLUMNS, EPISODES, FIRST_EVALUATION_SEED, SCORES, append
from trpo_tf.benchmark.suites import SUITES, UNTUNED

_SHORT_LIMIT = 1000

Array = np.ndarray[Any, Any]


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
    """Make the environment, whose id may begin with the module that registers it."""
    return gym.make(env_id, disable_env_checker=True)


def play(
    model: Any, env_id: str, steps: int, *, deterministic: bool, normalize: Callable[[Any], Any] = lambda seen: seen
) -> Array:
    """Return the returns of episodes from the seeds, and of the length at most, that `trpo-tf benchmark` has.

    A recurrent model's state is carried along an episode; other models have none. The model sees the observation
    after `normalize`.
    """
    env = make(env_id)
    limit = env.spec.max_episode_steps if env.spec else None
    longest = max(steps // EPISODES, min(limit or 0, _SHORT_LIMIT))
    is_choice = isinstance(env.action_space, gym.spaces.Discrete)
    returns = np.zeros(EPISODES)
    for k in range(EPISODES):
        observation, _ = env.reset(seed=FIRST_EVALUATION_SEED + k)
        state, starts = None, np.array([True])
        for _ in range(longest):
            action, state = model.predict(normalize(observation), state, starts, deterministic)
            observation, reward, terminated, truncated, _ = env.step(int(action) if is_choice else action)
            returns[k] += float(reward)
            starts[0] = False
            if terminated or truncated:
                break
    env.close()
    return returns


def is_known(path: Path, env_id: str, seed: int, steps: int, settings: str) -> bool:
    """Return whether the file has this run."""
    if not path.exists():
        return False
    rows = csv.DictReader(path.read_text().splitlines())
    wanted = (env_id, str(seed), str(steps), settings)
    return any((row["environment"], row["seed"], row["steps"], row["settings"]) == wanted for row in rows)


def train_missing(
    out: Path,
    steps_of: Mapping[str, int],
    seeds: Iterable[int],
    settings: str,
    measure: Callable[[str, int, int], dict[str, Any]],
) -> None:
    """Measure the runs that the file does not have, seed by seed, and append each as it ends."""
    torch.set_num_threads(1)
    for seed in seeds:
        for env_id, steps in steps_of.items():
            if is_known(out, env_id, seed, steps, settings):
                continue
            try:
                row = measure(env_id, seed, steps)
            except Exception as error:  # noqa: BLE001  a peer's failure is for the report, and the others go on
                print(f"{env_id} seed {seed} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            append(out, row)
            print(*row.values(), flush=True)


def main() -> None:
    """Train what is not there yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=sorted(UNTUNED))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=SCORES, help="CSV file to append to")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    train_missing(arguments.out, SUITES[arguments.suite], seeds, "default", measure)


if __name__ == "__main__":
    main()
