"""What rollout workers are compared by: samples, processes, and a learner in a process of its own."""

import functools
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from trpo_tf.learning.learner import build_learner
from trpo_tf.learning.training_state import Purpose
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.sampling.workers import Workers
from trpo_tf.serving.runtime.observations import list_parts
from trpo_tf.support.phase_timer import PhaseClock

SLEEPING = """
import sys, time
from trpo_tf.config.settings import Config, SamplingConfig
from trpo_tf.learning.learner import build_learner
from trpo_tf.sampling.sampler import Experience
from trpo_tf.sampling.workers import Workers
config = Config({env_id!r}, sampling=SamplingConfig(num_envs=2, shards=2))
with Experience(config, build_learner(config).policy, Workers(2, ray={ray!r})) as experience:
    experience.restart()
    print("ready", flush=True)
    time.sleep(600)
"""
"""A learner that has made its workers' environments, and then waits."""

LEARNER = """
import operator, time
from trpo_tf.config.environment import Environment
from trpo_tf.sampling.engines.choose_engine import engine_for
from trpo_tf.sampling.engines.pool import WorkerPool
from trpo_tf.sampling.workers import Workers
workers = Workers(2, ray={ray!r})
with WorkerPool(workers, engine_for(workers), Environment({env_id!r}), 2, "shard") as pool:
    pool.run(operator.attrgetter("numbers"))
    print("ready", flush=True)
    time.sleep(600)
"""
"""A process without TensorFlow whose workers have answered, and which then waits."""


def pids_of(pattern: str, parent: int | None = None) -> list[int]:
    """Process ids of commands, of a process's own children if it is given, in the order of their start."""
    children = [] if parent is None else ["-P", str(parent)]
    found = subprocess.run(["pgrep", *children, "-f", pattern], capture_output=True, text=True, check=False)
    return sorted(map(int, found.stdout.split()))


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def assert_end_soon(pids: list[int]) -> None:
    """All of these processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if is_running(pid)]


@functools.cache
def learner_for(config):
    return build_learner(config)


def sampled(config, workers, *, iterations=3, before=lambda iteration: None):
    """Batches, episodes, info and rollouts of some iterations, of which the second begins with new environments."""
    learner = learner_for(config)
    state, collected = learner.initial_state(config.sampling.num_envs), []
    with Experience(config, learner.policy, Workers.of(workers, config)) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        for iteration in range(iterations):
            if iteration == 1:
                experience.restart(1)
            before(iteration)
            batch, episodes, branches = experience.collect(
                replace(state, iteration=iteration).rng(0, Purpose.SAMPLING), PhaseClock()
            )
            collected.append((batch, episodes, experience.take_info(), branches))
    return collected


def assert_same(one, other):
    for (batch, episodes, info, branches), (batch_, episodes_, info_, branches_) in zip(one, other, strict=True):
        for parts, parts_ in ((batch, batch_), (branches or (), branches_ or ())):
            for array, array_ in zip(_arrays(parts), _arrays(parts_), strict=True):
                np.testing.assert_array_equal(array, array_)
        assert (episodes, info) == (episodes_, info_)


def _arrays(parts):
    return [array for part in parts for array in list_parts(part)]
