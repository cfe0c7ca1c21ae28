"""Check that a function answers what its spec says, and that every target could carry it."""

import re
from typing import Any

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import PolicyFunction
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.policy.spec import PolicySpec, tensor_spec
from trpo_tf.export.policy.traced_graph import check_traced
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.argument_checks import expect

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Escape sequences that Keras prints its errors with."""


def check_answer(function: PolicyFunction, spec: PolicySpec) -> None:
    """Raise `ExportError` unless the function's action and next state have the types and shapes that the spec says.

    Also raises it for graphs that no target can carry, as `check_traced` does.
    """
    traced = tf.function(all_outputs(function, spec), spec.signature(), autograph=False)
    try:
        concrete = traced.get_concrete_function()
    except ExportError:
        raise
    except Exception as error:
        reason = " ".join(_COLOUR.sub("", str(error)).split())
        raise ExportError(f"function can't be made a TensorFlow graph of the spec's arrays: {reason}") from error
    answers = concrete.structured_outputs
    expect(
        answers[spec.action.name], (tf.Tensor, tf.TensorSpec), "function must give one tensor, the action", ExportError
    )
    _check_tensor(answers[spec.action.name], spec.action, "a tensor", "action")
    for each in spec.next_state:
        _check_tensor(answers[each.name], each, f"{each.name} as a tensor", f"{each.name}")
    check_traced(concrete.graph)


def _check_tensor(answer: Any, array: ArraySpec, what: str, name: str) -> None:
    wanted = tensor_spec(array)
    if answer.shape.rank is None:
        raise ExportError(
            f"function gives {what} of as many axes as the batch decides, and the spec's {name} is "
            f"{wanted.dtype.name}{wanted.shape.as_list()}; name the axis of tf.squeeze, or give the rows a fixed shape"
        )
    fixed = answer.shape.rank > 0 and answer.shape[0] is not None
    if fixed or answer.dtype != wanted.dtype or not answer.shape.is_compatible_with(wanted.shape):
        given = f"{answer.dtype.name}{answer.shape.as_list()}"
        raise ExportError(
            f"function gives {given if name == 'action' else f'{name} as {given}'}, and the spec's {name} is "
            f"{wanted.dtype.name}{wanted.shape.as_list()}; change one of them"
        )
