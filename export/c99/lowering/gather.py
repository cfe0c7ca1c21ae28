"""Lower gathers, which read elements at computed places.

An index out of range, an error in ONNX Runtime, is clamped.
"""

import math

import numpy as np

from trpo_tf.export.c99.expressions import Index, Lookup, Place, Step, take
from trpo_tf.export.c99.lowering.tensors import Value, in_place, stored
from trpo_tf.export.c99.static_graph import Node


def gather(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Gather slices of the data along one axis."""
    data, index = arguments
    axis = node.attributes.get("axis", 0) % len(data.shape)
    outer, count, inner = math.prod(data.shape[:axis]), data.shape[axis], math.prod(data.shape[axis + 1 :])
    before, which, behind = np.indices((outer, index.size, inner)).reshape(3, -1)
    shape = (*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])
    return _lookup(data, before * count * inner + behind, [(index, which, inner, count)], shape, steps)


def gather_elements(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Gather one element for each index, as ONNX's GatherElements does."""
    data, index = arguments
    axis = node.attributes.get("axis", 0) % len(data.shape)
    places = np.indices(index.shape).reshape(len(index.shape), -1)
    strides = _strides(data.shape)
    starts = sum((places[d] * strides[d] for d in range(len(strides)) if d != axis), np.zeros(index.size, np.int64))
    which = np.arange(index.size)
    return _lookup(data, starts, [(index, which, strides[axis], data.shape[axis])], index.shape, steps)


def gather_nd(node: Node, arguments: list[Value], steps: list[Step]) -> Value:
    """Gather the slices at tuples of indices, as ONNX's GatherND does; the first `batch_dims` axes are common."""
    data, index = arguments
    batch, (*leading, depth) = node.attributes.get("batch_dims", 0), index.shape
    strides, inner = _strides(data.shape), math.prod(data.shape[batch + depth :])
    tuples = math.prod(leading)
    which, behind = np.indices((tuples, inner)).reshape(2, -1)
    # The data's batch that each tuple belongs to, as many elements from one to the next.
    first = which // max(1, tuples // math.prod(data.shape[:batch])) * math.prod(data.shape[batch:])
    places = [(index, which * depth + d, strides[batch + d], data.shape[batch + d]) for d in range(depth)]
    return _lookup(data, first + behind, places, (*leading, *data.shape[batch + depth :]), steps)


def _lookup(
    data: Value,
    starts: Index,
    places: list[tuple[Value, Index, int, int]],
    shape: tuple[int, ...],
    steps: list[Step],
) -> Value:
    """Return the data's elements at starts + sum of stride x index[which], over the computed indices of `places`."""
    memory, first = in_place(steps, data)
    kept = {id(index): stored(steps, index) for index, *_ in places}
    found = tuple(
        Place(take(kept[id(index)].expression, which), stride, count) for index, which, stride, count in places
    )
    return Value(Lookup(memory, first + starts, found), shape)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]
