"""How much faster sampling is with rollout workers.

`python benchmarks/scale.py` prints a table and writes results/scale.json. A row compares the fastest of several
iterations' sampling, without any learning, in a process of its own for each number of workers. Rows that keep cores
busy need as many idle cores as workers; the waiting environment needs none.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from processes import ask

RESULTS = Path(__file__).parent / "results" / "scale.json"
ITERATIONS = 6


class Case(NamedTuple):
    """What is sampled: `steps` of each of the environments in an iteration."""

    env_id: str
    num_envs: int
    shards: int
    workers: int
    steps: int


CHEETAH = Case("HalfCheetah-v5", num_envs=8, shards=2, workers=2, steps=512)
PYTHON = Case("scale_environments:Python-v0", num_envs=8, shards=2, workers=2, steps=128)
WAITING = Case("scale_environments:Waiting-v0", num_envs=64, shards=8, workers=8, steps=25)
CHEAP = Case("scale_environments:Cheap-v0", num_envs=2, shards=2, workers=2, steps=1024)


def measure(case: Case) -> float:
    """Least seconds of an iteration's sampling."""
    import numpy as np

    from trpo_tf.config.settings import Config, SamplingConfig
    from trpo_tf.learning.learner import build_learner
    from trpo_tf.policies.running_stats import Normalizer
    from trpo_tf.sampling.sampler import Experience
    from trpo_tf.sampling.workers import Workers
    from trpo_tf.support.phase_timer import PhaseClock

    batch = case.num_envs * case.steps
    sampling = SamplingConfig(num_envs=case.num_envs, shards=case.shards, batch_size=batch, env_backend="gymnasium")
    config = Config(case.env_id, sampling=sampling)
    learner = build_learner(config)
    state, seconds = learner.initial_state(case.num_envs), []
    with Experience(config, learner.policy, Workers(case.workers)) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        for iteration in range(ITERATIONS):
            started = time.perf_counter()
            experience.collect(np.random.default_rng(iteration), PhaseClock())
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Measure every row, or the case that the arguments give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="measure this case alone, given as JSON")
    parser.add_argument("--rows", nargs="*", default=["cheetah", "python", "waiting", "overhead"])
    arguments = parser.parse_args()
    if arguments.case:
        sys.stdout.write(f"{json.dumps(measure(Case(*json.loads(arguments.case))))}\n")
        return
    rows: dict[str, Any] = {"cores": os.cpu_count()}
    for name, case in (("cheetah", CHEETAH), ("python", PYTHON)):
        if name in arguments.rows:
            alone, shared = seconds_of(case._replace(workers=0)), seconds_of(case)
            rows[name] = {"seconds_0": alone, f"seconds_{case.workers}": shared, "speedup": alone / shared}
    if "waiting" in arguments.rows:
        ideal, found = WAITING.steps * WAITING.num_envs * 0.005 / WAITING.workers, seconds_of(WAITING)
        rows["waiting"] = {"ideal_seconds": ideal, "seconds_8": found, "share_of_ideal": ideal / found}
    if "overhead" in arguments.rows:
        # Each worker does what one process does with half of the environments.
        half = seconds_of(CHEAP._replace(num_envs=1, shards=1, workers=0))
        rows["overhead"] = {"milliseconds": 1000 * (seconds_of(CHEAP) - half)}
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    for name, row in rows.items():
        sys.stdout.write(f"{name}: {json.dumps(row)}\n")


def seconds_of(case: Case) -> float:
    """Seconds of a case, measured by a process of its own."""
    return float(ask([sys.executable, __file__, "--case", json.dumps(case)]))


if __name__ == "__main__":
    main()
