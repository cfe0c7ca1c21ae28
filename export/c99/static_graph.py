"""Specialize an ONNX graph to a batch of one, with everything that no input changes as constants."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.onnx_runtime import open_session

_SHAPE_ONLY = {"Shape", "Size"}
"""Operators whose answer does not depend on the numbers they are given."""

_CONVOLUTIONAL = {"Conv", "ConvTranspose", "MaxPool", "AveragePool"}
_BOUNDS = {"Clip", "Max", "Min"}
_LOOPS = {"GRU", "If", "LSTM", "Loop", "RNN", "Scan"}


@dataclass(frozen=True)
class Node:
    """One operator; the name '' stands for an optional input that is left out."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class StaticGraph:
    """Nodes in order of computation; each depends on the inputs, and action or next state depend on it.

    `arrays` has the value that every tensor has if all inputs are zero: a constant's own value; of the others only
    shape and dtype count. `readers` counts the nodes that read a tensor.
    """

    nodes: list[Node]
    arrays: dict[str, NDArray[Any]]
    readers: Counter[str]


def input_arrays(spec: PolicySpec) -> list[ArraySpec | NoiseSpec]:
    """List the graph's inputs without state and `reset`: the parts of the observation, and noise."""
    return [*spec.observation, spec.noise]


def static_graph(model: bytes, spec: PolicySpec, known: set[str]) -> StaticGraph:
    """Specialize the graph of a policy. Only operators of `known` may depend on an input.

    Raises `ExportError` for another operator, and for constants of float64 that float32 can't hold.
    """
    proto = onnx.load_from_string(model)
    every: list[ArraySpec | NoiseSpec] = [*spec.step_inputs, spec.noise]
    zeros = {array.name: np.zeros((1, *array.shape), array.dtype) for array in every}
    variables, outputs = set(zeros), {spec.action.name, *(array.name for array in spec.next_state)}
    nodes = _live([_node(node) for node in proto.graph.node], variables, outputs)
    _refuse_unknown(nodes, known)

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    named = {*outputs, *(name for node in nodes for name in (*node.inputs, *node.outputs) if name)}
    wanted = named - {*constants, *zeros}
    arrays = {**constants, **_run(proto, zeros, sorted(wanted)), **zeros}
    _refuse_beyond_float32(nodes, arrays, variables)
    readers = Counter(name for node in nodes for name in node.inputs)
    return StaticGraph(nodes, arrays, readers)


def _node(proto: onnx.NodeProto) -> Node:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes)


def _has_graphs(node: Node) -> bool:
    """Return whether the node has inner graphs, which may read tensors that are not among its inputs."""
    return any(isinstance(value, onnx.GraphProto) for value in node.attributes.values())


def _live(nodes: list[Node], variables: set[str], outputs: set[str]) -> list[Node]:
    """List the nodes on the way from the inputs to `outputs`, and add the tensors that depend on the inputs to
    `variables`.
    """
    dependent = []
    for node in nodes:
        if _has_graphs(node) or (node.operator not in _SHAPE_ONLY and variables.intersection(node.inputs)):
            variables.update(node.outputs)
            dependent.append(node)
    needed, live = set(outputs), []
    for node in reversed(dependent):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return live[::-1]


def _run(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], names: list[str]) -> dict[str, NDArray[Any]]:
    """Compute the tensors `names`."""
    revealing = onnx.ModelProto()
    revealing.CopyFrom(model)
    del revealing.graph.output[:]
    revealing.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return dict(zip(names, open_session(revealing.SerializeToString()).run(names, inputs), strict=True))


def _refuse_unknown(nodes: list[Node], known: set[str]) -> None:
    operators = {node.operator for node in nodes}
    convolutional = sorted(operators & _CONVOLUTIONAL)
    if convolutional:
        raise ExportError(f"the C target has no convolutions ({', '.join(convolutional)}); use the ONNX file")
    unknown = sorted(operators - known)
    if operators & _LOOPS:
        raise ExportError(
            f"the C target has no loops or branches ({', '.join(sorted(operators & _LOOPS))}); give recurrent layers "
            "unroll=True, or use the ONNX file"
        )
    if unknown:
        raise ExportError(f"the C target has no {', '.join(unknown)}; use other layers, or the ONNX file")


def _refuse_beyond_float32(nodes: list[Node], arrays: Mapping[str, NDArray[Any]], variables: set[str]) -> None:
    """Refuse constants that become 0 or infinite in float32; the bounds of a clip may be infinite."""
    computing = [node for node in nodes if node.operator not in _BOUNDS]
    for name in {name for node in computing for name in node.inputs} - {"", *variables}:
        values = arrays[name]
        if values.dtype != np.float64:
            continue
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        lost = (values != 0) & np.isfinite(values) & ((narrow == 0) | np.isinf(narrow))
        if lost.any():
            raise ExportError(
                f"the C target computes in float32, which can't hold the constant {values[lost].flat[0]:g}; choose "
                "another, or use the ONNX file"
            )
