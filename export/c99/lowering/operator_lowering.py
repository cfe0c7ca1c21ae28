"""Lower each ONNX operator to expressions; arguments that are left out are None."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from onnx import helper

from trpo_tf.export.c99 import c_operators as c
from trpo_tf.export.c99.expressions import Apply, Element, Fold, Memory, Step, c_type, take
from trpo_tf.export.c99.lowering.gather import gather_elements, gather_nd
from trpo_tf.export.c99.lowering.matrix_products import gemm, matmul
from trpo_tf.export.c99.lowering.tensors import Value, apply, folded, known, like, of_memory, stored
from trpo_tf.export.c99.static_graph import Node
from trpo_tf.export.errors import ExportError

Rule = Callable[[Node, list[Any], list[Step]], Value]
"""node, arguments, steps so far -> its output; more steps may be added."""

_BINDS_NOTHING = {c.MINIMUM: np.inf, c.MAXIMUM: -np.inf}
_LARGEST = 2**63 - 1
_NARROW = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
_STAY_UNSIGNED = ("uint16_t", "uint32_t")
"""Types that C does not promote to a signed one everywhere: beside them, -1 would become 2^16 - 1 or 2^32 - 1."""


def elementwise(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Apply an operator of single elements; more than two arguments are combined pair by pair."""
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
    """Apply minimum or maximum, or return the first argument if the second is a bound without effect."""
    if other.known is not None and (other.known == _BINDS_NOTHING.get(operator, np.nan)).all():
        return one
    return apply(steps, operator, one, other)


def clip(_: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Clip between bounds, each of which may be absent."""
    value, *bounds = arguments
    operators = (c.INTEGERS["Max"], c.INTEGERS["Min"]) if value.is_integer else (c.MAXIMUM, c.MINIMUM)
    for operator, bound in zip(operators, bounds, strict=False):
        value = value if bound is None else bounded(steps, operator, value, bound)
    return value  # type: ignore[no-any-return]


def cast(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Convert to another type. C has one float type; floats outside an integer type's range become its bounds."""
    (value,) = arguments
    to = np.dtype(helper.tensor_dtype_to_np_dtype(node.attributes["to"]))
    if to.kind == "f":
        return apply(steps, c.TO_FLOAT, value) if value.is_integer else value
    if to.kind == "b":
        return apply(steps, c.TRUTH, value)
    if value.is_integer:
        return narrowed(steps, value, to)
    limits = np.iinfo(to)
    bounds = (known(np.array(bound)) for bound in (max(limits.min, -_LARGEST), min(limits.max, _LARGEST)))
    return apply(steps, c.TO_INTEGER, value, *bounds)


def narrowed(steps: list[Step], value: Value, to: np.dtype[Any]) -> Value:
    """Wrap an integer of 64 bits around as an integer of the node's type does."""
    fits = isinstance(value.expression, Fold) and value.expression.length - 1 <= np.iinfo(to).max
    if fits or (to.name not in _NARROW and c_type(value.expression) not in _STAY_UNSIGNED):
        return value
    return apply(steps, c.conversion(f"{to.name}_t".replace("uint64", "int64")), value)


def selu(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Compute gamma elu(x)."""
    (value,) = arguments
    alpha = like(node.attributes.get("alpha", 1.67326319217681884765625), value)
    gamma = like(node.attributes.get("gamma", 1.05070102214813232421875), value)
    return apply(steps, c.MULTIPLY, gamma, apply(steps, c.ELU, value, alpha))


def where(_: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Choose one of two values by a condition."""
    return apply(steps, c.SELECT_INTEGER if arguments[1].is_integer else c.SELECT, *arguments)


def one_hot(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Return one number at the index along a new axis, and another elsewhere and for an index out of range."""
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


def place_of_extreme(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Return the index of the first largest or smallest element."""
    if node.attributes.get("select_last_index"):
        raise ExportError(
            f"the C target has no {node.operator} that selects the last of equals; let it select the first"
        )
    return folded(steps, node.operator.lower(), arguments[0], [node.attributes.get("axis", 0)])


def reduction(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Reduce along axes, which are an attribute or an input: sum, mean, product, norm or an extreme."""
    value, *axes = arguments
    if axes and axes[0] is not None:
        along = axes[0].known.tolist()
    else:
        along = node.attributes.get("axes", range(len(value.shape)))
    return _reduced(node.operator.removeprefix("Reduce"), value, along, steps)


def pooled(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Take the mean or maximum over all axes after the first two, which is how tf2onnx writes some reductions."""
    (value,) = arguments
    kind = "Mean" if node.operator == "GlobalAveragePool" else "Max"
    return _reduced(kind, value, range(2, len(value.shape)), steps)


def _reduced(kind: str, value: Value, axes: Sequence[int], steps: list[Step]) -> Value:
    if kind in ("L2", "SumSquare"):
        value = stored(steps, value)
        value = apply(steps, c.MULTIPLY, value, value)
    if kind == "L1":
        value = apply(steps, c.ABSOLUTE, value)
    function = {"Max": "largest", "Min": "smallest", "Prod": "product"}.get(kind, "total")
    result = folded(steps, function, value, axes)
    if kind == "L2":
        return apply(steps, c.SQUARE_ROOT, result)
    if kind == "Mean":
        return apply(steps, c.DIVIDE, result, like(value.size // max(1, result.size), result))
    return result


def softmax(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Compute exp(x - max x) / sum exp(x - max x), or the logarithm of it."""
    axes = [node.attributes.get("axis", -1)]
    value = stored(steps, arguments[0])
    largest = stored(steps, folded(steps, "largest", value, axes))
    below = apply(steps, c.SUBTRACT, value, largest)
    if node.operator == "LogSoftmax":
        below = stored(steps, below)
    powers = stored(steps, apply(steps, c.EXPONENTIAL, below))
    total = folded(steps, "total", powers, axes)
    if node.operator == "LogSoftmax":
        return apply(steps, c.SUBTRACT, below, stored(steps, apply(steps, c.LOGARITHM, total)))
    return apply(steps, c.DIVIDE, powers, stored(steps, total))


def cumulative_sum(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Sum each element with all elements before it along an axis."""
    value, axis = arguments
    assert axis.known is not None
    places = np.moveaxis(np.arange(value.size).reshape(value.shape), int(axis.known.item()), 0)
    if node.attributes.get("reverse"):
        places = places[::-1]
    first, before, behind = places[:1].ravel(), places[:-1].ravel(), places[1:].ravel()
    memory = Memory("int64_t" if value.is_integer else "float", value.size)
    add = c.INTEGERS["Add"] if value.is_integer else c.ADD
    if node.attributes.get("exclusive"):
        start, added = take(like(0, value).expression, np.zeros_like(first)), before
    else:
        start, added = take(value.expression, first), behind
    steps.append(Step(memory, first, start))
    steps.append(Step(memory, behind, Apply(add, (Element(memory, before), take(value.expression, added)))))
    return of_memory(memory, value.shape)


def remainder(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Compute the remainder of integers with the divisor's sign, or of floats with the dividend's."""
    if bool(node.attributes.get("fmod")) == arguments[0].is_integer:
        raise ExportError("the C target has no Mod of integers with the dividend's sign; cast them to float32")
    return apply(steps, c.INTEGERS["Mod"] if arguments[0].is_integer else c.FLOAT_MOD, *arguments)


def absolute(_: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Compute |x|."""
    (value,) = arguments
    if not value.is_integer:
        return apply(steps, c.ABSOLUTE, value)
    value = stored(steps, value)
    return apply(steps, c.INTEGERS["Max"], value, apply(steps, c.INTEGERS["Neg"], value))


def thresholded(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Return x where it is above the threshold, and 0 elsewhere."""
    value = stored(steps, arguments[0])
    above = apply(steps, c.FLOATS["Greater"], value, like(node.attributes.get("alpha", 1.0), value))
    return apply(steps, c.SELECT, above, value, like(0.0, value))


RULES: dict[str, Rule] = {
    **dict.fromkeys([*c.FLOATS, *c.INTEGERS], elementwise),
    **dict.fromkeys(
        [f"Reduce{kind}" for kind in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")], reduction
    ),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool"], pooled),
    **dict.fromkeys(["LogSoftmax", "Softmax"], softmax),
    "Abs": absolute,
    "ArgMax": place_of_extreme,
    "ArgMin": place_of_extreme,
    "Cast": cast,
    "Clip": clip,
    "CumSum": cumulative_sum,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Gemm": gemm,
    "MatMul": matmul,
    "Mod": remainder,
    "OneHot": one_hot,
    "Selu": selu,
    "ThresholdedRelu": thresholded,
    "Where": where,
}
"""Lowerings by the operator's name."""
