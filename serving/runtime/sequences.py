"""Run golden sequences of a policy with state, which carries its own state from a step to the next."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.bundle.specs import StateSpec
from trpo_tf.serving.runtime.observations import Array

Step = Callable[[dict[str, Array], Array], Mapping[str, Array]]
"""Inputs [batch, ...] by name, noise [batch, k] -> outputs [batch, ...] by name, the next state among them."""


def run_sequences(
    step: Step, inputs: Mapping[str, Array], noise: Array, state: tuple[StateSpec, ...]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run sequences that stand one after another in rows [n x `STEPS`, ...]; return inputs and outputs of every step.

    The first step of a sequence takes the state that the inputs hold, and each other step the state that `step` gave.
    The inputs that are returned have that state.
    """
    rows = np.arange(len(noise)).reshape(-1, STEPS)
    carried = {spec.name: inputs[spec.name][rows[:, 0]] for spec in state}
    seen: list[dict[str, Array]] = []
    found: list[Mapping[str, Array]] = []
    for now in rows.T:
        seen.append({name: array[now] for name, array in inputs.items()} | carried)
        found.append(step(seen[-1], noise[now]))
        carried = {spec.name: found[-1][spec.next_name] for spec in state}
    return _in_rows(seen), _in_rows(found)


def _in_rows(steps: list[Any]) -> dict[str, NDArray[Any]]:
    """Join steps [n, ...] by name to rows [n x steps, ...], in which a sequence stands together."""
    stacked = {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in stacked.items()}
