"""The policy as the sampler runs it: its ONNX graph with bound weights and buffers."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from export import to_onnx
from serving.policy import draw_noise
from serving.runtime import onnxruntime, open_session
from trpo_tf.normalization import Normalizer
from trpo_tf.policies.policy import Policy


class Actor:
    """Acts on `batch` observations at a time, through the traced function that is also exported.

    Here the graph takes weights and normaliser as inputs, so an update costs a copy and no conversion. Every buffer
    is bound once: write `observation` and `noise`, call `run`, read `action` and `sample`.
    """

    def __init__(self, policy: Policy, batch: int) -> None:
        """Convert the policy's inference function, and bind buffers for `batch` rows."""
        self._network = policy.network
        spec = policy.spec
        self.noise_spec = spec.noise
        self._weights = [np.zeros(shape, np.float32) for shape in policy.network.shapes]
        self._normalizer = Normalizer(*(np.zeros(spec.observation.shape, np.float32) for _ in range(2)))
        self.observation: NDArray[Any] = np.zeros((batch, *spec.observation.shape), spec.observation.dtype)
        self.noise = np.zeros((batch, *spec.noise.shape), np.float32)
        self.action: NDArray[Any] = np.zeros((batch, *spec.action.shape), spec.action.dtype)

        session = open_session(_training_graph(policy))
        sample = next(o for o in session.get_outputs() if o.name == "sample")
        dtype = np.int64 if "int64" in sample.type else np.float32
        self.sample: NDArray[Any] = np.zeros((batch, *sample.shape[1:]), dtype)
        self._bind(session)

    def load(self, theta: NDArray[np.float32], normalizer: Normalizer) -> None:
        """Act from now on with these parameters [P] and these statistics."""
        for buffer, value in zip(self._weights, self._network.split_array(theta), strict=True):
            buffer[...] = value
        for buffer, value in zip(self._normalizer, normalizer, strict=True):
            buffer[...] = value

    def run(self) -> None:
        """Fill `action` and `sample` from `observation` and `noise`."""
        self._session.run_with_iobinding(self._binding)

    def ask(self, observations: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Samples [M, ...] for up to `batch` observations [M, ...]."""
        count = len(observations)
        self.observation[:count] = observations
        self.noise[:count] = draw_noise(self.noise_spec, count, rng)
        self.run()
        return self.sample[:count].copy()

    def _bind(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        inputs = {f"weight_{i}": weight for i, weight in enumerate(self._weights)}
        inputs |= {"mean": self._normalizer.mean, "scale": self._normalizer.scale}
        inputs |= {"obs": self.observation, "noise": self.noise}
        for graph_input in session.get_inputs():
            array = inputs[graph_input.name]
            self._binding.bind_input(graph_input.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in (("action", self.action), ("sample", self.sample)):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _training_graph(policy: Policy) -> bytes:
    def outputs(parts: list[Any], mean: Any, scale: Any, observation: Any, noise: Any) -> dict[str, Any]:
        action, sample = policy.act(parts, Normalizer(mean, scale), observation, noise)
        # Identities keep two outputs apart where the action is the sample itself.
        return {"action": tf.identity(action), "sample": tf.identity(sample)}

    statistics = policy.spec.observation.shape
    signature = [
        [tf.TensorSpec(shape, tf.float32, f"weight_{i}") for i, shape in enumerate(policy.network.shapes)],
        tf.TensorSpec(statistics, tf.float32, "mean"),
        tf.TensorSpec(statistics, tf.float32, "scale"),
        *policy.spec.signature(),
    ]
    return bytes(to_onnx(outputs, signature).SerializeToString())
