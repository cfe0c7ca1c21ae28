"""How well do the presets learn? Trains each on a few seeds, plays the exported policies, draws the learning curves.

`python benchmarks/tasks.py --seeds 3` prints a table and writes docs/tasks.json and docs/tasks.png.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from trpo_tf.quiet import import_tensorflow

import_tensorflow()

import gymnasium as gym  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import serving  # noqa: E402
from trpo_tf.config import load_preset, preset_names  # noqa: E402
from trpo_tf.evaluation import evaluate  # noqa: E402
from trpo_tf.exporting import export_run  # noqa: E402
from trpo_tf.training import train  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"


def measure(env_id: str, seed: int) -> dict:
    """One run: its learning curve, and 20 deterministic episodes of the exported policy."""
    config = dataclasses.replace(load_preset(env_id, env_id), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = train(config, folder / "run")
        export_run(run, folder / "bundle")
        lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        curve = [(m["steps"], m["mean_return"]) for m in lines if m["mean_return"] is not None]
        evaluation = evaluate(serving.load(folder / "bundle"), env_id)
    return {
        "env_id": env_id,
        "seed": seed,
        "steps": run.state.steps,
        "seconds": run.state.seconds,
        "untrained": run.summary["untrained"]["mean_return"],
        "mean_return": evaluation.mean_return,
        "std_return": evaluation.std_return,
        "curve": curve,
    }


def draw(results: list[dict], path: Path) -> None:
    """A panel for each environment, a line for each seed."""
    env_ids = list(dict.fromkeys(r["env_id"] for r in results))
    figure, panels = plt.subplots(1, len(env_ids), figsize=(3.4 * len(env_ids), 2.8), layout="constrained")
    for panel, env_id in zip(panels, env_ids, strict=True):
        for result in (r for r in results if r["env_id"] == env_id):
            steps, returns = np.array(result["curve"]).T
            panel.plot(steps / 1000, returns, linewidth=1.5, label=f"seed {result['seed']}")
        panel.set(title=env_id, xlabel="thousand environment steps")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("return, mean of 20 episodes")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    results = []
    for env_id in (name for name in preset_names() if name in gym.registry):
        for seed in seeds:
            results.append(result := measure(env_id, seed))
            print(
                f"{env_id:<22} seed {seed}  {result['steps']:>8,} steps  {result['seconds']:5.1f} s"
                f"  {result['untrained']:8.1f} untrained  {result['mean_return']:8.1f} +- {result['std_return']:.1f}",
                flush=True,
            )
    (DOCS / "tasks.json").write_text(json.dumps(results) + "\n")
    draw(results, DOCS / "tasks.png")


if __name__ == "__main__":
    main()
