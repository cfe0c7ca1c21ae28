"""Refuse a traced graph that no target can carry, before anything is converted."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from trpo_tf.export.errors import XLA_FUNCTION, ExportError

MOST_WEIGHT_BYTES = 2**31 - 2**20
"""Most bytes of all weights: protobuf, and so an ONNX file, holds 2 GiB, and the graph takes a part of it."""

_GIB = 2**30
_PYTHON = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}

_LAYERS = {"BatchMatMulV2", "BiasAdd", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Einsum", "MatMul"}
"""Operations of layers whose sums differ in other precision; a single cast or product of float16 may be exact."""


def check_traced(graph: Any) -> None:
    """Raise `ExportError` for weights beyond 2 GiB, updated variables, Python, XLA functions, and 16-bit numbers."""
    size = sum(np.prod(each.shape, dtype=np.int64) * each.dtype.size for each in _weights(graph))
    if size > MOST_WEIGHT_BYTES:
        raise ExportError(f"function has {size / _GIB:.1f} GiB of weights, and an ONNX file holds 2; make them fewer")
    definition = graph.as_graph_def()
    nodes = all_nodes(definition)
    updates = sorted({node.op for node in nodes if _updates(node.op)})
    if updates:
        raise ExportError(
            f"function updates a variable when it is called ({', '.join(updates)}{_updated(graph)}), and an "
            "exported file keeps nothing; call layers with training=False, and make what changes an input or a state"
        )
    if any(node.op in _PYTHON for node in nodes):
        raise ExportError(
            "function calls Python (tf.py_function, tf.numpy_function), which no target has; compute it in TensorFlow"
        )
    if any(function.attr["_XlaMustCompile"].b for function in definition.library.function):
        raise ExportError(f"function calls {XLA_FUNCTION}")
    if any(types_pb2.DT_BFLOAT16 in _types(node) for node in nodes):
        raise ExportError(
            "function computes in bfloat16, which ONNX Runtime does not; build the network again with dtype='float32', "
            "with the same weights"
        )
    half = sorted({node.op for node in nodes if node.op in _LAYERS and types_pb2.DT_HALF in _types(node)})
    if half:
        raise ExportError(
            f"function computes in float16 ({', '.join(half)}), and every target computes that in float32, with other "
            "results; build the network again with dtype='float32', with the same weights"
        )


def all_nodes(definition: Any) -> list[Any]:
    """List the nodes of a `GraphDef` and of the functions that it calls."""
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]


def _weights(graph: Any) -> Iterator[Any]:
    """Iterate over the variables, captured tensors and constants of a graph."""
    yield from graph.variables
    yield from (outside for outside, _ in graph.captures if outside.dtype != tf.resource)
    yield from (operation.outputs[0] for operation in graph.get_operations() if operation.type == "Const")


def _updates(operator: str) -> bool:
    return operator.startswith(("Assign", "ResourceScatter", "ResourceApply"))


def _updated(graph: Any) -> str:
    """Return " of NAME" for a variable that the function updates, or an empty text."""
    names = {inside.name: outside for outside, inside in graph.captures}
    handles = {id(variable.handle): variable.name for variable in graph.variables}
    for operation in graph.get_operations():
        if _updates(operation.type) and operation.inputs:
            name = handles.get(id(names.get(operation.inputs[0].name)))
            if name:
                return f" of {name.partition(':')[0]}"
    return ""


def _types(node: Any) -> set[int]:
    return {value.type for value in node.attr.values()}
