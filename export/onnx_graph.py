"""From a TensorFlow function to a checked ONNX graph."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnx import checker, numpy_helper

from serving.runtime import open_session

OPSET = 17
IR_VERSION = 8
BATCH = "batch"

_STANDARD_DOMAINS = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


class ExportError(RuntimeError):
    """A function that can't be exported, or whose export does not act like it; says what to do."""


def to_onnx(function: Callable[..., Any], signature: Sequence[Any], *, opset: int = OPSET) -> onnx.ModelProto:
    """Convert `function`, traced at `signature`, to an ONNX graph.

    Args:
        function: takes the signature's arguments and returns a dict of tensors, whose keys name the outputs.
        signature: nested `tf.TensorSpec`s; their names become the graph's inputs. A leading dimension of
            None is the batch.
        opset: version of the standard operator set.

    Raises:
        ExportError: an operation has no ONNX counterpart, or the graph does not pass `check_graph`.
    """
    # tf2onnx logs what it can't convert and goes on; check_graph is what decides, so its log adds nothing.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    traced = tf.function(function, autograph=False)
    captures = traced.get_concrete_function(*signature).graph.captures
    model, _ = tf2onnx.convert.from_function(traced, input_signature=list(signature), opset=opset)
    model.ir_version = IR_VERSION
    _bind_tensors(model, captures)
    _name_batch(model)
    check_graph(model)
    return cast(onnx.ModelProto, model)


def with_optional_input(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Make input `name` of shape [batch, ...] optional: zeros if not fed, as many rows as the first other input has.

    The zeros are one row, which the graph itself repeats: ONNX Runtime plans its buffers by the declared shape, and
    would fail at a larger batch.
    """
    optional = onnx.ModelProto()
    optional.CopyFrom(model)
    graph = optional.graph
    graph_input = next(i for i in graph.input if i.name == name)
    other = next(i.name for i in graph.input if i.name != name)
    tensor = graph_input.type.tensor_type
    inner = [dim.dim_value for dim in tensor.shape.dim[1:]]
    zeros = np.zeros([1, *inner], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    rows, inner_name, shape = (f"{name}/{part}" for part in ("rows", "inner", "shape"))
    for reader in (node for inside in _graphs(graph) for node in inside.node):
        reader.input[:] = [rows if read == name else read for read in reader.input]
    repeat = [
        onnx.helper.make_node("Shape", [other], [f"{name}/batch"], f"{name}/batch", start=0, end=1),
        onnx.helper.make_node("Concat", [f"{name}/batch", inner_name], [shape], shape, axis=0),
        onnx.helper.make_node("Expand", [name, shape], [rows], rows),
    ]
    nodes = [*repeat, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(zeros, name))
    graph.initializer.append(numpy_helper.from_array(np.array(inner, np.int64), inner_name))
    check_graph(optional)
    return optional


def with_constants(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The graph with some of its inputs replaced by constants."""
    constant = onnx.ModelProto()
    constant.CopyFrom(model)
    kept = [graph_input for graph_input in model.graph.input if graph_input.name not in values]
    del constant.graph.input[:]
    constant.graph.input.extend(kept)
    constant.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    return constant


def check_graph(model: onnx.ModelProto) -> None:
    """Raise `ExportError` unless every runtime should take the graph, and give the same answer each time.

    It must use standard, deterministic operators only, hold its weights, pass ONNX's full check, and load in ONNX
    Runtime.
    """
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    foreign = sorted({_operator(node) for node in nodes if not _is_standard(node)})
    if foreign:
        raise ExportError(f"{', '.join(foreign)} can't be expressed in ONNX; replace these operations in the network")
    random = sorted({_operator(node) for node in nodes} & _RANDOM)
    if random:
        raise ExportError(f"{', '.join(random)} would draw in the graph; use the noise that the function is given")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ExportError("the graph keeps weights in external files; export it with its weights inside")
    try:
        checker.check_model(model, full_check=True)
        open_session(model.SerializeToString())
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"the converted graph is not valid ONNX: {reason}") from error


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and those that its conditionals and loops hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in _STANDARD_DOMAINS and bool(onnx.defs.has(node.op_type))


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _bind_tensors(model: onnx.ModelProto, captures: Sequence[tuple[Any, Any]]) -> None:
    """Keep tensors that the function closes over as weights: tf2onnx makes inputs of them."""
    values = {inside.name: outside for outside, inside in captures if outside.dtype != tf.resource}
    inputs = model.graph.input
    for captured in [i for i in inputs if i.name in values]:
        model.graph.initializer.append(numpy_helper.from_array(values[captured.name].numpy(), captured.name))
        inputs.remove(captured)


def _name_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = BATCH
