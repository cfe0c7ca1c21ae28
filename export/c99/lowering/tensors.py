"""Tensors as expressions with a shape, and operations on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.c99 import c_operators as c
from trpo_tf.export.c99.expressions import (
    Apply,
    Element,
    Expression,
    Fold,
    Index,
    Memory,
    Step,
    constant,
    is_integer,
    take,
)
from trpo_tf.export.errors import ExportError

_OF_NOTHING = {"total": 0.0, "product": 1.0}
"""Results of C functions over no elements."""


@dataclass(frozen=True)
class Value:
    """A tensor as the expression of its elements, in row-major order; `known` has the values of a constant."""

    expression: Expression
    shape: tuple[int, ...]
    known: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_integer(self) -> bool:
        """Whether the elements are integers in C."""
        return is_integer(self.expression)


def known(array: NDArray[Any]) -> Value:
    """Make a constant tensor."""
    return Value(constant(array), array.shape, array)


def of_memory(memory: Memory, shape: tuple[int, ...]) -> Value:
    """Read all of a memory as a tensor."""
    return Value(Element(memory, np.arange(memory.size)), shape)


def like(number: float, value: Value) -> Value:
    """Return a constant number of the same type as `value`."""
    return known(np.array(number, np.int64 if value.is_integer else np.float32))


def apply(steps: list[Step], operator: c.Operator, *values: Value) -> Value:
    """Apply an operator of single elements to broadcast tensors."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    return Value(Apply(operator, tuple(spread(steps, value, shape).expression for value in values)), shape)


def spread(steps: list[Step], value: Value, shape: tuple[int, ...]) -> Value:
    """Broadcast the value to a shape."""
    if value.shape == shape:
        return value
    which = np.broadcast_to(np.arange(value.size).reshape(value.shape), shape).ravel()
    return rearranged(steps, value, which, shape)


def rearranged(steps: list[Step], value: Value, which: Index, shape: tuple[int, ...]) -> Value:
    """Return elements `which` of the value in another shape. An element that is used twice is computed once."""
    if len(np.unique(which)) < len(which):
        value = stored(steps, value)
    return Value(take(value.expression, which), shape)


def joined(steps: list[Step], values: Sequence[Value], which: Index, shape: tuple[int, ...]) -> Value:
    """Return elements `which` of the concatenated values, in another shape."""
    bounds = np.cumsum([0, *(value.size for value in values)])
    source = np.searchsorted(bounds, which, side="right") - 1
    used = np.unique(source)
    if not len(used):
        return Value(take(values[0].expression, which), shape)
    if len(used) == 1:
        return rearranged(steps, values[used[0]], which - bounds[used[0]], shape)
    pieces = []
    for place in used:
        (positions,) = np.nonzero(source == place)
        piece = rearranged(steps, values[place], which[positions] - bounds[place], positions.shape)
        pieces.append((positions, piece.expression))
    memory = Memory("int64_t" if values[used[-1]].is_integer else "float", len(which))
    steps.extend(Step(memory, positions, piece) for positions, piece in pieces)
    return of_memory(memory, shape)


def stored(steps: list[Step], value: Value) -> Value:
    """Store the value in memory, so that it is computed once."""
    if isinstance(value.expression, Element):
        return value
    memory = Memory("int64_t" if value.is_integer else "float", value.size)
    steps.append(Step(memory, np.arange(value.size), value.expression))
    return of_memory(memory, value.shape)


def in_rows(steps: list[Step], value: Value) -> tuple[Memory, int]:
    """Store floats as `in_place` does. Raises `ExportError` for integers."""
    if value.is_integer:
        raise ExportError("the C target multiplies, sums and compares rows of floats only; cast integers to float32")
    return in_place(steps, value)


def in_place(steps: list[Step], value: Value) -> tuple[Memory, int]:
    """Store the value's elements contiguously, and return the memory and the index of the first."""
    expression = value.expression
    if isinstance(expression, Element) and value.size:
        first = int(expression.at[0])
        if np.array_equal(expression.at, first + np.arange(value.size)):
            return expression.memory, first
    memory = Memory("int64_t" if value.is_integer else "float", value.size)
    steps.append(Step(memory, np.arange(value.size), value.expression))
    return memory, 0


def folded(steps: list[Step], function: str, value: Value, axes: Sequence[int]) -> Value:
    """Apply a C function to the elements along `axes`, which keep a length of 1.

    Raises `ExportError` for integers, and for an extreme of no elements.
    """
    last = sorted(axis % len(value.shape) for axis in axes)
    order = [axis for axis in range(len(value.shape)) if axis not in last] + last
    which = np.arange(value.size).reshape(value.shape).transpose(order).ravel()
    length = math.prod(value.shape[axis] for axis in last)
    shape = tuple(1 if axis in last else size for axis, size in enumerate(value.shape))
    if length == 0:
        if function not in _OF_NOTHING:
            raise ExportError(f"the C target has no {function} of no elements; leave out the part of width 0")
        return known(np.full(shape, _OF_NOTHING[function], np.float32))
    memory, first = in_rows(steps, rearranged(steps, value, which, which.shape))
    starts = first + np.arange(0, value.size, length)
    return Value(Fold(function, memory, starts, length), shape)
