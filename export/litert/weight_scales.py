"""Keep the scale that a policy gives to a product's inputs when LiteRT quantizes it to 8 bits.

LiteRT's converter multiplies a constant into the weights of the product that follows. If the constant normalises
inputs, the product would then read the raw inputs. All would be in 8 bits of one scale, and small ones would become 0.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.lite.python.schema_py_generated import TensorType

from trpo_tf.export.errors import ExportError

_PRODUCTS = {"BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "MatMul"}
_MOVES = {"ExpandDims", "Identity", "Reshape", "Squeeze"}
_FACTORS = {"Div", "Mul", "RealDiv"}
_OFFSETS = {"Add", "AddV2", "Sub"}
_CONSTANT = {"Const", "ReadVariableOp"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}

_GUARD = "scale_of_its_own"
_LARGEST = float(np.finfo(np.float32).max)
_STEPS = 256


def keep_scales(saved_model: Path) -> None:
    """Insert a minimum with the largest float between each constant factor and the product after it.

    It changes no number, and the converter moves no constant past it.
    """
    file = saved_model / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = model.meta_graphs[0].graph_def
    (main, nodes), *functions = _bodies(graph)
    _guard(main, nodes, ("", ""))
    for body, nodes in functions:
        _guard(body, nodes, (":output:0", ":z:0"))
    file.write_bytes(model.SerializeToString(deterministic=True))


def check_scales(model: Any, products: Collection[int]) -> None:
    """Raise `ExportError` if one step of a product's 8-bit input exceeds the whole range of its 8-bit output.

    LiteRT's interpreter aborts the process when it opens such a model.
    """
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    for graph in model.subgraphs:
        for operator in graph.operators:
            if codes[operator.opcodeIndex] not in products:
                continue
            tensors = [graph.tensors[place] for place in (*operator.inputs[:2], operator.outputs[0])]
            if any(tensor.type != TensorType.INT8 for tensor in tensors):
                continue
            given, weights, answer = (np.max(tensor.quantization.scale) for tensor in tensors)
            if given * weights >= _STEPS * answer:
                raise ExportError(
                    "8 bits can't hold numbers of such different scale in one layer: a step of its input is worth "
                    "more than its whole answer; normalise the observation in the policy, or use floats"
                )


@dataclass
class _Body:
    """The nodes of a graph or function by name, the names of its arguments and results, and the calls of it."""

    nodes: dict[str, Any]
    arguments: list[str]
    results: list[str]
    calls: "list[tuple[_Body, Any]]" = field(default_factory=list)
    callees: "Mapping[str, _Body]" = field(default_factory=dict)


def _bodies(graph: Any) -> list[tuple[_Body, Any]]:
    """List the main graph and each function, with their nodes."""
    functions = {
        function.signature.name: _Body(
            {node.name: node for node in function.node_def},
            [argument.name for argument in function.signature.input_arg],
            [function.ret[result.name] for result in function.signature.output_arg],
        )
        for function in graph.library.function
    }
    main = _Body({node.name: node for node in graph.node}, [], [])
    bodies = [main, *functions.values()]
    for body in bodies:
        body.callees = functions
        for node in body.nodes.values():
            if node.op in _CALLS:
                functions[node.attr["f"].func.name].calls.append((body, node))
    lists = [graph.node, *(function.node_def for function in graph.library.function)]
    return list(zip(bodies, lists, strict=True))


def _guard(body: _Body, nodes: MutableSequence[Any], suffixes: tuple[str, str]) -> None:
    """Insert the minimum before the products of one body. An added tensor's name is its node's and a suffix."""
    for node in body.nodes.values():
        if node.op in _PRODUCTS and node.attr["T"].type == types_pb2.DT_FLOAT and _is_scaled(body, node.input[0]):
            nodes.extend(_minimum(node, suffixes))


def _minimum(product: Any, suffixes: tuple[str, str]) -> Iterable[Any]:
    """Add a constant and a minimum, which becomes the product's input."""
    constant_suffix, minimum_suffix = suffixes
    largest = node_def_pb2.NodeDef(name=f"{product.name}/{_GUARD}/largest", op="Const")
    largest.attr["dtype"].type = types_pb2.DT_FLOAT
    largest.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(_LARGEST, tf.float32))
    minimum = node_def_pb2.NodeDef(name=f"{product.name}/{_GUARD}", op="Minimum")
    minimum.input.extend([product.input[0], largest.name + constant_suffix])
    minimum.attr["T"].type = types_pb2.DT_FLOAT
    product.input[0] = minimum.name + minimum_suffix
    return largest, minimum


def _is_scaled(body: _Body, name: str) -> bool:
    """Return whether a tensor is another one multiplied by constants or shifted by them, element by element."""
    return any(_scales(place, node) for place, node in _origins(body, name))


def _scales(body: _Body, node: Any) -> bool:
    if node.op in _FACTORS:
        other = _scaled_alike(body, node)
        return _is_scaled(body, other) if other else _has_constant(body, node)
    is_bias = any(_operations(body, operand) & _PRODUCTS for operand in node.input[:2])
    return node.op in _OFFSETS and not is_bias and _has_constant(body, node)


def _has_constant(body: _Body, node: Any) -> bool:
    return any(_operations(body, operand) <= _CONSTANT for operand in node.input[:2])


def _scaled_alike(body: _Body, node: Any) -> str | None:
    """Return the operand that a product or quotient scales by a single number, or None."""
    for constant, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        values = [found.attr["value"].tensor for _, found in _origins(body, constant) if found.op == "Const"]
        if values and all(tf.make_ndarray(value).size == 1 for value in values):
            return str(other)
    return None


def _operations(body: _Body, name: str) -> set[str]:
    return {node.op for _, node in _origins(body, name)}


def _origins(body: _Body, name: str) -> Iterator[tuple[_Body, Any]]:
    """Find the nodes that compute a tensor, each with its body; moves, arguments and calls are followed."""
    base, *place = name.removeprefix("^").split(":")
    node = body.nodes.get(base)
    if node is None:
        for caller, call in body.calls:
            yield from _origins(caller, call.input[body.arguments.index(base)])
    elif node.op in _MOVES:
        yield from _origins(body, node.input[0])
    elif node.op in _CALLS:
        callee = body.callees[node.attr["f"].func.name]
        yield from _origins(callee, callee.results[int(place[-1]) if place else 0])
    else:
        yield body, node
