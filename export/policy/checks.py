"""Check that a function answers what its spec says, and that every target could carry it."""

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import InferenceFunction
from trpo_tf.export.policy.spec import PolicySpec, tensor_spec
from trpo_tf.export.policy.traced_graph import check_traced
from trpo_tf.serving.arguments import expect


def check_answer(function: InferenceFunction, spec: PolicySpec) -> None:
    """Raise `ExportError` unless the function's actions have the type and shape that the spec says.

    So it does for what no target can carry: see `check_traced`.
    """
    traced = tf.function(function, spec.signature(), autograph=False)
    try:
        concrete = traced.get_concrete_function()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"function can't be made a TensorFlow graph of the spec's arrays: {reason}") from error
    answer = concrete.structured_outputs
    expect(answer, (tf.Tensor, tf.TensorSpec), "function must give one tensor, the action", ExportError)
    wanted = tensor_spec(spec.action)
    if answer.shape.rank is None:
        raise ExportError(
            f"function gives a tensor of as many axes as the batch decides, and the spec's action is "
            f"{wanted.dtype.name}{wanted.shape.as_list()}; name the axis of tf.squeeze, or give the rows a fixed shape"
        )
    fixed = answer.shape.rank > 0 and answer.shape[0] is not None
    if fixed or answer.dtype != wanted.dtype or not answer.shape.is_compatible_with(wanted.shape):
        raise ExportError(
            f"function gives {answer.dtype.name}{answer.shape.as_list()}, and the spec's action is "
            f"{wanted.dtype.name}{wanted.shape.as_list()}; change one of them"
        )
    check_traced(concrete.graph)
