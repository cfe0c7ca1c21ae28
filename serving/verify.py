"""Verify a bundle on any machine: each file against its checksum, and the policy against its golden cases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.argument_checks import expect_path
from trpo_tf.serving.bundle.available_memory import check_memory
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, UNLISTED_FILES
from trpo_tf.serving.bundle.golden import read_golden, read_golden_file
from trpo_tf.serving.bundle.manifest import Manifest, check_file, read_checked, read_manifest
from trpo_tf.serving.bundle.signing import signed_copy
from trpo_tf.serving.bundle.specs import ArraySpec, next_outputs
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.runtime.not_finite import NotFiniteError
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, is_finite, structured, take
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.runtime.sequences import run_sequences

ABSOLUTE_TOLERANCE = RELATIVE_TOLERANCE = 1e-5

_ONE_BY_ONE = 16
"""Number of golden cases that are also replayed one by one."""


@dataclass(frozen=True)
class Verification:
    """Result of a verification; `max_difference` is the largest |action - golden action| over all cases."""

    files: int
    golden_cases: int
    max_difference: float


def verify(bundle: str | Path, public_key: str | Path | None = None) -> Verification:
    """Check every listed file and replay the golden cases; with a public key, check the signature first.

    Raises `BundleError` for a changed, missing or unlisted file, a wrong signature, or an output that differs from its
    golden case. Floats may differ by 1e-5 + 1e-5 |golden output|, integers not at all. Where the range between the
    declared bounds is below 1, they may differ by 1e-5 of that range instead of 1e-5.
    """
    expect_path(bundle, "bundle must be the path of a bundle's folder", BundleError)
    folder = Path(bundle)
    if public_key is not None:
        expect_path(public_key, "public_key must be the path of a key", BundleError)
        with signed_copy(folder, Path(public_key)) as copy:
            return verify(copy)
    manifest = read_manifest(folder)
    check_memory(manifest)
    for name in sorted(manifest.files.keys() - {MODEL_FILE, GOLDEN_FILE}):
        check_file(folder, manifest, name)
    model, golden = read_checked(folder, manifest, MODEL_FILE), read_golden_file(folder, manifest)
    _refuse_unlisted(folder, manifest)
    count, worst = check_golden(Policy(model, manifest), golden)
    return Verification(len(manifest.files), count, worst)


def check_golden(policy: Policy, golden: bytes) -> tuple[int, float]:
    """Replay the golden cases; return their number and the largest |action - golden action|.

    All are replayed in one batch. If the graph accepts any batch size, some are also replayed one by one. An output
    must not depend on the other rows of its batch.

    Raises `BundleError` for cases that don't fit the manifest, or an output that differs from its golden case. Floats
    may differ as `verify` says.
    """
    manifest = policy.manifest
    cases = read_golden(golden, manifest)
    if outside_bounds(cases[manifest.action.name], manifest.action).any():
        raise BundleError(
            f"{GOLDEN_FILE} has actions outside the bounds that {MANIFEST_FILE} declares; export the bundle again"
        )
    if manifest.graph.noise == "none":
        cases = _without_noise(cases, manifest)
    every, worst = np.arange(len(cases[manifest.action.name])), 0.0
    batches = [every] if manifest.graph.batch else [every, *every[:_ONE_BY_ONE, np.newaxis]]
    for spec in (spec for spec in manifest.outputs if spec.name in cases):
        for rows in batches:
            answers = _answers(policy, spec.name, {name: array[rows] for name, array in cases.items()})
            expected = cases[spec.name][rows]
            if not agree(answers, expected, spec.unit) or (spec == manifest.action and not is_finite(answers)):
                what = "" if spec == manifest.action else f" in {spec.name!r}"
                alone = ", asked by itself" if rows is not every else ""
                far = difference(answers, expected)
                raise BundleError(
                    f"{MODEL_FILE} differs from its golden cases{what} by {far:.3g}{alone}; export it again"
                )
            if spec == manifest.action:
                worst = max(worst, difference(answers, expected))
    if manifest.state:
        _check_sequences(policy, cases)
    return len(every), worst


def _check_sequences(policy: Policy, cases: dict[str, NDArray[Any]]) -> None:
    """Raise `BundleError` unless the policy, which carries its own state, reproduces the golden sequences."""
    manifest = policy.manifest

    def step(inputs: dict[str, Array], noise: Array) -> dict[str, Array]:
        def run(seen: Observation, drawn: Array | None) -> dict[str, Array]:
            return policy.infer(seen, drawn)

        return replay_all(run, manifest, inputs, noise)

    inputs = {spec.name: cases[spec.name] for spec in manifest.step_inputs}
    _, found = run_sequences(step, inputs, cases[manifest.noise.name], manifest.state)
    for spec in (manifest.action, *next_outputs(manifest.state)):
        if not agree(found[spec.name], cases[spec.name], spec.unit):
            raise BundleError(
                f"{MODEL_FILE} drifts from its golden sequences in {spec.name!r} by "
                f"{difference(found[spec.name], cases[spec.name]):.3g}; export it again"
            )


def _answers(policy: Policy, output: str, cases: dict[str, NDArray[Any]]) -> Array:
    manifest = policy.manifest
    observations = structured({spec.name: cases[spec.name] for spec in manifest.step_inputs})

    def run(seen: Observation, noise: Array | None) -> Array:
        try:
            return policy.infer(seen, noise, (output,))[output]
        except NotFiniteError as error:  # the golden output may not be finite either
            return error.answers[output]

    return replay(run, manifest, observations, cases[manifest.noise.name])


def replay(
    run: Callable[[Observation, Array | None], Array], manifest: Manifest, observations: Observation, noise: Array
) -> Array:
    """Return the outputs [n, ...] of `run` for observations [n, ...] and noise [n, k].

    They are run in batches of the size that the graph accepts. A graph without a noise input gets no noise.
    """
    fed = None if manifest.graph.noise == "none" else noise
    return in_batches_of(manifest.graph.batch, run, observations, fed)


def replay_all(
    run: Callable[[Observation, Array | None], Mapping[str, Array]],
    manifest: Manifest,
    observations: Observation,
    noise: Array,
) -> dict[str, Array]:
    """Return all outputs of `run` by name, each [n, ...]. Batches and noise are as in `replay`."""
    fed = None if manifest.graph.noise == "none" else noise
    return all_in_batches_of(manifest.graph.batch, run, observations, fed)


def in_batches_of(
    size: int | None,
    run: Callable[[Observation, Array | None], Array],
    observations: Observation,
    noise: Array | None,
) -> Array:
    """Return the outputs [n, ...] of `run`, called on batches of `size` rows; None means all rows at once.

    The last batch is filled up with the first rows.
    """
    return all_in_batches_of(size, lambda *batch: {"": run(*batch)}, observations, noise)[""]


def all_in_batches_of(
    size: int | None,
    run: Callable[[Observation, Array | None], Mapping[str, Array]],
    observations: Observation,
    noise: Array | None,
) -> dict[str, Array]:
    """Return all outputs of `run` by name, each [n, ...]; batches are made as in `in_batches_of`."""
    if size is None:
        return dict(run(observations, noise))
    rows = batch_size(observations)
    batches = np.arange(-(-rows // size) * size).reshape(-1, size) % rows
    answers = [run(take(observations, batch), None if noise is None else noise[batch]) for batch in batches]
    return {name: np.concatenate([answer[name] for answer in answers])[:rows] for name in answers[0]}


def agree(actual: NDArray[Any], expected: NDArray[Any], unit: NDArray[np.float64] | float = 1.0) -> bool:
    """Return whether two arrays agree up to float32 rounding, with NaN in the same places; integers must be equal.

    `unit` is the size of each element's numbers, as `ArraySpec.unit` has it.
    """
    if expected.dtype.kind != "f":
        return actual.dtype == expected.dtype and np.array_equal(actual, expected)
    return actual.shape == expected.shape and np.allclose(
        actual, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE * unit, equal_nan=True
    )


def difference(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference of two arrays of the same shape; 0 if they are empty."""
    return float(np.max(np.abs(actual.astype(np.float64) - expected.astype(np.float64)), initial=0.0))


def outside_bounds(actions: NDArray[Any], action: ArraySpec) -> NDArray[np.bool_]:
    """Mark the elements of actions [n, ...] that are outside the declared bounds by more than rounding."""
    low, high = action.bounds()
    values, slack = actions.astype(np.float64), np.zeros(action.shape)
    if actions.dtype.kind == "f":
        sizes = [np.where(np.isfinite(bound), np.abs(bound), 0.0) for bound in (low, high)]
        slack = ABSOLUTE_TOLERANCE * action.unit + RELATIVE_TOLERANCE * np.fmax(*sizes)
    return np.asarray((values < low - slack) | (values > high + slack))


def _without_noise(cases: dict[str, NDArray[Any]], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the cases whose noise is zero."""
    noise = cases[manifest.noise.name]
    is_zero = ~noise.reshape(len(noise), -1).any(axis=1)
    return {name: array[is_zero] for name, array in cases.items()}


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    extra = sorted(present - set(manifest.files) - UNLISTED_FILES)
    if extra:
        raise BundleError(f"{folder} holds {extra[0]}, which {MANIFEST_FILE} does not list; remove it")
