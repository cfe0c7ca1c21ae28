"""Environments for the tests, registered as a user's own module would: `tests.support.environments:Name-v0`."""

import copy
import os
import signal
import sys
import time
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np


class Walk(gym.Env):
    """Walk left or right on a line; the right end is worth 1 and terminates, and a time limit truncates.

    The observation counts the episode's steps and the place, so that a test can tell which one it is.
    """

    def __init__(self, dtype: str = "float32", length: int = 3, start: int = 0, fail_after: int = 0) -> None:
        self.observation_space = gym.spaces.Box(-100, 100, (2,), np.dtype(dtype))
        self.action_space = gym.spaces.Discrete(2, start=start)
        self._length, self._start, self._fail_after, self._total = length, start, fail_after, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._place, self._steps = 0, 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._steps, self._total = self._steps + 1, self._total + 1
        broken = self._fail_after and self._total >= self._fail_after and not os.environ.get("WALK_REPAIRED")
        not_a_number = os.environ.get("WALK_GIVES_NAN")
        if broken and not not_a_number:
            raise ArithmeticError("the motor is too hot")
        self._place += 1 if action - self._start == 1 else -1
        at_end = self._place >= self._length
        observation = self._observation() * (np.nan if broken and not_a_number == "observation" else 1)
        reward = np.nan if broken and not_a_number == "reward" else float(at_end)
        return observation.astype(self.observation_space.dtype), reward, at_end, False, {}

    def _observation(self):
        return np.array([self._steps, self._place], self.observation_space.dtype)


class IntegerBox(Walk):
    """Actions are a Box of integers, which no policy here gives."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(0, 1, (1,), np.int64)


class Reach(gym.Env):
    """One step: the reward is minus the squared distance of the action from a target that is seen."""

    def __init__(self, low: float = -2.0, high: float = 6.0, dimensions: int = 2, offset: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (dimensions,), np.float64)
        self._offset = offset
        self.action_space = gym.spaces.Box(low, high, (dimensions,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._target = self.np_random.normal(2.0, 1.0, self.observation_space.shape)
        return self._target + self._offset, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self._target + self._offset, -float(np.sum((action - self._target) ** 2)), True, False, {}


class Deadline(gym.Env):
    """What is seen never changes; action 1 pays 1 in the last 3 of 10 steps and costs 1 before; 0 does nothing."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._steps += 1
        return np.zeros(1, np.float32), float(action) * (1.0 if self._steps > 7 else -1.0), False, False, {}


class Recall(gym.Env):
    """The sign that is seen at first is what the action of the third and last step must name; half are right by luck.

    The observation is the sign, 0 after the first step, and the number of the step.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._cue, self._steps = int(self.np_random.integers(2)), 0
        return np.array([2 * self._cue - 1, 0], np.float32), {}

    def step(self, action):
        self._steps += 1
        over = self._steps == 3
        return np.array([0, self._steps], np.float32), float(over and action == self._cue), over, False, {}


class Alternate(gym.Env):
    """Nothing is seen; a step pays 1 if its action is not the one before, in the first step always."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._last = None
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward, self._last = float(action != self._last), int(action)
        return np.zeros(1, np.float32), reward, False, False, {}

    def save_state(self):
        return self._last

    def restore_state(self, state):
        self._last = state


class Ring(gym.Env):
    """A task that never ends: go round a ring of 6 places, forwards (1) or backwards (0).

    Staying near place 0 pays 0.2 a step; a whole round forwards pays 3 at its end, 0.5 a step on average. `noise` is
    the deviation of what the environment's own generator adds to a reward.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self._noise = noise
        self.observation_space = gym.spaces.Box(-1, 1, (6,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._place = int(self.np_random.integers(6))
        return np.eye(6, dtype=np.float32)[self._place], {}

    def step(self, action):
        before, self._place = self._place, (self._place + (1 if action else -1)) % 6
        reward = 3.0 if (before, self._place) == (5, 0) else 0.2 * (self._place in (0, 1))
        if self._noise:
            reward += self._noise * self.np_random.normal()
        return np.eye(6, dtype=np.float32)[self._place], reward, False, False, {}

    def save_state(self):
        return self._place

    def restore_state(self, state):
        self._place = state


class Echo(gym.Env):
    """One step: the reward is how many of the action's entries are those of the observation, an element of `space`."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.observation_space = self.action_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._seen = self.observation_space.sample()
        return self._seen, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return copy.copy(self._seen), float(np.sum(np.asarray(action) == self._seen)), True, False, {}


ECHOES = {
    "EchoDiscrete-v0": gym.spaces.Discrete(3, start=2),
    "EchoMultiDiscrete-v0": gym.spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "EchoMultiBinary-v0": gym.spaces.MultiBinary(4),
}
for name, space in ECHOES.items():
    gym.register(name, Echo, max_episode_steps=5, kwargs={"space": space})


class Signals(gym.Env):
    """Two steps: a choice, a number and a picture are seen, and the reward is how many of them the action names."""

    def __init__(self, form: str) -> None:
        self._form = form
        choice, place = gym.spaces.Discrete(3, start=1), gym.spaces.Box(-9, 9, (1, 2), np.float64)
        picture = gym.spaces.Box(0, 255, (2, 18, 20), np.uint8)
        self.observation_space = {
            "dict": gym.spaces.Dict({"choice": choice, "arm": gym.spaces.Dict({"place": place, "eye": picture})}),
            "tuple": gym.spaces.Tuple((choice, gym.spaces.Tuple((place, picture)))),
            "picture": picture,
        }[form]
        self.action_space = gym.spaces.MultiDiscrete([3, 2, 2])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._answer = self.np_random.integers([3, 2, 2])
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        reward = float(np.sum(np.asarray(action) == self._answer))
        self._steps += 1
        self._answer = self.np_random.integers([3, 2, 2])
        return self._observation(), reward, self._steps == 2, False, {}

    def save_state(self):
        return self._steps, self._answer

    def restore_state(self, state):
        self._steps, self._answer = state

    def _observation(self):
        choice, sign, side = self._answer
        place = np.array([[0.0, 3.0 if sign else -3.0]])
        picture = self.np_random.integers(0, 50, (2, 18, 20), np.uint8)
        picture[0, :, 10 * side : 10 * side + 10] += 180
        if self._form == "dict":
            return {"choice": choice + 1, "arm": {"place": place, "eye": picture}}
        return (choice + 1, (place, picture)) if self._form == "tuple" else picture


for form in ("dict", "tuple", "picture"):
    gym.register(f"Signals-{form}-v0", Signals, kwargs={"form": form})


class TorchLike:
    """A tensor of another library, which only NumPy's protocol for arrays can read."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __array__(self, dtype: Any = None, copy: bool | None = None):
        return np.asarray(self._value, dtype)


class Sloppy(gym.Env):
    """What it answers from the step `SLOPPY_FROM` on is what Python's `SLOPPY_ANSWER` says of an orderly `answer`."""

    def __init__(self) -> None:
        box, byte = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Box(0, 255, (2,), np.uint8)
        self.observation_space = gym.spaces.Dict({"box": box, "byte": byte, "choice": gym.spaces.Discrete(3)})
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._steps = 0
        return self._answer()[0], {}

    def step(self, action):
        self._steps += 1
        return (*self._answer(), {})

    def _answer(self):
        seen = {"box": np.zeros(2, np.float32), "byte": np.zeros(2, np.uint8), "choice": 1}
        answer = [seen, 1.0, self._steps >= 200, False]
        if self._steps >= int(os.environ.get("SLOPPY_FROM", "1")):
            names = {"answer": answer, "seen": seen, "np": np, "torch_like": TorchLike}
            exec(os.environ.get("SLOPPY_ANSWER", ""), names)
        return answer


class Demanding(gym.Env):
    """Can't be made without a level, nor with one."""

    def __init__(self, level: int) -> None:
        raise KeyError("licence")


gym.register("Sloppy-v0", Sloppy)
gym.register("Edition-v0", Sloppy)
gym.register("Edition-v2", Sloppy)
gym.register("Demanding-v0", Demanding)
gym.register("Unlicensed-v0", Demanding, kwargs={"level": 1})


class Endless(gym.Env):
    """Episodes never end. `steps` counts those of all of them; each takes a while if ENDLESS_SECONDS says so."""

    steps = 0

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Endless.steps += 1
        time.sleep(float(os.environ.get("ENDLESS_SECONDS", "0")))
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), float(action), False, False, {}


gym.register("Endless-v0", Endless)
gym.register("NearlyEndless-v0", Endless, max_episode_steps=1_000_000)
gym.register("Thousand-v0", Endless, max_episode_steps=1000)

LABYRINTH_KEYS = {
    "observation": {},
    "noise": {},
    "action": {},
    "obs": {},
    "batch": {},
    "class": {},
    "self": {},
    "input": {"": {}, "graph_input_0": {}},
    "a/b": {},
    "a b": {},
    "a": {"b_c": {}, "b": {"c": {}}},
    "a_b": {"c": {}},
    "A": {},
    "value": {},
    "logits": {},
    "Ü": {},
    "": {},
    "0": {},
    "é": ({}, {}),
}


class Labyrinth(gym.Env):
    """Observations whose keys are names of everything else: of other arrays, of Python's words, of each other."""

    def __init__(self) -> None:
        self.observation_space = self._filled(LABYRINTH_KEYS, lambda: gym.spaces.Box(-1, 1, (2,), np.float32))
        self.action_space = gym.spaces.Discrete(2)

    def _filled(self, tree, make, *, space=True):
        if isinstance(tree, tuple):
            parts = tuple(self._filled(part, make, space=space) for part in tree)
            return gym.spaces.Tuple(parts) if space else parts
        if not tree:
            return make()
        # Backwards, since an environment need not keep to the order of its space.
        parts = {key: self._filled(tree[key], make, space=space) for key in reversed(tree)}
        return gym.spaces.Dict(parts) if space else parts

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), float(action), False, False, {}

    def _observation(self):
        return self._filled(LABYRINTH_KEYS, lambda: self.np_random.uniform(-1, 1, 2).astype(np.float32), space=False)


class Faulty(Walk):
    """Walk that from its `after`th step on hangs, ends its process, or observes the operating system's random numbers.

    It hangs or ends only if it is the first process to make the file `once`, if that is given.
    """

    def __init__(self, fault: str, after: int = 10, once: str = "") -> None:
        super().__init__()
        self._fault, self._after, self._once = fault, after, once

    def step(self, action):
        step = super().step(action)
        if self._total < self._after or self._fault == "raise":
            return step
        if self._fault == "random":
            noise = np.frombuffer(os.urandom(4), np.uint32).astype(np.float32) / 2**32
            return (step[0] + noise, *step[1:])
        if self._once:
            try:
                os.close(os.open(self._once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return step
        if self._fault == "hang":
            time.sleep(3600)
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)


class FaultyRollouts(Faulty):
    """Walk whose state can be restored. It has its fault in rollouts alone: from the `after`th step of an environment.

    Besides Faulty's faults it may raise an exception.
    """

    def __init__(self, fault: str = "none", after: int = sys.maxsize, once: str = "") -> None:
        super().__init__(fault, sys.maxsize, once)
        self._due = after

    def save_state(self):
        return self._place, self._steps

    def restore_state(self, state):
        self._place, self._steps = state
        self._after = self._due

    def step(self, action):
        step = super().step(action)
        if self._total >= self._after and self._fault == "raise":
            raise ArithmeticError("the motor is too hot")
        return step


class Course(gym.Env):
    """Four steps of observations (step, progress as last told, level and widest of the reset's options).

    Each progress that an environment of this process is told is noted.
    """

    observation_space = gym.spaces.Box(-100, 100, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    told: ClassVar[list[float]] = []

    def __init__(self, fails_from: float = 2.0) -> None:
        self._fails_from = fails_from

    def set_options(self, progress: float) -> None:
        if self._fails_from <= progress < 1:
            raise ArithmeticError("no such course")
        self._progress = progress
        self.told.append(progress)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps, options = 0, options or {}
        self._level, self._widest = options.get("level", -1), options.get("range", [-1])[-1]
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        return self._observation(), float(action) * self._progress, self._steps == 4, False, {}

    def save_state(self):
        return self._steps, self._level, self._widest

    def restore_state(self, state):
        self._steps, self._level, self._widest = state

    def _observation(self):
        return np.array([self._steps, self._progress, self._level, self._widest], np.float32)


gym.register("Course-v0", Course, max_episode_steps=10)
gym.register("Labyrinth-v0", Labyrinth, max_episode_steps=5)
gym.register("Recall-v0", Recall, max_episode_steps=5)
gym.register("Alternate-v0", Alternate, max_episode_steps=10)
gym.register("Ring-v0", Ring, max_episode_steps=200)
gym.register("NoisyRing-v0", Ring, max_episode_steps=200, kwargs={"noise": 100.0})
gym.register("Deadline-v0", Deadline, max_episode_steps=10)
gym.register("Walk-v0", Walk, max_episode_steps=5)
gym.register("Faulty-v0", Faulty, max_episode_steps=5)
gym.register("FaultyRollouts-v0", FaultyRollouts, max_episode_steps=5)
gym.register("IntegerWalk-v0", Walk, max_episode_steps=5, kwargs={"dtype": "int64", "start": 3})
gym.register("FailingWalk-v0", Walk, max_episode_steps=5, kwargs={"fail_after": 200})
gym.register("IntegerBox-v0", IntegerBox, max_episode_steps=5)
gym.register("Gossip-v0", Echo, kwargs={"space": gym.spaces.Text(3)})
gym.register("Reach-v0", Reach, max_episode_steps=5)
gym.register("FarReach-v0", Reach, max_episode_steps=5, kwargs={"offset": 1e7})
gym.register("HalfBoundedReach-v0", Reach, max_episode_steps=5, kwargs={"low": 1.5, "high": np.inf})
gym.register("WideReach-v0", Reach, max_episode_steps=5, kwargs={"low": -3e38, "high": 3e38})
gym.register("UnboundedReach-v0", Reach, max_episode_steps=5, kwargs={"low": -np.inf, "high": np.inf})


class Noted(gym.RewardWrapper):
    """Rewards times a factor; each environment that is made is noted, with what it was made of."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, env: gym.Env, times: float = 1.0) -> None:
        super().__init__(env)
        self._times = times
        kwargs, limit = env.unwrapped.spec.kwargs, env.spec.max_episode_steps
        self.made.append({"times": times, "limit": limit, "sutton_barto_reward": kwargs.get("sutton_barto_reward")})

    def reward(self, reward):
        return self._times * reward
