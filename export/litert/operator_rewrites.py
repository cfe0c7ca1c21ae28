"""Rewrite TensorFlow operations that LiteRT lacks or computes worse by operations that it has.

They are for float32. The error is a few units of the last place of the result, or of 1 if that is larger.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

_FLOAT = np.finfo(np.float32)
_SIGN_BIT = tf.int32.min
_ERF_IS_ONE = 4.0
"""From here on erf x is 1 to float32."""
_ERF = (1.12837927, 0.102769056, -1.91830756e-4, -6.19784691e-4, 8.7637337e-5, -5.66847681e-6, 1.41852274e-7)
"""Coefficients c of erf x = tanh(x sum_k c[k] x^2k), the minimax fit of the relative error on [0, 4]."""


def erf(x: Any) -> Any:
    """Approximate the error function by the tanh of a polynomial.

    The absolute error is at most 1.7e-7, the relative error at most 2.7e-7.
    """
    near = tf.clip_by_value(x, -_ERF_IS_ONE, _ERF_IS_ONE)
    return tf.tanh(near * tf.math.polyval([tf.constant(c) for c in reversed(_ERF)], near * near))


def softplus(x: Any) -> Any:
    """Compute max(x, 0) + log(1 + e^-|x|); LiteRT's own log(1 + e^x) overflows from 89 on."""
    return tf.maximum(x, 0.0) + tf.math.log1p(tf.exp(-tf.abs(x)))


def rsqrt(x: Any) -> Any:
    """Compute 1 / sqrt(x), and the largest float at 0, where LiteRT's own operation is NaN.

    There is no infinity on the way: on some processors LiteRT's square root of it is NaN.
    """
    return tf.where(tf.abs(x) < _FLOAT.tiny, _FLOAT.max, tf.math.rsqrt(x))


def sign_bit(x: Any) -> Any:
    """Return the sign bit, by itself, as keras.ops.argmax and signbit take it; the reciprocal of -0 is below 0."""
    return tf.where((x < 0.0) | (1.0 / x < 0.0), _SIGN_BIT, 0)


def _sinh(x: Any) -> Any:
    return 0.5 * (tf.math.expm1(x) - tf.math.expm1(-x))


def _asin(x: Any) -> Any:
    return tf.atan2(x, tf.sqrt((1.0 - x) * (1.0 + x)))


def _cross(a: Any, b: Any) -> Any:
    def turned(vector: Any, by: int) -> Any:
        return tf.gather(vector, [by % 3, (1 + by) % 3, (2 + by) % 3], axis=-1)

    return turned(a, 1) * turned(b, 2) - turned(a, 2) * turned(b, 1)


REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "Acos": lambda x: tf.atan2(tf.sqrt((1.0 - x) * (1.0 + x)), x),
    "Acosh": lambda x: tf.math.log(x + tf.sqrt((x - 1.0) * (x + 1.0))),
    "Asin": _asin,
    "Asinh": lambda x: tf.sign(x) * tf.math.log(tf.abs(x) + tf.sqrt(x * x + 1.0)),
    "Atan": lambda x: tf.atan2(x, tf.ones_like(x)),
    "Atanh": lambda x: 0.5 * (tf.math.log1p(x) - tf.math.log1p(-x)),
    "BitwiseAnd": sign_bit,
    "Cosh": lambda x: 0.5 * (tf.exp(x) + tf.exp(-x)),
    "Cross": _cross,
    "Erf": erf,
    "Erfc": lambda x: 1.0 - erf(x),
    "Rsqrt": rsqrt,
    "Sinh": _sinh,
    "Softplus": softplus,
    "Tan": lambda x: tf.sin(x) / tf.cos(x),
    "TruncateMod": lambda x, y: tf.sign(x) * tf.math.floormod(tf.abs(x), tf.abs(y)),
}
"""Replacements by TensorFlow's name of the operation."""

COMPUTED_WORSE = frozenset({"Rsqrt", "Softplus"})
"""Operations that LiteRT has, and computes worse: its softplus overflows, and its 1 / sqrt(0) is NaN."""


def replace_operations(saved_model: Path, names: Collection[str]) -> None:
    """Replace the float32 operations `names` of a SavedModel's folder by calls of functions, at any depth."""
    file = saved_model / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = model.meta_graphs[0].graph_def
    replaced = [
        name
        for nodes in [graph.node, *(function.node_def for function in graph.library.function)]
        for name in _call_functions(nodes, names)
    ]
    for function in graph.library.function:
        for key, name in function.ret.items():
            function.ret[key] = _output(name, {node.name for node in function.node_def if _is_call(node)})
    graph.library.function.extend(_definition(name) for name in sorted(set(replaced)))
    file.write_bytes(model.SerializeToString(deterministic=True))


def _call_functions(nodes: Iterable[Any], names: Collection[str]) -> Iterator[str]:
    """Replace operations among the nodes of one function, and return which ones."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        if node.op in names and (arguments := _arguments(node, by_name)):
            operation, dtype, shapes = node.op, node.attr["T"].type, node.attr["_output_shapes"]
            node.op = "PartitionedCall"
            node.input[:] = [*arguments, *(name for name in node.input if name.startswith("^"))]
            node.ClearField("attr")
            node.attr["_output_shapes"].CopyFrom(shapes)
            node.attr["f"].func.name = _function_name(operation)
            node.attr["Tin"].list.type.extend([types_pb2.DT_FLOAT] * len(arguments))
            node.attr["Tout"].list.type.append(dtype)
            yield operation
    calls = {node.name for node in nodes if _is_call(node)}
    for node in nodes:
        node.input[:] = [_output(name, calls) for name in node.input]


def _arguments(node: Any, by_name: Mapping[str, Any]) -> list[str]:
    """Return the names of the float32 numbers that the replacement takes; none if the node is to stay."""
    inputs = [name for name in node.input if not name.startswith("^")]
    if node.op == "BitwiseAnd":
        bits, mask = (by_name.get(name.partition(":")[0]) for name in inputs)
        if bits is None or bits.op != "Bitcast" or mask is None or mask.op != "Const":
            return []
        masks_sign = (tf.make_ndarray(mask.attr["value"].tensor) == _SIGN_BIT).all()
        return [bits.input[0]] if masks_sign and bits.attr["T"].type == types_pb2.DT_FLOAT else []
    is_float = node.attr["T"].type == types_pb2.DT_FLOAT
    return inputs if is_float and not _is_above_zero(node, by_name) else []


def _is_above_zero(node: Any, by_name: Mapping[str, Any]) -> bool:
    """Return whether it is 1 / sqrt(x + a) of a constant a, as of a variance, which is right as it is and faster."""
    if node.op != "Rsqrt":
        return False
    producers = [by_name.get(name.partition(":")[0]) for name in node.input]
    terms = [
        by_name.get(name.partition(":")[0])
        for each in producers
        if each is not None and each.op == "AddV2"
        for name in each.input
    ]
    return any(
        each is not None and each.op == "Const" and (tf.make_ndarray(each.attr["value"].tensor) > 0).all()
        for each in terms
    )


def _is_call(node: Any) -> bool:
    return node.op == "PartitionedCall" and node.attr["f"].func.name in map(_function_name, REPLACEMENTS)


def _output(name: str, calls: Collection[str]) -> str:
    """Return the name of a node's output within a function: `node:argument:index`; the argument of a call is
    `output`.
    """
    node, *place = name.split(":")
    return f"{node}:output:{place[-1]}" if node in calls and len(place) > 1 else name


def _function_name(operation: str) -> str:
    return f"{operation}_of_others"


def _definition(operation: str) -> Any:
    function = REPLACEMENTS[operation]
    arguments = function.__code__.co_argcount
    traced = tf.function(function, [tf.TensorSpec(None, tf.float32)] * arguments, autograph=False)
    definition = traced.get_concrete_function().function_def
    definition.signature.name = _function_name(operation)
    return definition
