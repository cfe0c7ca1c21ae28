"""Make a graph's noise input optional or required, or take it out."""

import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.check import check_graph
from trpo_tf.export.graph.editing import graphs_of, set_field
from trpo_tf.serving.bundle.specs import NOISE_INPUTS

_ADDED = ("rows", "batch", "shape", "inner", "sizes", "place")
"""Tensors that `with_optional_input` adds, behind the input's name."""
_SHAPE_TAKES_A_RANGE = 15


def with_noise(model: onnx.ModelProto, name: str, choice: str) -> onnx.ModelProto:
    """Keep the optional noise input `name`, make it required, or take it out, as `choice` says.

    Raises `ExportError` if the input isn't optional, or for a choice that isn't one of `NOISE_INPUTS`.
    """
    match choice:
        case "optional":
            return model
        case "required":
            return with_required_input(model, name)
        case "none":
            return without_input(model, name)
    raise ExportError(f"noise {choice!r} is unknown; choose one of {', '.join(NOISE_INPUTS)}")


def with_optional_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Make input `name` [batch, ...] optional. If not fed it is zeros, of as many rows as the first other input.

    The zeros are one row, which the graph itself repeats. ONNX Runtime plans its buffers by the declared shape, and
    would otherwise fail at a larger batch.
    """
    optional = copy.deepcopy(model)
    graph = optional.graph
    tensor = next(i for i in graph.input if i.name == name).type.tensor_type
    other = next(i.name for i in graph.input if i.name != name)
    dims = [dim.dim_value for dim in tensor.shape.dim[1:]]
    zeros = np.zeros([1, *dims], helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    rows, batch, shape, inner, sizes, place = _added(_free_prefix(graph, name))
    _rename_reads(graph, name, rows)
    if _opset(optional) >= _SHAPE_TAKES_A_RANGE:
        count = [helper.make_node("Shape", [other], [batch], batch, start=0, end=1)]
    else:
        count = [
            helper.make_node("Shape", [other], [sizes], sizes),
            helper.make_node("Constant", [], [place], place, value_ints=[0]),
            helper.make_node("Gather", [sizes, place], [batch], batch),
        ]
    repeat = [
        helper.make_node("Concat", [batch, inner], [shape], shape, axis=0),
        helper.make_node("Expand", [name, shape], [rows], rows),
    ]
    set_field(graph.node, [*count, *repeat, *graph.node])
    graph.initializer.append(numpy_helper.from_array(zeros, name))
    graph.initializer.append(numpy_helper.from_array(np.array(dims, np.int64), inner))
    check_graph(optional)
    return optional


def with_required_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Undo `with_optional_input`. Raises `ExportError` if the input isn't optional."""
    _check_optional(model, name)
    required = copy.deepcopy(model)
    graph = required.graph
    rows = next(node.output[0] for node in graph.node if node.op_type == "Expand" and node.input[0] == name)
    added = set(_added(rows.removesuffix("/rows")))
    set_field(graph.node, [node for node in graph.node if node.output[0] not in added])
    set_field(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in {name, *added}])
    _rename_reads(graph, rows, name)
    check_graph(required)
    return required


def without_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Take out an optional input, so that its zeros are constants. Raises `ExportError` if it isn't optional."""
    _check_optional(model, name)
    constant = copy.deepcopy(model)
    set_field(constant.graph.input, [i for i in constant.graph.input if i.name != name])
    check_graph(constant)
    return constant


def _added(prefix: str) -> list[str]:
    return [f"{prefix}/{part}" for part in _ADDED]


def _free_prefix(graph: onnx.GraphProto, name: str) -> str:
    """Append underscores to `name` until no tensor has a name that would be added."""
    taken = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    taken |= {output for inside in graphs_of(graph) for node in inside.node for output in node.output}
    while taken & set(_added(name)):
        name += "_"
    return name


def _opset(model: onnx.ModelProto) -> int:
    return next(opset.version for opset in model.opset_import if opset.domain == "")


def _check_optional(model: onnx.ModelProto, name: str) -> None:
    if name not in {i.name for i in model.graph.input} & {tensor.name for tensor in model.graph.initializer}:
        raise ExportError(f"the graph has no optional input {name!r}; start from the graph that convert_policy makes")


def _rename_reads(graph: onnx.GraphProto, name: str, new: str) -> None:
    for node in (node for inside in graphs_of(graph) for node in inside.node):
        node.input[:] = [new if read == name else read for read in node.input]
