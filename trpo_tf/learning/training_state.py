"""State that training carries from one iteration to the next."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.former_names import COUNTERS, renamed
from trpo_tf.estimation.critic_memory import apart
from trpo_tf.policies.running_stats import Moments
from trpo_tf.sampling.batch import Batch
from trpo_tf.sampling.join import side_by_side
from trpo_tf.serving.runtime.observations import ROOT, by_name, structured
from trpo_tf.solvers.adam import AdamState

RECENT_EPISODES = 20

Arrays = dict[str, NDArray[Any]]


class WeightsMismatch(ValueError):
    """Weights whose names or shapes differ from those of the weights that they should replace."""


class Purpose(IntEnum):
    """Uses of random numbers in an iteration; each has a random stream of its own."""

    SAMPLING = 0
    CRITIC = 1
    POLICY = 2


class Best(NamedTuple):
    """The best policy of the periodic evaluations, its mean return there, and the steps that it was trained for."""

    theta: NDArray[np.float32]  # [P]
    observation_moments: Moments
    mean_return: float
    steps: int


@dataclass(frozen=True)
class TrainingState:
    """State of a run between two iterations.

    Together with the config it determines the rest of the run. Each iteration seeds its random numbers by (seed,
    iteration). At each checkpoint the environments are rebuilt from (seed, checkpoint).
    """

    theta: NDArray[np.float32]  # [P]
    value_theta: NDArray[np.float32]  # [Q]
    adam: AdamState  # the critic's
    observation_moments: Moments
    return_moments: Moments  # of discounted sums of rewards
    carried_returns: NDArray[np.float64]  # [N], discounted sums so far in the running episodes
    adapted: np.float32  # what the algorithm adapts: the trust region's radius, or the KL coefficient
    earlier: tuple[Batch, ...] = ()  # batches that the critic still learns from, oldest first, each [T, N]
    best: Best | None = None
    recent_returns: tuple[float, ...] = ()
    recent_lengths: tuple[int, ...] = ()
    iteration: int = 0
    steps: int = 0
    eval_steps: int = 0  # of periodic evaluations, which are not in `steps`
    episodes: int = 0
    checkpoint: int = 0
    steps_at_checkpoint: int = 0
    seconds: float = 0.0

    def rng(self, seed: int, purpose: Purpose) -> np.random.Generator:
        """Return the random generator for one purpose in the next iteration of a run with this seed."""
        # An int, since workers that unpickled a `Purpose` would import this module, and TensorFlow with it.
        return np.random.default_rng([seed, self.iteration, int(purpose)])

    def at_checkpoint(self) -> "TrainingState":
        """Return the state to save: the next checkpoint, at which the environments restart."""
        return dataclasses.replace(
            self,
            checkpoint=self.checkpoint + 1,
            steps_at_checkpoint=self.steps,
            carried_returns=np.zeros_like(self.carried_returns),
        )

    def at_best(self) -> "TrainingState":
        """Return the state with the best policy of the periodic evaluations, if there was one."""
        if self.best is None:
            return self
        return dataclasses.replace(self, theta=self.best.theta, observation_moments=self.best.observation_moments)

    def with_episodes(self, returns: list[float], lengths: list[int]) -> "TrainingState":
        """Return the state with these episodes added; it keeps the returns and lengths of the last twenty."""
        return dataclasses.replace(
            self,
            recent_returns=(*self.recent_returns, *returns)[-RECENT_EPISODES:],
            recent_lengths=(*self.recent_lengths, *lengths)[-RECENT_EPISODES:],
            episodes=self.episodes + len(returns),
        )

    def to_arrays(self) -> Arrays:
        """Return the state as named arrays; `counters` holds everything else as JSON."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            **self.weights(),
            **_named("adam", self.adam),
            **({} if self.best is None else _best_arrays(self.best)),
            **(_batch_arrays(side_by_side(self.earlier)) if self.earlier else {}),
            "carried_returns": self.carried_returns,
            _ADAPTED: np.asarray(self.adapted),
            "counters": np.frombuffer(json.dumps(counters).encode(), np.uint8),
        }

    def weights(self) -> Arrays:
        """Return the arrays that another run can start from: policy, critic and normalisers."""
        return {
            "theta": self.theta,
            "value_theta": self.value_theta,
            **_named("observation_moments", self.observation_moments),
            **_named("return_moments", self.return_moments),
        }

    def with_weights(self, arrays: Mapping[str, NDArray[Any]]) -> "TrainingState":
        """Return the state with another run's `weights`.

        Raises `WeightsMismatch` if an array is absent or has another shape.
        """
        own = self.weights()
        for name, array in own.items():
            if name not in arrays or arrays[name].shape != array.shape:
                found = arrays[name].shape if name in arrays else "absent"
                raise WeightsMismatch(f"{name} is {found} there and {array.shape} here")
        return dataclasses.replace(self, **_weights(arrays))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "TrainingState":
        """Rebuild a state from the arrays of `to_arrays`. Raises `KeyError` or `ValueError` for other arrays."""
        counters = renamed(json.loads(arrays["counters"].tobytes()), COUNTERS)
        for name in ("recent_returns", "recent_lengths"):
            counters[name] = tuple(counters[name])
        return cls(
            **_weights(arrays),
            adam=AdamState(*_fields("adam", AdamState, arrays)),
            best=_best(arrays) if "best.theta" in arrays else None,
            earlier=apart(_batch(arrays), len(arrays["carried_returns"])) if "earlier.reward" in arrays else (),
            carried_returns=arrays["carried_returns"],
            adapted=np.float32(arrays[_ADAPTED]),
            **counters,
        )


_SEEN = "earlier.observation."
_ADAPTED = "control"
"""Name of `adapted` in checkpoints, kept so that those of earlier releases load."""
_COUNTERS = (
    "recent_returns",
    "recent_lengths",
    "iteration",
    "steps",
    "eval_steps",
    "episodes",
    "checkpoint",
    "steps_at_checkpoint",
    "seconds",
)


def _named(prefix: str, values: Any) -> Arrays:
    return {f"{prefix}.{name}": np.asarray(value) for name, value in values._asdict().items()}


def _fields(prefix: str, kind: Any, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [arrays[f"{prefix}.{name}"] for name in kind._fields]


def _best_arrays(best: Best) -> Arrays:
    moments = _named("best.observation_moments", best.observation_moments)
    return moments | {f"best.{name}": np.asarray(getattr(best, name)) for name in ("theta", "mean_return", "steps")}


def _best(arrays: Mapping[str, NDArray[Any]]) -> Best:
    moments = Moments(*_fields("best.observation_moments", Moments, arrays))
    return Best(arrays["best.theta"], moments, float(arrays["best.mean_return"]), int(arrays["best.steps"]))


def _batch_arrays(batch: Batch) -> Arrays:
    arrays = {f"{_SEEN}{name}": part for name, part in by_name(batch.observation, ROOT).items()}
    return arrays | {f"earlier.{name}": getattr(batch, name) for name in Batch._fields[1:]}


def _batch(arrays: Mapping[str, NDArray[Any]]) -> Batch:
    seen = {name.removeprefix(_SEEN): part for name, part in arrays.items() if name.startswith(_SEEN)}
    return Batch(structured(seen), *(arrays[f"earlier.{name}"] for name in Batch._fields[1:]))


def _weights(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {
        "theta": arrays["theta"],
        "value_theta": arrays["value_theta"],
        "observation_moments": Moments(*_fields("observation_moments", Moments, arrays)),
        "return_moments": Moments(*_fields("return_moments", Moments, arrays)),
    }
