"""How fast is training, beside sb3-contrib's? Both at the same work, in turn, each time in a process of its own.

`python benchmarks/train_speed.py --peer PYTHON` prints a table and writes docs/speed.json; PYTHON is the interpreter
of an environment that has sb3-contrib (`make bench-train` makes one).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "speed.json"
WARM_UP, MEASURED = 2, 12
PARTS = ("physics", "acting", "advantages", "update", "critic", "rest")


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


def measure_ours(task: Task) -> dict[str, float]:
    """Steps a second when all is compiled, and milliseconds an iteration by part."""
    from trpo_tf.quiet import import_tensorflow

    import_tensorflow()
    from trpo_tf.components import build_components
    from trpo_tf.config import Config, SamplingConfig, TrustRegionConfig
    from trpo_tf.iteration import iterate
    from trpo_tf.sampling.actor import Actor
    from trpo_tf.sampling.experience import Experience
    from trpo_tf.sampling.single_path import SinglePath

    spent = dict.fromkeys(("physics", "acting"), 0.0)
    _timed(SinglePath, "_step", "physics", spent)
    _timed(Actor, "run", "acting", spent)
    sampling = SamplingConfig(num_envs=task.num_envs, env_backend=task.backend)
    # As the peer: conjugate gradient goes its fifteen steps.
    config = Config(task.env_id, sampling=sampling, trust_region=TrustRegionConfig(cg_tolerance=0.0))
    components = build_components(config)
    state = components.initial_state(task.num_envs)
    with Experience(config, components.policy) as experience:
        experience.restart(state)
        for _ in range(WARM_UP):
            state, _ = iterate(config, components, experience, state)
        spent.update(physics=0.0, acting=0.0)
        steps, started, logged = state.steps, time.perf_counter(), []
        for _ in range(MEASURED):
            state, metrics = iterate(config, components, experience, state)
            logged.append(metrics)
        seconds = time.perf_counter() - started
    for part in ("advantages", "update", "critic"):
        spent[part] = sum(metrics[f"seconds_{part}"] for metrics in logged)
    spent["rest"] = seconds - sum(spent.values())
    milliseconds = {part: 1000 * spent[part] / MEASURED for part in PARTS}
    return {"steps_per_second": (state.steps - steps) / seconds, **milliseconds}


def compare(task: Task, peer: str, rounds: int) -> dict[str, Any]:
    """Ours and the peer's in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_run([sys.executable, __file__, "--ours", json.dumps(task)]))
        command = [peer, str(HERE / "peer_speed.py"), task.env_id, str(task.num_envs), str(WARM_UP), str(MEASURED)]
        theirs.append(_run(command)["steps_per_second"])
    ratios = [mine["steps_per_second"] / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        **task._asdict(),
        "ours": statistics.median(mine["steps_per_second"] for mine in ours),
        "peer": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "milliseconds": {part: statistics.median(mine[part] for mine in ours) for part in PARTS},
    }


def table(results: list[dict[str, Any]]) -> str:
    """For people, as Markdown."""
    lines = [
        f"| environment | backend | envs | steps/s | sb3-contrib | ratio (range) | {', '.join(PARTS)}, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        parts = ", ".join(f"{r['milliseconds'][part]:.0f}" for part in PARTS)
        ratio = f"{r['ratio']:.1f} ({min(r['ratios']):.1f} to {max(r['ratios']):.1f})"
        speeds = f"{r['ours']:,.0f} | {r['peer']:,.0f}"
        lines.append(f"| {r['env_id']} | {r['backend']} | {r['num_envs']} | {speeds} | {ratio} | {parts} |")
    return "\n".join(lines)


def _run(command: list[str]) -> dict[str, float]:
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _timed(owner: Any, name: str, part: str, spent: dict[str, float]) -> None:
    function = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        answer = function(*arguments)
        spent[part] += time.perf_counter() - started
        return answer

    setattr(owner, name, timed)


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
