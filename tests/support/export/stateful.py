"""Policies with state, written by hand: a Kalman filter, a counter, a history, and the previous action."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.export import Evidence, PolicySpec
from trpo_tf.serving import ArraySpec, NoiseSpec, StateSpec
from trpo_tf.serving.runtime.observations import Observation

RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


@dataclass(frozen=True)
class Stateful:
    """A policy with state, and observations [n, ...] such as it meets, in the order of time."""

    function: Callable[..., Any]
    spec: PolicySpec
    visited: Observation
    scores: Callable[..., Any] | None = None

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(self.visited, scores=self.scores)


def _walk(count: int, *shape: int) -> np.ndarray:
    """A path such as positions take, between -3 and 3."""
    steps = np.random.default_rng(6).normal(0, 0.3, (count, *shape)).cumsum(axis=0)
    return (3 * np.sin(steps)).astype(np.float32)


F = np.float32([[1, 0.1], [0, 1]])
Q, R = np.float32([[0.02, 0], [0, 0.05]]), np.float32(0.1)
GAIN = np.float32([1.5, 0.8])


def kalman() -> Stateful:
    """Estimates place and velocity of a place alone, and steers to zero by both."""

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        mean, cov = state["mean"] @ F.T, F @ state["cov"] @ F.T + Q
        gain = cov[:, :, 0] / (cov[:, :1, 0] + R)
        mean += gain * (observation - mean[:, :1])
        cov -= gain[:, :, tf.newaxis] * cov[:, :1, :]
        action = tf.clip_by_value(-tf.reduce_sum(mean * GAIN, axis=1, keepdims=True) + 0.2 * noise, -2.0, 2.0)
        return action, {"mean": mean, "cov": cov}

    spec = PolicySpec(
        (ArraySpec("place", "float32", (1,), -10, 10),),
        ArraySpec("force", "float32", (1,), -2, 2),
        NoiseSpec("normal", (1,)),
        (StateSpec("mean", "float32", (2,)), StateSpec("cov", "float32", (2, 2), [[1, 0], [0, 4]])),
    )
    return Stateful(act, spec, _walk(96, 1))


def counter() -> Stateful:
    """Chooses among three by the observation and the steps that are left of 12."""
    first, last = weights(4, 16), 3 * weights(16, 3)

    def scores(observation: Any, state: Any, reset: Any, noise: Any) -> Any:
        left = tf.cast(tf.maximum(tf.constant(12, tf.int64) - state["steps"], 0), tf.float32)
        seen = tf.concat([observation, tf.math.log1p(left)[:, tf.newaxis]], axis=1)
        return tf.tanh(seen @ first) @ last + noise

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        return tf.argmax(scores(observation, state, reset, noise), axis=1), {"steps": state["steps"] + 1}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,), -5, 5),),
        ArraySpec("action", "int64", (), 0, 2),
        NoiseSpec("gumbel", (3,)),
        (StateSpec("steps", "int64", ()),),
    )
    return Stateful(act, spec, _walk(96, 3), scores)


def history() -> Stateful:
    """Two torques by a network of the last four observations; a reset fills them with the first."""
    first, last = weights(12, 16), weights(16, 2)

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        newest = observation[:, tf.newaxis]
        past = tf.where(reset[:, tf.newaxis, tf.newaxis], newest, state["history"])
        seen = tf.concat([past, newest], axis=1)
        action = tf.tanh(tf.tanh(tf.reshape(seen, (-1, 12)) @ first) @ last + 0.3 * noise)
        return action, {"history": seen[:, 1:]}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,), -5, 5),),
        ArraySpec("action", "float32", (2,), -1, 1),
        NoiseSpec("normal", (2,)),
        (StateSpec("history", "float32", (3, 3)),),
    )
    return Stateful(act, spec, _walk(96, 3))


def previous() -> Stateful:
    """Takes a place and a touch; carries the previous choice, one-hot, and whether there was ever a touch."""
    first, last = weights(6, 16), 3 * weights(16, 3)

    def scores(observation: Any, state: Any, reset: Any, noise: Any) -> Any:
        touched = tf.logical_or(state["touched"], observation["touch"])
        seen = [observation["place"], state["last"], tf.cast(touched, tf.float32)[:, tf.newaxis]]
        return tf.tanh(tf.concat(seen, axis=1) @ first) @ last + noise

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        action = tf.argmax(scores(observation, state, reset, noise), axis=1)
        touched = tf.logical_or(state["touched"], observation["touch"])
        return action, {"last": tf.one_hot(action, 3), "touched": touched}

    spec = PolicySpec(
        (ArraySpec("place", "float32", (2,), -5, 5), ArraySpec("touch", "bool", ())),
        ArraySpec("action", "int64", (), 0, 2),
        NoiseSpec("gumbel", (3,)),
        (StateSpec("last", "float32", (3,)), StateSpec("touched", "bool", (), False)),
    )
    touch = np.random.default_rng(7).random(96) < 0.2
    return Stateful(act, spec, {"place": _walk(96, 2), "touch": touch}, scores)


STATEFUL: dict[str, Stateful] = {
    name: make()
    for name, make in {"kalman": kalman, "counter": counter, "history": history, "previous": previous}.items()
}
