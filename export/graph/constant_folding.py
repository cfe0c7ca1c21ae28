"""Fold tensors that no input changes into constants: they cost time, and some tools fail at them."""

import copy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trpo_tf.export.graph.editing import drop_unread, inner_graphs, names_read, set_field
from trpo_tf.serving.runtime.onnx_runtime import open_session

_SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators whose answer does not depend on the numbers they are given."""
_KEPT = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Operators that stay for what they say: that a constant has 8 bits."""


def with_constants_folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold every tensor that the inputs do not change to a constant. All inputs need fixed shapes."""
    folded = copy.deepcopy(model)
    graph = folded.graph
    constant, live = _partition(graph)
    read = names_read(live) | {output.name for output in graph.output}
    wanted = [name for node in constant for name in node.output if name and name in read]
    values = _values(model, wanted)
    set_field(graph.node, live)
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in wanted)
    drop_unread(graph)
    return folded


def _partition(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Split the nodes into those that no input changes, and all others."""
    variable = {value.name for value in graph.input}
    constant, live = [], []
    for node in graph.node:
        branches = any(True for _ in inner_graphs(node))
        depends = node.op_type not in _SHAPE_ONLY and variable.intersection(node.input)
        if branches or node.op_type in _KEPT or depends:
            variable.update(node.output)
            live.append(node)
        else:
            constant.append(node)
    return constant, live


def _values(model: onnx.ModelProto, names: list[str]) -> dict[str, NDArray[np.generic]]:
    """Compute tensors that no input changes, at inputs of zero."""
    if not names:
        return {}
    revealing = copy.deepcopy(model)
    set_field(revealing.graph.output, [helper.make_empty_tensor_value_info(name) for name in names])
    zeros = {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in model.graph.input
    }
    return dict(zip(names, open_session(revealing.SerializeToString()).run(names, zeros), strict=True))
