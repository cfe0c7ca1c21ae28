"""Run the policy while sampling: its ONNX graph, with bound weights and buffers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.export import to_onnx, with_constants
from trpo_tf.export.policy.outputs import started
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.serving import ArraySpec, StateSpec
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, structured
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session
from trpo_tf.serving.runtime.policy import draw_noise

_OBSERVATION, _STATE, _NEXT, _SEEN, _RESET = "observation_", "state_", "next_", "seen_", "reset"


class Actor:
    """Policy that acts on `batch` observations at a time, by the traced function that is also exported.

    The graph takes weights and normaliser as inputs, so an update costs a copy and no conversion. Convolutional
    networks are different: ONNX Runtime runs them faster with constant weights, which it may rearrange. Their weights
    are made constants at each update. Every buffer is bound: write `observation` and `noise`, call `run`, read `action`
    and `sample`.

    A policy with memory also reads `state` and `reset`, and writes `seen`, what its network saw. `advance` replaces the
    state by the next one. Without memory `state` is empty, and `seen` is `observation`.

    `mask` is the name of the mask of legal actions among `inputs`, None if there is none.
    """

    def __init__(self, policy: Policy, batch: int) -> None:
        """Convert the policy's inference function, and bind buffers for `batch` rows."""
        self._network, self._memory = policy.network, policy.memory
        spec = policy.spec
        self.noise_spec = spec.noise
        self.mask = None if spec.mask is None else f"{_OBSERVATION}{spec.mask}"
        self._weights = [np.zeros(shape, np.float32) for shape in policy.network.shapes]
        self._normalizer = Normalizer(*(np.zeros(policy.encoder.statistics, np.float32) for _ in range(2)))
        observation = _buffers(spec.observation, batch)
        self.observation: Observation = structured(observation)
        self.noise = np.zeros((batch, *spec.noise.shape), np.float32)
        self.action: NDArray[Any] = np.zeros((batch, *spec.action.shape), spec.action.dtype)
        self.state, self._next_state = _buffers(spec.state, batch), _buffers(spec.state, batch)
        self.reset = np.ones(batch, bool)
        seen = _buffers(policy.memory.observation, batch) if policy.memory else {}
        self.seen: Observation = structured(seen) if seen else self.observation

        graph = _training_graph(policy)
        self._constant_weights = None if policy.network.dense_only else graph
        session = open_session(graph.SerializeToString())
        sample = next(o for o in session.get_outputs() if o.name == "sample")
        dtype = np.int64 if "int64" in sample.type else np.float32
        self.sample: NDArray[Any] = np.zeros((batch, *sample.shape[1:]), dtype)
        self.inputs: dict[str, Array] = _prefixed(_OBSERVATION, observation)
        if policy.memory:
            self.inputs |= _prefixed(_STATE, self.state) | {_RESET: self.reset}
        self._outputs = {
            "action": self.action,
            "sample": self.sample,
            **_prefixed(_SEEN, seen),
            **_prefixed(_NEXT, self._next_state),
        }
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
        """Fill `action`, `sample` and `seen` from `observation`, `noise`, `state` and `reset`."""
        self._session.run_with_iobinding(self._binding)

    def advance(self, rows: Any = ...) -> None:
        """Replace these rows of `state` by those after the latest `run`."""
        for name, following in self._next_state.items():
            self.state[name][rows] = following[rows]

    def state_after(self, inputs: Mapping[str, Array], rows: Array, actions: Array) -> dict[str, Array]:
        """Return the state after `actions` [M, ...], given in these M rows of the actor's `inputs`."""
        memory = self._memory
        if memory is None:
            return {}
        reset = inputs[_RESET][rows]
        observation = structured({spec.name: inputs[f"{_OBSERVATION}{spec.name}"][rows] for spec in memory.parts})
        state = started(memory.state, {name: inputs[f"{_STATE}{name}"][rows] for name in self.state}, reset)
        following = memory.advance(memory.observe(observation, state, reset), state, actions)
        kept = {name: np.asarray(values) for name, values in following.items()}
        return kept | self._recurrent_state_after(inputs, rows) if memory.recurrent else kept

    def ask(self, inputs: Mapping[str, Array], rng: np.random.Generator) -> NDArray[Any]:
        """Return samples [M, ...] for up to `batch` rows [M, ...] of the actor's `inputs`."""
        count = len(next(iter(inputs.values())))
        for name, rows in inputs.items():
            self.inputs[name][:count] = rows
        self.noise[:count] = draw_noise(self.noise_spec, count, rng)
        self.run()
        return self.sample[:count].copy()

    def _recurrent_state_after(self, inputs: Mapping[str, Array], rows: Array) -> dict[str, Array]:
        """Return the state after these rows that the cell computes, whatever the action is."""
        assert self._memory is not None
        batch = len(self.reset)
        parts: list[dict[str, Array]] = []
        for part in (rows[start : start + batch] for start in range(0, len(rows), batch)):
            for name, values in inputs.items():
                self.inputs[name][: len(part)] = values[part]
            self.run()
            parts.append({name: values[: len(part)].copy() for name, values in self._next_state.items()})
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self._memory.recurrent}

    def _bind(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        inputs = self._parameters() | {"noise": self.noise} | self.inputs
        for graph_input in session.get_inputs():
            array = inputs[graph_input.name]
            self._binding.bind_input(graph_input.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self._outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _parameters(self) -> dict[str, NDArray[np.float32]]:
        weights = {f"weight_{i}": weight for i, weight in enumerate(self._weights)}
        return weights | {"mean": self._normalizer.mean, "scale": self._normalizer.scale}


def _buffers(specs: Sequence[ArraySpec | StateSpec], batch: int) -> dict[str, Array]:
    return {spec.name: np.zeros((batch, *spec.shape), spec.dtype) for spec in specs}


def _prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays under names that are no others: a part of the observation may have that of another input."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _training_graph(policy: Policy) -> onnx.ModelProto:
    def outputs(parts: list[Any], mean: Any, scale: Any, observation: Any, noise: Any) -> dict[str, Any]:
        action, sample = policy.act(parts, Normalizer(mean, scale), observation, noise)
        # Identities keep two outputs apart where the action is the sample itself.
        return {"action": tf.identity(action), "sample": tf.identity(sample)}

    def outputs_with_memory(
        parts: list[Any], mean: Any, scale: Any, observation: Any, state: dict[str, Any], reset: Any, noise: Any
    ) -> dict[str, Any]:
        state = started(policy.spec.state, state, reset)
        step = policy.step(parts, Normalizer(mean, scale), observation, state, reset, noise)
        seen = by_name(step.seen, policy.spec.observation[0].name)
        named = {"action": step.action, "sample": step.sample}
        named |= _prefixed(_SEEN, seen) | _prefixed(_NEXT, step.next_state)
        return {name: tf.identity(tensor) for name, tensor in named.items()}

    statistics = (policy.encoder.statistics,)
    signature = [
        [tf.TensorSpec(shape, tf.float32, f"weight_{i}") for i, shape in enumerate(policy.network.shapes)],
        tf.TensorSpec(statistics, tf.float32, "mean"),
        tf.TensorSpec(statistics, tf.float32, "scale"),
        structured(_tensor_specs(_OBSERVATION, policy.spec.observation)),
    ]
    noise = tf.TensorSpec((None, *policy.spec.noise.shape), policy.spec.noise.dtype, policy.spec.noise.name)
    if not policy.memory:
        return to_onnx(outputs, [*signature, noise])
    reset = tf.TensorSpec((None,), tf.bool, _RESET)
    return to_onnx(outputs_with_memory, [*signature, _tensor_specs(_STATE, policy.spec.state), reset, noise])


def _tensor_specs(prefix: str, specs: Sequence[ArraySpec | StateSpec]) -> dict[str, Any]:
    return {spec.name: tf.TensorSpec((None, *spec.shape), spec.dtype, f"{prefix}{spec.name}") for spec in specs}
