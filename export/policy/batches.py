"""Ask a policy's functions of NumPy arrays in batches of a size."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.serving.runtime.observations import Array, Observation, take


class ActionAlone:
    """Function that answers the action alone, by a function of all outputs, which is traced and compiled only once."""

    def __init__(self, answers: Answers, action: str) -> None:
        """Take a function that answers arrays by output name, and the name of the action there."""
        self._answers, self._action = answers, action

    def __call__(self, inputs: Observation, noise: Array) -> Array:
        """Answer all rows at once."""
        return self._answers(inputs, noise)[self._action]

    def in_batches(self, inputs: Observation, noise: Array, size: int) -> Array:
        """Answer the rows in batches of `size`."""
        actions: Array = joined(in_batches(self._answers, inputs, noise, size))[self._action]
        return actions


def in_batches(function: Actor | Answers, inputs: Observation, noise: Array, size: int) -> Iterator[tuple[slice, Any]]:
    """Iterate over the answers to inputs [n, ...] in batches of `size`, each with the rows that it is for.

    A function that has a method `in_batches` gives those of all batches together.
    """
    batched = getattr(function, "in_batches", None)
    if batched is not None and len(noise):
        yield slice(len(noise)), batched(inputs, noise, size)
        return
    for start in range(0, len(noise), size):
        rows = slice(start, start + size)
        yield rows, function(take(inputs, rows), noise[rows])


def joined(answers: Iterable[tuple[slice, Any]]) -> Any:
    """Join the answers of all batches: arrays, or dicts of them by name."""
    parts = [part for _, part in answers]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)
