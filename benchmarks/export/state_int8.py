"""Measure how 8-bit targets err in the state of a policy with memory, along 16 steps.

`python -m benchmarks.export.state_int8` prints a table, for untrained recurrent cells of the tests. An error is a share
of what the best constant errs, as the export's proof measures it: along steps that the policy visits, with the target's
own state. In brackets is the error at the first step of an episode, and from the ninth step of one on.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.export.stateful import STATEFUL, converted, reference_cases
from trpo_tf.export.c99 import c_sources, compiled_step
from trpo_tf.export.graph.quantize import quantize_dynamic, quantize_static
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_step
from trpo_tf.export.parity.quantization_error import output_error
from trpo_tf.export.policy.functions import Answers
from trpo_tf.export.targets.session import session_outputs
from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.runtime.sequences import run_sequences

POLICIES = ("gru", "lstm", "gru and history")


def targets(name: str, folder: Path) -> Iterator[tuple[str, Answers]]:
    """Return the policy's step function in 8 bits, by target."""
    spec, graph, visited = STATEFUL[name].spec, converted(name), reference_cases(name).visited
    manifest = Manifest(name, spec.observation, spec.action, spec.noise, state=spec.state)
    noise = np.zeros((len(visited["reset"]), *spec.noise.shape), spec.noise.dtype)
    for target, content in (
        ("onnx-int8", quantize_static(graph, spec, visited, noise)),
        ("onnx-int8-dynamic", quantize_dynamic(graph)),
    ):
        (folder / f"{target}.onnx").write_bytes(content)
        yield target, session_outputs(f"{target}.onnx", folder, manifest)
    yield "litert-int8", litert_step(to_litert(STATEFUL[name].function, spec, int8_observations=visited), spec)
    yield "c-int8", compiled_step(c_sources(graph, spec, int8=True), spec)


def steps_since(reset: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the steps since an episode began: [sequence, step]."""
    steps = np.arange(reset.shape[1])
    return steps - np.maximum.accumulate(np.where(reset, steps, 0), axis=1)


def relative(actual: Array, expected: Array, rows: NDArray[np.bool_]) -> float:
    """Return the worst element's root mean square error of some rows, relative to the standard deviation of all."""
    error = np.sqrt(np.mean((actual[rows].astype(np.float64) - expected[rows]) ** 2, axis=0))
    return float((error / np.maximum(expected.std(axis=0), 1e-6)).max())


def main() -> None:
    """Measure and print."""
    print("| policy | state | target | error (first step, from the ninth on) |\n|---|---|---|---|")
    for name in POLICIES:
        cases, spec = reference_cases(name).visited_sequences, STATEFUL[name].spec
        steps = steps_since(cases.observations["reset"].reshape(-1, STEPS)).ravel()
        with tempfile.TemporaryDirectory() as folder:
            for target, step in targets(name, Path(folder)):
                _, found = run_sequences(step, cases.observations, cases.noise, spec.state)
                for each in spec.next_state:
                    actual, expected = found[each.name], cases.further[each.name]
                    error = output_error(actual, expected, each)
                    first, late = (relative(actual, expected, rows) for rows in (steps == 0, steps >= 8))
                    print(f"| {name} | {each.name} | {target} | {error:.3f} ({first:.3f}, {late:.3f}) |")


if __name__ == "__main__":
    main()
