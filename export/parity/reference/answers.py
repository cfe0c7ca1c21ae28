"""Hold the trained policy's answers on cases, and decide which answers of a target are right."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.parity.reference.recurrent import Recurrent
from trpo_tf.export.policy.batches import in_batches, joined
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.serving.runtime.observations import Array, Observation, take
from trpo_tf.serving.verify import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE

TIE = 1e-5
"""Two best scores closer than this are a tie, which rounding may break either way."""
_RELATIVE_TIE = 1e-6
"""The distance of a tie as a share of the best score, for scores above 10."""

BATCH_SIZES = (1, 2, 7, 64)
"""Batch sizes that golden cases are compared at."""

NO_OPTION = -1e8
"""A lower score is that of an option that can't be chosen: illegal, or beyond those that there are."""

ROUNDED = 1e-3
"""A row is undecided if rounding may move its action further than this, plus as much of the action."""


@dataclass(frozen=True)
class Answered:
    """A batch of cases with the trained policy's answers.

    Attributes:
        observations: [batch, ...].
        noise: [batch, k].
        actions: [batch, ...].
        further: the policy's other outputs, [batch, ...] by name.
        scores: of discrete actions, [batch, ..., n], where known.
        rounding: gives what rounding may change, by output name.
        margins: what it gives, where that was asked already.
        action: the name of the actions there.
        unit: the size of each element's actions, as `ArraySpec.unit` has it.
    """

    observations: Observation
    noise: Array
    actions: Array
    further: Mapping[str, Array] = field(default_factory=dict)
    scores: Array | None = None
    rounding: Answers | None = None
    margins: Mapping[str, Array] | None = None
    action: str = "action"
    unit: Array | float = 1.0

    def __len__(self) -> int:
        return len(self.noise)

    def take(self, rows: Any) -> "Answered":
        """Take the rows that an index, slice or mask chooses."""
        return replace(
            self,
            observations=take(self.observations, rows),
            noise=self.noise[rows],
            actions=self.actions[rows],
            further={name: array[rows] for name, array in self.further.items()},
            scores=None if self.scores is None else self.scores[rows],
            margins=None if self.margins is None else {name: part[rows] for name, part in self.margins.items()},
        )

    def with_margins(self) -> "Answered":
        """Return the batch with the margins by which rounding may change its outputs."""
        if self.rounding is None or self.margins is not None:
            return self
        return replace(self, margins=self.rounding(self.observations, self.noise))

    @cached_property
    def acceptable(self) -> NDArray[np.bool_]:
        """Mark the choices whose score equals the best up to rounding: [batch, elements, n]. Needs scores."""
        assert self.scores is not None
        best = self.scores.max(axis=-1, keepdims=True).astype(np.float64)
        with np.errstate(invalid="ignore"):
            good = self.scores >= best - np.maximum(TIE, _RELATIVE_TIE * np.abs(best))
        return np.asarray(good.reshape(len(self), math.prod(good.shape[1:-1]), good.shape[-1]))

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """Mark the rows that have only one right action, as far as margins are known: [batch].

        In these rows no two choices tie, and rounding moves no number by more than `ROUNDED` relative to it.
        """
        return self.fragility <= (ROUNDED if self.actions.dtype.kind == "f" else 0)

    @cached_property
    def firm(self) -> NDArray[np.bool_]:
        """Mark the rows whose action no machine's rounding changes."""
        return self.fragility <= (ABSOLUTE_TOLERANCE if self.actions.dtype.kind == "f" else 0)

    @property
    def fragility(self) -> NDArray[np.float64]:
        """Measure how much rounding may change each row's action, or count the choices that tie with it: [batch]."""
        if self.scores is not None:
            return np.asarray(self.acceptable.sum(axis=-1).max(axis=1, initial=1) - 1.0)
        if self.margins is None:
            return np.zeros(len(self))
        shares = self.margins[self.action] / (self.unit + np.abs(self.actions.astype(np.float64)))
        return np.asarray(flat(shares).max(axis=1, initial=0.0))


@dataclass(frozen=True)
class Reference:
    """The policy as it was trained, as functions.

    Attributes:
        act: its actions.
        scores: for discrete actions, the scores that its choices maximise: [batch, ..., n].
        further: its other outputs.
        rounding: gives what rounding may change, by output name.
        action: the name of the actions there.
        recurrent: all that it answers, if it has state.
        unit: the size of each element's actions.
    """

    act: Actor
    scores: Actor | None = None
    further: Answers | None = None
    rounding: Answers | None = None
    action: str = "action"
    recurrent: Recurrent | None = None
    unit: Array | float = 1.0

    @property
    def player(self) -> Actor | Recurrent:
        """The policy as it plays episodes: a function, or a policy that carries its state."""
        return self.act if self.recurrent is None else self.recurrent

    def moved_by_rounding(self) -> Actor | Recurrent:
        """Return the policy as `player` does, but with actions one unit in the last place nearer to 0."""
        if self.recurrent is None:
            return lambda observations, noise: _one_unit_nearer_to_zero(self.act(observations, noise))
        policy = self.recurrent

        def answers(inputs: Observation, noise: Array) -> dict[str, Array]:
            found = policy.answers(inputs, noise)
            return {**found, self.action: _one_unit_nearer_to_zero(found[self.action])}

        return replace(policy, answers=answers)

    def untied(self, observations: Observation, noise: Array) -> NDArray[np.bool_]:
        """Mark the rows that have one right action."""
        return self.answered(observations, noise).decided

    def answered(self, observations: Observation, noise: Array, size: int | None = None) -> Answered:
        """Answer cases in batches of `size`; by default in one batch."""

        def answer(function: Actor | Answers) -> Any:
            if size is None:
                return function(observations, noise)
            return joined(in_batches(function, observations, noise, size))

        scores = None if self.scores is None else answer(self.scores)
        if self.recurrent is not None:
            further = dict(answer(self.recurrent.answers))
            actions = further.pop(self.action)
        else:
            further = {} if self.further is None else answer(self.further)
            actions = answer(self.act)
        return Answered(
            observations, noise, actions, further, scores, self.rounding, action=self.action, unit=self.unit
        )


def _one_unit_nearer_to_zero(actions: Array) -> Array:
    return np.nextafter(actions, np.zeros_like(actions)) if actions.dtype.kind == "f" else actions


def flat(array: Array) -> Array:
    """Reshape an array [n, ...] to [n, elements]; n may be 0."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def close_rows(actual: Array, expected: Array, margin: Array, unit: Array | float = 1.0) -> NDArray[np.bool_]:
    """Mark the rows [n] in which two arrays differ by `margin` at most; for floats the tolerance is added."""
    one, other, allowed = (flat(array).astype(np.float64) for array in (actual, expected, margin))
    if expected.dtype.kind == "f":
        allowed += ABSOLUTE_TOLERANCE * np.ravel(unit) + RELATIVE_TOLERANCE * np.abs(other)
    elif not margin.any():
        return np.asarray(flat(actual == expected).all(axis=1))
    with np.errstate(invalid="ignore"):
        close = (np.abs(one - other) <= allowed) | (one == other) | (np.isnan(one) & np.isnan(other))
    return np.asarray(close.all(axis=1))


def choices(actions: Array, batch: Answered) -> NDArray[np.int64]:
    """Return the index of each action in the scores: [batch, elements]."""
    assert batch.scores is not None
    best = flat(batch.scores.argmax(axis=-1))
    return np.asarray(best + flat(actions).astype(np.int64) - flat(batch.actions).astype(np.int64))


def matches(actions: Array, batch: Answered) -> NDArray[np.bool_]:
    """Mark the right rows: their choices score as the best does, or their numbers are equal up to rounding."""
    if batch.scores is None:
        return matches_output(actions, batch, batch.action)
    chosen, count = choices(actions, batch), batch.scores.shape[-1]
    known = (chosen >= 0) & (chosen < count)
    best = np.take_along_axis(batch.acceptable, np.clip(chosen, 0, count - 1)[..., np.newaxis], axis=-1)[..., 0]
    return np.asarray((known & best).all(axis=1))


def matches_output(actual: Array, batch: Answered, name: str) -> NDArray[np.bool_]:
    """Mark the rows of one output whose numbers are equal up to rounding."""
    expected, unit = (batch.actions, batch.unit) if name == batch.action else (batch.further[name], 1.0)
    close = close_rows(actual, expected, np.zeros(expected.shape), unit)
    if close.all():  # only otherwise is what rounding may change worth computing
        return close
    margins = batch.with_margins().margins
    return close if margins is None else close_rows(actual, expected, margins[name], unit)
