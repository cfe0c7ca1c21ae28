"""Measure the speed of training against sb3-contrib's, in turns, each time in a new process.

`python -m benchmarks.training.speed --peer PYTHON` prints two tables and writes results/speed.json; PYTHON is the
interpreter of an environment that has sb3-contrib (`make bench-train` makes one). In the first both do the same work;
in the second each has its own settings, ours its presets. The speed of the environments alone is that
with random actions.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import ask
from trpo_tf.config.settings import Config, SamplingConfig, TrustRegionConfig, load_preset, preset_for
from trpo_tf.envs.make import make_env
from trpo_tf.envs.vector.backends import make_vector_env, with_env_backend
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.runs.profiler import phase_milliseconds
from trpo_tf.sampling.sampler import Experience

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
WARM_UP, MEASURED = 2, 12
PEER_ENVS = 8


class Task(NamedTuple):
    """An environment, our backend, and how many environments."""

    env_id: str
    backend: str
    num_envs: int


TASKS = [
    Task("CartPole-v1", "gymnasium", 8),
    Task("CartPole-v1", "gymnasium", 64),
    Task("Pendulum-v1", "envpool", 8),
    Task("Pendulum-v1", "envpool", 64),
    Task("HalfCheetah-v5", "gymnasium", 8),
    Task("HalfCheetah-v5", "envpool", 8),
    Task("HalfCheetah-v5", "envpool", 64),
]
PRESETS = ["CartPole-v1", "HalfCheetah-v5"]


def equal_work(task: Task) -> Config:
    """Return the peer's defaults for a run of a million steps, with fifteen conjugate gradient iterations as there."""
    sampling = SamplingConfig(num_envs=task.num_envs, env_backend=task.backend)
    trust_region = TrustRegionConfig(cg_tolerance=0.0)
    return Config(task.env_id, total_steps=1_000_000, sampling=sampling, trust_region=trust_region)


def preset(env_id: str) -> Config:
    """Return the task's preset, with the environment backend that it means here."""
    return with_env_backend(load_preset(preset_for(env_id), env_id))


def measure_ours(config: Config) -> dict[str, Any]:
    """Return steps per second after compilation, and milliseconds an iteration by phase."""
    learner = build_learner(config)
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        for _ in range(WARM_UP):
            state, _ = iterate(config, learner, experience, state)
        steps, started, logged = state.steps, time.perf_counter(), []
        for _ in range(MEASURED):
            state, metrics = iterate(config, learner, experience, state)
            logged.append(metrics)
        seconds = time.perf_counter() - started
    return {"steps_per_second": (state.steps - steps) / seconds, "milliseconds": phase_milliseconds(logged)}


def measure_alone(config: Config) -> dict[str, Any]:
    """Return steps per second of the environments alone, with random actions."""
    length, n, env = config.rollout_length, config.sampling.num_envs, make_env(config.env_id)
    env.action_space.seed(0)
    actions = [np.stack([env.action_space.sample() for _ in range(n)]) for _ in range(length)]
    envs = make_vector_env(config.env_id, n, config.sampling.env_backend)
    envs.reset(seed=0)
    started = time.perf_counter()
    for _ in range(MEASURED):
        for action in actions:
            envs.step(action)
    seconds = time.perf_counter() - started
    envs.close()
    return {"steps_per_second": MEASURED * length * n / seconds}


def compare(config: Config, peer: str, peer_envs: int, rounds: int, *, alone: bool) -> dict[str, Any]:
    """Measure ours and the peer's in turn, and the environments alone if asked for."""
    seen: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": [], "alone": []}
    settings = json.dumps(config.to_dict())
    for _ in range(rounds):
        seen["ours"].append(ask([sys.executable, "-m", "benchmarks.training.speed", "--ours", settings]))
        command = [peer, "-m", "benchmarks.peers.cost", config.env_id, str(peer_envs), str(WARM_UP), str(MEASURED)]
        seen["peer"].append(ask(command))
        if alone:
            seen["alone"].append(ask([sys.executable, "-m", "benchmarks.training.speed", "--alone", settings]))
    speeds = {who: [row["steps_per_second"] for row in rows] for who, rows in seen.items()}
    ratios = [mine / other for mine, other in zip(speeds["ours"], speeds["peer"], strict=True)]
    spent = [row["milliseconds"] for row in seen["ours"]]
    sampling = config.sampling
    return {
        "environment": config.env_id,
        "backend": sampling.env_backend,
        "num_envs": sampling.num_envs,
        **{who: statistics.median(values) for who, values in speeds.items() if values},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "milliseconds": {phase: statistics.median(row[phase] for row in spent) for phase in spent[0]},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    phases = results[0]["milliseconds"]
    has_alone = "alone" in results[0]
    heads = ["environment", "backend", "envs", "steps/s", "sb3-contrib", "ratio (range)", f"{', '.join(phases)}, ms"]
    lines = [heads + ["environments alone", "share"] * has_alone]
    lines.append(["---"] * len(lines[0]))
    for r in results:
        spent = ", ".join(f"{r['milliseconds'][phase]:.0f}" for phase in phases)
        ratio = f"{r['ratio']:.1f} ({min(r['ratios']):.1f} to {max(r['ratios']):.1f})"
        cells = [r["environment"], r["backend"], str(r["num_envs"]), f"{r['ours']:,.0f}", f"{r['peer']:,.0f}"]
        cells += [ratio, spent]
        lines.append(cells + ([f"{r['alone']:,.0f}", f"{r['ours'] / r['alone']:.0%}"] if has_alone else []))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Measure all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that has sb3-contrib")
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--ours", "--alone"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for settings, measure in ((arguments.ours, measure_ours), (arguments.alone, measure_alone)):
        if settings:
            print(json.dumps(measure(Config.from_dict(json.loads(settings)))))
            return
    if not arguments.peer:
        parser.error("--peer is needed: the Python interpreter of an environment with sb3-contrib")
    results: dict[str, list[dict[str, Any]]] = {"equal work": [], "own settings": []}
    jobs = [("equal work", equal_work(task), task.num_envs) for task in TASKS]
    jobs += [("own settings", preset(env_id), PEER_ENVS) for env_id in PRESETS]
    for name, config, peer_envs in jobs:
        row = compare(config, arguments.peer, peer_envs, arguments.rounds, alone=name == "own settings")
        results[name].append(row)
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print("\n\n".join(table(rows) for rows in results.values()))


if __name__ == "__main__":
    main()
