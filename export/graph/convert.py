"""Convert a TensorFlow function to a checked ONNX graph."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import onnx
import tensorflow as tf
import tf2onnx
from onnx import numpy_helper

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.check import check_graph
from trpo_tf.export.graph.editing import BATCH, drop_unread, graphs_of
from trpo_tf.export.graph.operator_rewrites import HANDLERS
from trpo_tf.export.policy.opsets import OPSET, OPSETS


def to_onnx(function: Callable[..., Any], signature: Sequence[Any], *, opset: int = OPSET) -> onnx.ModelProto:
    """Convert `function`, traced at `signature`, to an ONNX graph.

    Args:
        function: takes the signature's arguments and returns a dict of tensors, whose keys name the outputs.
        signature: nested `tf.TensorSpec`s; their names, which may be any, become the graph's inputs. A leading
            dimension of None is the batch.
        opset: version of the standard operator set, 13 to 18. The file format is the oldest that goes with it.

    Raises:
        ExportError: an operation has no ONNX counterpart, or the graph does not pass `check_graph`.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} isn't supported; choose one from {OPSETS[0]} to {OPSETS[-1]}")
    model = _converted(function, signature, opset)
    model.graph.ClearField("doc_string")  # it names the traced function by a count of this process
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    _name_batch(model)
    drop_unread(model.graph)
    check_graph(model)
    return model


def _converted(function: Callable[..., Any], signature: Sequence[Any], opset: int) -> onnx.ModelProto:
    """Convert by tf2onnx, name the inputs, and keep tensors that the function closes over as weights."""
    # tf2onnx logs what it can't convert and goes on; check_graph is what decides, so its log adds nothing.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    traced = tf.function(function, autograph=False)
    neutral, names = with_neutral_names(signature)
    captures = traced.get_concrete_function(*neutral).graph.captures
    try:
        model, _ = tf2onnx.convert.from_function(
            traced, input_signature=list(neutral), opset=opset, custom_op_handlers=HANDLERS
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"tf2onnx can't convert the function: {reason}") from error
    _rename_inputs(model.graph, names)
    _bind_tensors(model, captures)
    return cast(onnx.ModelProto, model)


def with_neutral_names(signature: Any) -> tuple[Any, dict[str, str]]:
    """Rename a signature so that TensorFlow keeps the names, and map them to the names of `signature`."""
    specs = tf.nest.flatten(signature)
    names = {f"graph_input_{place}": spec.name for place, spec in enumerate(specs)}
    neutral = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in zip(names, specs, strict=True)]
    return tf.nest.pack_sequence_as(signature, neutral), names


def _bind_tensors(model: onnx.ModelProto, captures: Sequence[tuple[Any, Any]]) -> None:
    """Keep tensors that the function closes over as weights: tf2onnx makes inputs of them."""
    values = {inside.name: outside for outside, inside in captures if outside.dtype != tf.resource}
    inputs = model.graph.input
    for captured in [i for i in inputs if i.name in values]:
        model.graph.initializer.append(numpy_helper.from_array(values[captured.name].numpy(), captured.name))
        inputs.remove(captured)


def _rename_inputs(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give inputs their names; an inner tensor of the same name is renamed."""
    inside = list(graphs_of(graph))
    inner = {output for part in inside for node in part.node for output in node.output}
    inner |= {tensor.name for part in inside for tensor in part.initializer}
    outputs = {output.name for output in graph.output}
    taken = {*inner, *names.values(), *outputs}
    renamed = dict(names)
    for name in sorted(inner & set(names.values()) - outputs):
        renamed[name] = next(free for free in (f"{name}/{n}" for n in itertools.count()) if free not in taken)
        taken.add(renamed[name])
    for part in inside:
        for node in part.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        named: list[Any] = [*part.input, *part.initializer, *part.value_info]
        for value in named:
            value.name = renamed.get(value.name, value.name)


def _name_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = BATCH
