"""Runs a policy's graph on single observations through IOBinding: buffers are allocated and bound once.

A call then allocates nothing but its result.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec, StateSpec
from trpo_tf.serving.runtime.action_masks import mask_check
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime


class BoundGraph:
    """The graph for single observations, given as arrays exactly as the manifest declares them.

    May be called from several threads. Each call takes a set of buffers that no other call uses, and puts it back. So
    there are as many sets as there were calls at the same time. (Buffers per thread would not do: a signal handler may
    interrupt a call and call again in the same thread.)
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        """Keep the session; buffers are allocated and bound at the first call."""
        self._session, self._manifest = session, manifest
        self._idle: list[BoundRow] = []

    def __call__(self, observation: Any, noise: Array | None) -> Any:
        """Return the action for one observation and noise [1, k]; noise None means the deterministic action.

        Returns None unless the observation consists of finite arrays of the declared dtypes and shapes, and the noise
        fits the graph's noise input. Raises `FloatingPointError` if the action is not finite, and `ValueError` for a
        mask that allows no action.
        """
        try:
            row = self._idle.pop()
        except IndexError:
            row = BoundRow(self._session, self._manifest)
        try:
            return row(observation, noise)
        finally:
            self._idle.append(row)


class BoundRow:
    """One set of buffers and its bindings, for one call at a time.

    Attributes:
        binding: binds the observation and the deterministic action.
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        """Allocate the buffers and bind them."""
        self._session, graph, noise, action = session, manifest.graph, manifest.noise, manifest.action
        observation = {spec.name: zeros(spec) for spec in manifest.observation}
        self._observation = {name: Buffer(array[0, ...]) for name, array in observation.items()}
        self._check_mask = checker(manifest, observation)
        self._noise, self._zero_noise, self._rows = Buffer(zeros(noise)), zeros(noise), zeros(action)
        self._action = Buffer(self._rows[0, ...])
        self._answer = copier(self._action.array)
        required = {noise.name: self._zero_noise} if graph.noise == "required" else {}
        self.binding = self._bind(observation | required, action.name)
        self._sampling = None
        if graph.noise != "none":
            self._sampling = self._bind(observation | {noise.name: self._noise.array}, action.name)

    def __call__(self, observation: Any, noise: Array | None) -> Any:
        """Return the action, or None, as `BoundGraph` does."""
        if not self.take(observation):
            return None
        binding = self.binding
        if noise is not None:
            binding = self._sampling
            if binding is None or not self._noise.take(noise):
                return None
        self._session.run_with_iobinding(binding)
        if not self._action.is_finite():
            raise FloatingPointError("the action is not finite; check the observation against its bounds")
        return self._answer()

    def take(self, observation: Any) -> bool:
        """Copy an observation into the buffers; return whether its arrays are finite and as declared.

        Raises `ValueError` for a mask that allows no action.
        """
        buffers = self._observation
        if len(buffers) == 1:
            (buffer,) = buffers.values()
            return buffer.take(observation) and buffer.is_finite()
        if type(observation) is not dict:
            return False
        for name, buffer in buffers.items():
            if not (buffer.take(observation.get(name)) and buffer.is_finite()):
                return False
        self._check_mask()
        return True

    def _bind(self, inputs: dict[str, Array], output: str) -> onnxruntime.IOBinding:
        """Bind inputs and output by address; the buffers must live as long as the binding."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(output, "cpu", 0, self._rows.dtype, self._rows.shape, self._rows.ctypes.data)
        return binding


class Buffer:
    """An array into which arrays of the same dtype and shape are copied, with a fast check for finite values."""

    __slots__ = ("_dtype", "_finite", "_mask", "_shape", "array")

    def __init__(self, array: Array) -> None:
        self.array, self._dtype, self._shape = array, array.dtype, array.shape
        self._finite = bytearray(array.size)
        mask = np.frombuffer(self._finite, np.bool_).reshape(array.shape)
        self._mask = mask if array.dtype.kind == "f" else None

    def take(self, value: Any) -> bool:
        """Copy `value` into the buffer if it is an array of the same dtype and shape; return whether it is."""
        if type(value) is not np.ndarray or value.dtype != self._dtype or value.shape != self._shape:
            return False
        self.array[...] = value
        return True

    def is_finite(self) -> bool:
        """Return whether no element is an infinity or NaN."""
        if self._mask is None:
            return True
        # Looking for a zero byte in the bytes behind the mask is several times faster than NumPy's `all`.
        np.isfinite(self.array, self._mask)
        return 0 not in self._finite


def copier(array: Array) -> Callable[[], Any]:
    """Return a function that copies `array`; it returns a scalar if the array has no dimension."""
    return array.copy if array.ndim else lambda: array[()]


def checker(manifest: Manifest, observation: Mapping[str, Array]) -> Callable[[], None]:
    """Return the check of the mask in buffers [batch, ...] by name; it does nothing for a policy without mask."""
    if manifest.mask is None:
        return lambda: None
    return partial(mask_check(manifest.mask, manifest.action), observation[manifest.mask])


def zeros(spec: ArraySpec | NoiseSpec | StateSpec, rows: int = 1) -> Array:
    """Return zeros [rows, ...] of the array's dtype and shape."""
    return np.zeros((rows, *spec.shape), spec.dtype)
