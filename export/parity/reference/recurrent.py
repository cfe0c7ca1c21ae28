"""Run a policy with state: along episodes, and along the sequences that targets are compared on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.policy.functions import Answers
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import StateSpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.bundle.specs import RESET
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name, structured, take
from trpo_tf.serving.runtime.sequences import run_sequences

_UNDISTURBED = 4
"""One sequence of so many has no reset but the first."""

_JUNK = 3.0
"""Size of the numbers in a state that a reset must ignore."""


@dataclass(frozen=True)
class Recurrent:
    """A policy with state.

    Attributes:
        answers: its outputs by name, the action and the next state among them.
        spec: its arrays.
    """

    answers: Answers
    spec: PolicySpec

    def first(self) -> dict[str, Array]:
        """Return the inputs of an episode's first step other than the observation: the initial state, and a reset."""
        rows = {each.name: each.initial_rows(1)[0] for each in self.spec.state}
        return rows | {RESET: np.array(True)}

    def step(self, inputs: Observation, noise: Array) -> tuple[Array, dict[str, Array]]:
        """Return the actions for inputs [1, ...], and the inputs of the next step other than the observation."""
        found = self.answers(inputs, noise)
        carried = {each.name: found[each.next_name][0] for each in self.spec.state}
        return found[self.spec.action.name], carried | {RESET: np.array(False)}


def observed(inputs: Observation, spec: PolicySpec) -> Observation:
    """Return the observation among the inputs."""
    if not spec.state:
        return inputs
    named = by_name(inputs, spec.observation[0].name)
    return structured({part.name: named[part.name] for part in spec.observation})


def with_state(
    observations: Observation, states: Observation, spec: PolicySpec, rng: np.random.Generator
) -> Observation:
    """Add to observations [n, ...] states that are drawn from inputs [m, ...], half of them with a reset."""
    if not spec.state:
        return observations
    rows = batch_size(observations)
    drawn = by_name(take(states, rng.integers(batch_size(states), size=rows)), spec.observation[0].name)
    carried = {each.name: drawn[each.name] for each in spec.state} | {RESET: rng.random(rows) < 0.5}
    return by_name(observations, spec.observation[0].name) | carried


def fresh(observations: Observation, spec: PolicySpec) -> Observation:
    """Add to observations [n, ...] the initial state, and a reset of every row."""
    if not spec.state:
        return observations
    rows = batch_size(observations)
    carried = {each.name: each.initial_rows(rows) for each in spec.state}
    return by_name(observations, spec.observation[0].name) | carried | {RESET: np.ones(rows, np.bool_)}


def order_of_sequences(rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle so many rows, and repeat some to fill the last sequence."""
    return np.resize(rng.permutation(rows), -(-rows // STEPS) * STEPS)


def sequence_inputs(
    answers: Answers, observations: Observation, noise: Array, spec: PolicySpec, rng: np.random.Generator
) -> dict[str, Array]:
    """Return the inputs of sequences of `STEPS` steps, whose observations [n x `STEPS`, ...] stand one after another.

    A sequence begins with a reset of a state that must be ignored, and most have another reset inside. The state of
    every other step is what `answers` gave for the step before.
    """
    starts = np.arange(0, len(noise), STEPS)
    reset = np.zeros(len(noise), np.bool_)
    reset[starts] = True
    inside = starts + rng.integers(1, STEPS, len(starts))
    reset[np.delete(inside, np.s_[::_UNDISTURBED])] = True
    junk = {each.name: _junk(each, len(noise), rng) for each in spec.state}
    inputs = by_name(observations, spec.observation[0].name) | junk | {RESET: reset}
    return run_sequences(answers, inputs, noise, spec.state)[0]


def _junk(spec: StateSpec, rows: int, rng: np.random.Generator) -> Array:
    """Draw states that are not the initial one."""
    drawn = 1 + np.abs(_JUNK * rng.standard_normal((rows, *spec.shape)))
    return np.asarray(spec.initial_rows(rows) + drawn.astype(spec.dtype)).astype(spec.dtype)
