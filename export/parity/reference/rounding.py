"""Measure how far an answer may move if its sums are rounded differently, as in another correct implementation.

A sum of n products in floats, taken in any order, equals an exact sum in which each product has a relative error.
That error is below sqrt(n) 2^-24 times a small factor with high probability (Higham and Mary 2019,
"A new approach to probabilistic rounding error analysis"). So the terms of each sum in the graph are changed at random
by that much. The distance by which an answer then moves is its margin.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trpo_tf.export.graph.editing import graphs_of, set_field
from trpo_tf.export.parity.reference.answers import Answered
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.runtime.observations import Array, Observation, by_name
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session
from trpo_tf.serving.runtime.sequences import run_sequences

_UNIT = 2.0**-24
_FACTOR = 2.0
_DRAWS = 4

_SUMS = {
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "CumSum", "AveragePool", "GlobalAveragePool"),
    *("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
    *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "BatchNormalization"),
    *("LSTM", "GRU", "RNN"),
}
_CHOICES = {"ArgMax", "ArgMin", "TopK", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
"""Operators whose answer to a NaN is an ordinary number."""


class Rounding:
    """Function of observations [batch, ...] and noise [batch, k] that returns the margins of a graph's outputs.

    The margin of an output [batch, ...], by name, is the largest change of each element in four random draws.
    """

    def __init__(self, graph: bytes, spec: PolicySpec) -> None:
        """Take a graph with a free batch, which is changed at the first call; noise is left out if it has none."""
        self._graph, self._spec = graph, spec

    @functools.cached_property
    def _sessions(self) -> list[onnxruntime.InferenceSession]:
        """The graph and its changed copies."""
        model, rng = onnx.load_from_string(self._graph), np.random.default_rng(0)
        return [open_session(content) for content in (self._graph, *(_changed(model, rng) for _ in range(_DRAWS)))]

    def __call__(self, observations: Observation, noise: Array) -> dict[str, Array]:
        """Measure how far each output moves: [batch, ...] by name."""
        return _moved([self._run(session, observations, noise) for session in self._sessions])

    def along_sequences(self, inputs: Observation, noise: Array) -> dict[str, Array]:
        """Measure the margins along golden sequences, in which each changed graph carries its own state."""
        named = by_name(inputs, self._spec.observation[0].name)
        steps = [functools.partial(self._run, session) for session in self._sessions]
        return _moved([run_sequences(step, named, noise, self._spec.state)[1] for step in steps])

    def _run(self, session: onnxruntime.InferenceSession, observations: Observation, noise: Array) -> dict[str, Array]:
        named = {**by_name(observations, self._spec.observation[0].name), self._spec.noise.name: noise}
        known = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
        names = [output.name for output in session.get_outputs()]
        answers = session.run(names, {name: named[name] for name in known if name in named})
        return dict(zip(names, answers, strict=True))


def along_sequences(cases: Answered) -> Answered:
    """Return golden sequences with what rounding may change along them, from their first step on."""
    if not isinstance(cases.rounding, Rounding):
        return cases
    return replace(cases, rounding=cases.rounding.along_sequences, margins=None).with_margins()


def _moved(answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Measure how far the outputs of the others are from those of the first, at most."""
    plain, *others = answers
    moved = {name: np.zeros(answer.shape) for name, answer in plain.items()}
    for other in others:
        for name, answer in other.items():
            with np.errstate(invalid="ignore", over="ignore"):
                difference = np.abs(answer.astype(np.float64) - plain[name].astype(np.float64))
            moved[name] = np.fmax(moved[name], np.nan_to_num(difference, posinf=np.inf))
    return moved


def undefined_choice(graph: bytes, feeds: Mapping[str, Array]) -> str | None:
    """Return the name of an operator that compares NaN with other numbers, or None."""
    model = onnx.load_from_string(graph)
    read = {name: node.op_type for node in model.graph.node if node.op_type in _CHOICES for name in node.input}
    made = {name for node in model.graph.node for name in node.output}
    names = sorted(read.keys() & made)
    if not names:
        return None
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    values = open_session(model.SerializeToString()).run(names, dict(feeds))
    undefined = [name for name, value in zip(names, values, strict=True) if _has_nan(value)]
    return read[undefined[0]] if undefined else None


def _has_nan(values: Array) -> bool:
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def _changed(model: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    """Change the numbers that enter the graph's sums at random, as rounding might."""
    inferred = onnx.shape_inference.infer_shapes(model)
    inner = list(graphs_of(inferred.graph))
    values = [value for graph in inner for value in (*graph.value_info, *graph.input, *graph.output)]
    types = {value.name: value.type.tensor_type for value in values}
    weights = {tensor.name: tuple(tensor.dims) for graph in inner for tensor in graph.initializer}
    for graph in inner:
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes += _changing(node, types, weights, inferred.graph, rng)
            nodes.append(node)
        set_field(graph.node, nodes)
    return bytes(inferred.SerializeToString())


def _changing(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto.Tensor],
    weights: Mapping[str, tuple[int, ...]],
    graph: onnx.GraphProto,
    rng: np.random.Generator,
) -> Iterator[onnx.NodeProto]:
    """Multiply the terms of a sum by 1 plus a random relative error, the same for every row."""
    if node.op_type not in _SUMS or not node.input:
        return
    data = types.get(node.input[0])
    if data is None or data.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return
    sizes = [dim.dim_value for dim in data.shape.dim]
    error = _FACTOR * math.sqrt(_terms(node, sizes, weights)) * _UNIT
    signs = rng.choice([-1.0, 1.0], sizes[-1] if sizes and sizes[-1] > 0 else ())
    name = f"{node.output[0]}/rounded"
    factor = (1.0 + error * signs).astype(helper.tensor_dtype_to_np_dtype(data.elem_type))
    graph.initializer.append(numpy_helper.from_array(np.asarray(factor), f"{name}/factor"))
    yield helper.make_node("Mul", [node.input[0], f"{name}/factor"], [name], name)
    node.input[0] = name


def _terms(node: onnx.NodeProto, sizes: list[int], weights: Mapping[str, tuple[int, ...]]) -> int:
    """Count the products in a sum: the number of its weights if it has any, but at most the numbers in a row."""
    row = math.prod(max(size, 1) for size in sizes[1:])
    shape = weights.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type in ("Conv", "ConvTranspose") and shape:
        return math.prod(shape[1:])
    if node.op_type in ("MatMul", "Gemm") and shape and len(shape) > 1:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return shape[-1] if transposed else shape[-2]
    return row
