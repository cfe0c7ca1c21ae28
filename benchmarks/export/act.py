"""Measure how long a policy takes to act in process, against other runtimes, and whether memory grows.

`python -m benchmarks.export.act` prints a table and writes results/act.json, for a policy of two layers of 64, one of a
GRU of 64 in a session, and two bundles of the serving tests. `--only NAME` measures one policy, and writes nothing.
`--calls 10_000_000` measures memory instead, on the policy of two layers, and prints what it was.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import ask, resident_megabytes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "act.json"
ENV_ID = "HalfCheetah-v5"
"""17 numbers in, 6 out."""
SECONDS = 10.0
PARTS = 10


def write_cheetah(folder: Path) -> None:
    """Write the bundle of an untrained policy of 17-64-64-6, with a LiteRT file."""
    from trpo_tf.config.settings import Config, PolicyConfig
    from trpo_tf.export import write_bundle
    from trpo_tf.learning.learner import build_learner

    learner = build_learner(Config(ENV_ID, policy=PolicyConfig(hidden_sizes=(64, 64))))
    policy = learner.trained(learner.initial_state(1))
    write_bundle(policy.function, policy.spec, folder, targets=["savedmodel", "litert"], name=ENV_ID)


def write_gru(folder: Path) -> None:
    """Write the bundle of an untrained policy of 17 inputs, a GRU of 64 units and 6 outputs, with a LiteRT file."""
    import tensorflow as tf

    from tests.support.export.stateful import gru_cell, weights
    from trpo_tf.export import PolicySpec, write_bundle
    from trpo_tf.serving import ArraySpec, NoiseSpec, StateSpec

    step, head = gru_cell(17, 64), weights(64, 6)

    def act(observation: Any, state: Any, _: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        hidden = step(observation, state["hidden"])
        return tf.tanh(hidden @ head + 0.1 * noise), {"hidden": hidden}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (17,)),),
        ArraySpec("action", "float32", (6,), -1, 1),
        NoiseSpec("normal", (6,)),
        (StateSpec("hidden", "float32", (64,)),),
    )
    write_bundle(act, spec, folder, targets=["savedmodel", "litert"], name="gru-64")


def measure(bundle: Path) -> dict[str, Any]:
    """Measure latencies as `trpo-tf bench-latency` does."""
    command = [sys.executable, "-m", "trpo_tf", "bench-latency", str(bundle), "--seconds", str(SECONDS), "--json"]
    return dict(ask(command)["microseconds"])


def measure_memory(bundle: Path, calls: int) -> list[float]:
    """Return the resident megabytes before `calls` calls on observations that differ, and after each tenth of them."""
    import numpy as np

    from trpo_tf import serving

    policy = serving.load(bundle)
    (spec,) = policy.manifest.observation
    observations = list(np.random.default_rng(0).standard_normal((1000, *spec.shape)).astype(spec.dtype))
    resident = []
    for part in range(PARTS + 1):
        for _ in range(calls // PARTS // len(observations) if part else 10):
            for observation in observations:
                policy.act(observation)
        resident.append(resident_megabytes())
    return resident


def table(results: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    lines = ["| policy | one action by | p50 us | p99 us | p50, p99 / bare |", "|---|---|---|---|---|"]
    for policy, runtimes in results.items():
        for runtime, row in runtimes.items():
            ratios = f"{row['p50_ratio']:.2f}, {row['p99_ratio']:.2f}"
            lines.append(f"| {policy} | {runtime} | {row['p50']:.1f} | {row['p99']:.1f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure latency, or memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, help="measure memory over so many calls")
    parser.add_argument("--only", help="measure the policy of this name alone")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.calls)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        cheetah = Path(scratch) / ENV_ID
        write_cheetah(cheetah)
        if arguments.calls:
            this = [sys.executable, "-m", "benchmarks.export.act"]
            print("resident MB:", *ask([*this, "--calls", str(arguments.calls), "--memory-of", str(cheetah)]))
            return
        gru = Path(scratch) / "gru-64"
        write_gru(gru)
        small = {name: ROOT / "tests/serving/bundles" / name for name in ("continuous", "discrete")}
        bundles = {"17-64-64-6": cheetah, "17-GRU 64-6": gru} | small
        results = {name: measure(bundle) for name, bundle in bundles.items() if arguments.only in (None, name)}
    if arguments.only:
        print(table(results))
        return
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
