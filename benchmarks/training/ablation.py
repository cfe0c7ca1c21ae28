"""Train a preset with one setting changed at a time, on seeds that no benchmark uses, and compare the returns.

`python -m benchmarks.training.ablation HalfCheetah-v5 --steps 300000 --seeds 2` prints a table and writes
results/ablation.json: mean return of 20 deterministic episodes for each seed, of the preset itself and of each
change. Two runs at a time.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.training.settings import with_settings
from trpo_tf.benchmark.machine import describe_machine
from trpo_tf.benchmark.worker import use_one_thread
from trpo_tf.config.settings import load_preset, preset_for
from trpo_tf.training.train import train

OUT = Path(__file__).parents[1] / "results" / "ablation.json"
FIRST_SEED = 100
CHANGES: dict[str, dict[str, Any]] = {
    "the preset": {},
    "observations as they are": {"sampling.normalize_observations": False},
    "rewards as they are": {"sampling.value_scaling": "none"},
    "radius 0.1": {"trust_region.max_kl": 0.1},
    "trace 0.97": {"sampling.gae_lambda": 0.97},
    "5 critic epochs": {"critic.epochs": 5},
    "batch of 4,096": {"sampling.batch_size": 4096},
    "last layer at full scale": {"policy.last_layer_scale": 1.0},
    "damping 1": {"trust_region.damping": 1.0},
    "Fisher products on all rows": {"trust_region.fisher_fraction": 1.0},
    "10 Fisher products": {"trust_region.cg_iterations": 10},
    "8 environments": {"sampling.num_envs": 8},
    "critic of 128-128": {"critic.hidden_sizes": (128, 128)},
    "critic's memory of 4 batches": {"critic.memory": 4},
    "critic's memory of 16 batches": {"critic.memory": 16},
    "discount 0.995 to 0.99, trace 0.9, memory of 8": {
        "sampling.discount": 0.995,
        "sampling.final_discount": 0.99,
        "sampling.gae_lambda": 0.9,
        "critic.memory": 8,
    },
    "radius falling to 0": {"anneal": True},
    "the steps left observed": {"sampling.time_feature": True},
    "correlated noise, 0.6": {"sampling.noise_correlation": 0.6},
}


def mean_return(env_id: str, steps: int, seed: int, change: str) -> float:
    """Return the mean return of one run."""
    preset = load_preset(preset_for(env_id), env_id)
    config = dataclasses.replace(with_settings(preset, CHANGES[change]), total_steps=steps, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        return float(train(config, Path(scratch) / "run").summary["trained"]["mean_return"])


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=2, help="from 100 on")
    arguments = parser.parse_args()
    env_id, steps, seeds = arguments.env_id, arguments.steps, range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    with ProcessPoolExecutor(2, get_context("spawn"), use_one_thread) as pool:
        runs = {change: [pool.submit(mean_return, env_id, steps, seed, change) for seed in seeds] for change in CHANGES}
        rows = []
        for change, futures in runs.items():
            rows.append({"change": change, "settings": CHANGES[change], "returns": [f.result() for f in futures]})
            print(f"{change}: {rows[-1]['returns']}", file=sys.stderr, flush=True)
    about = {"environment": env_id, "steps": steps, "seeds": list(seeds), "machine": describe_machine()}
    OUT.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    print("| change | per seed | mean |\n|---|---|---|")
    for row in rows:
        shown = ", ".join(f"{value:,.0f}" for value in row["returns"])
        print(f"| {row['change']} | {shown} | {fmean(row['returns']):,.0f} |")


if __name__ == "__main__":
    main()
