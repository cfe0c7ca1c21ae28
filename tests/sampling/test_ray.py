"""Rollout workers as Ray's actors: what they sample, whatever happens to them and their machines, is the same."""

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.rollouts import SLEEPING, assert_end_soon, assert_same, pids_of, sampled
from trpo_tf.config.settings import VineConfig
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.runs.folder import load_run, write_config
from trpo_tf.sampling.workers import Workers
from trpo_tf.training.train import train

pytest.importorskip("ray")

WALK, FAULTY = "tests.support.environments:Walk-v0", "tests.support.environments:Faulty-v0"
ROLLOUTS = "tests.support.environments:FaultyRollouts-v0"
MARK = f"TRPO_TF_TESTS_OF={os.getpid()}"
"""In the environment of this process's cluster and its actors: other tests may have a cluster at the same time."""


def actors() -> list[int]:
    """Process ids of the cluster's rollout actors."""
    return [pid for pid in pids_of("ray::RolloutActor") if MARK in Path(f"/proc/{pid}/environ").read_text()]


def ports() -> dict[str, int]:
    """Ports for a node's agents: it waits 15 seconds for those that choose one, which is short on a busy machine."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: found.getsockname()[1] for name, found in zip(names, sockets, strict=True)}


def started():
    """A new cluster. Ray's start has time limits of its own; where it fails three times, nothing of Ray is tested."""
    from ray.cluster_utils import Cluster

    reasons = []
    for _ in range(3):
        made = Cluster()
        try:
            made.add_node(num_cpus=0, include_dashboard=False, **ports())
            made.add_node(num_cpus=2, **ports())
        except Exception as error:  # noqa: BLE001  # it is this class that Ray raises
            reasons.append(str(error).strip())
            with contextlib.suppress(Exception):
                made.shutdown()
        else:
            return made
    return pytest.skip(f"Ray does not start on this machine: {reasons}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of a machine without cores, where the learner is, and of one with two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*MARK.split("="))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_agent_register_timeout_ms", "300000")  # of a busy machine, where Ray would give up
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(ROOT))
        made = started()
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def sharded(small_config):
    return functools.partial(small_config, num_envs=4, shards=4)


@pytest.fixture(scope="module")
def walked(sharded):
    return sampled(sharded(WALK), 0)


@pytest.fixture
def on_ray(cluster):
    """Two workers on the cluster; this process leaves it at the end."""
    return functools.partial(Workers, 2, ray=cluster.address)


@pytest.mark.parametrize("sampler", ["single-path", "vine"])
def test_actors_sample_the_same_without_tensorflow(sampler, on_ray, sharded):
    config, maps = sharded(ROLLOUTS, vine=VineConfig(rollout_states=9, branch_length=3), sampler=sampler), []

    def look(iteration):
        maps.extend(Path(f"/proc/{pid}/maps").read_text() for pid in actors())

    assert_same(sampled(config, on_ray(), before=look), sampled(config, 0))
    assert len(maps) == 6
    assert not any("tensorflow" in text for text in maps)
    assert actors() == []


def test_an_actor_that_is_killed_or_hangs_is_replaced(on_ray, sharded, walked, tmp_path):
    def kill(iteration):
        if iteration == 2:
            os.kill(actors()[0], signal.SIGKILL)

    config = sharded(FAULTY, env_kwargs=json.dumps({"fault": "hang", "once": str(tmp_path / "hung")}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(sampled(config, on_ray(step_timeout=10), before=kill), walked)
    told = "\n".join(str(warning.message) for warning in caught)
    assert re.search(
        r"shards .* of 4: the worker, Ray actor \w+, was lost \(.*\); a new one repeats the 2 segments", told
    )
    assert re.search(r"shards .* of 4: the worker, Ray actor \w+, did not finish a step in 10 s", told)


def test_an_exception_comes_with_its_traceback_shard_and_seed(on_ray, sharded):
    config = sharded("tests.support.environments:FailingWalk-v0", total_steps=10_000, batch_size=2048)
    with pytest.raises(EnvironmentFailure, match=r"shard \d of 4 \(seed \d+\), .*the motor is too hot") as raised:
        sampled(config, on_ray())
    cause = raised.value.cause
    assert isinstance(cause, ArithmeticError)
    assert "in step\n    raise ArithmeticError" in "".join(cause.__notes__)


def test_a_run_outlives_the_machine_of_its_workers(cluster, sharded, tmp_path):
    """The only machine with cores leaves in mid-iteration, and another one joins."""
    hung = tmp_path / "hung"
    config = sharded(FAULTY, env_kwargs=json.dumps({"fault": "hang", "once": str(hung)}), eval_episodes=0)
    write_config(tmp_path, config)
    options = [
        "--config",
        tmp_path / "config.toml",
        "--out",
        tmp_path / "run",
        "--workers",
        "2",
        "--ray",
        cluster.address,
    ]
    command = [sys.executable, "-m", "trpo_tf", "train", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as learner:
        try:
            wait_for(hung.exists)
            (leaving,) = cluster.worker_nodes
            cluster.add_node(num_cpus=2, **ports())
            cluster.remove_node(leaving, allow_graceful=False)
            _, said = learner.communicate(timeout=300)
        finally:
            learner.kill()
    assert learner.returncode == 0, said
    assert "was lost" in said
    alone = train(sharded(WALK, eval_episodes=0), tmp_path / "alone", progress=False)
    for name in ("theta", "value_theta"):
        np.testing.assert_array_equal(getattr(load_run(tmp_path / "run").state, name), getattr(alone.state, name))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_actors_end_with_their_learner(sent, cluster):
    code = SLEEPING.format(env_id=WALK, ray=cluster.address)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            pids = actors()
            assert len(pids) == 2
            process.send_signal(sent)
            process.wait()
        finally:
            process.kill()
    assert_end_soon(pids)


def test_ray_that_can_not_be_is_refused(sharded):
    for asked, message in [
        (Workers(0, ray="auto"), "ray needs workers, .*give --workers"),
        (Workers(2, ray="ray://head:10001"), "ray can't be a ray:// address; submit the run as a job"),
        (Workers(2, ray=6379), "ray must be the address of a Ray cluster"),
    ]:
        with pytest.raises(UserError, match=message):
            Workers.of(asked, sharded(WALK))
    for address in ("127.0.0.1:1", "CartPole-v1"):
        with pytest.raises(UserError, match=rf"no Ray cluster at {address} .*HOST:PORT of its head, or local"):
            Workers(2, ray=address).engine()
