"""Check that an ONNX graph is one that every runtime should take."""

import re
from collections.abc import Iterator

import onnx
from onnx import checker

from trpo_tf.export.errors import XLA_FUNCTION, ExportError
from trpo_tf.export.graph.editing import graphs_of
from trpo_tf.export.policy.opsets import OPSETS
from trpo_tf.serving.bundle.onnx_check import DOMAINS, OPERATORS
from trpo_tf.serving.runtime.onnx_runtime import open_session

_NEWER = re.compile(r"No Op registered for (\w+) with domain_version of (\d+)")
"""What the checker says of an operator that came with a later opset."""
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def check_graph(model: onnx.ModelProto) -> None:
    """Raise `ExportError` unless every runtime should take the graph, and give the same answer each time.

    It must use operators only that serving admits, hold its weights, pass ONNX's full check, and load in ONNX Runtime.
    """
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    random = sorted({_operator(node) for node in nodes} & _RANDOM)
    if random:
        raise ExportError(f"{', '.join(random)} would draw in the graph; use the noise that the function is given")
    foreign = sorted({_operator(node) for node in nodes if not _is_servable(node)})
    if "PartitionedCall" in foreign:
        raise ExportError(f"ONNX can't express {XLA_FUNCTION}")
    if foreign:
        raise ExportError(f"{', '.join(foreign)} can't be expressed in ONNX; replace these operations in the network")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ExportError("the graph keeps weights in external files; export it with its weights inside")
    try:
        checker.check_model(model, full_check=True)
        open_session(model.SerializeToString())
    except Exception as error:
        reason = " ".join(str(error).split())
        if newer := _NEWER.search(reason):
            raise ExportError(
                f"{newer[1]} can't be expressed in ONNX at opset {newer[2]}; take opset {OPSETS[-1]}, or replace it in "
                "the network"
            ) from error
        raise ExportError(f"the converted graph is not valid ONNX: {reason}") from error


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in graphs_of(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _is_servable(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in OPERATORS


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
