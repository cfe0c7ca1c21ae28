"""How fast does sb3-contrib's TRPO train, with its defaults, at batches of 2,048 steps?

`python benchmarks/peer_speed.py ENV NUM_ENVS WARM_UP MEASURED`, the last two in iterations, prints JSON.
"""

import json
import sys
import time

import sb3_contrib
from stable_baselines3.common.env_util import make_vec_env

BATCH = 2048


def measure(env_id: str, num_envs: int, warm_up: int, measured: int) -> float:
    """Steps a second."""
    model = sb3_contrib.TRPO(
        "MlpPolicy", make_vec_env(env_id, n_envs=num_envs, seed=0), n_steps=BATCH // num_envs, device="cpu", seed=0
    )
    model.learn(warm_up * BATCH)
    started = time.perf_counter()
    model.learn(measured * BATCH)
    return measured * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps({"steps_per_second": measure(sys.argv[1], *map(int, sys.argv[2:]))}))
