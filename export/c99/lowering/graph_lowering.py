"""Lower a static graph to the steps of a C function."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.c99 import c_operators as c
from trpo_tf.export.c99.expressions import (
    Apply,
    Dot,
    Element,
    Expression,
    Memory,
    Step,
    constant,
    memories,
    take,
    transform,
)
from trpo_tf.export.c99.lowering.data_movement import MOVES, origins
from trpo_tf.export.c99.lowering.gather import gather
from trpo_tf.export.c99.lowering.operator_lowering import RULES, narrowed
from trpo_tf.export.c99.lowering.tensors import Value, joined, known, of_memory, stored
from trpo_tf.export.c99.static_graph import Node, StaticGraph
from trpo_tf.export.errors import ExportError

KNOWN = {*MOVES, *RULES}
"""Operators that may depend on an input."""


def lower(
    graph: StaticGraph, inputs: Mapping[str, Memory], outputs: Mapping[str, Memory], carried: Mapping[str, Memory]
) -> list[Step]:
    """Lower the graph to steps that compute the tensors of `outputs` and `carried`, and store each in its memory.

    Those of `carried` may be inputs too; they are stored last, when nothing reads their former content any more.

    Raises `ExportError` if an operator is used in a way that C code is not written for.
    """
    steps: list[Step] = []
    values = {given: of_memory(memory, graph.arrays[given].shape) for given, memory in inputs.items()}
    for node in graph.nodes:
        for output, value in zip(node.outputs, _outputs(node, graph, values, steps), strict=True):
            shaped = replace(value, shape=graph.arrays[output].shape)
            reads = graph.readers[output] + (output in outputs) + (output in carried)
            values[output] = stored(steps, shaped) if reads > 1 else shaped
    for name, memory in outputs.items():
        steps.append(Step(memory, np.arange(memory.size), _value(name, graph, values).expression))
    steps += _carried({memory: _value(name, graph, values) for name, memory in carried.items()})
    return [step for step in steps if len(step.positions)]


def _carried(values: Mapping[Memory, Value]) -> list[Step]:
    """Store each value in its memory, by way of scratch if it is made of any of these memories."""
    first, last = [], []
    for memory, value in values.items():
        expression, places = value.expression, np.arange(memory.size)
        if any(read in values for read in memories(expression)):
            scratch = Memory(memory.c_type, memory.size)
            first.append(Step(scratch, places, expression))
            expression = Element(scratch, places)
        last.append(Step(memory, places, expression))
    return first + last


def _outputs(node: Node, graph: StaticGraph, values: dict[str, Value], steps: list[Step]) -> list[Value]:
    arguments = [_value(name, graph, values) if name else None for name in node.inputs]
    if node.operator in RULES:
        value = RULES[node.operator](node, arguments, steps)
        may_overflow = value.is_integer and node.operator in ("Add", "Div", "Mul", "Neg", "Sub")
        return [narrowed(steps, value, graph.arrays[node.outputs[0]].dtype) if may_overflow else value]
    moved = [argument for place, argument in enumerate(arguments) if place in MOVES[node.operator] and argument]
    places = [argument for place, argument in enumerate(arguments) if place not in MOVES[node.operator] and argument]
    if node.operator == "Gather" and places[0].known is None:
        return [gather(node, [moved[0], places[0]], steps)]
    if any(argument.known is None for argument in places):
        raise ExportError(f"the C target has no {node.operator} by computed places; use another layer")
    zero = known(np.zeros(1, np.int64 if moved[0].is_integer else np.float32))
    arrays = [graph.arrays.get(name, np.empty(0)) for name in node.inputs]
    return [joined(steps, [zero, *moved], which, which.shape) for which in origins(node, arrays)]


def _value(name: str, graph: StaticGraph, values: Mapping[str, Value]) -> Value:
    return values[name] if name in values else known(graph.arrays[name])


def with_int8_weights(steps: list[Step]) -> list[Step]:
    """Return the steps with weights of 8 bits and a float scale for each output."""

    def rounded(dot: Dot) -> Expression:
        assert dot.weights.values is not None
        weights, scale = round_to_int8(dot.weights.values)
        memory = Memory("int8_t", weights.size, values=weights)
        return Apply(c.WEIGHT_SCALE, (take(constant(scale), dot.rows), replace(dot, weights=memory)))

    return [replace(step, value=transform(step.value, rounded)) for step in steps]


def round_to_int8(weights: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights [out, in] to integers from -127 to 127, and return them with their scales [out]."""
    largest = np.abs(weights).max(axis=1)
    unit = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    return np.rint(weights / unit[:, None]).astype(np.int8), unit
