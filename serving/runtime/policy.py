"""Policies in process: load a bundle, and compute actions from observations with ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.serving.argument_checks import expect_path
from trpo_tf.serving.bundle.available_memory import check_memory
from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.bundle.manifest import Manifest, read_checked, read_manifest
from trpo_tf.serving.bundle.onnx_check import check_model
from trpo_tf.serving.bundle.signing import signed_copy
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.runtime.action_masks import mask_check
from trpo_tf.serving.runtime.conversion import as_carried, as_observations, shown_shape
from trpo_tf.serving.runtime.io_binding import BoundGraph
from trpo_tf.serving.runtime.noise import draw_noise, generator
from trpo_tf.serving.runtime.not_finite import check_finite
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, by_name
from trpo_tf.serving.runtime.onnx_runtime import onnxruntime, open_session
from trpo_tf.serving.runtime.session import Session

_ONNX_NAMES = {"float32": "float", "float64": "double"}
"""ONNX Runtime's names of dtypes that NumPy names differently."""


# NumPy imports its random generators at their first use, so annotations name them in quotes: few servers ever sample.


class Policy:
    """A loaded policy. Its methods may be called from several threads at once."""

    def __init__(self, model: bytes, manifest: Manifest) -> None:
        """Open `model`, an ONNX graph with the inputs and outputs that `manifest` declares.

        Raises `BundleError` if `check_model` or ONNX Runtime refuses the graph, or it doesn't match the manifest.
        """
        check_model(model)
        self.manifest = manifest
        try:
            self._session = open_session(model)
        except Exception as error:
            raise BundleError(f"{MODEL_FILE}: ONNX Runtime can't load it: {error}") from error
        try:
            _check_graph(self._session, manifest)
        except UnicodeDecodeError:
            raise BundleError(f"{MODEL_FILE} has a name that is not UTF-8; export it again") from None
        self._bound = BoundGraph(self._session, manifest)
        self._check_mask = mask_check(manifest.mask, manifest.action) if manifest.mask else None
        self._takes_one = manifest.graph.batch in (None, 1) and not manifest.state

    def act(
        self,
        observation: Any,
        *,
        deterministic: bool = True,
        rng: "np.random.Generator | None" = None,
    ) -> Any:
        """Return the action for one observation, in the environment's units, dtype and shape.

        Args:
            observation: an array of the declared dtype and shape, or a Python sequence that can be converted to it.
                For a policy with several inputs: the environment's observation, or a dict by input name.
            deterministic: return the mode of the distribution; otherwise a sample.
            rng: random generator for the sample; a new one if absent.

        Raises:
            ValueError: wrong shape, dtype or batch size, a value that is not finite, a mask that allows no action, a
                sample from a graph that has no noise input, or a policy with state.
            FloatingPointError: the action is not finite.
        """
        noise = None if deterministic else self._draw(1, rng)
        if self._takes_one and (action := self._bound(observation, noise)) is not None:
            return action
        self._refuse_state()
        return self.run(as_observations(observation, self.manifest.observation, batched=False), noise)[0]

    def act_batch(
        self,
        observations: Any,
        *,
        deterministic: bool = True,
        rng: "np.random.Generator | None" = None,
    ) -> Array:
        """Return the actions for observations [batch, ...]; arguments and errors as in `act`."""
        self._refuse_state()
        batch = as_observations(observations, self.manifest.observation, batched=True)
        return self.run(batch, None if deterministic else self._draw(batch_size(batch), rng))

    def start(self, batch: int | None = None) -> Session:
        """Start a session, which keeps the state of one episode or, with `batch`, of that many episodes in step.

        Sessions share the loaded graph. Raises `ValueError` for a batch size that the graph doesn't accept.
        """
        return Session(self._session, self.manifest, batch)

    def initial_state(self, batch: int) -> dict[str, Array]:
        """Return the state [batch, ...] at the start of an episode, by name; empty for a policy without state."""
        return {spec.name: spec.initial_rows(batch) for spec in self.manifest.state}

    def step(
        self, observations: Any, state: Mapping[str, Array], reset: Array | None = None, noise: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the actions [batch, ...] and the next state [batch, ...] by name, and keep nothing.

        Args:
            observations: [batch, ...], as `act_batch` takes them.
            state: arrays [batch, ...] by name: `initial_state(batch)`, or the next state of the step before.
            reset: bool [batch]; rows in which it is true start an episode, whatever their state. By default none does.
            noise: [batch, k] of the declared law; by default actions are deterministic.

        Raises:
            ValueError: an array of wrong name, shape or dtype, or one that holds a value that is not finite.
            FloatingPointError: an action or a next state is not finite.
        """
        specs = self.manifest.state
        batch = as_observations(observations, self.manifest.observation, batched=True)
        rows = batch_size(batch)
        if not specs:
            return self.run(batch, noise), {}
        started = np.zeros(rows, np.bool_) if reset is None else reset
        inputs = by_name(batch, self.manifest.observation[0].name) | as_carried(state, started, specs, rows)
        answers = self.infer(inputs, noise, (self.manifest.action.name, *(spec.next_name for spec in specs)))
        return answers[self.manifest.action.name], {spec.name: answers[spec.next_name] for spec in specs}

    def run(self, observations: Observation, noise: Array | None = None) -> Array:
        """Return the actions for checked arrays: observations [batch, ...] and optional noise [batch, k].

        Beside its observations, the inputs of a policy with state are its state and `reset`. Raises as `infer` does.
        """
        action = self.manifest.action.name
        return self.infer(observations, noise, (action,))[action]

    def infer(
        self, observations: Observation, noise: Array | None = None, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the named outputs [batch, ...], by default all of `manifest.outputs`; other arguments as in `run`.

        Other outputs are not computed.

        Raises `ValueError` for a batch size or noise that the graph doesn't accept, or a mask that allows no action.
        Raises `NotFiniteError` if an output is not finite.
        """
        manifest, rows = self.manifest, batch_size(observations)
        graph = manifest.graph
        if graph.batch is not None and graph.batch != rows:
            raise ValueError(f"the policy was exported for batches of {graph.batch}, not {rows}")
        feeds = by_name(observations, manifest.observation[0].name)
        if self._check_mask is not None and manifest.mask is not None:
            self._check_mask(feeds[manifest.mask])
        if noise is None and graph.noise == "required":
            noise = np.zeros((rows, *manifest.noise.shape), manifest.noise.dtype)
        if noise is not None:
            if graph.noise == "none":
                raise ValueError("the policy was exported without noise, so it can't sample; act deterministically")
            noise = np.asarray(noise)
            if noise.shape != (rows, *manifest.noise.shape) or noise.dtype != manifest.noise.dtype:
                # The graph would spread one row over all observations, or one observation over all rows.
                wanted = f"{manifest.noise.dtype} of shape {shown_shape((rows, *manifest.noise.shape))}"
                raise ValueError(f"noise must be {wanted}, not {noise.dtype} of shape {shown_shape(noise.shape)}")
            feeds[manifest.noise.name] = noise
        names = manifest.output_names if outputs is None else outputs
        answers: dict[str, Array] = dict(zip(names, self._session.run(names, feeds), strict=True))
        check_finite(answers, feeds, manifest)
        return answers

    def _refuse_state(self) -> None:
        if self.manifest.state:
            names = ", ".join(spec.name for spec in self.manifest.state)
            raise ValueError(
                f"the policy has state ({names}), which act does not keep; use session = policy.start() and "
                "session.act(observation), or policy.step(observations, state)"
            )

    def _draw(self, batch: int, rng: "np.random.Generator | None") -> Array:
        return draw_noise(self.manifest.noise, batch, generator(rng))

    def __reduce__(self) -> Any:
        raise TypeError("a policy can't be pickled; pass its bundle's path, and load it in the process that acts")

    def __copy__(self) -> "Policy":
        """Return the policy itself, which keeps nothing."""
        return self

    def __deepcopy__(self, _memo: Any) -> "Policy":
        """Return the policy itself, which keeps nothing."""
        return self


def load(bundle: str | Path, public_key: str | Path | None = None) -> Policy:
    """Load the policy of a bundle folder. Its checksum is verified and, with a public key, the bundle's signature.

    Raises `BundleError`.
    """
    expect_path(bundle, "bundle must be the path of a bundle's folder", BundleError)
    folder = Path(bundle)
    if public_key is not None:
        expect_path(public_key, "public_key must be the path of a key", BundleError)
        with signed_copy(folder, Path(public_key)) as copy:
            return load(copy)
    return Policy(*read_graph(folder))


def read_graph(bundle: Path) -> tuple[bytes, Manifest]:
    """Return the graph of a bundle folder, whose checksum is verified, and the manifest. Raises `BundleError`."""
    manifest = read_manifest(bundle)
    check_memory(manifest, only_model=True)
    return read_checked(bundle, manifest, MODEL_FILE), manifest


def _check_graph(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    _check_tensors("input", inputs, manifest.inputs)
    _check_tensors("output", session.get_outputs(), manifest.outputs)
    rows = session.get_outputs()[0].shape[0]
    if (rows if isinstance(rows, int) else None) != manifest.graph.batch:
        raise BundleError(
            f"{MODEL_FILE} takes {rows if isinstance(rows, int) else 'any number of'} rows, and the manifest says "
            f"{manifest.graph.batch or 'any number'}; export it again"
        )


def _check_tensors(kind: str, tensors: Sequence[Any], specs: Sequence[ArraySpec | NoiseSpec]) -> None:
    named = {tensor.name: tensor for tensor in tensors}
    for spec in specs:
        if spec.name not in named:
            raise BundleError(f"{MODEL_FILE} has no {kind} {spec.name!r}, as the manifest says; export it again")
        tensor = named[spec.name]
        sizes = tensor.shape[1:]  # names or None where they are not fixed
        fits = len(sizes) == len(spec.shape) and all(
            size == expected or not isinstance(size, int) for size, expected in zip(sizes, spec.shape, strict=True)
        )
        if tensor.type != f"tensor({_ONNX_NAMES.get(spec.dtype, spec.dtype)})" or not fits:
            raise BundleError(
                f"{MODEL_FILE} has {kind} {spec.name!r} as {tensor.type}{shown_shape(tensor.shape)}, not "
                f"{spec.dtype}{shown_shape(('batch', *spec.shape))} as the manifest says; export it again"
            )
