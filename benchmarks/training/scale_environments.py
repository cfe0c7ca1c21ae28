"""Environments of known cost, for scale.py: a worker imports this module."""

import time

import gymnasium as gym
import numpy as np


class Costly(gym.Env):
    """Random observations of 17 numbers; a step waits, as for a simulator elsewhere, or keeps Python busy."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def __init__(self, waits: float = 0.0, busy: float = 0.0) -> None:
        self._waits, self._busy = waits, busy

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        """Begin an episode."""
        super().reset(seed=seed)
        return self.np_random.normal(size=17), {}

    def step(self, action):  # noqa: ARG002
        """Take the time of a step."""
        if self._waits:
            time.sleep(self._waits)
        end = time.thread_time() + self._busy
        while self._busy and time.thread_time() < end:
            pass
        return self.np_random.normal(size=17), 0.0, False, False, {}


gym.register("Cheap-v0", Costly, max_episode_steps=1000)
gym.register("Waiting-v0", Costly, max_episode_steps=1000, kwargs={"waits": 0.005})
gym.register("Python-v0", Costly, max_episode_steps=1000, kwargs={"busy": 0.0003})
