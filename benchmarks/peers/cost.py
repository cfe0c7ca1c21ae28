"""Measure the speed and peak memory of sb3-contrib's TRPO with its defaults, at batches of 2,048 steps.

`python -m benchmarks.peers.cost ENV NUM_ENVS WARM_UP MEASURED`, the last two in iterations, prints JSON.
"""

import json
import sys
import time

import sb3_contrib
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.processes import peak_megabytes

BATCH = 2048


def measure(env_id: str, num_envs: int, warm_up: int, measured: int) -> dict[str, float]:
    """Return the steps per second after the warm-up, and the peak memory of warm-up and measurement."""
    model = sb3_contrib.TRPO(
        "MlpPolicy", make_vec_env(env_id, n_envs=num_envs, seed=0), n_steps=BATCH // num_envs, device="cpu", seed=0
    )
    model.learn(warm_up * BATCH)
    started = time.perf_counter()
    model.learn(measured * BATCH)
    seconds = time.perf_counter() - started
    return {"steps_per_second": measured * BATCH / seconds, "peak_megabytes": peak_megabytes()}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
