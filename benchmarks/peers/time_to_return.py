"""Measure how soon sb3-contrib's TRPO reaches a return, with RL Zoo's settings, in an interpreter that has it.

`python -m benchmarks.peers.time_to_return ENV RETURN SEED` prints JSON; the return is the mean of the last twenty
episodes.
"""

import itertools
import json
import sys
import time

import numpy as np
import sb3_contrib
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.peers.tuned import ENVIRONMENTS_TOGETHER, SETTINGS

EPISODES = 20


class StopAtReturn(BaseCallback):
    """Ends training once the last episodes' mean return is reached."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self._target = target

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer
        recent = [e["r"] for e in itertools.islice(reversed(episodes), EPISODES)]
        self.reached = len(recent) == EPISODES and bool(np.mean(recent) >= self._target)

    def _on_step(self) -> bool:
        return not getattr(self, "reached", False)


def measure(env_id: str, target: float, seed: int) -> dict[str, float]:
    """Return seconds and steps of training until the return was reached, or of the whole training if it never was."""
    settings = {"normalize": False, "steps": 100_000, **SETTINGS[env_id]}
    normalize, steps = settings.pop("normalize"), settings.pop("steps")
    envs = make_vec_env(env_id, n_envs=ENVIRONMENTS_TOGETHER, seed=seed)
    if normalize:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    model = sb3_contrib.TRPO("MlpPolicy", envs, seed=seed, device="cpu", **settings)
    callback = StopAtReturn(target)
    started = time.perf_counter()
    model.learn(steps, callback=callback)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "steps": model.num_timesteps, "reached": callback.reached}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as where its scores were measured
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
