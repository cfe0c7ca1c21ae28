"""Checks of a policy's inputs that run with it, for runtimes that have no checks of their own."""

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from trpo_tf.export.policy.functions import Outputs
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.bundle.specs import RESET, option_counts
from trpo_tf.serving.runtime.observations import by_name, structured


def with_input_checks(outputs: Outputs, spec: PolicySpec) -> Outputs:
    """Check the inputs of a policy with state or a mask at each call; other policies stay as they are.

    The function raises `tf.errors.InvalidArgumentError`, which names the input. Faults are a wrong shape or number of
    rows, a state that is not finite in a row that goes on, and a mask that allows no action.
    """
    if not spec.state and spec.mask is None:
        return outputs

    def checked(inputs: Any, noise: Any) -> dict[str, Any]:
        named = by_name(inputs, spec.observation[0].name)
        with tf.control_dependencies([*_shapes(named, spec)]):
            named = {name: tf.identity(tensor) for name, tensor in named.items()}
        with tf.control_dependencies([*_states(named, spec), *_mask(named, spec)]):
            named = {name: tf.identity(tensor) for name, tensor in named.items()}
        return outputs(structured(named), noise)

    return checked


def _shapes(inputs: dict[str, Any], spec: PolicySpec) -> Iterator[Any]:
    rows = tf.shape(inputs[spec.observation[0].name])[0]
    for array in spec.step_inputs:
        words = f"input {array.name!r} must have as many rows as the observation"
        # The rank that it was traced with is a constant, so another one shows only here, in TensorFlow's words.
        tensor = tf.ensure_shape(inputs[array.name], (None, *array.shape), name=f"shape_of_{_plain(array.name)}")
        yield tf.debugging.assert_equal(tf.shape(tensor)[0], rows, words)


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _states(inputs: dict[str, Any], spec: PolicySpec) -> Iterator[Any]:
    for state in spec.state:
        tensor = inputs[state.name]
        if tensor.dtype.is_floating:
            finite = tf.reduce_all(tf.math.is_finite(tf.reshape(tensor, (tf.shape(tensor)[0], -1))), axis=1)
            words = f"input {state.name!r} holds a value that is not finite, in a row that does not start an episode"
            yield tf.debugging.assert_equal(finite | inputs[RESET], True, words)


def _mask(inputs: dict[str, Any], spec: PolicySpec) -> Iterator[Any]:
    if spec.mask is not None:
        options = tf.split(inputs[spec.mask], option_counts(spec.action).tolist(), axis=1)
        legal = [tf.reduce_any(tf.cast(each, tf.bool), axis=1) for each in options]
        yield tf.debugging.assert_equal(tf.stack(legal), True, f"input {spec.mask!r} allows no action in a row")
