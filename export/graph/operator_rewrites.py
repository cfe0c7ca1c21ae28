"""Rewrite TensorFlow operations that tf2onnx lacks or converts wrongly by standard ONNX operators.

Every formula is accurate to float32. Textbook forms that lose digits near zero are replaced, so that the relative error
stays at a few units of the last place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

_SMALL = 0.2
"""Largest |s| at which the series of atanh s is taken; the first term left out is s^10 / 11 < 1e-8 of the sum."""

_CHOSEN = ("float32", "float64", "int32", "int64", "uint8")
"""Types among which ONNX Runtime's Where chooses; of others it has no kernel."""

_SIGN_BIT = np.int32(-(2**31))

Formula = Callable[..., str]
"""A `Builder` and names of tensors -> the name of the result."""


@dataclass(frozen=True)
class Builder:
    """Adds nodes to the graph under conversion; numbers become constants of the type `dtype`."""

    graph: Any
    dtype: np.dtype[Any]

    def __call__(self, operator: str, *arguments: Any, **attributes: Any) -> str:
        """Add a node of names, numbers or arrays, and return the name of its output."""
        names = [argument if isinstance(argument, str) else self._constant(argument) for argument in arguments]
        return str(self.graph.make_node(operator, names, attr=attributes).output[0])

    def _constant(self, value: Any) -> str:
        values = value if isinstance(value, np.ndarray) else np.array(value, self.dtype)
        (constant,) = self.graph.make_consts([values], values.dtype)
        return str(constant.output[0])

    @property
    def is_integer(self) -> bool:
        """Return whether the operation is one of integers."""
        return self.dtype.kind in "iu"


def erfc(make: Builder, x: str) -> str:
    """Compute 1 - erf x, exact to the last place of 1, which is what GELU's product with x needs."""
    return make("Sub", 1.0, make("Erf", x))


def expm1(make: Builder, x: str) -> str:
    """Compute e^x - 1 as (e^x + 1) tanh(x / 2), which does not subtract nearly equal numbers."""
    return make("Mul", make("Tanh", make("Mul", x, 0.5)), make("Add", make("Exp", x), 1.0))


def log1p(make: Builder, x: str) -> str:
    """Compute 2 atanh s with s = x / (2 + x), by its series where |s| < 0.2, and log(1 + x) elsewhere."""
    s = make("Div", x, make("Add", x, 2.0))
    square = make("Mul", s, s)
    series = make("Mul", square, 1 / 9)
    for denominator in (7, 5, 3):
        series = make("Mul", square, make("Add", series, 1 / denominator))
    doubled = make("Add", s, s)
    near = make("Add", doubled, make("Mul", doubled, series))
    return make("Where", make("Less", make("Abs", s), _SMALL), near, make("Log", make("Add", x, 1.0)))


def _zero_where_zero(make: Builder, factor: str, product: str) -> str:
    return make("Where", make("Equal", factor, 0.0), 0.0, product)


def xlogy(make: Builder, x: str, y: str) -> str:
    """Compute x log y, or 0 where x is 0."""
    return _zero_where_zero(make, x, make("Mul", x, make("Log", y)))


def xlog1py(make: Builder, x: str, y: str) -> str:
    """Compute x log(1 + y), or 0 where x is 0."""
    return _zero_where_zero(make, x, make("Mul", x, log1p(make, y)))


def xdivy(make: Builder, x: str, y: str) -> str:
    """Compute x / y, or 0 where x is 0."""
    return _zero_where_zero(make, x, make("Div", x, y))


def mul_no_nan(make: Builder, x: str, y: str) -> str:
    """Compute x y, or 0 where y is 0."""
    return _zero_where_zero(make, y, make("Mul", x, y))


def cross(make: Builder, a: str, b: str) -> str:
    """Compute the vector product along the last axis, whose length is 3."""

    def turned(vector: str, by: int) -> str:
        return make("Gather", vector, (np.arange(3) + by) % 3, axis=-1)

    return make("Sub", make("Mul", turned(a, 1), turned(b, 2)), make("Mul", turned(a, 2), turned(b, 1)))


def broadcast_args(make: Builder, one: str, other: str) -> str:
    """Compute the shape that two shapes broadcast to, as the shape of a sum of arrays."""
    wide = [make("Cast", shape, to=TensorProto.INT64) for shape in (one, other)]
    total = make("Add", *(make("ConstantOfShape", shape) for shape in wide))
    return make("Cast", make("Shape", total), to=helper.np_dtype_to_tensor_dtype(make.dtype))


def floor_mod(make: Builder, x: str, y: str) -> str:
    """Compute the remainder that has the divisor's sign.

    That of floats is exact, as of a large angle modulo 2 pi; x - floor(x / y) y loses the digits that x has before it.
    """
    if make.is_integer:
        return make("Mod", x, y)
    rest = make("Mod", x, y, fmod=1)
    other_sign = make("Less", make("Mul", make("Sign", rest), make("Sign", y)), 0.0)
    return make("Where", other_sign, make("Add", rest, y), rest)


def floor_div(make: Builder, x: str, y: str) -> str:
    """Round the quotient down, where ONNX rounds that of integers towards zero."""
    if make.is_integer:
        return make("Div", make("Sub", x, make("Mod", x, y)), y)
    return make("Floor", make("Div", x, y))


def truncate_mod(make: Builder, x: str, y: str) -> str:
    """Compute the remainder that has the dividend's sign."""
    return make("Mod", x, y, fmod=1)


def select(make: Builder, condition: str, x: str, y: str) -> str:
    """Choose x or y. tf2onnx adds their products with 1 and 0, and 0 times infinity or NaN is NaN."""
    if make.dtype.name in _CHOSEN:
        return make("Where", condition, x, y)
    wide = TensorProto.FLOAT if make.dtype.kind == "f" else TensorProto.INT64
    chosen = make("Where", condition, make("Cast", x, to=wide), make("Cast", y, to=wide))
    return make("Cast", chosen, to=helper.np_dtype_to_tensor_dtype(make.dtype))


def _handler(formula: Formula) -> Callable[..., None]:
    def convert(graph: Any, node: Any, name: str, _arguments: Any) -> None:
        inputs, outputs = list(node.input), list(node.output)
        shapes, dtypes = node.output_shapes, node.output_dtypes
        make = Builder(graph, np.dtype(helper.tensor_dtype_to_np_dtype(graph.get_dtype(inputs[-1]))))
        graph.remove_node(name)
        result = formula(make, *inputs)
        graph.make_node("Identity", [result], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)

    return convert


FORMULAS: dict[str, Formula] = {
    "BroadcastArgs": broadcast_args,
    "Cross": cross,
    "Erfc": erfc,
    "Expm1": expm1,
    "FloorDiv": floor_div,
    "FloorMod": floor_mod,
    "Log1p": log1p,
    "MulNoNan": mul_no_nan,
    "SelectV2": select,
    "TruncateMod": truncate_mod,
    "Xdivy": xdivy,
    "Xlog1py": xlog1py,
    "Xlogy": xlogy,
}
"""Formulas by TensorFlow's name of the operation."""


def _sign_bit(graph: Any, node: Any, name: str, _arguments: Any) -> None:
    """Take the sign bit of a float32 without its bits, as keras.ops.argmax and signbit do with Bitcast and BitwiseAnd.

    Negative zero has one, whose reciprocal is below 0. Other operations on bits stay as they are.
    """
    bits, mask = node.inputs
    masks_sign = mask.is_const() and mask.get_tensor_value(as_list=False) == _SIGN_BIT
    if not (masks_sign and bits.type == "Bitcast" and graph.get_dtype(bits.input[0]) == TensorProto.FLOAT):
        return
    x, outputs, shapes, dtypes = bits.input[0], list(node.output), node.output_shapes, node.output_dtypes
    graph.remove_node(name)
    make = Builder(graph, np.dtype("float32"))
    negative = make("Or", make("Less", x, 0.0), make("Less", make("Reciprocal", x), 0.0))
    chosen = make("Where", negative, np.array(_SIGN_BIT), np.array(0, np.int32))
    graph.make_node("Identity", [chosen], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _bucketize(graph: Any, node: Any, name: str, _arguments: Any) -> None:
    """Count the boundaries that are not above each number: all of them for NaN, as TensorFlow does."""
    x, outputs, shapes, dtypes = node.input[0], list(node.output), node.output_shapes, node.output_dtypes
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(graph.get_dtype(x)))
    make = Builder(graph, dtype if dtype.kind == "f" else np.dtype("float32"))
    boundaries = np.array(node.get_attr_value("boundaries"), make.dtype)
    graph.remove_node(name)
    column = make("Cast", make("Unsqueeze", x, np.array([-1])), to=helper.np_dtype_to_tensor_dtype(make.dtype))
    reached = make("Cast", make("Not", make("Less", column, boundaries)), to=TensorProto.FLOAT)
    # Rounded, so that the count stays when the proof tries by how much rounding may change sums.
    count = make("Cast", make("Round", make("ReduceSum", reached, np.array([-1]), keepdims=0)), to=dtypes[0])
    graph.make_node("Identity", [count], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _resize(mode: str) -> Callable[..., None]:
    """Resize images to the size given; by tf2onnx's factors, 160 x 0.525 pixels are 83 or 84."""

    def convert(graph: Any, node: Any, name: str, _arguments: Any) -> None:
        (x, size), outputs, shapes, dtypes = node.input, list(node.output), node.output_shapes, node.output_dtypes
        aligned, half = (bool(node.get_attr_value(each)) for each in ("align_corners", "half_pixel_centers"))
        place = "align_corners" if aligned else "half_pixel" if half else "asymmetric"
        nearest = "round_prefer_ceil" if aligned or half else "floor"
        make = Builder(graph, np.dtype("float32"))
        graph.remove_node(name)
        images = make("Transpose", make("Cast", x, to=dtypes[0]), perm=[0, 3, 1, 2])
        kept = make("Slice", make("Shape", images), np.array([0]), np.array([2]))
        sizes = make("Concat", kept, make("Cast", size, to=TensorProto.INT64), axis=0)
        places = {"coordinate_transformation_mode": place, "nearest_mode": nearest}
        resized = make("Resize", images, "", "", sizes, mode=mode, **places)
        result = make("Transpose", resized, perm=[0, 2, 3, 1])
        graph.make_node("Identity", [result], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)

    return convert


HANDLERS: dict[str, tuple[Callable[..., None], list[Any]]] = {
    **{name: (_handler(formula), []) for name, formula in FORMULAS.items()},
    "BitwiseAnd": (_sign_bit, []),
    "Bucketize": (_bucketize, []),
    "ResizeBilinear": (_resize("linear"), []),
    "ResizeNearestNeighbor": (_resize("nearest"), []),
}
"""The argument `custom_op_handlers` of `tf2onnx.convert`."""
