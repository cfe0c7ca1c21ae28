"""Measure where `--batching` makes the server faster.

`python -m benchmarks.serving.batching [--seconds 5] [--rounds 3] [--hidden 64 256 1024]` serves policies of three
hidden layers of each width with and without it, in turn, on core 0, and prints a table of medians; wrk asks for one
action at a time, on core 1, over 1, 8 and 64 connections. Needs TensorFlow to make the policies. Figures are worth
something on an idle machine alone.
"""

import argparse
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.serving import speed
from trpo_tf.export import PolicySpec, write_bundle
from trpo_tf.serving import ArraySpec, NoiseSpec

CONNECTIONS = (1, 8, 64)
MODES = {"off": (), "on": ("--batching",)}


def make_bundle(hidden: int, folder: Path) -> Path:
    """Write a policy 4-hidden-hidden-hidden-2 with random weights, for the observation that speed.py sends."""
    rng, sizes = np.random.default_rng(1), (4, hidden, hidden, hidden, 2)
    weights = [tf.constant(rng.normal(size=pair) / np.sqrt(pair[0]), tf.float32) for pair in pairwise(sizes)]

    def act(observation: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        x = observation
        for weight in weights[:-1]:
            x = tf.tanh(tf.matmul(x, weight))
        return tf.clip_by_value(tf.matmul(x, weights[-1]) + noise, -1.0, 1.0)

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (4,)),), ArraySpec("action", "float32", (2,), -1.0, 1.0), NoiseSpec("normal", (2,))
    )
    write_bundle(act, spec, folder, name="policy")
    return folder


def measure(bundle: Path, seconds: float, rounds: int) -> dict[tuple[str, int], dict[str, float]]:
    """Return the median of requests per second and of p99 in microseconds, by mode and number of connections."""
    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for mode, options in MODES.items():
            command = (sys.executable, "-m", "trpo_tf", "serve", str(bundle), "--port", str(speed.PORT), *options)
            contender = speed.Contender(mode, command)
            with speed.served(contender):
                for connections in CONNECTIONS:
                    speed.load(contender, connections, 1)
                    seen.setdefault((mode, connections), []).append(speed.load(contender, connections, seconds))
    return {key: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for key, rows in seen.items()}


def main() -> None:
    """Measure, and print as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256, 1024])
    given = parser.parse_args()
    print("| hidden layers | connections | req/s off, on | on / off | p99 us off, on |\n|---|---|---|---|---|")
    for hidden in given.hidden:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(make_bundle(hidden, Path(scratch) / "policy"), given.seconds, given.rounds)
        for connections in CONNECTIONS:
            off, on = (found[mode, connections] for mode in MODES)
            rates = off["requests_per_second"], on["requests_per_second"]
            print(
                f"| 3 x {hidden} | {connections} | {rates[0]:,.0f}, {rates[1]:,.0f} | {rates[1] / rates[0]:.2f} "
                f"| {off['p99_us']:,.0f}, {on['p99_us']:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
