"""Lower matrix products, of constant weights and of computed numbers."""

import math
from typing import Any

import numpy as np

from trpo_tf.export.c99 import c_operators as c
from trpo_tf.export.c99.expressions import Dot, Index, Inner, Memory, Step
from trpo_tf.export.c99.lowering.tensors import Value, apply, in_rows, known, like, rearranged
from trpo_tf.export.c99.static_graph import Node


def matmul(_: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Multiply [..., rows, in] by [..., in, columns]. A vector is a row on the left and a column on the right."""
    one, other = arguments
    left = Value(one.expression, one.shape if len(one.shape) > 1 else (1, *one.shape), one.known)
    right = Value(other.expression, other.shape if len(other.shape) > 1 else (*other.shape, 1), other.known)
    return product(left, right, steps)


def gemm(node: Node, arguments: list[Any], steps: list[Step]) -> Value:
    """Compute alpha A B + beta C, where A and B may be transposed."""
    left, right, *bias = arguments
    left = _transposed(left, steps) if node.attributes.get("transA") else left
    right = _transposed(right, steps) if node.attributes.get("transB") else right
    result = _scaled(product(left, right, steps), node.attributes.get("alpha", 1.0), steps)
    if not bias or bias[0] is None:
        return result
    return apply(steps, c.ADD, result, _scaled(bias[0], node.attributes.get("beta", 1.0), steps))


def product(left: Value, right: Value, steps: list[Step]) -> Value:
    """Multiply two values of two axes or more as matrices; their leading axes are broadcast."""
    (*_, rows, width), columns = left.shape, right.shape[-1]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*batch, rows, columns)
    if width == 0:
        return known(np.zeros(shape, np.float32))
    row, column = np.indices((rows, columns)).reshape(2, 1, -1)
    if right.known is not None and right.known.ndim == 2:
        memory, first = in_rows(steps, left)
        starts = first + width * (_matrix(left, batch) * rows + row)
        return Value(_dot(right.known.T, np.broadcast_to(column, starts.shape), memory, starts), shape)
    memory, first = in_rows(steps, _transposed(right, steps))
    starts = first + width * (_matrix(right, batch) * columns + column)
    if left.known is not None and left.known.ndim == 2:
        return Value(_dot(left.known, np.broadcast_to(row, starts.shape), memory, starts), shape)
    others, start = in_rows(steps, left)
    other_starts = start + width * (_matrix(left, batch) * rows + row)
    return Value(Inner(others, other_starts.ravel(), memory, starts.ravel(), width), shape)


def _dot(matrix: Any, rows: Index, memory: Memory, starts: Index) -> Dot:
    weights = Memory("float", matrix.size, values=np.ascontiguousarray(matrix.astype(np.float32)))
    return Dot(weights, rows.ravel(), memory, starts.ravel())


def _matrix(value: Value, batch: tuple[int, ...]) -> Index:
    """Return which of the value's matrices each matrix of the broadcast `batch` uses, [batch, 1]."""
    own = value.shape[:-2]
    return np.broadcast_to(np.arange(math.prod(own)).reshape(own), batch).reshape(-1, 1)


def _transposed(value: Value, steps: list[Step]) -> Value:
    """Exchange the value's last two axes."""
    if value.known is not None:
        return known(value.known.swapaxes(-1, -2))
    which = np.arange(value.size).reshape(value.shape).swapaxes(-1, -2)
    return rearranged(steps, value, which.ravel(), which.shape)


def _scaled(value: Value, factor: float, steps: list[Step]) -> Value:
    return value if factor == 1.0 else apply(steps, c.MULTIPLY, value, like(factor, value))
