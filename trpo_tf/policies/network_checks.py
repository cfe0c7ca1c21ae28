"""Check that a Keras network can be trained here, before anything is written."""

import inspect
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.errors import UserError
from trpo_tf.serving import StateSpec

_ROWS = 4
_LOOPS = {"While", "StatelessWhile"}
_READ_BACK = (
    "register a class or function of your own with keras.saving.register_keras_serializable, in a module that is "
    "imported before the run is read, and make a layer class of a lambda"
)


class NetworkMismatch(UserError):
    """Error of a network whose inputs or output do not fit the environment and the algorithm."""


def check_shapes(network: Any, inputs: Sequence[Any], outputs: int, name: str, state: Sequence[StateSpec] = ()) -> None:
    """Raise `UserError` unless `network` is a Keras model that maps `inputs` to [batch, outputs]; build it if need be.

    Args:
        network: object that was given as a network.
        inputs: `tf.TensorSpec`s with a free batch dimension.
        outputs: numbers in a row of the output.
        name: what messages call the network.
        state: what the network gives the next values of, in a list behind the output.
    """
    if not isinstance(network, keras.Model):
        raise UserError(
            f"{name} must be a keras.Model (of Keras 3), such as keras.Sequential([...]); it is {_kind(network)}"
        )
    _check_no_hidden_state(network, name)
    try:
        output = network(_probes(inputs))
    except Exception as error:
        wanted = " and ".join(f"{tuple(spec.shape)}" for spec in inputs)
        reason = _other_inputs(network, inputs) or _reason(error)
        raise NetworkMismatch(f"{name} doesn't take inputs of shape {wanted}: {reason}") from error
    if not state:
        if not tf.is_tensor(output):
            raise NetworkMismatch(f"{name} gives {_kind(output)}; it must give one tensor, (None, {outputs})")
        _check_output(output, (outputs,), name, "output")
        return
    if not isinstance(output, list | tuple) or len(output) != 1 + len(state):
        wanted = ", ".join(["output", *(spec.next_name for spec in state)])
        raise NetworkMismatch(f"{name} gives {_kind(output)}; with this policy_state it must give a list, [{wanted}]")
    _check_output(output[0], (outputs,), name, "output")
    for spec, after in zip(state, output[1:], strict=True):
        _check_output(after, spec.shape, name, spec.next_name)


def _check_no_hidden_state(network: keras.Model, name: str) -> None:
    """Raise `UserError` if a layer keeps its state from call to call in a variable of its own."""
    for layer in network._flatten_layers(include_self=False, recursive=True):
        if getattr(layer, "stateful", False) is True:
            raise UserError(
                f"{name} has a layer that keeps its state itself ({layer.name}, stateful=True), so that steps would "
                "depend on each other unseen; let the network take and give the state, and describe it by policy_state"
            )


def _other_inputs(network: keras.Model, inputs: Sequence[Any]) -> str:
    """Return what the network takes, if that can be told and is something else; otherwise nothing."""
    if isinstance(getattr(network, "input", None), dict):
        return "it takes a dict; let it take a list, in this order"
    taken = getattr(network, "input_shape", None)
    wanted = [tuple(spec.shape) for spec in inputs]
    if taken is None or taken == (wanted if len(wanted) > 1 else wanted[0]):
        return ""
    return f"it takes {taken}"


def _check_output(output: Any, wanted: tuple[int, ...], name: str, what: str) -> None:
    shape = tuple(output.shape)
    if shape != (_ROWS, *wanted):
        shown = (None, *shape[1:]) if shape[:1] == (_ROWS,) else f"{shape} for {_ROWS} rows"
        raise NetworkMismatch(f"{name}'s {what} has shape {shown}; it must be {(None, *wanted)}")


def check_trainable(network: keras.Model, inputs: Sequence[Any], name: str) -> None:
    """Raise `UserError` unless the network is a function of its input and its trained weights, and can be read back.

    Call this after `check_shapes`, with the same network, inputs and name.
    """
    _check_floats(network, name)
    _check_objective(network, name)
    probes, rng = _probes(inputs), np.random.default_rng(0)
    # Perturbed, since a last layer of zeros would hide the layers before it.
    weights = [tf.constant(v.numpy() + 0.1 * rng.normal(size=v.shape), tf.float32) for v in network.trainable_variables]
    _check_graph(network, inputs, name)
    _check_state(network, weights, probes, name)
    _check_rows(network, weights, probes, name)
    _check_reads_back(network, weights, probes, name)


def architecture(network: keras.Model, name: str) -> str:
    """Return the network without weights and compile settings, as JSON. Raises `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas, also in the compile settings
            document = json.loads(network.to_json())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"{name} can't be written as JSON: {_reason(error)}; give it a get_config") from error
    document.pop("compile_config", None)
    return json.dumps(document, indent=2)


def from_architecture(path: Path) -> keras.Model:
    """Return the network that a file of `architecture` describes. Raises `UserError`."""
    try:
        return keras.models.model_from_json(path.read_text())
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} can't be read: {_reason(error)}; {_READ_BACK}") from error


def _probes(inputs: Sequence[Any]) -> Any:
    """Return a few rows of random numbers, or of bytes, as the network's input."""
    rng = np.random.default_rng(0)

    def rows(spec: Any) -> NDArray[Any]:
        shape, dtype = (_ROWS, *spec.shape[1:]), spec.dtype.as_numpy_dtype
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, 256, shape).astype(dtype)
        return rng.normal(size=shape).astype(dtype)

    probes = [rows(spec) for spec in inputs]
    return probes if len(probes) > 1 else probes[0]


def _check_floats(network: keras.Model, name: str) -> None:
    """Raise `UserError` if a layer computes or stores in another float type than float32.

    A step that keeps within its trust region needs float32, so mixed precision is not supported.
    """
    for layer in _layers(network):
        for dtype in (layer.compute_dtype, layer.variable_dtype):
            if "float" in str(dtype) and dtype != "float32":
                raise UserError(
                    f"{name} computes in {dtype} (layer {layer.name}), and must in float32; make it with "
                    "dtype='float32', or call keras.config.set_dtype_policy('float32') before"
                )


def _check_objective(network: keras.Model, name: str) -> None:
    """Raise `UserError` unless all trained weights are finite, or if the network adds to the loss or constrains them.

    Keras's own training would apply such losses and constraints; the updates here do not.
    """
    if not network.trainable_variables:
        raise UserError(f"{name} has no weights that are trained; set trainable = True, or add a layer")
    for variable in network.trainable_variables:
        if not np.isfinite(variable.numpy()).all():
            raise UserError(f"{name} has weights that are not finite ({variable.path}); check its initializers")
    if network.losses:
        penalised = [v.path for v in network.trainable_variables if getattr(v, "regularizer", None) is not None]
        where = f"the regularizer of {penalised[0]}" if penalised else "an activity_regularizer, or add_loss"
        raise UserError(f"{name} adds to the loss ({where}), which is not what is optimised here; leave it out")
    for variable in network.trainable_variables:
        if getattr(variable, "constraint", None) is not None:
            raise UserError(f"{name} has a constraint on {variable.path}, which no update here keeps; leave it out")


def _check_state(network: keras.Model, weights: Sequence[Any], probes: Any, name: str) -> None:
    acting, changed = _called(network, weights, probes)
    training, changed_in_training = _called(network, weights, probes, training=True)
    if changed_in_training != changed or not _alike(acting, training):
        where = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in _training_layers(network)[:3])
        raise UserError(
            f"{name} computes something else in training (noise, statistics of the batch) than when it acts: {where}; "
            "leave this out, since here a policy acts as it is trained"
        )
    if changed:
        raise UserError(f"{name} changes its state in each call ({changed[0]}); make it a function of its input alone")


def _check_rows(network: keras.Model, weights: Sequence[Any], probes: Any, name: str) -> None:
    first = [part[:1] for part in probes] if isinstance(probes, list) else probes[:1]
    if not _alike(_called(network, weights, probes)[0][:1], _called(network, weights, first)[0]):
        raise UserError(f"{name}'s output for a row depends on the other rows; a policy acts on one row at a time")


def _called(
    network: keras.Model, weights: Sequence[Any], probes: Any, *, training: bool = False
) -> tuple[Any, list[str]]:
    """Return the output with `weights` for the trained ones, and the variables that the call would change.

    Several outputs [batch, ...] are returned side by side.
    """
    mapping = list(zip(network.trainable_variables, weights, strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        output = network(probes, training=training)
    if isinstance(output, list | tuple):
        output = np.concatenate([np.reshape(part, (part.shape[0], -1)) for part in output], axis=1)
    after = [(variable, scope.get_current_value(variable)) for variable in network.non_trainable_variables]
    return output, [v.path for v, value in after if value is not None and not np.array_equal(v.numpy(), value)]


def _alike(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def _check_graph(network: keras.Model, inputs: Sequence[Any], name: str) -> None:
    values = list(inputs) if len(inputs) > 1 else inputs[0]
    try:
        traced = tf.function(lambda given: network(given), autograph=False).get_concrete_function(values)
    except Exception as error:
        raise UserError(f"{name} can't be made a TensorFlow graph: {_reason(error)}") from error
    graph = traced.graph.as_graph_def()
    if _LOOPS & {node.op for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part}:
        raise UserError(
            f"{name} runs a loop (tf.while_loop), through which the products with the Fisher matrix can't be "
            "differentiated; give recurrent layers unroll=True"
        )


def _check_reads_back(network: keras.Model, weights: Sequence[Any], probes: Any, name: str) -> None:
    """Raise `UserError` unless the architecture and the trained weights alone restore the network."""
    text = architecture(network, name)
    try:
        again = keras.models.model_from_json(text)
        again(probes)
    except Exception as error:
        raise UserError(f"{name} can't be read back after training: {_reason(error)}; {_READ_BACK}") from error
    same = [tuple(v.shape) for v in network.trainable_variables] == [tuple(v.shape) for v in again.trainable_variables]
    if not same or not _alike(*(_called(each, weights, probes)[0] for each in (network, again))):
        untrained = ", ".join(v.path for v in network.non_trainable_variables[:3])
        reason = (
            f"weights that are not trained are not saved ({untrained}); train them, or let the layer's arguments make "
            "them again, as those of Normalization(mean=..., variance=...) do"
            if untrained
            else "a layer that stands twice in a Sequential stands there once; call it twice in a functional model"
            if len(again.layers) < len(network.layers)
            else "check its get_config"
        )
        raise UserError(f"{name} is another network when it is read back from its architecture: {reason}")


def _layers(network: keras.Model) -> list[Any]:
    """Return the layers at any depth, without inputs and Keras's own models, which only hold other layers."""
    return [
        layer
        for layer in network._flatten_layers(include_self=True, recursive=True)
        if not (isinstance(layer, keras.layers.InputLayer) or (isinstance(layer, keras.Model) and _is_keras_s(layer)))
    ]


def _training_layers(network: keras.Model) -> list[Any]:
    """Return layers that may act differently in training, or else the network.

    Their `call` takes `training`, and they are the user's own, or Keras's with a state.
    """
    knowing = [layer for layer in _layers(network) if "training" in inspect.signature(layer.call).parameters]
    return [layer for layer in knowing if not _is_keras_s(layer) or layer.non_trainable_variables] or [network]


def _is_keras_s(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, list | tuple | dict):
        return f"{len(value)} outputs"
    if tf.is_tensor(value):
        return f"one tensor, {(None, *value.shape[1:])}"
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")


def _reason(error: Exception) -> str:
    """Return the line of a Keras error that says what is wrong, without terminal colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    telling = [
        line for line in lines if line and not line.startswith(("Exception encountered when calling", "in user"))
    ]
    return telling[0].split(". ")[0].rstrip(".") if telling else type(error).__name__
