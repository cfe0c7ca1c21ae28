"""Run the policy while sampling: its ONNX graph, with bound weights and buffers."""

from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.export import to_onnx, with_constants
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.serving.runtime.observations import Observation, batch_size, list_parts, structured, take, write
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session
from trpo_tf.serving.runtime.policy import draw_noise

_OBSERVATION = "observation_"


class Actor:
    """Policy that acts on `batch` observations at a time, by the traced function that is also exported.

    The graph takes weights and normaliser as inputs, so an update costs a copy and no conversion. Convolutional
    networks are different: ONNX Runtime runs them faster with constant weights, which it may rearrange. Their weights
    are made constants at each update. Every buffer is bound: write `observation` and `noise`, call `run`, read `action`
    and `sample`.
    """

    def __init__(self, policy: Policy, batch: int) -> None:
        """Convert the policy's inference function, and bind buffers for `batch` rows."""
        self._network = policy.network
        spec = policy.spec
        self._parts, self.noise_spec = spec.observation, spec.noise
        self._weights = [np.zeros(shape, np.float32) for shape in policy.network.shapes]
        self._normalizer = Normalizer(*(np.zeros(policy.encoder.statistics, np.float32) for _ in range(2)))
        self.observation: Observation = structured(
            {part.name: np.zeros((batch, *part.shape), part.dtype) for part in spec.observation}
        )
        self.noise = np.zeros((batch, *spec.noise.shape), np.float32)
        self.action: NDArray[Any] = np.zeros((batch, *spec.action.shape), spec.action.dtype)

        graph = _training_graph(policy)
        self._constant_weights = None if policy.network.dense_only else graph
        session = open_session(graph.SerializeToString())
        sample = next(o for o in session.get_outputs() if o.name == "sample")
        dtype = np.int64 if "int64" in sample.type else np.float32
        self.sample: NDArray[Any] = np.zeros((batch, *sample.shape[1:]), dtype)
        self._bind(session)

    def load(self, theta: NDArray[np.float32], normalizer: Normalizer) -> None:
        """Load the parameters [P] and statistics for the next actions."""
        for buffer, value in zip(self._weights, self._network.split_array(theta), strict=True):
            buffer[...] = value
        for buffer, value in zip(self._normalizer, normalizer, strict=True):
            buffer[...] = value
        if self._constant_weights is not None:
            model = with_constants(self._constant_weights, self._parameters())
            self._bind(open_session(model.SerializeToString()))

    def run(self) -> None:
        """Fill `action` and `sample` from `observation` and `noise`."""
        self._session.run_with_iobinding(self._binding)

    def ask(self, observations: Observation, rng: np.random.Generator) -> NDArray[Any]:
        """Return samples [M, ...] for up to `batch` observations [M, ...]."""
        count = batch_size(observations)
        write(take(self.observation, slice(count)), observations)
        self.noise[:count] = draw_noise(self.noise_spec, count, rng)
        self.run()
        return self.sample[:count].copy()

    def _bind(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        names = [f"{_OBSERVATION}{part.name}" for part in self._parts]
        inputs = self._parameters() | {"noise": self.noise}
        inputs |= dict(zip(names, list_parts(self.observation), strict=True))
        for graph_input in session.get_inputs():
            array = inputs[graph_input.name]
            self._binding.bind_input(graph_input.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in (("action", self.action), ("sample", self.sample)):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _parameters(self) -> dict[str, NDArray[np.float32]]:
        weights = {f"weight_{i}": weight for i, weight in enumerate(self._weights)}
        return weights | {"mean": self._normalizer.mean, "scale": self._normalizer.scale}


def _training_graph(policy: Policy) -> onnx.ModelProto:
    def outputs(parts: list[Any], mean: Any, scale: Any, observation: Any, noise: Any) -> dict[str, Any]:
        action, sample = policy.act(parts, Normalizer(mean, scale), observation, noise)
        # Identities keep two outputs apart where the action is the sample itself.
        return {"action": tf.identity(action), "sample": tf.identity(sample)}

    statistics = (policy.encoder.statistics,)
    observation = {
        # Prefixed, since a part of the observation may have the name of another input.
        part.name: tf.TensorSpec((None, *part.shape), part.dtype, f"{_OBSERVATION}{part.name}")
        for part in policy.spec.observation
    }
    signature = [
        [tf.TensorSpec(shape, tf.float32, f"weight_{i}") for i, shape in enumerate(policy.network.shapes)],
        tf.TensorSpec(statistics, tf.float32, "mean"),
        tf.TensorSpec(statistics, tf.float32, "scale"),
        structured(observation),
        policy.spec.signature()[1],
    ]
    return to_onnx(outputs, signature)
