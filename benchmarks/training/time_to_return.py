"""Measure how soon a return is reached: ours with our presets, sb3-contrib's TRPO with RL Zoo's settings.

`python -m benchmarks.training.time_to_return --peer PYTHON` runs both in turn, each time in a process of its own,
prints a table and writes results/time_to_return.json. Seconds are those of training with its compilation, which is also
told apart: what our first iteration takes beyond the second's time. The return is the mean of the last twenty sampled
episodes.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import ask

RESULTS = Path(__file__).parents[1] / "results" / "time_to_return.json"


class Task(NamedTuple):
    """An environment and the return to reach."""

    env_id: str
    target: float


class Reached(Exception):
    """The exception that ends training once the return is reached."""


TASKS = [Task("CartPole-v1", 475.0), Task("HalfCheetah-v5", 2500.0)]


def measure_ours(task: Task, seed: int) -> dict[str, Any]:
    """Return seconds and steps of training until the return was reached, or of the whole training if it never was.

    And the seconds of compiling among them.
    """
    from trpo_tf.config.settings import load_preset, preset_for
    from trpo_tf.training.train import train

    def observe(metrics: dict[str, Any]) -> None:
        ends.append(time.perf_counter() - started)
        reached = metrics["mean_return"] is not None and metrics["mean_return"] >= task.target
        answer.update(seconds=ends[-1], steps=metrics["steps"], reached=reached)
        if reached:
            raise Reached

    preset = load_preset(preset_for(task.env_id), task.env_id)
    config = dataclasses.replace(preset, seed=seed, eval_episodes=0)
    answer: dict[str, Any] = {}
    ends: list[float] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(Reached):
        train(config, Path(scratch) / "run", observer=observe)
    return {**answer, "compiling": ends[0] - (ends[1] - ends[0])}


def compare(task: Task, peer: str, rounds: int) -> dict[str, Any]:
    """Measure ours and the peer's in turn, one seed a round."""
    ours, theirs = [], []
    for seed in range(rounds):
        ours.append(
            ask([sys.executable, "-m", "benchmarks.training.time_to_return", "--ours", json.dumps([task, seed])])
        )
        command = [peer, "-m", "benchmarks.peers.time_to_return", task.env_id, str(task.target), str(seed)]
        theirs.append(ask(command))
        for who, run in (("ours", ours[-1]), ("sb3-contrib", theirs[-1])):
            print(f"{task.env_id} seed {seed}, {who}: {run['seconds']:.1f} s", file=sys.stderr, flush=True)
    pairs = list(zip(ours, theirs, strict=True))
    ratios = [other["seconds"] / mine["seconds"] for mine, other in pairs]
    compiled = [other["seconds"] / (mine["seconds"] - mine["compiling"]) for mine, other in pairs]
    return {**task._asdict(), "ours": ours, "peer": theirs, "ratios": ratios, "ratios_compiled": compiled}


def table(results: list[dict[str, Any]]) -> str:
    """Format as Markdown: medians, and whether a run never reached the return."""
    lines = [
        "| environment | return | seconds (steps), ours | compiling | sb3-contrib | ratio (range) | once compiled |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ours, theirs = (_cell(r[who]) for who in ("ours", "peer"))
        compiling = f"{statistics.median(run['compiling'] for run in r['ours']):.1f}"
        ratios = [_range(r[key]) for key in ("ratios", "ratios_compiled")]
        cells = [r["env_id"], f"{r['target']:g}", ours, compiling, theirs, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def _cell(runs: list[dict[str, float]]) -> str:
    seconds, steps = (statistics.median(run[key] for run in runs) for key in ("seconds", "steps"))
    never = sum(not run["reached"] for run in runs)
    return f"{seconds:.1f} ({steps:,.0f})" + (f", {never} of {len(runs)} never" if never else "")


def main() -> None:
    """Measure all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that has sb3-contrib")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        task, seed = json.loads(arguments.ours)
        print(json.dumps(measure_ours(Task(*task), seed)))
        return
    if not arguments.peer:
        parser.error("--peer is needed: the Python interpreter of an environment with sb3-contrib")
    results = [compare(task, arguments.peer, arguments.rounds) for task in TASKS]
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
