"""Quantize matrix products and convolutions of ONNX graphs to 8 bits; all else stays in floats.

These stay in floats, since 8 bits would spoil them: observations before they are normalised, the noise, and the
conversion to the action's units. So do the products of `kept_in_floats`, whose errors would add up along an episode.
Weights take 7 bits: products of 8-bit numbers saturate on x86 processors without VNNI, where the file would act
differently.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path

import onnx

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.check import check_graph
from trpo_tf.export.graph.editing import names_read, set_field
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name

_OPERATORS = ["MatMul", "Gemm", "Conv"]
_CALIBRATION_ROWS = 64
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Metadata that says that the model was prepared: without it, the quantiser writes a warning."""


def quantize_dynamic(model: bytes, spec: PolicySpec) -> bytes:
    """Quantize weights to 8 bits. The inputs of products are quantized in each call, by their range in it.

    Raises `ExportError` if the result isn't a graph that `check_graph` admits.
    """
    from onnxruntime import quantization  # here, since telemetry must be off first

    def quantize(source: onnx.ModelProto, target: str, kept: list[str]) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=kept,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
        )

    return _quantized(model, spec, quantize)


def quantize_static(model: bytes, spec: PolicySpec, observations: Observation, noise: Array) -> bytes:
    """Quantize weights and inputs of products to 8 bits, with the ranges of a calibration.

    Calibrate on observations [n, ...] that the policy visits, with noise [n, k] of its law: beyond their range values
    are clipped.

    Raises `ExportError` for no observations, or if the result isn't a graph that `check_graph` admits.
    """
    from onnxruntime import quantization  # here, since telemetry must be off first

    if batch_size(observations) == 0:
        raise ExportError("observations are empty; give some that the policy visits")
    feeds = {**by_name(observations, spec.observation[0].name), spec.noise.name: noise}

    def quantize(source: onnx.ModelProto, target: str, kept: list[str]) -> None:
        quantization.quantize_static(
            source,
            target,
            _Calibration({i.name: feeds[i.name] for i in source.graph.input}),
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=kept,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
        )

    return _quantized(model, spec, quantize)


def kept_in_floats(of_action: Set[str], of_states: Iterable[Set[str]]) -> set[str]:
    """Return the products that the next state depends on, from those of the action and of each array of the state.

    An array that depends on all products of the action, such as the previous action, errs as the action does, and is
    left out. None are kept if nothing of the action would be left to quantize.
    """
    kept = set().union(*(products for products in of_states if not products >= of_action))
    return set() if kept >= of_action else kept


def _state_products(graph: onnx.GraphProto, spec: PolicySpec) -> list[str]:
    """Name the products of `kept_in_floats`."""
    producers = {name: node for node in graph.node for name in node.output}
    of_states = [_products(each.next_name, producers) for each in spec.state]
    return sorted(kept_in_floats(_products(spec.action.name, producers), of_states))


def _products(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Name the products that a tensor depends on."""
    pending, seen, names = [tensor], set[str](), set[str]()
    while pending:
        tensor = pending.pop()
        if tensor in seen or tensor not in producers:
            continue
        seen.add(tensor)
        node = producers[tensor]
        pending.extend(names_read([node]))
        if node.op_type in _OPERATORS:
            names.add(node.name)
    return names


def _with_inputs_apart(graph: onnx.GraphProto, kept: list[str]) -> None:
    """Copy the inputs of the products that are quantized: ONNX Runtime quantizes a tensor for all that read it."""
    nodes = list(graph.node)
    for place, node in enumerate(graph.node):
        if node.op_type in _OPERATORS and node.name not in kept:
            copy = f"{node.input[0]}_copy_{place}"
            nodes.insert(nodes.index(node), onnx.helper.make_node("Identity", [node.input[0]], [copy]))
            node.input[0] = copy
    set_field(graph.node, nodes)


class _Calibration:
    """Batches for ONNX Runtime's calibration, which calls `get_next` until it returns None."""

    def __init__(self, feeds: dict[str, Array]) -> None:
        self._batches = _batches(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _batches(feeds: dict[str, Array]) -> Iterator[dict[str, Array]]:
    rows = len(next(iter(feeds.values())))
    for start in range(0, rows, _CALIBRATION_ROWS):
        yield {name: array[start : start + _CALIBRATION_ROWS] for name, array in feeds.items()}


def _quantized(content: bytes, spec: PolicySpec, quantize: Callable[[onnx.ModelProto, str, list[str]], None]) -> bytes:
    model = onnx.load_from_string(content)
    source = onnx.load_from_string(content)
    source.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])
    # Quantised with every input required, since ONNX Runtime warns of an optional one each time that it loads it.
    inputs = {i.name for i in model.graph.input}
    optional = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    for tensor in optional:
        source.graph.initializer.remove(tensor)
    if kept := _state_products(source.graph, spec):
        _with_inputs_apart(source.graph, kept)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        quantize(source, str(target), kept)
        quantized = onnx.load(target)
    quantized.graph.initializer.extend(optional)
    set_field(quantized.metadata_props, model.metadata_props)
    check_graph(quantized)
    return bytes(quantized.SerializeToString())
