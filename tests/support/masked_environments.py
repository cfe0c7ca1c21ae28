"""Environments with masks of legal actions, registered as `tests.support.masked_environments:Legal-v0`.

They fail at an illegal action, so whatever runs to its end has chosen legal ones alone.
"""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Legal(gym.Env):
    """Choices of which random options are legal at each step; a legal option's reward is what the observation says.

    `source` is where the mask is given: in the observation, in `info`, or by the method `action_masks`. After the last
    step no action is legal. `wrong` is a statement that changes `mask`, at the third step of an episode.
    """

    def __init__(
        self, source: str = "observation", counts: Any = (4,), dtype: str = "int8", wrong: str = "", start: int = 0
    ) -> None:
        self._source, self._counts, self._dtype, self._wrong = source, tuple(counts), np.dtype(dtype), wrong
        self._size, self._start = sum(self._counts), start
        self.action_space = (
            Discrete(self._counts[0], start=start) if len(self._counts) == 1 else MultiDiscrete(self._counts)
        )
        self.observation_space = Box(-1, 1, (self._size,), np.float32)
        if source == "observation":
            mask = Box(0, 1, (self._size,), self._dtype)
            self.observation_space = Dict({"obs": self.observation_space, "action_mask": mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._steps = 0
        return self._next()

    def step(self, action):
        chosen = np.atleast_1d(action) - self._start
        places = np.cumsum([0, *self._counts[:-1]]) + chosen
        if not (np.all(chosen >= 0) and np.all(chosen < self._counts) and self._mask[places].all()):
            raise ValueError(f"action {action} is illegal: {self._mask.astype(int)}")
        reward = float(self._values[places].sum())
        self._steps += 1
        observation, info = self._next()
        return observation, reward, self._steps == 6, False, info

    def action_masks(self):
        return self._given()

    def save_state(self):
        return copy.deepcopy((self._steps, self._values, self._mask))

    def restore_state(self, state):
        self._steps, self._values, self._mask = copy.deepcopy(state)

    def _next(self):
        self._values = self.np_random.uniform(-1, 1, self._size).astype(np.float32)
        masks = []
        for count in self._counts:
            few = self.np_random.integers(1, count + 1)
            masks.append(self.np_random.permutation(count) < few)
        self._mask = np.concatenate(masks) & (self._steps < 6)
        if self._source == "observation":
            return {"obs": self._values, "action_mask": self._given()}, {}
        return self._values, {"action_mask": self._given()} if self._source == "info" else {}

    def _given(self):
        mask = self._mask.astype(self._dtype)
        names = {"np": np, "mask": mask, "parts": np.split(mask, np.cumsum(self._counts)[:-1])}
        if self._wrong and self._steps == 2:
            exec(self._wrong, names)
        return names["mask"]


gym.register("Legal-v0", Legal)
