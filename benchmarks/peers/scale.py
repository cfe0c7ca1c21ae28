"""Measure how fast sb3-contrib's TRPO samples with SubprocVecEnv, or its policy with Gymnasium's AsyncVectorEnv.

`python -m benchmarks.peers.scale sb3-contrib|async ENVIRONMENT PROCESSES STEPS` prints the fastest of several
iterations of so many steps in all, with one environment in each process, as both libraries have it. It needs
sb3-contrib, and nothing of trpo-tf.
"""

import argparse
import json
import time

import gymnasium as gym
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

ITERATIONS = 6


def learner_seconds(env_id: str, processes: int, steps: int) -> float:
    """Return the least seconds that sb3-contrib takes to sample an iteration."""
    envs = make_vec_env(env_id, processes, vec_env_cls=SubprocVecEnv)
    model = TRPO("MlpPolicy", envs, n_steps=steps // processes, device="cpu")
    _, callback = model._setup_learn(ITERATIONS * steps)
    seconds = []
    for _ in range(ITERATIONS):
        started = time.perf_counter()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        seconds.append(time.perf_counter() - started)
    envs.close()
    return min(seconds)


def async_seconds(env_id: str, processes: int, steps: int) -> float:
    """Return the least seconds of `steps` steps, with the actions of sb3-contrib's policy."""
    policy = TRPO("MlpPolicy", gym.make(env_id), device="cpu").policy
    envs = gym.make_vec(env_id, num_envs=processes, vectorization_mode="async")
    observation, _ = envs.reset(seed=0)
    seconds = []
    for _ in range(ITERATIONS):
        started = time.perf_counter()
        for _ in range(steps // processes):
            with torch.no_grad():
                action, _, _ = policy(torch.as_tensor(observation, dtype=torch.float32))
            observation, *_ = envs.step(action.numpy().clip(envs.action_space.low, envs.action_space.high))
        seconds.append(time.perf_counter() - started)
    envs.close()
    return min(seconds)


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["sb3-contrib", "async"])
    parser.add_argument("environment")
    parser.add_argument("processes", type=int)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()
    measure = learner_seconds if arguments.kind == "sb3-contrib" else async_seconds
    seconds = measure(arguments.environment, arguments.processes, arguments.steps)
    print(json.dumps(arguments.steps / seconds))


if __name__ == "__main__":
    main()
