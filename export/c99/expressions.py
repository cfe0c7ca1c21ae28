"""Expressions of the intermediate code: element i of a result as a formula of elements of arrays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.c99.c_operators import Operator

Index = NDArray[np.int64]

BYTES = {"float": 4, "int8_t": 1, "int32_t": 4, "int64_t": 8, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4}
"""Bytes of a number of each C type that arrays have here."""


@dataclass(frozen=True, eq=False)
class Memory:
    """An array in C: an argument of the function (named), a constant (with values), or scratch."""

    c_type: str
    size: int
    name: str = ""
    values: NDArray[Any] | None = None  # [size], or weights [rows, columns]


@dataclass(frozen=True)
class Element:
    """memory[at[i]]."""

    memory: Memory
    at: Index


@dataclass(frozen=True)
class Apply:
    """An operator applied to the elements i of its arguments."""

    operator: Operator
    arguments: tuple["Expression", ...]


@dataclass(frozen=True)
class Dot:
    """Inner product of row rows[i] of the weights with the numbers of memory that begin at starts[i]."""

    weights: Memory
    rows: Index
    memory: Memory
    starts: Index


@dataclass(frozen=True)
class Inner:
    """Inner product of two runs of `length` computed numbers, which begin at starts[i] and at other_starts[i]."""

    memory: Memory
    starts: Index
    other: Memory
    other_starts: Index
    length: int


@dataclass(frozen=True)
class Lookup:
    """memory[starts[i] + sum of stride x index[i] over computed indices]; an index is clamped to its axis."""

    memory: Memory
    starts: Index
    places: tuple["Place", ...]


@dataclass(frozen=True)
class Place:
    """A computed index along an axis of `count` elements, `stride` apart; a negative one counts from the end."""

    index: "Expression"
    stride: int
    count: int


@dataclass(frozen=True)
class Fold:
    """A C function (`argmax`, `total` ...) of the `length` numbers of memory that begin at starts[i]."""

    function: str
    memory: Memory
    starts: Index
    length: int


Expression = Element | Apply | Dot | Inner | Lookup | Fold


@dataclass(frozen=True)
class Step:
    """Assignments target[positions[i]] = element i of the value, for each i."""

    target: Memory
    positions: Index
    value: Expression


def take(expression: Expression, which: Index) -> Expression:
    """Return the expression whose element i is element which[i] of this one."""
    match expression:
        case Element(memory, at):
            return Element(memory, at[which])
        case Apply(operator, arguments):
            return Apply(operator, tuple(take(argument, which) for argument in arguments))
        case Dot(weights, rows, memory, starts):
            return Dot(weights, rows[which], memory, starts[which])
        case Inner(memory, starts, other, other_starts, length):
            return Inner(memory, starts[which], other, other_starts[which], length)
        case Lookup(memory, starts, places):
            taken = tuple(replace(place, index=take(place.index, which)) for place in places)
            return Lookup(memory, starts[which], taken)
        case Fold(function, memory, starts, length):
            return Fold(function, memory, starts[which], length)


def memories(expression: Expression) -> Iterator[Memory]:
    """Iterate over every memory that the expression reads."""
    match expression:
        case Apply(_, arguments):
            for argument in arguments:
                yield from memories(argument)
        case Dot(weights, _, memory, _):
            yield from (weights, memory)
        case Inner(memory, _, other, _):
            yield from (memory, other)
        case Lookup(memory, _, places):
            yield memory
            for place in places:
                yield from memories(place.index)
        case Element(memory) | Fold(_, memory):
            yield memory


def is_integer(expression: Expression) -> bool:
    """Return whether the value is an integer in C."""
    match expression:
        case Element(memory) | Lookup(memory):
            return memory.c_type != "float"
        case Apply(operator):
            return operator.integer
        case Dot() | Inner():
            return False
        case Fold(function):
            return function in ("argmax", "argmin")


def c_type(expression: Expression) -> str:
    """Return the C type of what is read or converted, and '' for what is computed."""
    match expression:
        case Element(memory) | Lookup(memory):
            return memory.c_type
        case Apply(operator):
            return operator.c_type
    return ""


def transform(expression: Expression, change: Callable[[Dot], Expression]) -> Expression:
    """Return the expression with `change` applied to each inner product."""
    match expression:
        case Apply(operator, arguments):
            return Apply(operator, tuple(transform(argument, change) for argument in arguments))
        case Lookup(_, _, places):
            changed = tuple(replace(place, index=transform(place.index, change)) for place in places)
            return replace(expression, places=changed)
        case Dot():
            return change(expression)
    return expression


def constant(values: NDArray[Any]) -> Element:
    """Return constants as an expression: floats of any width become float, integers int64_t."""
    flat = values.ravel()
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            memory = Memory("float", flat.size, values=flat.astype(np.float32))
    else:
        memory = Memory("int64_t", flat.size, values=flat.astype(np.int64))
    return Element(memory, np.arange(flat.size))
