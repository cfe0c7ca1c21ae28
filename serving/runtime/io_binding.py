"""A policy's graph for one observation, with buffers allocated and bound once: acting allocates but the answer."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_tf.serving.bundle.manifest import ArraySpec, Manifest, NoiseSpec
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime


class BoundGraph:
    """The graph, for observations that are arrays just as the manifest declares them.

    May be called from several threads. Each call takes buffers that no other call uses, and puts them back; there are
    as many as there ever were calls at once. (A thread's own buffers would be shared by a call and a signal handler
    that interrupts it.)
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        """Bind nothing yet: the first call does."""
        self._session, self._manifest = session, manifest
        self._idle: list[BoundRow] = []

    def __call__(self, observation: Any, noise: Array | None) -> Any:
        """The action for one observation and noise [1, k]; None leaves the noise out.

        None if the observation is anything but finite arrays of the declared dtypes and shapes, or the graph takes no
        such noise. Raises `FloatingPointError` if the action is not finite.
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
    """One set of buffers: not for several calls at once. Called as `BoundGraph` is.

    Attributes:
        binding: from the observation to the deterministic action.
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        """Allocate and bind."""
        self._session, graph, noise, action = session, manifest.graph, manifest.noise, manifest.action
        observation = {spec.name: _zeros(spec) for spec in manifest.observation}
        self._observation = {name: _Buffer(array[0, ...]) for name, array in observation.items()}
        self._noise, self._still, self._rows = _Buffer(_zeros(noise)), _zeros(noise), _zeros(action)
        self._action = _Buffer(self._rows[0, ...])
        self._answer = _copier(self._action.array)
        still = {noise.name: self._still} if graph.noise == "required" else {}
        self.binding = self._bind(observation | still, action.name)
        self._sampling = None
        if graph.noise != "none":
            self._sampling = self._bind(observation | {noise.name: self._noise.array}, action.name)

    def __call__(self, observation: Any, noise: Array | None) -> Any:
        """As `BoundGraph` is called."""
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
        """Copy an observation in; whether it was finite arrays of the declared dtypes and shapes."""
        buffers = self._observation
        if len(buffers) == 1:
            (buffer,) = buffers.values()
            return buffer.take(observation) and buffer.is_finite()
        if type(observation) is not dict:
            return False
        for name, buffer in buffers.items():  # noqa: SIM110 (a generator takes as long as the copies)
            if not (buffer.take(observation.get(name)) and buffer.is_finite()):
                return False
        return True

    def _bind(self, inputs: dict[str, Array], output: str) -> onnxruntime.IOBinding:
        """Bound by address: the buffers must live as long as the binding."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(output, "cpu", 0, self._rows.dtype, self._rows.shape, self._rows.ctypes.data)
        return binding


class _Buffer:
    """An array that takes in what has just its dtype and shape, and can tell whether it is finite."""

    __slots__ = ("_dtype", "_finite", "_mask", "_shape", "array")

    def __init__(self, array: Array) -> None:
        self.array, self._dtype, self._shape = array, array.dtype, array.shape
        self._finite = bytearray(array.size)
        mask = np.frombuffer(self._finite, np.bool_).reshape(array.shape)
        self._mask = mask if array.dtype.kind == "f" else None

    def take(self, value: Any) -> bool:
        """Copy in an array of this dtype and shape; whether `value` was one."""
        if type(value) is not np.ndarray or value.dtype != self._dtype or value.shape != self._shape:
            return False
        self.array[...] = value
        return True

    def is_finite(self) -> bool:
        """Whether no element is an infinity or NaN."""
        if self._mask is None:
            return True
        np.isfinite(self.array, self._mask)
        return 0 not in self._finite


def _copier(array: Array) -> Callable[[], Any]:
    """What copies `array`, to a scalar if it has no dimension."""
    return array.copy if array.ndim else lambda: array[()]


def _zeros(spec: ArraySpec | NoiseSpec) -> Array:
    return np.zeros((1, *spec.shape), spec.dtype)
