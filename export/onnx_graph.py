"""From a TensorFlow function to a checked ONNX graph."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from onnx import checker, numpy_helper

from serving.runtime import open_session

OPSET = 17
IR_VERSION = 8
BATCH = "batch"

_STANDARD_DOMAINS = ("", "ai.onnx")


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
    """Make input `name` of shape [batch, ...] optional: zeros, which broadcast over the batch, if not fed."""
    graph_input = next(i for i in model.graph.input if i.name == name)
    tensor = graph_input.type.tensor_type
    shape = [1, *(dim.dim_value for dim in tensor.shape.dim[1:])]
    zeros = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    optional = onnx.ModelProto()
    optional.CopyFrom(model)
    optional.graph.initializer.append(numpy_helper.from_array(zeros, name))
    check_graph(optional)
    return optional


def check_graph(model: onnx.ModelProto) -> None:
    """Raise `ExportError` unless every runtime should take the graph.

    It must pass ONNX's full check, use standard operators only, hold its weights, and load in ONNX Runtime.
    """
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise ExportError(f"{', '.join(foreign)} can't be expressed in ONNX; replace these operations in the network")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ExportError("the graph keeps weights in external files; export it with its weights inside")
    try:
        checker.check_model(model, full_check=True)
        open_session(model.SerializeToString())
    except Exception as error:
        raise ExportError(f"the converted graph is not valid ONNX: {error}") from error


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
