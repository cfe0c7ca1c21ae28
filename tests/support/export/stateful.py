"""Policies with state, written by hand: recurrent cells, a Kalman filter, a counter, a history, the previous action."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.export import Evidence, PolicySpec, convert_policy
from trpo_tf.export.parity.reference.evidence import make_reference_cases
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.policy.outputs import all_outputs, of_inputs
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec, StateSpec
from trpo_tf.serving.bundle.specs import RESET
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Observation, by_name
from trpo_tf.serving.runtime.onnx_runtime import open_session

RNG = np.random.default_rng(5)
OBS, ACTION, NOISE = (
    ArraySpec("obs", "float32", (3,)),
    ArraySpec("action", "float32", (2,), -1, 1),
    NoiseSpec("normal", (2,)),
)


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


_TWO_TORQUES = PolicySpec(
    (ArraySpec("obs", "float32", (3,), -5, 5),),
    ArraySpec("action", "float32", (2,), -1, 1),
    NoiseSpec("normal", (2,)),
)


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

    spec = replace(_TWO_TORQUES, state=(StateSpec("history", "float32", (3, 3)),))
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


def gru_cell(inputs: int, units: int) -> Callable[[Any, Any], Any]:
    """Return a step of a gated recurrent unit: inputs [batch, n], hidden [batch, units] -> the next hidden.

    The reset gate is applied to the product, as in cuDNN and in Keras with `reset_after`.
    """
    kernel, recurrent = weights(inputs, 3 * units), weights(units, 3 * units)
    bias, recurrent_bias = weights(1, 3 * units) / 2, weights(1, 3 * units) / 2

    def step(x: Any, hidden: Any) -> Any:
        given, kept = x @ kernel + bias, hidden @ recurrent + recurrent_bias
        gates = tf.sigmoid(given[:, : 2 * units] + kept[:, : 2 * units])
        update, reset = gates[:, :units], gates[:, units:]
        candidate = tf.tanh(given[:, 2 * units :] + reset * kept[:, 2 * units :])
        return update * hidden + (1.0 - update) * candidate

    return step


def lstm_cell(inputs: int, units: int) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Return a step of a long short-term memory: inputs, hidden, cell -> the next hidden and cell [batch, units]."""
    kernel, bias = weights(inputs + units, 4 * units), weights(1, 4 * units) / 2

    def step(x: Any, hidden: Any, cell: Any) -> tuple[Any, Any]:
        gates = tf.concat([x, hidden], axis=1) @ kernel + bias
        enter, forget, leave = (tf.sigmoid(gates[:, k * units : (k + 1) * units]) for k in range(3))
        cell = forget * cell + enter * tf.tanh(gates[:, 3 * units :])
        return leave * tf.tanh(cell), cell

    return step


def gru() -> Stateful:
    """Two torques by a gated recurrent unit of 16."""
    step, last = gru_cell(3, 16), weights(16, 2)

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        hidden = step(observation, state["hidden"])
        return tf.tanh(hidden @ last + 0.3 * noise), {"hidden": hidden}

    spec = replace(_TWO_TORQUES, state=(StateSpec("hidden", "float32", (16,)),))
    return Stateful(act, spec, _walk(96, 3))


def lstm() -> Stateful:
    """Chooses among three by a long short-term memory of 16."""
    step, last = lstm_cell(3, 16), 3 * weights(16, 3)

    def scores(observation: Any, state: Any, reset: Any, noise: Any) -> Any:
        return step(observation, state["hidden"], state["cell"])[0] @ last + noise

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        hidden, cell = step(observation, state["hidden"], state["cell"])
        return tf.argmax(hidden @ last + noise, axis=1), {"hidden": hidden, "cell": cell}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,), -5, 5),),
        ArraySpec("action", "int64", (), 0, 2),
        NoiseSpec("gumbel", (3,)),
        (StateSpec("hidden", "float32", (16,)), StateSpec("cell", "float32", (16,))),
    )
    return Stateful(act, spec, _walk(96, 3), scores)


def gru_history() -> Stateful:
    """Two torques by a gated recurrent unit of 12 that sees the last four observations."""
    step, last = gru_cell(12, 12), weights(12, 2)

    def act(observation: Any, state: Any, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        newest = observation[:, tf.newaxis]
        past = tf.where(reset[:, tf.newaxis, tf.newaxis], newest, state["history"])
        seen = tf.concat([past, newest], axis=1)
        hidden = step(tf.reshape(seen, (-1, 12)), state["hidden"])
        return tf.tanh(hidden @ last + 0.3 * noise), {"history": seen[:, 1:], "hidden": hidden}

    state = (StateSpec("history", "float32", (3, 3)), StateSpec("hidden", "float32", (12,)))
    return Stateful(act, replace(_TWO_TORQUES, state=state), _walk(96, 3))


STATEFUL: dict[str, Stateful] = {
    name: make()
    for name, make in {
        "kalman": kalman,
        "counter": counter,
        "history": history,
        "previous": previous,
        "gru": gru,
        "lstm": lstm,
        "gru and history": gru_history,
    }.items()
}

KINDS = tuple(name for name in STATEFUL if name != "gru")
"""The kinds of state that every runtime carries: "gru and history" has the cell of "gru"."""


@cache
def converted(name: str) -> bytes:
    """The policy's graph, with optional noise."""
    return convert_policy(STATEFUL[name].function, STATEFUL[name].spec)


@cache
def reference_cases(name: str) -> ReferenceCases:
    """Golden cases of a policy, as an export makes them."""
    policy = STATEFUL[name]
    spec, outputs = policy.spec, all_outputs(policy.function, policy.spec)
    manifest = Manifest(name, spec.observation, spec.action, spec.noise, state=spec.state)
    return make_reference_cases(of_inputs(policy.function, spec), outputs, manifest, policy.evidence, converted(name))


def one_episode_after_another(name: str, count: int = 48) -> tuple[dict[str, Any], Any, Any]:
    """Inputs and noise of steps in order, with a reset at every 12th, and what the policy's graph does along them."""
    policy, spec = STATEFUL[name], STATEFUL[name].spec
    inputs = {part: values[:count] for part, values in by_name(policy.visited, spec.observation[0].name).items()}
    inputs |= {RESET: np.arange(count) % 12 == 0}
    noise = draw_noise(spec.noise, count, np.random.default_rng(4))
    session = open_session(converted(name))
    state = {each.name: each.initial_rows(1) for each in spec.state}
    actions = []
    for step in range(count):
        fed = {part: values[step : step + 1] for part, values in inputs.items()} | state
        found = session.run(None, {**fed, spec.noise.name: noise[step : step + 1]})
        answers = dict(zip([output.name for output in session.get_outputs()], found, strict=True))
        actions.append(answers[spec.action.name][0])
        state = {each.name: answers[each.next_name] for each in spec.state}
    return inputs, noise, np.stack(actions)


def steps_of(policy: Stateful, count: int) -> list[dict[str, np.ndarray]]:
    """The first observations [1, ...] that a policy meets, each as a dict by name."""
    rows = by_name(policy.visited, policy.spec.observation[0].name)
    return [{name: values[step : step + 1] for name, values in rows.items()} for step in range(count)]


def golden(folder: Path) -> dict[str, np.ndarray]:
    """The golden cases of a bundle, by name."""
    with np.load(folder / "golden.npz") as archive:
        return dict(archive)
