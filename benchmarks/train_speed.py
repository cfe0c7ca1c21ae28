"""How fast is training, beside sb3-contrib's? Both at the same work, in turn, each time in a process of its own.

`python benchmarks/train_speed.py --peer PYTHON` prints a table and writes docs/speed.json; PYTHON is the interpreter
of an environment that has sb3-contrib (`make bench-train` makes one).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from processes import ask

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "speed.json"
WARM_UP, MEASURED = 2, 12


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


def measure_ours(task: Task) -> dict[str, Any]:
    """Steps a second when all is compiled, and milliseconds an iteration by phase."""
    from trpo_tf.quiet import import_tensorflow

    import_tensorflow()
    from trpo_tf.components import build_components
    from trpo_tf.config import Config, SamplingConfig, TrustRegionConfig
    from trpo_tf.iteration import iterate
    from trpo_tf.reporting.profiling import phase_milliseconds
    from trpo_tf.sampling.experience import Experience

    sampling = SamplingConfig(num_envs=task.num_envs, env_backend=task.backend)
    # As the peer: conjugate gradient goes its fifteen steps.
    config = Config(task.env_id, sampling=sampling, trust_region=TrustRegionConfig(cg_tolerance=0.0))
    components = build_components(config)
    state = components.initial_state(task.num_envs)
    with Experience(config, components.policy) as experience:
        experience.restart(state)
        for _ in range(WARM_UP):
            state, _ = iterate(config, components, experience, state)
        steps, started, logged = state.steps, time.perf_counter(), []
        for _ in range(MEASURED):
            state, metrics = iterate(config, components, experience, state)
            logged.append(metrics)
        seconds = time.perf_counter() - started
    return {"steps_per_second": (state.steps - steps) / seconds, "milliseconds": phase_milliseconds(logged)}


def compare(task: Task, peer: str, rounds: int) -> dict[str, Any]:
    """Ours and the peer's in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(ask([sys.executable, __file__, "--ours", json.dumps(task)]))
        command = [peer, str(HERE / "peer_cost.py"), task.env_id, str(task.num_envs), str(WARM_UP), str(MEASURED)]
        theirs.append(ask(command)["steps_per_second"])
    ratios = [mine["steps_per_second"] / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        **task._asdict(),
        "ours": statistics.median(mine["steps_per_second"] for mine in ours),
        "peer": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "milliseconds": {
            phase: statistics.median(mine["milliseconds"][phase] for mine in ours) for phase in ours[0]["milliseconds"]
        },
    }


def table(results: list[dict[str, Any]]) -> str:
    """For people, as Markdown."""
    phases = results[0]["milliseconds"]
    lines = [
        f"| environment | backend | envs | steps/s | sb3-contrib | ratio (range) | {', '.join(phases)}, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        spent = ", ".join(f"{r['milliseconds'][phase]:.0f}" for phase in phases)
        ratio = f"{r['ratio']:.1f} ({min(r['ratios']):.1f} to {max(r['ratios']):.1f})"
        speeds = f"{r['ours']:,.0f} | {r['peer']:,.0f}"
        lines.append(f"| {r['env_id']} | {r['backend']} | {r['num_envs']} | {speeds} | {ratio} | {spent} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python interpreter that has sb3-contrib")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        print(json.dumps(measure_ours(Task(*json.loads(arguments.ours)))))
        return
    if not arguments.peer:
        parser.error("--peer is needed: the Python interpreter of an environment with sb3-contrib")
    results = []
    for task in TASKS:
        results.append(compare(task, arguments.peer, arguments.rounds))
        print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
