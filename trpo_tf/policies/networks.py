"""Build the default Keras networks, and turn any network into a function of a flat parameter vector."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.policies.dense_jacobian import is_chain, linearize_chain
from trpo_tf.policies.running_stats import Moments
from trpo_tf.solvers.fisher_product import Linearization, linearize


def mlp(
    inputs: int,
    hidden_sizes: Sequence[int],
    outputs: int,
    *,
    activation: str = "tanh",
    last_layer_scale: float = 1.0,
    seed: int = 0,
    dtype: str = "float32",
) -> keras.Model:
    """Return a multilayer perceptron with orthogonal initial weights, of gain sqrt(2) but the last, and zero biases."""
    seeds = np.random.SeedSequence(seed).generate_state(len(hidden_sizes) + 1)

    def orthogonal(gain: float, index: int) -> keras.Initializer:
        return keras.initializers.Orthogonal(gain, seed=int(seeds[index]))

    layers = [
        keras.layers.Dense(size, activation, kernel_initializer=orthogonal(np.sqrt(2.0), i), dtype=dtype)
        for i, size in enumerate(hidden_sizes)
    ]
    scale = orthogonal(last_layer_scale, len(hidden_sizes))
    last = keras.layers.Dense(outputs, kernel_initializer=scale, dtype=dtype)
    return keras.Sequential([keras.Input((inputs,), dtype=dtype), *layers, last])


def cnn(
    inputs: Sequence[Any],
    hidden_sizes: Sequence[int],
    outputs: int,
    *,
    activation: str = "tanh",
    last_layer_scale: float = 1.0,
    seed: int = 0,
) -> keras.Model:
    """Return a network of two convolutions for each image, followed by an `mlp`.

    The convolutions have 16 channels and stride 2 (Schulman et al. 2015, appendix D). `inputs` are `tf.TensorSpec`s:
    images are bytes [batch, height, width, channels], scaled to 0 to 1 here. Numbers [batch, width] are concatenated
    with the images' features.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(2 * len(inputs) + 1))

    def convolution() -> keras.layers.Layer:
        orthogonal = keras.initializers.Orthogonal(np.sqrt(2.0), seed=int(next(seeds)))
        return keras.layers.Conv2D(
            *(16, 4, 2),
            data_format="channels_last",  # whatever the user's keras.json says
            activation=activation,
            kernel_initializer=orthogonal,
            dtype="float32",
        )

    entries = [keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype.name) for spec in inputs]
    features = []
    for entry in entries:
        if len(entry.shape) == 2:
            features.append(entry)
            continue
        pixels = keras.layers.Rescaling(1 / 255, dtype="float32")(entry)
        flatten = keras.layers.Flatten(data_format="channels_last", dtype="float32")
        features.append(flatten(convolution()(convolution()(pixels))))
    joined = features[0] if len(features) == 1 else keras.layers.Concatenate(dtype="float32")(features)
    last = mlp(
        joined.shape[1],
        hidden_sizes,
        outputs,
        activation=activation,
        last_layer_scale=last_layer_scale,
        seed=int(next(seeds)),
    )
    return keras.Model(entries if len(entries) > 1 else entries[0], last(joined))


def default_network(inputs: Sequence[Any], hidden_sizes: Sequence[int], outputs: int, **options: Any) -> keras.Model:
    """Return an `mlp` for numbers alone, or a `cnn` if there are images; `options` are passed on."""
    if len(inputs) == 1 and len(inputs[0].shape) == 2:
        return mlp(inputs[0].shape[1], hidden_sizes, outputs, **options)
    return cnn(inputs, hidden_sizes, outputs, **options)


class PureNetwork:
    """A Keras network as a function of one flat parameter vector.

    Extra parameters that no layer holds (a log standard deviation) are at the vector's end.
    """

    def __init__(self, network: keras.Model, extra: Sequence[tuple[int, ...]] = ()) -> None:
        """Take a built network that `check_trainable` accepts, and the shapes of extra parameters.

        Its variables that are not trained keep their present values.
        """
        self.network = network
        self._constants = [v.numpy() for v in network.non_trainable_variables]
        self.shapes = [tuple(v.shape) for v in network.trainable_variables] + [tuple(s) for s in extra]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.is_chain = is_chain(network)
        self.dense_only = all(len(shape) <= 2 for shape in self.shapes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def flat(self, *extra: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the network's present weights, then `extra`, as one vector."""
        arrays = [v.numpy() for v in self.network.trainable_variables] + list(extra)
        return np.concatenate([a.ravel() for a in arrays]).astype(np.float32)

    def split(self, theta: Any) -> list[Any]:
        """Return the parts of the tensor `theta` in their shapes: the network's weights, then the extra parameters."""
        return [tf.reshape(part, shape) for part, shape in zip(tf.split(theta, self.sizes), self.shapes, strict=True)]

    def split_array(self, theta: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the parts of the NumPy array `theta` in their shapes, in the order of `split`."""
        parts = np.split(theta, np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def apply(self, parts: Sequence[Any], inputs: Any) -> tuple[Any, list[Any]]:
        """Return the network's output [batch, outputs] for its weights in `parts`, and the extra parameters."""
        count = len(self.network.trainable_variables)
        values = list(inputs) if isinstance(inputs, tuple) else inputs
        output, _ = self.network.stateless_call(list(parts[:count]), self._constants, values)
        return output, list(parts[count:])

    def linearize(self, weights: Sequence[Any], inputs: Any) -> Linearization:
        """Return the linearisation, at `weights`, of the output [batch, outputs] as a function of the weights."""
        if self.is_chain:
            return linearize_chain(self.network, weights, inputs)
        return linearize(lambda parts: self.apply(parts, inputs)[0], list(weights))

    def linearize_with_inputs(self, weights: Sequence[Any], inputs: Any) -> Linearization:
        """Return the linearisation of the output [batch, outputs] in the weights and, after them, the inputs."""
        if self.is_chain:
            return linearize_chain(self.network, weights, inputs, with_inputs=True)
        return linearize(lambda point: self.apply(point[:-1], point[-1])[0], [*weights, inputs])

    def recentred(
        self,
        theta: NDArray[np.float32],
        before: Moments,
        after: Moments,
        least_deviation: float,
        kernels: Sequence[int] = (0,),
    ) -> NDArray[np.float32]:
        """Return parameters whose outputs with the statistics `after` are those of `theta` with `before`.

        The network must be a chain of dense layers whose first inputs are the standardised numbers. Outputs may differ
        for clipped observations. A number that had not varied `before` keeps its weights, since its deviation meant
        nothing. `kernels` are the places, among the parts of `split`, of all kernels that these inputs meet; a bias
        follows each.
        """
        has_varied = before.has_varied
        before, after = before.widened(least_deviation), after.widened(least_deviation)
        parts = [np.array(part, np.float64) for part in self.split_array(theta)]
        for place in kernels:
            seen, bias = parts[place][: len(before.mean)], parts[place + 1]
            bias += (seen * before.scale[:, np.newaxis] * (after.mean - before.mean)[:, np.newaxis]).sum(axis=0)
            seen *= np.where(has_varied, before.scale / after.scale, 1.0)[:, np.newaxis]
        return np.concatenate([part.ravel() for part in parts]).astype(np.float32)

    def assign(self, theta: NDArray[np.float32]) -> None:
        """Assign the weights in `theta` to the Keras network."""
        parts = self.split_array(theta)
        for variable, part in zip(self.network.trainable_variables, parts, strict=False):
            variable.assign(part)
