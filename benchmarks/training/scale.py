"""Measure how much faster sampling is with rollout workers, and what the workers cost the learner.

`python -m benchmarks.training.scale` prints a table and writes results/scale.json; `--rows` chooses rows, and keeps the
others in the file. A row's cases run in processes of their own, without learning but in `constants`. Rows that keep
cores busy need as many idle cores as workers; the waiting environment needs none. `--peer PYTHON` adds sb3-contrib and
Gymnasium's AsyncVectorEnv to the first two rows, where that interpreter has them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import ask

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
ITERATIONS = 6
PEER_PROCESSES = (1, 2, 4, 8)


class Case(NamedTuple):
    """What is sampled: `steps` of each of the environments in an iteration, on Ray if `nodes` is not 0."""

    env_id: str
    num_envs: int
    shards: int
    workers: int
    steps: int
    nodes: int = 0


class Measured(NamedTuple):
    """Least seconds of an iteration's sampling, those outside environments and policy, and the learner's on the CPU."""

    seconds: float
    rest: float
    learner_cpu: float


CHEETAH = Case("HalfCheetah-v5", num_envs=8, shards=2, workers=2, steps=512)
PYTHON = Case("benchmarks.training.scale_environments:Python-v0", num_envs=8, shards=2, workers=2, steps=128)
WAITING = Case("benchmarks.training.scale_environments:Waiting-v0", num_envs=64, shards=8, workers=8, steps=25)
CHEAP = Case("benchmarks.training.scale_environments:Cheap-v0", num_envs=2, shards=2, workers=2, steps=1024)


def sample(case: Case) -> Measured:
    """Sample some iterations in this process."""
    from trpo_tf.learning.learner import build_learner
    from trpo_tf.policies.running_stats import Normalizer
    from trpo_tf.sampling.sampler import Experience
    from trpo_tf.sampling.workers import Workers
    from trpo_tf.support.phase_timer import PhaseClock

    config = config_of(case)
    learner = build_learner(config)
    state, found = learner.initial_state(case.num_envs), []
    workers = Workers(case.workers, ray=start_nodes(case) if case.nodes else None)
    with Experience(config, learner.policy, workers) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        for iteration in range(ITERATIONS):
            clock, started, cpu = PhaseClock(), time.perf_counter(), time.process_time()
            experience.collect(np.random.default_rng(iteration), clock)
            found.append(Measured(time.perf_counter() - started, clock.stop()["rest"], time.process_time() - cpu))
    return min(found)._replace(
        rest=min(measured.rest for measured in found),
        learner_cpu=float(np.median([measured.learner_cpu for measured in found[1:]])),
    )


def config_of(case: Case, **settings: Any) -> Any:
    """Return the config of the run that samples a case."""
    from trpo_tf.config.settings import Config, SamplingConfig

    batch = case.num_envs * case.steps
    sampling = SamplingConfig(num_envs=case.num_envs, shards=case.shards, batch_size=batch, env_backend="gymnasium")
    return Config(case.env_id, sampling=sampling, **settings)


def start_nodes(case: Case) -> str:
    """Start Ray's nodes on this machine, as many cores to each as its share of the workers; the head has none."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(case.nodes):
        cluster.add_node(num_cpus=case.workers // case.nodes)
    return str(cluster.address)


def measured(case: Case) -> Measured:
    """Measure a case in a new process."""
    return all_measured([case])[0]


def all_measured(cases: list[Case]) -> list[Measured]:
    """Measure several cases in one new process."""
    return [
        Measured(*found)
        for found in ask([sys.executable, "-m", "benchmarks.training.scale", "--cases", json.dumps(cases)])
    ]


def speedup(case: Case, peer: str | None) -> dict[str, Any]:
    """Return seconds with and without workers, and those of the peers with their best number of processes."""
    alone, shared = measured(case._replace(workers=0)).seconds, measured(case).seconds
    row = {"seconds_0": alone, f"seconds_{case.workers}": shared, "speedup": alone / shared}
    if peer is None:
        return row
    steps = case.num_envs * case.steps
    for kind in ("sb3-contrib", "async"):
        rates = {
            count: ask([peer, "-m", "benchmarks.peers.scale", kind, case.env_id, str(count), str(steps)])
            for count in PEER_PROCESSES
        }
        best = max(rates, key=lambda count: rates[count])
        row[kind] = {"processes": best, "steps_per_second": rates[best], "ratio": steps / shared / rates[best]}
    return row


def waiting() -> dict[str, Any]:
    """Return the speed-up on waiting environments as a share of the ideal, in which all workers wait at once."""
    ideal, found = WAITING.steps * WAITING.num_envs * 0.005 / WAITING.workers, measured(WAITING).seconds
    return {"ideal_seconds": ideal, "seconds_8": found, "share_of_ideal": ideal / found}


def overhead(nodes: int) -> dict[str, Any]:
    """Return milliseconds of sampling that are neither environments nor policy, less those without workers.

    Without workers half of the environments are sampled. `wall_milliseconds` compares whole times instead. They also
    have what two busy processes cost each other: caches, memory, the clock of the cores.
    """
    half, whole = measured(CHEAP._replace(num_envs=1, shards=1, workers=0)), measured(CHEAP._replace(nodes=nodes))
    return {"milliseconds": 1000 * (whole.rest - half.rest), "wall_milliseconds": 1000 * (whole.seconds - half.seconds)}


def ray_nodes() -> dict[str, Any]:
    """Return the efficiency of waiting environments on 2, 4 and 8 nodes, against one node with one worker's share."""
    share = WAITING._replace(num_envs=WAITING.num_envs // 8, shards=1, workers=1, nodes=1)
    alone = measured(share).seconds
    cases = {
        nodes: share._replace(num_envs=share.num_envs * nodes, shards=nodes, workers=nodes, nodes=nodes)
        for nodes in (2, 4, 8)
    }
    return {"seconds_1": alone} | {f"efficiency_{n}": alone / measured(case).seconds for n, case in cases.items()}


def constants() -> dict[str, Any]:
    """Measure the constants of scale_model.py, in seconds of the learner's CPU, which other load disturbs little.

    The learner's cost of a worker and of a step are fitted to cases of 1 to 8 workers, with few and with many steps.
    """
    cases = [
        CHEAP._replace(num_envs=count, shards=count, workers=count, steps=steps)
        for count in (1, 2, 4, 8)
        for steps in (128, 1024)
    ]
    costs = [found.learner_cpu for found in all_measured(cases)]
    columns = np.array([(1.0, case.workers, case.workers * case.steps) for case in cases])
    fixed, worker, step = np.linalg.lstsq(columns, np.array(costs), rcond=None)[0]
    return {
        "learner_seconds": float(max(fixed, 0.0)),
        "learner_seconds_per_worker": float(worker),
        "learner_seconds_per_step": float(step),
        **ask([sys.executable, "-m", "benchmarks.training.scale", "--learning"]),
    }


def learning() -> dict[str, float]:
    """Return seconds of an update at two batch sizes, and of HalfCheetah's step with its variation over segments."""
    from trpo_tf.learning.iteration import iterate
    from trpo_tf.learning.learner import build_learner
    from trpo_tf.sampling.sampler import Experience

    seconds, sampled = {}, []
    for steps in (256, 2048):
        case = CHEETAH._replace(steps=steps, workers=0)
        config = config_of(case)
        learner = build_learner(config)
        state, times = learner.initial_state(case.num_envs), []
        with Experience(config, learner.policy) as experience:
            experience.restart()
            for _ in range(ITERATIONS):
                state, metrics = iterate(config, learner, experience, state)
                times.append(sum(metrics[f"seconds_{phase}"] for phase in ("advantages", "update", "critic")))
                sampled.append((metrics["seconds_physics"] + metrics["seconds_acting"]) / (case.num_envs * steps))
        seconds[case.num_envs * steps] = min(times)
    (small, large), (fast, slow) = seconds.keys(), seconds.values()
    per_step = (slow - fast) / (large - small)
    return {
        "update_seconds": max(fast - per_step * small, 0.0),
        "update_seconds_per_step": per_step,
        "step_seconds": float(np.median(sampled)),
        "segment_variation": float(np.std(sampled[1:]) / np.mean(sampled[1:])),
    }


def main() -> None:
    """Measure the rows, or what another process of this script asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", help="measure these cases alone, given as JSON")
    parser.add_argument("--learning", action="store_true", help="measure updates alone")
    parser.add_argument("--peer", help="interpreter that has sb3-contrib")
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "cheetah": lambda: speedup(CHEETAH, arguments.peer),
        "python": lambda: speedup(PYTHON, arguments.peer),
        "waiting": waiting,
        "overhead": lambda: overhead(0),
        "overhead-ray": lambda: overhead(1),
        "ray-nodes": ray_nodes,
        "constants": constants,
    }
    parser.add_argument("--rows", nargs="*", default=list(rows), choices=list(rows))
    arguments = parser.parse_args()
    if arguments.cases:
        sys.stdout.write(f"{json.dumps([sample(Case(*case)) for case in json.loads(arguments.cases)])}\n")
        return
    if arguments.learning:
        sys.stdout.write(f"{json.dumps(learning())}\n")
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.rows:
        machine = {"load_before": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
        found[name] = rows[name]() | machine
        sys.stdout.write(f"{name}: {json.dumps(found[name])}\n")
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
