"""Several agents in one world, by PettingZoo's parallel API, that share one policy.

Training steps them as rows of a vector environment, a row for each agent of each world. What plays single episodes
(evaluations, exports, videos) meets them as one environment in which the agents act in turn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trpo_tf.envs.checked import close_safely, conforming, plain_flag, plain_reward, usable_reward
from trpo_tf.envs.curriculum import set_progress
from trpo_tf.envs.info_sums import InfoSums, Sums, added
from trpo_tf.envs.spaces import observation_spec
from trpo_tf.errors import ENVIRONMENT_ERRORS, EnvironmentFailure, UserError, environment_failure
from trpo_tf.serving.runtime.observations import Observation, by_name, structured

Step = tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


def register_parallel(env_id: str, make: Callable[..., Any], **arguments: Any) -> None:
    """Register environments with this id whose agents share a policy; `make(**arguments)` is a PettingZoo ParallelEnv.

    All agents need the same spaces: SuperSuit's `pad_observations_v0` and `pad_action_space_v0` make them so.
    """
    gym.register(env_id, Parallel(make), kwargs=arguments)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Entry point of environments with several agents; `make` makes the ParallelEnv of one world."""

    make: Callable[..., Any]

    def __call__(self, **arguments: Any) -> "AgentsInTurn":
        """Return a world whose agents act in turn."""
        return AgentsInTurn(self.make(**arguments))

    def agents(self, **arguments: Any) -> int:
        """Return the number of agents of a world."""
        world = self.make(**arguments)
        world.close()
        return len(world.possible_agents)

    def rows(self, num_envs: int, **arguments: Any) -> "AgentRows":
        """Return worlds whose agents are `num_envs` rows. Raises `UserError` unless they are whole worlds."""
        agents = self.agents(**arguments)
        if num_envs % agents:
            raise UserError(
                f"num_envs must be a multiple of {agents}, the agents of a world, and each shard's part of it too; "
                f"it is {num_envs}"
            )
        return AgentRows([self.make(**arguments) for _ in range(num_envs // agents)])


def shared_spaces(world: Any) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the observation and action space of a world's agents. Raises `UserError` if they differ."""
    first = world.possible_agents[0]
    spaces: list[gym.Space[Any]] = []
    for what, space_of, pad in (
        ("observation", world.observation_space, "pad_observations_v0"),
        ("action", world.action_space, "pad_action_space_v0"),
    ):
        for agent in world.possible_agents:
            if space_of(agent) != space_of(first):
                raise UserError(
                    f"agents that share a policy need one {what} space: that of {first} is {space_of(first)}, that of "
                    f"{agent} is {space_of(agent)}; SuperSuit's {pad} makes them equal"
                )
        spaces.append(space_of(first))
    return spaces[0], spaces[1]


class AgentRows:
    """Vector environment with a row for each agent of each world.

    An agent that has died keeps its last observation. Its rows are those of an episode that has ended, which count for
    nothing, until its world ends and the next step resets it.
    """

    can_end = False

    def __init__(self, worlds: Sequence[Any]) -> None:
        """Take over the worlds, which must have the same agents: `close` closes them."""
        self._worlds, self._agents = worlds, list(worlds[0].possible_agents)
        self.num_envs = len(worlds) * len(self._agents)
        self._specs = observation_spec(shared_spaces(worlds[0])[0])
        self._seen = {spec.name: np.zeros((self.num_envs, *spec.shape), spec.dtype) for spec in self._specs}
        self._info = [InfoSums() for _ in range(self.num_envs)]
        self._over = [False] * len(worlds)

    def reset(self, *, seed: int | None = None) -> tuple[Observation, Any]:
        """Reset all worlds; world i has the seed `seed` + i."""
        for number in range(len(self._worlds)):
            self._reset(number, None if seed is None else seed + number)
        return self._observation(), {}

    def step(self, actions: NDArray[Any]) -> Step:
        """Step all worlds; one that has ended is reset instead."""
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.ones(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for number in range(len(self._worlds)):
            if self._over[number]:
                for row in self._reset(number, None):
                    terminated[row] = False
            else:
                self._advance(number, actions, reward, terminated, truncated)
        return self._observation(), reward, terminated, truncated, {}

    def end(self, places: Sequence[int]) -> None:
        """Raise `NotImplementedError`: an agent's episode ends with its world's."""
        raise NotImplementedError(f"the episodes of {places} can't be ended")

    def take_info(self, places: Sequence[int] | None = None) -> Sums:
        """Return sums of the numbers in the agents' `info` since the last call; see `VectorEnv`."""
        return added(self._info[i].take() for i in (range(self.num_envs) if places is None else places))

    def set_progress(self, progress: float) -> None:
        """Tell each world the share of the run that is done."""
        for world in self._worlds:
            set_progress(world, progress)

    def close(self) -> None:
        """Close the worlds."""
        for world in self._worlds:
            close_safely(world)

    def _reset(self, number: int, seed: int | None) -> list[int]:
        """Reset a world, and return the rows of the agents that are there."""
        try:
            observations, _ = self._worlds[number].reset(seed=seed)
            self._over[number] = False
            return [self._observe(number, agent, each) for agent, each in observations.items()]
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("reset", error, f"world {number + 1} of {len(self._worlds)}") from error

    def _advance(
        self,
        number: int,
        actions: NDArray[Any],
        reward: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        """Step a world, and write what its living agents got to their rows."""
        world = self._worlds[number]
        try:
            chosen = {agent: actions[self._row(number, agent)] for agent in world.agents}
            observations, rewards, terminations, truncations, infos = world.step(chosen)
            for agent, observation in observations.items():
                row = self._observe(number, agent, observation)
                reward[row] = usable_reward(plain_reward(rewards[agent]))
                terminated[row] = plain_flag(terminations[agent], "terminated")
                truncated[row] = plain_flag(truncations[agent], "truncated") and not terminated[row]
                self._info[row].add(infos.get(agent), ended=bool(terminated[row] or truncated[row]))
            self._over[number] = not world.agents
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("step", error, f"world {number + 1} of {len(self._worlds)}") from error

    def _observe(self, number: int, agent: str, observation: Any) -> int:
        """Store an agent's observation, and return its row."""
        row = self._row(number, agent)
        for name, part in by_name(conforming(observation, self._specs), self._specs[0].name).items():
            self._seen[name][row] = part
        return row

    def _row(self, number: int, agent: str) -> int:
        return number * len(self._agents) + self._agents.index(agent)

    def _observation(self) -> Observation:
        return structured({name: rows.copy() for name, rows in self._seen.items()})


class AgentsInTurn(gym.Env[Any, Any]):
    """A world as one environment: the agents act one after the other, and the world steps after the last of them.

    A round's reward is the mean over all agents, so an episode's return is their mean return. An episode has as many
    steps as actions of agents.
    """

    def __init__(self, world: Any) -> None:
        """Take over the world: `close` closes it."""
        self._world = world
        self.observation_space, self.action_space = shared_spaces(world)
        self.render_mode = getattr(world, "render_mode", None)
        self.metadata = dict(world.metadata)
        if rate := self.metadata.get("render_fps"):
            self.metadata["render_fps"] = rate * len(world.possible_agents)

    def set_options(self, progress: float) -> None:
        """Tell the world the share of the run that is done."""
        set_progress(self._world, progress)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the world, and return what the first agent observes."""
        self._observations, _ = self._world.reset(seed=seed, options=options)
        return self._next_round(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an agent's action, and return what the next one observes."""
        self._actions[self._waiting.pop(0)] = action
        if self._waiting:
            return self._observations[self._waiting[0]], 0.0, False, False, {}
        before = self._observations
        observations, rewards, terminations, truncations, infos = self._world.step(self._actions)
        self._observations = before | observations
        reward = sum(map(plain_reward, rewards.values())) / len(self._world.possible_agents)
        if self._world.agents:
            return self._next_round(), reward, False, False, infos
        last = self._observations[next(iter(observations))]
        ended = any(terminations.values())
        return last, reward, ended, not ended and any(truncations.values()), infos

    def render(self) -> Any:
        """Render the world."""
        return self._world.render()

    def close(self) -> None:
        """Close the world."""
        self._world.close()

    def _next_round(self) -> Any:
        self._actions: dict[str, Any] = {}
        self._waiting = list(self._world.agents)
        if not self._waiting:
            raise EnvironmentFailure("the world has no agents after its reset")
        return self._observations[self._waiting[0]]
