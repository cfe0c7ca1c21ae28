"""Measure how much memory training takes, against sb3-contrib's, and whether it grows.

`python -m benchmarks.training.memory --peer PYTHON` prints a table and writes results/memory.json; PYTHON is the
interpreter of an environment that has sb3-contrib (`make bench-memory` makes one). Megabytes are 10^6 bytes in RAM.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import ask, peak_megabytes, resident_megabytes

RESULTS = Path(__file__).parents[1] / "results" / "memory.json"
ENV_ID, NUM_ENVS, BATCH = "HalfCheetah-v5", 8, 2048
EARLY, LATE, BETWEEN = 50, 500, 50


def measure_ours() -> dict[str, Any]:
    """Train with checkpoints and logs; return memory every fifty iterations, and its peak until the fiftieth."""
    from trpo_tf.config.settings import Config, SamplingConfig
    from trpo_tf.training.train import train

    resident: dict[int, float] = {}
    peaks: dict[int, float] = {}

    def observe(metrics: dict[str, Any]) -> None:
        if metrics["iteration"] % BETWEEN == 0:
            resident[metrics["iteration"]], peaks[metrics["iteration"]] = resident_megabytes(), peak_megabytes()

    sampling = SamplingConfig(num_envs=NUM_ENVS, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(ENV_ID, total_steps=LATE * BATCH, eval_episodes=0, sampling=sampling)
        train(config, Path(scratch) / "run", observer=observe)
    return {"peak_megabytes": peaks[EARLY], "resident_megabytes": resident}


def table(results: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    ours, peer = results["ours"], results["peer"]
    early, late = (ours["resident_megabytes"][str(iteration)] for iteration in (EARLY, LATE))
    return "\n".join(
        [
            f"| {ENV_ID}, {NUM_ENVS} environments, batches of {BATCH:,} | MB |",
            "|---|---|",
            f"| ours, peak of {EARLY} iterations | {ours['peak_megabytes']:.0f} |",
            f"| sb3-contrib, peak of {EARLY} iterations | {peer['peak_megabytes']:.0f} |",
            f"| ours, after {EARLY} iterations | {early:.1f} |",
            f"| ours, after {LATE} iterations | {late:.1f} |",
            f"| growth | {late - early:+.1f} |",
        ]
    )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that has sb3-contrib")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        print(json.dumps(measure_ours()))
        return
    if not arguments.peer:
        parser.error("--peer is needed: the Python interpreter of an environment with sb3-contrib")
    peer = ask([arguments.peer, "-m", "benchmarks.peers.cost", ENV_ID, str(NUM_ENVS), "0", str(EARLY)])
    results = {
        "ours": ask([sys.executable, "-m", "benchmarks.training.memory", "--ours"]),
        "peer": {"peak_megabytes": peer["peak_megabytes"]},
    }
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
