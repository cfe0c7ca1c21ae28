"""Measure what three networks cost in each target: bytes, and microseconds an action on this machine.

`python -m benchmarks.export.targets` prints a table a network and writes results/targets.json. Latencies are of a call
in process with one thread, at a batch of 1 and of 64; the C code is called through ctypes, row by row. The policies are
untrained.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tests.support.export.untrained import untrained_policy
from trpo_tf.benchmark.machine import describe_machine
from trpo_tf.export import Evidence, write_bundle
from trpo_tf.export.parity.latency import BATCHES, read_latencies
from trpo_tf.export.targets.table import TARGETS, target_sizes

OUT = Path(__file__).parents[1] / "results" / "targets.json"
NUMBERS = gym.spaces.Box(-np.inf, np.inf, (17,), np.float64)
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
CONTINUOUS = gym.spaces.Box(-1, 1, (6,), np.float32)
POLICIES: dict[str, Callable[[], Any]] = {
    "64-64": lambda: untrained_policy(NUMBERS, CONTINUOUS, hidden_sizes=(64, 64)),
    "256-256": lambda: untrained_policy(NUMBERS, CONTINUOUS, hidden_sizes=(256, 256)),
    "CNN": lambda: untrained_policy(FRAMES, gym.spaces.Discrete(6), hidden_sizes=(256,)),
}


def measure(name: str) -> list[dict[str, Any]]:
    """Measure each target that can hold the policy: one row a target."""
    policy = POLICIES[name]()
    space = FRAMES if name == "CNN" else NUMBERS
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(64)])
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        evidence = Evidence(observations, scores=policy.scores if policy.is_discrete else None)
        manifest = write_bundle(policy.function, policy.spec, bundle, targets=["all"], evidence=evidence)
        latencies, sizes = read_latencies(bundle), target_sizes(manifest)
    return [
        {"network": name, "target": target, "bytes": sizes[target], **_microseconds(latencies[target])}
        for target in TARGETS
        if target in sizes
    ]


def _microseconds(latencies: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{p}_at_{batch}": latencies[str(batch)][p] for batch in BATCHES for p in ("p50", "p99")}


def main() -> None:
    """Measure, print and write."""
    rows = []
    for name in POLICIES:
        print(f"measuring {name}", file=sys.stderr)
        rows += measure(name)
    OUT.write_text(json.dumps({"machine": describe_machine(), "unit": "us", "rows": rows}, indent=2) + "\n")
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{v:,}' if isinstance(v, int | float) else v for v in row.values())} |")


if __name__ == "__main__":
    main()
