"""Environments of the suites `partial`, `unseen` and `unseen-training` that are in no package.

Their ids are `trpo_tf.benchmark.environments:NAME`. Each is difficult in one way that users' environments are. A
docstring gives the mean return of random actions and of the best policy. The module needs only Gymnasium and NumPy, so
that peers can be trained on it.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, PendulumEnv
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Observation = NDArray[np.float32]
Transition = tuple[Observation, float, bool, bool, dict[str, Any]]
"""Result of `step`: observation, reward, terminated, truncated, info."""


class _Episodes(gym.Env[Observation, Any]):
    """Base of environments with episodes of `steps` steps, of which `_step` are over."""

    steps: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        self._step = 0
        self._begin()
        return self._observation(), {}

    def _begin(self) -> None:
        """Set what changes within an episode."""

    def _observation(self) -> Observation:
        """Return the observation at this step."""
        raise NotImplementedError


class ScoreAtEnd(_Episodes):
    """An environment that pays, at the end, the share of 500 steps at which action 1 was taken. Random 0.5, best 1.

    The observation is the time and the score so far, both as shares of the episode.
    """

    steps = 500

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def step(self, action: Any) -> Transition:
        """Count the action."""
        self._step += 1
        self._score += int(action)
        over = self._step == self.steps
        return self._observation(), self._score / self.steps if over else 0.0, over, False, {}

    def _begin(self) -> None:
        self._score = 0

    def _observation(self) -> Observation:
        return np.array([self._step / self.steps, self._score / self.steps], np.float32)


class SignalsAtEnd(_Episodes):
    """An environment that pays, at the end, the share of 200 random signals that the action named.

    Each step has one of three signals. Random 1/3, best 1. The observation is the signal, one-hot, and the time as a
    share of the episode.
    """

    steps, signals = 200, 3

    _signal: int

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (self.signals + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(self.signals)

    def step(self, action: Any) -> Transition:
        """Count the action if it names the signal that was seen, and draw the next one."""
        self._step += 1
        self._score += int(action == self._signal)
        self._signal = int(self.np_random.integers(self.signals))
        over = self._step == self.steps
        return self._observation(), self._score / self.steps if over else 0.0, over, False, {}

    def _begin(self) -> None:
        self._score, self._signal = 0, int(self.np_random.integers(self.signals))

    def _observation(self) -> Observation:
        observation = np.zeros(self.signals + 1, np.float32)
        observation[self._signal], observation[-1] = 1, self._step / self.steps
        return observation


class DriftingMass(_Episodes):
    """A mass on a plane without friction, pushed for 100 steps; the cost is quadratic in place and push.

    place' = place + velocity, velocity' = velocity + push / 10, each push within [-1, 1]; a step costs
    1.5 (|place|^2 + |push|^2). Random pushes let it drift far: their return is about -91,000, that of the best policy,
    a linear one, about -2. Episodes start within 0.18 of the origin on each axis, at velocities up to 0.18.
    """

    steps, push, cost, start = 100, 0.1, 1.5, 0.18

    _place: Floats
    _velocity: Floats

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def step(self, action: Floats) -> Transition:
        """Pay for the place and the push, then move."""
        push = np.clip(np.asarray(action, np.float64), -1, 1)
        reward = -self.cost * float(self._place @ self._place + push @ push)
        self._place = self._place + self._velocity
        self._velocity = self._velocity + self.push * push
        self._step += 1
        return self._observation(), reward, False, self._step == self.steps, {}

    def _begin(self) -> None:
        self._place, self._velocity = self.np_random.uniform(-self.start, self.start, (2, 2))

    def _observation(self) -> Observation:
        return np.concatenate([self._place, self._velocity]).astype(np.float32)


class LateShift(_Episodes):
    """Episodes of 3,000 steps, which the environment truncates itself; it is registered without a limit.

    Action 0 pays 1 in the first 2,500 steps, action 1 pays 10 in the others. Random 3,750, best 7,500. The observation
    is the time as a share of the episode, and a random number.
    """

    steps, shift = 3000, 2500

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def step(self, action: Any) -> Transition:
        """Pay for the action that is right at this time."""
        late = self._step >= self.shift
        reward = (10.0 if late else 1.0) * (int(action) == int(late))
        self._step += 1
        return self._observation(), reward, False, self._step == self.steps, {}

    def _observation(self) -> Observation:
        return np.array([self._step / self.steps, self.np_random.random()], np.float32)


class ThirtyAxes(_Episodes):
    """Thirty carriages on rails, each moved by an action of its own to a target; 50 steps.

    The observation is the offset of each from its target, at first uniform in [-1, 1]. An action in [-1, 1] moves its
    carriage by a fifth of that. A step costs the mean squared offset after it. Without moving the return is -16.7.
    Random actions have -33.7, since carriages then drift away. The best policy, at full speed to the target, has
    -0.267.
    """

    steps, axes, speed = 50, 30, 0.2

    _off: Floats

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self.axes,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (self.axes,), np.float32)

    def step(self, action: Floats) -> Transition:
        """Move every carriage."""
        self._step += 1
        self._off = self._off - self.speed * np.clip(np.asarray(action, np.float64), -1, 1)
        return self._observation(), -float(np.mean(self._off**2)), False, self._step == self.steps, {}

    def _begin(self) -> None:
        self._off = self.np_random.uniform(-1, 1, self.axes)

    def _observation(self) -> Observation:
        return self._off.astype(np.float32)


class Cue(_Episodes):
    """A memory task: the cue that is seen at first is what the action must name 60 steps later. Random 0.5, best 1.

    The observation is the cue, -1 or 1, and 0 after the first step, and a signal that is 1 when the choice is due. Only
    the last of the 61 actions counts.
    """

    steps = 61

    _cue: int

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def step(self, action: Any) -> Transition:
        """Wait, or pay for the last choice if it names the cue."""
        self._step += 1
        over = self._step == self.steps
        return self._observation(), float(over and int(action) == self._cue), over, False, {}

    def _begin(self) -> None:
        self._cue = int(self.np_random.integers(2))

    def _observation(self) -> Observation:
        return np.array([2 * self._cue - 1 if self._step == 0 else 0, self._step == self.steps - 1], np.float32)


class OtherUnits(gym.Wrapper[Observation, Any, Observation, Any]):
    """A wrapper that changes units: it returns `scale * observation + offset` and `reward_scale * reward`."""

    def __init__(self, env: gym.Env[Observation, Any], scale: Floats, offset: Floats, reward_scale: float) -> None:
        super().__init__(env)
        self._scale, self._offset, self._reward_scale = scale, offset, reward_scale
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, scale.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._converted(observation), info

    def step(self, action: Any) -> Transition:
        """Act in the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._converted(observation), self._reward_scale * float(reward), terminated, truncated, info

    def _converted(self, observation: Observation) -> Observation:
        return (self._scale * observation + self._offset).astype(np.float32)


class Partial(gym.ObservationWrapper[Observation, Any, Observation]):
    """A wrapper that hides all elements of the observation but `seen`: what no sensor measures, such as velocities."""

    def __init__(self, env: gym.Env[Observation, Any], seen: Sequence[int]) -> None:
        super().__init__(env)
        self._seen = list(seen)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        low, high = (bound[self._seen].astype(np.float32) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Observation) -> Observation:
        """Return the elements that are seen."""
        return observation[self._seen].astype(np.float32)


def make_cart_pole_without_velocities() -> gym.Env[Observation, Any]:
    """Make CartPole-v1 whose observation is the place of the cart and the angle of the pole. Random 22, best 500."""
    return Partial(CartPoleEnv(), (0, 2))


def make_pendulum_without_velocity() -> gym.Env[Observation, Any]:
    """Make Pendulum-v1 whose observation is cosine and sine of the angle. Random -1,200, best about -150."""
    return Partial(PendulumEnv(), (0, 1))


def make_hopper_without_velocities() -> gym.Env[Observation, Any]:
    """Make Hopper-v5 whose observation is height and angles. Random actions return about 20."""
    return Partial(gym.make("Hopper-v5", disable_env_checker=True).unwrapped, range(5))


def make_walker_without_velocities() -> gym.Env[Observation, Any]:
    """Make Walker2d-v5 whose observation is height and angles. Random actions return about 0."""
    return Partial(gym.make("Walker2d-v5", disable_env_checker=True).unwrapped, range(8))


def make_pendulum_in_other_units() -> gym.Env[Observation, Any]:
    """Make Pendulum-v1 with observations times 1,000 or 0.01, offsets of up to 5,000, and rewards times 1,000."""
    return OtherUnits(PendulumEnv(), np.array([1000.0, 1000.0, 0.01]), np.array([5000.0, -2000.0, 3.0]), 1000.0)


def make_acrobot_in_other_units() -> gym.Env[Observation, Any]:
    """Make Acrobot-v1 with sines and cosines times 100 or 2,000, velocities divided by 100, and rewards by 1,000."""
    scale = np.array([100.0, 100.0, 2000.0, 2000.0, 0.01, 0.01])
    return OtherUnits(AcrobotEnv(), scale, np.array([0.0, 300.0, -9000.0, 0.0, 1.0, 0.0]), 0.001)


def make_flat_minigrid(env_id: str) -> gym.Env[Any, Any]:
    """Make a MiniGrid whose observation is only the image of its 7 x 7 visible cells, as 147 numbers."""
    import minigrid  # noqa: F401 (registers its environments)
    from minigrid.wrappers import ImgObsWrapper

    return gym.wrappers.FlattenObservation(ImgObsWrapper(gym.make(env_id, disable_env_checker=True)))


for name, entry_point, arguments in (
    ("ScoreAtEnd", "ScoreAtEnd", {}),
    ("SignalsAtEnd", "SignalsAtEnd", {}),
    ("DriftingMass", "DriftingMass", {}),
    ("LateShift", "LateShift", {}),
    ("ThirtyAxes", "ThirtyAxes", {}),
    ("PendulumInOtherUnits", "make_pendulum_in_other_units", {"max_episode_steps": 200}),
    ("AcrobotInOtherUnits", "make_acrobot_in_other_units", {"max_episode_steps": 500}),
    ("CartPoleWithoutVelocities", "make_cart_pole_without_velocities", {"max_episode_steps": 500}),
    ("Cue", "Cue", {}),
    ("HopperWithoutVelocities", "make_hopper_without_velocities", {"max_episode_steps": 1000}),
    ("Walker2dWithoutVelocities", "make_walker_without_velocities", {"max_episode_steps": 1000}),
    ("PendulumWithoutVelocity", "make_pendulum_without_velocity", {"max_episode_steps": 200}),
    ("MiniGrid-Empty-8x8-Flat", "make_flat_minigrid", {"kwargs": {"env_id": "MiniGrid-Empty-8x8-v0"}}),
    ("MiniGrid-DoorKey-5x5-Flat", "make_flat_minigrid", {"kwargs": {"env_id": "MiniGrid-DoorKey-5x5-v0"}}),
):
    gym.register(f"{name}-v0", f"{__name__}:{entry_point}", **arguments)
