"""Sessions of policies with state: what the policy carries from a step to the next, in buffers that are bound once."""

from typing import Any

import numpy as np

from trpo_tf.serving.argument_checks import expect_count
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import RESET
from trpo_tf.serving.runtime.conversion import as_observations
from trpo_tf.serving.runtime.io_binding import Buffer, checker, copier, zeros
from trpo_tf.serving.runtime.noise import draw_noise, generator
from trpo_tf.serving.runtime.observations import Array, by_name
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime


class Session:
    """One episode of a policy, or a fixed number of episodes in step; for one thread at a time.

    Each call reads the state from one set of buffers and writes the next state to another, and the sets change places.
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest, batch: int | None = None) -> None:
        """Allocate and bind the buffers. `batch` is the number of episodes; None is one, without a batch dimension.

        Raises `ValueError` for a batch size that the graph doesn't accept.
        """
        if batch is not None:
            expect_count(batch, "batch", 1, ValueError)
        rows = batch or 1
        if manifest.graph.batch not in (None, rows):
            raise ValueError(f"the policy was exported for batches of {manifest.graph.batch}, not {rows}")
        self.manifest, self._session, self._rows, self._batched = manifest, session, rows, batch is not None
        self._inputs = {spec.name: zeros(spec, rows) for spec in manifest.observation}
        self._noise, self._starts = zeros(manifest.noise, rows), np.ones(rows, np.bool_)
        self._observation = {name: self._buffer(array) for name, array in self._inputs.items()}
        self._check_mask = checker(manifest, self._inputs)
        self._action = self._buffer(zeros(manifest.action, rows))
        self._states = [{spec.name: Buffer(zeros(spec, rows)) for spec in manifest.state} for _ in range(2)]
        self._turn = 0
        self._deterministic = [self._bind(turn, noise=manifest.graph.noise == "required") for turn in (0, 1)]
        self._sampling = None if manifest.graph.noise == "none" else [self._bind(turn, noise=True) for turn in (0, 1)]
        self._answer = copier(self._action.array)

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the state [batch, ...] by name; rows that the next call resets hold anything."""
        return {name: buffer.array.copy() for name, buffer in self._states[self._turn].items()}

    @property
    def binding(self) -> onnxruntime.IOBinding:
        """The binding that the next deterministic call runs, to the buffers of observation and state."""
        return self._deterministic[self._turn]

    def reset(self, rows: Array | None = None) -> None:
        """Start a new episode at the next call, in the rows in which `rows`, bool [batch], is true; by default in all.

        Raises `ValueError` for rows of another dtype or shape.
        """
        if rows is None:
            self._starts[...] = True
            return
        if not isinstance(rows, np.ndarray) or rows.dtype != np.bool_ or rows.shape != self._starts.shape:
            raise ValueError(f"rows must be bool of shape [{self._rows}], not {rows!r}")
        self._starts |= rows

    def act(self, observation: Any, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> Any:
        """Return the action for one observation, or the actions [batch, ...] for observations [batch, ...].

        Arguments and errors are those of `Policy.act`. After an error the session is as it was before.
        """
        bindings = self._deterministic
        if not deterministic:
            if self._sampling is None:
                raise ValueError("the policy was exported without noise, so it can't sample; act deterministically")
            bindings = self._sampling
            self._noise[...] = draw_noise(self.manifest.noise, self._rows, generator(rng))
        elif self.manifest.graph.noise == "required":
            self._noise[...] = 0
        if not self._take(observation):
            self._convert(observation)
        self._check_mask()
        self._session.run_with_iobinding(bindings[self._turn])
        if not self._action.is_finite():
            raise FloatingPointError("the action is not finite; check the observation against its bounds")
        for name, buffer in self._states[1 - self._turn].items():
            if not buffer.is_finite():
                raise FloatingPointError(f"the next state {name!r} is not finite; check the observation's bounds")
        self._turn = 1 - self._turn
        self._starts[...] = False
        return self._answer()

    def __copy__(self) -> "Session":
        """Return a session that goes on from the same state, with buffers of its own."""
        copy = Session(self._session, self.manifest, self._rows if self._batched else None)
        for name, buffer in self._states[self._turn].items():
            copy._states[copy._turn][name].array[...] = buffer.array
        copy._starts[...] = self._starts
        return copy

    def __deepcopy__(self, _memo: Any) -> "Session":
        """Return what `copy.copy` does."""
        return self.__copy__()

    def __reduce__(self) -> Any:
        raise TypeError("a session can't be pickled; load the bundle in the process that acts, and start one there")

    def _take(self, observation: Any) -> bool:
        """Copy the observation into its buffers if its arrays are exactly as declared and finite."""
        if len(self._observation) == 1 and type(observation) is not dict:
            (buffer,) = self._observation.values()
            return buffer.take(observation) and buffer.is_finite()
        if type(observation) is not dict:
            return False
        return all(
            buffer.take(observation.get(name)) and buffer.is_finite() for name, buffer in self._observation.items()
        )

    def _convert(self, observation: Any) -> None:
        """Convert the observation as `Policy.act` does, and copy it. Raises `ValueError`."""
        specs = self.manifest.observation
        parts = by_name(as_observations(observation, specs, batched=self._batched), specs[0].name)
        for name, part in parts.items():
            if len(part) != self._rows:
                raise ValueError(f"the session has {self._rows} episodes, and the observation {len(part)} rows")
            self._inputs[name][...] = part

    def _buffer(self, rows: Array) -> Buffer:
        """Return a buffer of all rows, or of the only one without its batch dimension."""
        return Buffer(rows if self._batched else rows[0, ...])

    def _bind(self, turn: int, *, noise: bool) -> onnxruntime.IOBinding:
        """Bind by address the buffers of a call that reads the state set `turn` and writes the other."""
        binding = self._session.io_binding()
        inputs = dict(self._inputs)
        if self.manifest.state:
            inputs |= {name: buffer.array for name, buffer in self._states[turn].items()} | {RESET: self._starts}
        if noise:
            inputs[self.manifest.noise.name] = self._noise
        outputs = {spec.next_name: self._states[1 - turn][spec.name].array for spec in self.manifest.state}
        outputs[self.manifest.action.name] = self._action.array
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            shape = (self._rows, *self.manifest.action.shape) if array is self._action.array else array.shape
            binding.bind_output(name, "cpu", 0, array.dtype, shape, array.ctypes.data)
        return binding
