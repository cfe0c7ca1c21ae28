"""Memory of a policy: its explicit state keeps part of an episode, and its network sees that part.

A policy with memory is `action, next_state = f(observation, state, reset, noise)`. Here the observation and the state
become one larger observation, which the encoder, the networks and the critic take for the environment's own:

- a history of k: each part of the observation [...] becomes [k, ...], newest last, as the environment gave it. At a
  reset all k are the first observation, since zeros would look like earlier steps. A mask of legal actions has no
  history, since it holds for the present step alone;
- the previous action, in the environment's units, or one-hot if it is a choice; zeros at a reset;
- the time left, as ln(1 + steps left). The state counts the steps;
- the state of a recurrent core, which the policy itself computes: see `trpo_tf.policies.recurrence`.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trpo_tf.envs.remaining_time import LOG_STEPS_LEFT
from trpo_tf.envs.spaces import MASK, Spaces
from trpo_tf.errors import UserError
from trpo_tf.policies.encoders import RECURRENT, is_image, one_hot
from trpo_tf.serving import ArraySpec, StateSpec
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.serving.runtime.observations import Observation, by_name, map_parts, structured

HISTORY, PREVIOUS_ACTION, STEPS = "history", "previous_action", "steps"

State = Mapping[str, Any]
"""Arrays or tensors [batch, ...] by the names of the policy's `StateSpec`s."""


class Step(NamedTuple):
    """Results of one step of a policy with memory."""

    action: Any  # [batch, ...], in the environment's units
    sample: Any  # [batch, ...], of the policy's distribution
    seen: Any  # what the network saw: the observation, or the larger one of `Memory.observe`
    next_state: dict[str, Any]


@dataclass(frozen=True)
class Memory:
    """A policy's memory of an episode, as functions of tensors; the module says what it may hold.

    Attributes:
        history: observations that the network sees, 1 for the present one alone.
        previous_action: the action's spec if the network sees the previous one, else None.
        limit: steps of an episode if the network sees the time left, else 0.
        parts: the environment's observation.
        observation: specs of what the network sees.
        kinds: name of the kind of Gymnasium space of each, as in `Spaces`, or `RECURRENT`.
        state: specs of what is kept.
        recurrent: those of `state` that a recurrent core computes.
    """

    history: int
    previous_action: ArraySpec | None
    limit: int
    parts: tuple[ArraySpec, ...]
    observation: tuple[ArraySpec, ...]
    kinds: tuple[str, ...]
    state: tuple[StateSpec, ...]
    recurrent: tuple[StateSpec, ...] = ()

    def observe(self, observation: Any, state: State, reset: Any) -> Any:
        """Return what the network sees of an observation [batch, ...], for a state whose reset rows are initial.

        `reset`, bool [batch], tells the rows that begin an episode.
        """
        seen = by_name(observation, self.parts[0].name)
        if self.history > 1:
            seen |= {
                spec.name: _joined(state[self._kept(spec.name)], seen[spec.name], reset) for spec in self._remembered
            }
        if self.previous_action is not None:
            seen[PREVIOUS_ACTION] = state[PREVIOUS_ACTION]
        if self.limit:
            left = tf.maximum(self.limit - state[STEPS], 0)
            # Not log1p, which not every target has. The sum is exact.
            seen[LOG_STEPS_LEFT] = tf.math.log(tf.cast(left + 1, tf.float32))[:, tf.newaxis]
        seen |= {spec.name: state[spec.name] for spec in self.recurrent}
        return structured({spec.name: seen[spec.name] for spec in self.observation})

    def first(self, observation: Observation) -> Observation:
        """Return what the network sees of an episode's first observation [...], without a batch dimension."""
        rows = map_parts(lambda part: np.asarray(part)[np.newaxis], observation)
        state = {spec.name: spec.initial_rows(1) for spec in self.state}
        seen = self.observe(rows, state, np.ones(1, bool))
        return map_parts(lambda part: np.asarray(part)[0], seen)

    def advance(self, seen: Any, state: State, action: Any) -> dict[str, Any]:
        """Return the next state, from the result of `observe`, the state before it and `action` [batch, ...].

        The state of a recurrent core is left out.
        """
        following: dict[str, Any] = {}
        if self.history > 1:
            parts = by_name(seen, self.observation[0].name)
            following |= {self._kept(spec.name): parts[spec.name][:, 1:] for spec in self._remembered}
        if self.previous_action is not None:
            following[PREVIOUS_ACTION] = _encoded(action, self.previous_action)
        if self.limit:
            # Beyond the limit no time is left, however long the policy goes on.
            following[STEPS] = tf.minimum(state[STEPS] + 1, self.limit)
        return following

    @property
    def _remembered(self) -> list[ArraySpec]:
        """The parts of the environment's observation of which a history is kept."""
        masks = {spec.name for spec, kind in zip(self.observation, self.kinds, strict=True) if kind == MASK}
        return [spec for spec in self.parts if spec.name not in masks]

    def _kept(self, name: str) -> str:
        return _history_name(name, len(self._remembered))


def make_memory(
    spaces: Spaces,
    *,
    history: int = 1,
    previous_action: bool = False,
    counts_steps: bool = False,
    recurrent: Sequence[StateSpec] = (),
) -> Memory | None:
    """Return the memory of a policy in an environment with these spaces, or None if it has none.

    Args:
        spaces: the environment's; it must have a time limit if steps are counted.
        history: number of observations that the network sees.
        previous_action: whether the network sees the previous action.
        counts_steps: whether the network sees the time left.
        recurrent: the state that a recurrent core computes.

    Raises:
        UserError: a part of the observation has the name of an array of the memory, or is an image, of which no history
            is kept and which no recurrent core takes.
    """
    if history == 1 and not previous_action and not counts_steps and not recurrent:
        return None
    parts, limit = spaces.observation, spaces.limit if counts_steps else 0
    _check_images(parts, history, recurrent)
    seen, state = list(zip(parts, spaces.kinds, strict=True)), []
    if history > 1:
        remembered = [spec for spec, kind in seen if kind != MASK]
        seen = [(spec if kind == MASK else _repeated(spec, history), kind) for spec, kind in seen]
        state += [
            StateSpec(_history_name(spec.name, len(remembered)), spec.dtype, (history - 1, *spec.shape))
            for spec in remembered
        ]
    if previous_action:
        spec, kind = _action_part(spaces.action)
        seen = _with_part(seen, spec, kind)
        state.append(StateSpec(PREVIOUS_ACTION, spec.dtype, spec.shape))
    if limit:
        seen = _with_part(seen, ArraySpec(LOG_STEPS_LEFT, "float32", (1,), 0.0, float(np.log1p(limit))), "Box")
        state.append(StateSpec(STEPS, "int32", ()))
    # In their own order, in which the encoder passes them on.
    seen += [(ArraySpec(each.name, each.dtype, each.shape), RECURRENT) for each in recurrent]
    state += recurrent
    _check_names(parts, [spec.name for spec in state])
    specs, kinds = zip(*seen, strict=True)
    previous = spaces.action if previous_action else None
    return Memory(history, previous, limit, parts, specs, kinds, tuple(state), tuple(recurrent))


def _check_images(parts: tuple[ArraySpec, ...], history: int, recurrent: Sequence[StateSpec]) -> None:
    """Raise `UserError` if an image would be remembered, or be the input of a recurrent core."""
    image = next((spec.name for spec in parts if is_image(spec)), None)
    if image is None:
        return
    fix = "let a wrapper of the environment stack frames as channels"
    if history > 1:
        raise UserError(f"history must be 1: the observation {image!r} is an image; {fix}")
    if recurrent:
        raise UserError(
            f"memory must be left out: the observation {image!r} is an image, and a recurrent core takes numbers; {fix}"
        )


def _joined(earlier: Any, present: Any, reset: Any) -> Any:
    """Return the `earlier` observations [batch, k - 1, ...] and the present one; it alone, k times, at a reset."""
    newest = tf.expand_dims(present, 1)
    is_first = tf.reshape(reset, (-1, *[1] * (len(earlier.shape) - 1)))
    return tf.concat([tf.where(is_first, newest, earlier), newest], axis=1)


def _encoded(action: Any, spec: ArraySpec) -> Any:
    """Return an action as the network sees it: one-hot if it is a choice, or several choices side by side."""
    return action if _is_continuous(spec) else tf.concat(one_hot(action, spec, tf.float32), axis=1)


def _action_part(action: ArraySpec) -> tuple[ArraySpec, str]:
    """Return the spec and the kind of the previous action as the network sees it."""
    if _is_continuous(action):
        return dataclasses.replace(action, name=PREVIOUS_ACTION), "Box"
    # Bits, which the encoder does not standardise.
    return ArraySpec(PREVIOUS_ACTION, "float32", (int(option_counts(action).sum()),), 0, 1), "MultiBinary"


def _is_continuous(spec: ArraySpec) -> bool:
    return np.dtype(spec.dtype).kind == "f"


def _repeated(spec: ArraySpec, count: int) -> ArraySpec:
    """Return the spec of `count` such arrays, one after the other."""
    low, high = (bound * count if isinstance(bound, tuple) else bound for bound in (spec.low, spec.high))
    return ArraySpec(spec.name, spec.dtype, (count, *spec.shape), low, high)


def _with_part(seen: list[tuple[ArraySpec, str]], spec: ArraySpec, kind: str) -> list[tuple[ArraySpec, str]]:
    """Insert a part in the order of names, as Gymnasium's Dict has its keys; the other parts keep their order."""
    place = next((place for place, (other, _) in enumerate(seen) if other.name > spec.name), len(seen))
    return [*seen[:place], (spec, kind), *seen[place:]]


def _history_name(name: str, parts: int) -> str:
    return HISTORY if parts == 1 else f"{HISTORY}_{name}"


def _check_names(parts: tuple[ArraySpec, ...], state: list[str]) -> None:
    twice = [name for name, count in Counter((*state, "action", "noise", "reset")).items() if count > 1]
    if twice:
        raise UserError(f"policy_state {twice[0]!r} needs another name: the policy has an array of that name already")
    taken = {"reset", *state, *(f"next_{name}" for name in state)}
    taken |= {LOG_STEPS_LEFT} if STEPS in state else set()
    for spec in parts:
        if spec.name in taken:
            raise UserError(
                f"the environment has an observation {spec.name!r}, which is the name of an array of the policy's "
                "memory; rename it in the environment or in policy_state, or train without memory, history, "
                "previous_action and time_feature"
            )
