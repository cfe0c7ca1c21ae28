"""Call a policy's TensorFlow functions on NumPy arrays."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.support.graph_optimization import unoptimized
from trpo_tf.serving.runtime.observations import Array, Observation, map_parts


class OnArrays:
    """A TensorFlow function of inputs [batch, ...] and noise [batch, k], called with arrays.

    It answers an array, or a dict of them, as the function does with tensors. It raises `ExportError` if the function
    does not answer every row, which its graph need not tell, or refuses one. The loop over batches runs in TensorFlow,
    because a call from Python takes longer than the network of a usual policy.
    """

    def __init__(self, function: Callable[[Any, Any], Any], signature: Sequence[Any]) -> None:
        """Take a function that is traced at the signature of inputs and noise, with a free batch."""
        self._signature = signature
        self._function = tf.function(function, signature, autograph=False)

    def __call__(self, inputs: Observation, noise: Array) -> Any:
        """Answer all rows at once."""
        with _refusal():
            answers = self._function(map_parts(tf.constant, inputs), tf.constant(noise))
        return _arrays(answers, len(noise))

    def in_batches(self, inputs: Observation, noise: Array, size: int) -> Any:
        """Answer the rows in batches of `size`, of which the last may be smaller."""
        with unoptimized(), _refusal():
            answers = self._loop(map_parts(tf.constant, inputs), tf.constant(noise), tf.constant(size))
        return _arrays(answers, len(noise))

    @functools.cached_property
    def _loop(self) -> Any:
        function = self._function

        def loop(inputs: Any, noise: Any, size: Any) -> Any:
            count = -(-tf.shape(noise)[0] // size)

            def step(batch: Any, kept: Any) -> tuple[Any, Any]:
                part = tf.nest.map_structure(lambda rows: rows[batch * size : (batch + 1) * size], (inputs, noise))
                written = tf.nest.map_structure(lambda array, rows: array.write(batch, rows), kept, function(*part))
                return batch + 1, written

            kept = tf.nest.map_structure(
                lambda rows: tf.TensorArray(rows.dtype, count, infer_shape=False, element_shape=rows.shape),
                function.get_concrete_function().structured_outputs,
            )
            kept = tf.while_loop(lambda batch, _: batch < count, step, (0, kept), parallel_iterations=1)[1]
            return tf.nest.map_structure(lambda array: array.concat(), kept)

        # A partial, since TensorFlow counts tracings by a function's code, and would warn of those of other policies.
        return tf.function(functools.partial(loop), [*self._signature, tf.TensorSpec((), tf.int32)], autograph=False)


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    """Raise `ExportError` with TensorFlow's reason if a function refuses what it is given, by an assertion say."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        reason = " ".join(error.message.partition("\n\t [[")[0].rpartition("\n\n")[2].split())
        raise ExportError(
            f"function fails on an observation within the spec's bounds ({reason}); declare the bounds that hold, or "
            "leave out what asserts them"
        ) from error


def _arrays(tensors: Any, rows: int) -> Any:
    def array(tensor: Any) -> Array:
        values: Array = tensor.numpy()
        if values.ndim and len(values) != rows:
            raise ExportError(
                f"function answers {len(values)} rows to {rows} observations; answer each, where tf.boolean_mask, say, "
                "leaves rows out"
            )
        return values

    return tf.nest.map_structure(array, tensors)
