"""Walk and edit ONNX graphs, also those inside of conditionals and loops."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

BATCH = "batch"


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Iterate over the graph and those that its conditionals and loops hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from graphs_of(inner)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Iterate over the graphs that a conditional or loop holds, at any depth."""
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            if inner.node or inner.output:
                yield from graphs_of(inner)


def names_read(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Collect the tensors that nodes read, also in their inner graphs."""
    inner = [graph for node in nodes for graph in inner_graphs(node)]
    every = [*nodes, *(node for graph in inner for node in graph.node)]
    return {name for node in every for name in node.input} | {o.name for graph in inner for o in graph.output}


def drop_unread(graph: onnx.GraphProto) -> None:
    """Drop initializers that nothing reads; ONNX Runtime would warn of each when it loads the graph."""
    kept = names_read(graph.node) | {value.name for value in (*graph.input, *graph.output)}
    set_field(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in kept])


def set_field(field: Any, values: Iterable[Any]) -> None:
    """Replace the content of a repeated protobuf field."""
    kept = list(values)
    del field[:]
    field.extend(kept)


def with_constants(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Replace some of the graph's inputs by constants."""
    constant = copy.deepcopy(model)
    set_field(constant.graph.input, [i for i in model.graph.input if i.name not in values])
    constant.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    return constant
