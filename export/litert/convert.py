"""Convert to LiteRT (TensorFlow Lite), for phones and small boards, with the noise as an ordinary input.

It refuses arrays of uint64 and continuous actions of other types than float32.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.lite.python.schema_py_generated import BuiltinOperator
from tensorflow.lite.tools import flatbuffer_utils

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.quantize import kept_in_floats
from trpo_tf.export.litert.errors import inexpressible, lacking
from trpo_tf.export.litert.narrow_integers import narrow_integers
from trpo_tf.export.litert.operator_rewrites import COMPUTED_WORSE, REPLACEMENTS, replace_operations
from trpo_tf.export.litert.quiet_stderr import quiet_stderr
from trpo_tf.export.litert.weight_scales import check_scales, keep_scales
from trpo_tf.export.policy.functions import PolicyFunction
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.policy.signature_names import signature_names
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name, structured

# As in trpo_tf.export.graph.quantize: what is left in floats is what 8 bits would spoil.
_QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_LEFT_IN_FLOATS = [name for name in vars(BuiltinOperator) if name.isupper() and name not in _QUANTIZED]


def to_litert(
    function: PolicyFunction,
    spec: PolicySpec,
    *,
    batch: int | None = None,
    int8_observations: Observation | None = None,
) -> bytes:
    """Convert to a model of one signature, whose inputs and outputs have the spec's names and types.

    Args:
        function: the policy; one with state answers the next state, too.
        spec: its arrays. Integer actions of 64 bits become 32 bits wide if they are indices of largest scores,
            unless the state has integers of 64 bits.
        batch: the one number of rows that the model takes, which recurrent layers need; any if absent.
        int8_observations: observations [n, ...] that the policy visits, or inputs of one with state. If given, matrix
            products and convolutions are computed in 8 bits, calibrated on these. Inputs and outputs keep their types.

    Raises:
        ExportError: an operation that LiteRT lacks, or no observations.
    """
    if int8_observations is not None and batch_size(int8_observations) == 0:
        raise ExportError("int8_observations are empty; give some that the policy visits")
    with tempfile.TemporaryDirectory() as folder:
        _write_archive(function, spec, folder, batch)
        replace_operations(Path(folder), COMPUTED_WORSE)
        if int8_observations is not None:
            keep_scales(Path(folder))
        try:
            return _converted(folder, spec, batch, int8_observations)
        except ConverterError as error:
            replaceable = lacking(error) & REPLACEMENTS.keys()
            if not replaceable:
                raise inexpressible(error) from error
        # Not before: the converter knows GELU by its error function, which is faster than what stands for that.
        replace_operations(Path(folder), replaceable)
        try:
            return _converted(folder, spec, batch, int8_observations)
        except ConverterError as error:
            raise inexpressible(error) from error


def _converted(folder: str, spec: PolicySpec, batch: int | None, int8_observations: Observation | None) -> bytes:
    with quiet_stderr():
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        model: Any = _parsed(converter.convert())
        if int8_observations is not None:
            _check_quantizable(model)
            kept = _state_products(model, spec)
            model = _parsed(_quantized(converter, spec, batch, int8_observations, kept))
            check_scales(model, [getattr(BuiltinOperator, name) for name in _QUANTIZED])
    _rename_inputs(model, spec)
    if not any(np.dtype(each.dtype).kind in "iu" and np.dtype(each.dtype).itemsize == 8 for each in spec.state):
        narrow_integers(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _write_archive(function: PolicyFunction, spec: PolicySpec, folder: str, batch: int | None) -> None:
    """Write a SavedModel by Keras. One by TensorFlow is silently converted to a different function."""
    neutral, outputs = _neutral_names(spec), all_outputs(function, spec)

    def serve(**inputs: Any) -> dict[str, Any]:
        named = {name: inputs[argument] for argument, name in neutral.items()}
        noise = named.pop(spec.noise.name)
        return outputs(structured(named), noise)

    observation, noise = spec.signature()
    tensors: dict[str, Any] = {**by_name(observation, spec.observation[0].name), spec.noise.name: noise}
    endpoint = tf.function(serve, autograph=False)
    endpoint.get_concrete_function(
        **{
            argument: tf.TensorSpec((batch, *tensors[name].shape[1:]), tensors[name].dtype, argument)
            for argument, name in neutral.items()
        }
    )
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", endpoint)
    archive.write_out(folder, verbose=False)


def _neutral_names(spec: PolicySpec) -> dict[str, str]:
    """Map neutral argument names, which TensorFlow keeps, to the names of the inputs."""
    names = [*(part.name for part in spec.step_inputs), spec.noise.name]
    return {f"graph_input_{place}": name for place, name in enumerate(names)}


def _check_quantizable(model: Any) -> None:
    """Raise `ExportError` for graphs on which LiteRT's quantiser crashes the process."""
    if len(model.subgraphs) > 1:
        raise ExportError("8 bits in LiteRT go with no loop or branch; unroll recurrent layers (unroll=True)")
    codes = {max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes}
    if codes.isdisjoint(getattr(BuiltinOperator, name) for name in _QUANTIZED):
        raise ExportError("the function has no matrix product and no convolution to compute in 8 bits; use floats")


def _products(operators: Iterable[Any], model: Any) -> list[Any]:
    quantized = [getattr(BuiltinOperator, name) for name in _QUANTIZED]
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return [operator for operator in operators if codes[operator.opcodeIndex] in quantized]


def _state_products(model: Any, spec: PolicySpec) -> list[str]:
    """Name the results of the products of `kept_in_floats`."""
    (graph,), signature = model.subgraphs, model.signatureDefs[0]
    producers = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    outputs = {output.name.decode(): output.tensorIndex for output in signature.outputs}

    def products(name: str) -> set[str]:
        pending, found = [outputs[name]], dict[int, Any]()
        while pending:
            tensor = pending.pop()
            operator = producers.get(tensor)
            if operator is not None and tensor not in found:
                found[tensor] = operator
                pending.extend(operator.inputs)
        return {graph.tensors[each.outputs[0]].name.decode() for each in _products(found.values(), model)}

    return sorted(kept_in_floats(products(spec.action.name), [products(each.name) for each in spec.next_state]))


def _parsed(content: bytes) -> Any:
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def _rename_inputs(model: Any, spec: PolicySpec) -> None:
    """Give the signature's inputs the names of `signature_names`, in which upper case is kept."""
    neutral, names = _neutral_names(spec), signature_names(spec)
    for signature in model.signatureDefs:
        for tensor in signature.inputs:
            tensor.name = names[neutral[tensor.name.decode()]].encode()


def _quantized(
    converter: Any, spec: PolicySpec, batch: int | None, observations: Observation, kept: list[str]
) -> bytes:
    """Convert with only the products in 8 bits, but for those that are `kept` in floats.

    TensorFlow offers this choice only in its quantization debugger.
    """
    noise = draw_noise(spec.noise, batch_size(observations), np.random.default_rng(0))

    def calibration() -> Iterator[dict[str, Array]]:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        size = batch or len(noise)
        for start in range(0, len(noise), size):
            rows = np.arange(start, start + size) % len(noise)
            yield {argument: feeds[name][rows] for argument, name in _neutral_names(spec).items()}

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibration
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=_LEFT_IN_FLOATS, denylisted_nodes=kept)
    with warnings.catch_warnings():
        # It opens the model that it would debug in tf.lite's interpreter, which is to go in a later release.
        warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated", UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=calibration, debug_options=options
        )
    return bytes(debugger.get_nondebug_quantized_model())
