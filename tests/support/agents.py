"""A world of several agents, as PettingZoo's parallel API has it, without the package."""

from typing import ClassVar

import gymnasium as gym
import numpy as np

from trpo_tf.envs.agents import register_parallel


class Mortal:
    """Three agents; agent i observes (step, i) and lives for i + 2 steps, the last of which is truncated for agent 2.

    Action 1 pays 1 + i, action 0 nothing. With `uneven`, agents 1 and 2 have other actions.
    """

    metadata: ClassVar = {"name": "mortal_v0", "render_modes": ["rgb_array"], "render_fps": 10}
    possible_agents: ClassVar = ["agent_0", "agent_1", "agent_2"]

    def __init__(self, uneven: bool = False, pay: float = 1.0, render_mode: str | None = None) -> None:
        self._uneven, self._pay, self.render_mode, self.agents = uneven, pay, render_mode, []

    def observation_space(self, agent):
        return gym.spaces.Box(-100, 100, (2,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(2 + (self._uneven and self._number(agent) > 0))

    def reset(self, seed=None, options=None):
        self.agents, self._step = list(self.possible_agents), 0
        return {agent: self._observation(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        assert actions.keys() == set(self.agents), (actions, self.agents)
        self._step += 1
        alive = self.agents
        last = {agent: self._step == self._number(agent) + 2 for agent in alive}
        self.agents = [agent for agent in alive if not last[agent]]
        return (
            {agent: self._observation(agent) for agent in alive},
            {agent: self._pay * float(actions[agent]) * (1 + self._number(agent)) for agent in alive},
            {agent: last[agent] and self._number(agent) < 2 for agent in alive},
            {agent: last[agent] and self._number(agent) == 2 for agent in alive},
            {agent: {"is_success": agent == "agent_1"} for agent in alive},
        )

    def render(self):
        return np.full((32, 32, 3), 10 * self._step, np.uint8)

    def close(self):
        pass

    def _number(self, agent):
        return int(agent[-1])

    def _observation(self, agent):
        return np.array([self._step, self._number(agent)], np.float32)


register_parallel("Mortal-v0", Mortal)
register_parallel("Uneven-v0", Mortal, uneven=True)
