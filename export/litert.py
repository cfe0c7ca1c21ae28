"""LiteRT (TensorFlow Lite): for phones and small boards, with the noise as an ordinary input.

What it can't carry: arrays of uint64, and continuous actions of other types than float32.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.lite.python.schema_py_generated import BuiltinOperator
from tensorflow.lite.tools import flatbuffer_utils

from export.function import InferenceFunction, PolicySpec
from export.litert_operations import OVERFLOWING, REPLACEMENTS, replace_operations
from export.onnx_graph import ExportError
from export.parity import Actor
from export.saved_model import signature_names
from serving.errors import install
from serving.observations import Array, Observation, batch_size, by_name, list_parts, structured
from serving.policy import draw_noise

# As in export.quantize: what is left in floats is what 8 bits would spoil.
_QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_LEFT_IN_FLOATS = [name for name in vars(BuiltinOperator) if name.isupper() and name not in _QUANTIZED]


def to_litert(function: InferenceFunction, spec: PolicySpec, *, int8_observations: Observation | None = None) -> bytes:
    """A model of one signature, whose inputs and output have the spec's names and types, and a free batch dimension.

    With `int8_observations` [n, ...], which should be some that the policy visits, matrix products and convolutions
    are of 8-bit integers, calibrated on them; inputs and output keep their types.

    Raises `ExportError` for an operation that LiteRT lacks, or for no observations.
    """
    if int8_observations is not None and batch_size(int8_observations) == 0:
        raise ExportError("int8_observations are empty; give some that the policy visits")
    with tempfile.TemporaryDirectory() as folder:
        _write_archive(function, spec, folder)
        replace_operations(Path(folder), OVERFLOWING)
        try:
            return _converted(folder, spec, int8_observations)
        except ConverterError as error:
            lacking = _lacking(error)
            if not lacking & REPLACEMENTS.keys():
                raise _inexpressible(error) from error
        # Not before: the converter knows GELU by its error function, which is faster than what stands for that.
        replace_operations(Path(folder), lacking)
        try:
            return _converted(folder, spec, int8_observations)
        except ConverterError as error:
            raise _inexpressible(error) from error


def _converted(folder: str, spec: PolicySpec, int8_observations: Observation | None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    with _quiet_stderr():
        if int8_observations is None:
            return _renamed(converter.convert(), spec)
        return _renamed(_quantized(converter, spec, int8_observations), spec)


def litert_actor(content: bytes, spec: PolicySpec) -> Actor:
    """The model in LiteRT's interpreter, which may not be called from several threads at once.

    Raises `ExportError` if LiteRT isn't installed or refuses the model.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(f"LiteRT is not installed; {install('litert')}") from error
    parts, noise = spec.signature()
    inputs = signature_names(spec)
    zeros = {
        inputs[tensor.name]: np.zeros((1, *tensor.shape[1:]), tensor.dtype.name)
        for tensor in (*list_parts(parts), noise)
    }
    try:
        with _quiet_stderr():
            run = Interpreter(model_content=content, num_threads=1).get_signature_runner()
            run(**zeros)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"LiteRT can't load the model: {error}") from error

    def act(observations: Observation, noise: Array) -> Array:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        return run(**{inputs[name]: array for name, array in feeds.items()})[spec.action.name]  # type: ignore[no-any-return]

    return act


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what native code writes on stderr: TensorFlow's converter and LiteRT say each time what they did."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _write_archive(function: InferenceFunction, spec: PolicySpec, folder: str) -> None:
    """Write a SavedModel by way of Keras: one that TensorFlow writes by itself converts to another function."""
    neutral = _neutral_names(spec)

    def serve(**inputs: Any) -> dict[str, Any]:
        named = {name: inputs[argument] for argument, name in neutral.items()}
        noise = named.pop(spec.noise.name)
        return {spec.action.name: function(structured(named), noise)}

    observation, noise = spec.signature()
    tensors: dict[str, Any] = {**by_name(observation, spec.observation[0].name), spec.noise.name: noise}
    endpoint = tf.function(serve, autograph=False)
    endpoint.get_concrete_function(
        **{
            argument: tf.TensorSpec(tensors[name].shape, tensors[name].dtype, argument)
            for argument, name in neutral.items()
        }
    )
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", endpoint)
    archive.write_out(folder, verbose=False)


def _neutral_names(spec: PolicySpec) -> dict[str, str]:
    """Arguments that any TensorFlow function may have, each with the name of the input that it stands for."""
    names = [*(part.name for part in spec.observation), spec.noise.name]
    return {f"graph_input_{place}": name for place, name in enumerate(names)}


def _renamed(content: bytes, spec: PolicySpec) -> bytes:
    """The model with the names of `signature_names` for its signature's inputs, in which upper case is kept."""
    model: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    neutral, names = _neutral_names(spec), signature_names(spec)
    for signature in model.signatureDefs:
        for tensor in signature.inputs:
            tensor.name = names[neutral[tensor.name.decode()]].encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _quantized(converter: Any, spec: PolicySpec, observations: Observation) -> bytes:
    """Convert with the products alone in 8 bits, which only TensorFlow's debugger of quantisation can do."""
    noise = draw_noise(spec.noise, batch_size(observations), np.random.default_rng(0))

    def calibration() -> Iterator[dict[str, Array]]:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        yield {argument: feeds[name] for argument, name in _neutral_names(spec).items()}

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibration
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=_LEFT_IN_FLOATS)
    with warnings.catch_warnings():
        # It opens the model that it would debug in tf.lite's interpreter, which is to go in a later release.
        warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated", UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=calibration, debug_options=options
        )
    return bytes(debugger.get_nondebug_quantized_model())


def _lacking(error: ConverterError) -> set[str]:
    """The operations that an error names, without the prefix of TensorFlow's dialect."""
    return {data.operator.name.removeprefix("tf.") for data in error.errors} - {""}


def _inexpressible(error: ConverterError) -> ExportError:
    what = ", ".join(sorted(_lacking(error))) or str(error).partition("\n")[0]
    return ExportError(f"{what} can't be expressed in LiteRT; replace it in the network")
