"""Run the policy while sampling: its ONNX graph, with bound weights and buffers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trpo_tf.export import with_constants
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.serving import ArraySpec, StateSpec
from trpo_tf.serving.bundle.specs import NoiseSpec
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Array, Observation, structured
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session

OBSERVATION, STATE, NEXT, SEEN, RESET = "observation_", "state_", "next_", "seen_", "reset"
"""Prefixes of the graph's inputs and outputs, and the name of one."""


@dataclass(frozen=True)
class ActingGraph:
    """A policy's ONNX graph and the shapes of its arrays: what acting needs, and what another process can be sent.

    Attributes:
        model: the serialized graph, with weights and normaliser as inputs.
        constant_weights: whether the graph runs faster with its weights as constants.
        weights: shape of each weight, in the order of the parameters.
        statistics: number of observed numbers that have statistics.
        observation: parts of the observation.
        noise: law of the noise.
        action: the action, in the environment's units.
        sample: the sample of the policy's distribution.
        state: what the policy remembers; empty without memory.
        seen: what the network of a policy with memory sees; empty without.
        mask: part of the observation that is the mask of legal actions, None if there is none.
    """

    model: bytes
    constant_weights: bool
    weights: tuple[tuple[int, ...], ...]
    statistics: int
    observation: tuple[ArraySpec, ...]
    noise: NoiseSpec
    action: ArraySpec
    sample: ArraySpec
    state: tuple[StateSpec, ...]
    seen: tuple[ArraySpec, ...]
    mask: str | None


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

    def __init__(self, graph: ActingGraph, batch: int) -> None:
        """Open the graph, and bind buffers for `batch` rows."""
        self.noise_spec = graph.noise
        self.mask = None if graph.mask is None else f"{OBSERVATION}{graph.mask}"
        self._weights = [np.zeros(shape, np.float32) for shape in graph.weights]
        self._normalizer = Normalizer(*(np.zeros(graph.statistics, np.float32) for _ in range(2)))
        observation = _buffers(graph.observation, batch)
        self.observation: Observation = structured(observation)
        self.noise = np.zeros((batch, *graph.noise.shape), np.float32)
        self.action: NDArray[Any] = np.zeros((batch, *graph.action.shape), graph.action.dtype)
        self.state, self._next_state = _buffers(graph.state, batch), _buffers(graph.state, batch)
        self.reset = np.ones(batch, bool)
        seen = _buffers(graph.seen, batch)
        self.seen: Observation = structured(seen) if seen else self.observation

        self._constant_weights = onnx.load_from_string(graph.model) if graph.constant_weights else None
        session = open_session(graph.model)
        self.sample: NDArray[Any] = np.zeros((batch, *graph.sample.shape), graph.sample.dtype)
        self.inputs: dict[str, Array] = prefixed(OBSERVATION, observation)
        if graph.state:
            self.inputs |= prefixed(STATE, self.state) | {RESET: self.reset}
        self._outputs = {
            "action": self.action,
            "sample": self.sample,
            **prefixed(SEEN, seen),
            **prefixed(NEXT, self._next_state),
        }
        self._bind(session)

    def load(self, theta: NDArray[np.float32], normalizer: Normalizer) -> None:
        """Load the parameters [P] and statistics for the next actions."""
        ends = np.cumsum([weight.size for weight in self._weights])
        for buffer, value in zip(self._weights, np.split(theta, ends[:-1]), strict=True):
            buffer[...] = value.reshape(buffer.shape)
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

    def ask(self, inputs: Mapping[str, Array], rng: np.random.Generator) -> NDArray[Any]:
        """Return samples [M, ...] for up to `batch` rows [M, ...] of the actor's `inputs`."""
        count = len(next(iter(inputs.values())))
        for name, rows in inputs.items():
            self.inputs[name][:count] = rows
        self.noise[:count] = draw_noise(self.noise_spec, count, rng)
        self.run()
        return self.sample[:count].copy()

    def next_states(
        self, names: Sequence[str], inputs: Mapping[str, Array], rows: NDArray[np.int64]
    ) -> dict[str, Array]:
        """Return some parts of the state after these M rows of the actor's `inputs`, by name [M, ...].

        Those of a recurrent core: they do not depend on the action.
        """
        if not names:
            return {}
        parts: list[dict[str, Array]] = []
        for part in in_parts(rows, len(self.reset)):
            for name, values in inputs.items():
                self.inputs[name][: len(part)] = values[part]
            self.run()
            parts.append({name: self._next_state[name][: len(part)].copy() for name in names})
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

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


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays by their names with a prefix: a part of the observation may be named like another input."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def in_parts(array: Array, size: int) -> list[Array]:
    """Return an array in parts of `size` rows; the last one may have fewer."""
    return [array[start : start + size] for start in range(0, len(array), size)]
