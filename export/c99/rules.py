"""What each ONNX operator computes, as values; arguments that are left out are None."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from onnx import helper

from export.c99 import operators as c
from export.c99.expressions import Dot, Fold, Memory, Step
from export.c99.static_graph import Node
from export.c99.values import Value, apply, folded, in_rows, known, like, stored
from export.onnx_graph import ExportError

Rule = Callable[[Node, list[Any], list[Step]], Value]
"""node, arguments, steps so far -> its output; more steps may be added."""

_BINDS_NOTHING = {c.MINIMUM: np.inf, c.MAXIMUM: -np.inf}
_NARROW = ("int8", "uint8", "int16", "uint16", "int32", "uint32")


def elementwise(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """An operator of the tables; of more than two arguments, pair by pair."""
    integers = all(argument.is_integer for argument in arguments)
    table = c.INTEGERS if integers else c.FLOATS
    if node.operator not in table:
        kind = "integers" if integers else "floats"
        raise ExportError(f"the C target has no {node.operator} of {kind}; cast the arguments first")
    operator = table[node.operator]
    if node.operator in ("Min", "Max", "Sum"):
        return reduce(lambda one, other: bounded(steps, operator, one, other), arguments)
    extra = [like(number, arguments[0]) for number in c.attribute_values(node.operator, node.attributes)]
    return apply(steps, operator, *arguments, *extra)


def bounded(steps: list[Step], operator: c.Operator, one: Value, other: Value) -> Value:
    """The operator of two; the first alone where the second is a bound that binds nothing."""
    if other.known is not None and (other.known == _BINDS_NOTHING.get(operator, np.nan)).all():
        return one
    return apply(steps, operator, one, other)


def clip(_: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Clip between bounds, each of which may be absent."""
    value, *bounds = arguments
    if value.is_integer:
        raise ExportError("the C target has no Clip of integers; cast the arguments first")
    for operator, bound in zip((c.MAXIMUM, c.MINIMUM), bounds, strict=False):
        value = value if bound is None else bounded(steps, operator, value, bound)
    return value  # type: ignore[no-any-return]


def cast(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """A conversion; all floats are float."""
    (value,) = arguments
    to = np.dtype(helper.tensor_dtype_to_np_dtype(node.attributes["to"]))
    if to.kind == "f":
        return apply(steps, c.TO_FLOAT, value) if value.is_integer else value
    if to.kind == "b":
        return apply(steps, c.TRUTH, value)
    if not value.is_integer:
        raise ExportError("the C target has no Cast of floats to integers: out of range C leaves it undefined")
    return narrowed(steps, value, to)


def narrowed(steps: list[Step], value: Value, to: np.dtype[Any]) -> Value:
    """An integer, which has 64 bits in C, wrapped around as one of another type is."""
    fits = isinstance(value.expression, Fold) and value.expression.length - 1 <= np.iinfo(to).max
    return value if fits or to.name not in _NARROW else apply(steps, c.narrowing(f"{to.name}_t"), value)


def selu(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """gamma elu(x)."""
    (value,) = arguments
    alpha = like(node.attributes.get("alpha", 1.67326319217681884765625), value)
    gamma = like(node.attributes.get("gamma", 1.05070102214813232421875), value)
    return apply(steps, c.MULTIPLY, gamma, apply(steps, c.ELU, value, alpha))


def where(_: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """One of two."""
    return apply(steps, c.SELECT_INTEGER if arguments[1].is_integer else c.SELECT, *arguments)


def one_hot(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Along a new axis, one number where the index is and another elsewhere: everywhere for an index out of range."""
    index, depth, values = arguments
    axis = node.attributes.get("axis", -1) % (len(index.shape) + 1)
    index = replace(index, shape=(*index.shape[:axis], 1, *index.shape[axis:]))
    places = np.arange(int(depth.known.item())).reshape([-1 if d == axis else 1 for d in range(len(index.shape))])
    off, on = (known(number) for number in values.known)
    return apply(
        steps,
        c.SELECT if values.known.dtype.kind == "f" else c.SELECT_INTEGER,
        apply(steps, c.EQUAL, index, known(places)),
        on,
        off,
    )


def matmul(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Rows of numbers [..., in] times constant weights [in, out]."""
    data, weights = arguments
    return _product(node, data, weights.known, steps)


def gemm(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Rows of numbers [rows, in] times constant weights, and a bias."""
    data, weights, *bias = arguments
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **node.attributes}
    if attributes["transA"] or attributes["alpha"] != 1.0 or attributes["beta"] != 1.0:
        raise ExportError("the C target has no Gemm of scaled or transposed data; use a Dense layer")
    matrix = weights.known.T if attributes["transB"] and weights.known is not None else weights.known
    product = _product(node, data, matrix, steps)
    return apply(steps, c.ADD, product, bias[0]) if bias and bias[0] is not None else product


def _product(node: Node, data: Value, matrix: Any, steps: list[Step]) -> Value:
    if matrix is None or matrix.ndim != 2 or len(data.shape) < 2:
        raise ExportError(
            f"the C target has {node.operator} of rows by constant weights [in, out] only; use Dense layers"
        )
    width, columns = matrix.shape
    rows = data.size // width
    memory, first = in_rows(steps, data)
    weights = Memory("float", matrix.size, values=np.ascontiguousarray(matrix.T.astype(np.float32)))
    starts = first + width * np.repeat(np.arange(rows), columns)
    return Value(Dot(weights, np.tile(np.arange(columns), rows), memory, starts), (*data.shape[:-1], columns))


def argmax(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Place of the first of the largest."""
    if node.attributes.get("select_last_index"):
        raise ExportError("the C target has no ArgMax that selects the last of equals; let it select the first")
    return folded(steps, "argmax", arguments[0], [node.attributes.get("axis", 0)])


def reduction(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Sum, mean or an extreme along axes, which are an attribute or an input."""
    value, *axes = arguments
    if axes and axes[0] is not None:
        along = axes[0].known.tolist()
    else:
        along = node.attributes.get("axes", range(len(value.shape)))
    function = {"ReduceMax": "largest", "ReduceMin": "smallest"}.get(node.operator, "total")
    result = folded(steps, function, value, along)
    if node.operator != "ReduceMean":
        return result
    return apply(steps, c.DIVIDE, result, like(value.size // result.size, result))


def softmax(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """exp(x - max x) / sum exp(x - max x)."""
    axes = [node.attributes.get("axis", -1)]
    value = stored(steps, arguments[0])
    largest = stored(steps, folded(steps, "largest", value, axes))
    powers = stored(steps, apply(steps, c.EXPONENTIAL, apply(steps, c.SUBTRACT, value, largest)))
    return apply(steps, c.DIVIDE, powers, stored(steps, folded(steps, "total", powers, axes)))


RULES: dict[str, Rule] = {
    **dict.fromkeys([*c.FLOATS, *c.INTEGERS], elementwise),
    **dict.fromkeys(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"], reduction),
    "ArgMax": argmax,
    "Cast": cast,
    "Clip": clip,
    "Gemm": gemm,
    "MatMul": matmul,
    "OneHot": one_hot,
    "Selu": selu,
    "Softmax": softmax,
    "Where": where,
}
"""By the operator's name."""
