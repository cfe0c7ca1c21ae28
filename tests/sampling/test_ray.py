"""On a Ray cluster: rollout workers and whole trainings give the same, whatever happens to them and their machines."""

import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes.ray_cluster import RayCluster, wait_for, workers_of_cluster
from tests.support.training.rollouts import LEARNER, assert_end_soon, assert_same, sampled
from trpo_tf.benchmark import ray_pool
from trpo_tf.benchmark.job_start import starting
from trpo_tf.benchmark.pool import Job, run_jobs
from trpo_tf.benchmark.results import RUN_FOLDER, read_result
from trpo_tf.benchmark.worker import carry_out
from trpo_tf.cli import main as cli
from trpo_tf.config.settings import Config, VineConfig
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.runs.folder import load_run, write_config
from trpo_tf.sampling.engines.choose_engine import engine_for
from trpo_tf.sampling.ray_connection import connect
from trpo_tf.sampling.workers import Workers
from trpo_tf.search.run import evaluated, search
from trpo_tf.search.study import Search, open_study
from trpo_tf.search.worker import run_trial
from trpo_tf.training.train import train

ray = pytest.importorskip("ray")

WALK, FAULTY = "tests.support.environments:Walk-v0", "tests.support.environments:Faulty-v0"
ROLLOUTS = "tests.support.environments:FaultyRollouts-v0"


WAIT = """
import os, time
try:
    print("up", os.getpid(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("saved", flush=True)
"""
ONCE = """
import os, pathlib, sys, time
first = pathlib.Path(sys.argv[1])
if not first.exists():
    first.write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """A head without cores, and one node with two cores."""
    cluster = RayCluster(tmp_path_factory.mktemp("home"))
    cluster.add()
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine all starts late, and a warning would be an error.
        patch.setattr("trpo_tf.sampling.ray_connection._SECONDS_TO_PLACE", 600.0)
        yield cluster
    ray.shutdown()
    cluster.shutdown()


def actors() -> list[int]:
    """Process ids of the cluster's rollout actors."""
    return workers_of_cluster("ray::RolloutActor")


@pytest.fixture(scope="module")
def sharded(small_config):
    return functools.partial(small_config, num_envs=4, shards=4)


@pytest.fixture(scope="module")
def walked(sharded):
    return sampled(sharded(WALK), 0)


@pytest.fixture
def on_ray(ray_cluster):
    """Two workers on the cluster; this process leaves it at the end."""
    return functools.partial(Workers, 2, ray=ray_cluster.address)


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


def test_an_exception_comes_with_its_traceback_shard_and_seed(ray_cluster, sharded):
    config = sharded("tests.support.environments:FailingWalk-v0", total_steps=10_000, batch_size=2048)
    with pytest.raises(EnvironmentFailure, match=r"shard \d of 4 \(seed \d+\), .*the motor is too hot") as raised:
        sampled(config, Workers(1, ray=ray_cluster.address))
    cause = raised.value.cause
    assert isinstance(cause, ArithmeticError)
    assert "in step\n    raise ArithmeticError" in "".join(cause.__notes__)


@pytest.fixture
def cluster_that_takes_jobs(tmp_path):
    cluster = RayCluster(tmp_path, takes_jobs=True)
    cluster.add()
    yield cluster
    cluster.shutdown()


def test_a_submitted_job_outlives_the_machine_of_its_workers(cluster_that_takes_jobs, sharded, tmp_path):
    """`ray job submit`: the only machine with cores leaves in mid-iteration, and another one joins."""
    ray_cluster = cluster_that_takes_jobs
    hung = tmp_path / "hung"
    config = sharded(FAULTY, env_kwargs=json.dumps({"fault": "hang", "once": str(hung)}), eval_episodes=0)
    write_config(tmp_path, config)
    options = ["--config", tmp_path / "config.toml", "--out", tmp_path / "run", "--workers", "2", "--ray", "auto"]
    client, job = ray_cluster.submit(shlex.join(map(str, [sys.executable, "-m", "trpo_tf", "train", *options])))
    try:
        wait_for(lambda: hung.exists() or client.get_job_status(job).is_terminal())
        assert hung.exists(), client.get_job_logs(job)
        (leaving,) = ray_cluster.nodes
        ray_cluster.add()
        ray_cluster.remove(leaving)
        wait_for(lambda: client.get_job_status(job).is_terminal())
    finally:
        client.stop_job(job)
    said = client.get_job_logs(job)
    assert client.get_job_status(job) == "SUCCEEDED", said
    assert "was lost" in said
    alone = train(sharded(WALK, eval_episodes=0), tmp_path / "alone", progress=False)
    for name in ("theta", "value_theta"):
        np.testing.assert_array_equal(getattr(load_run(tmp_path / "run").state, name), getattr(alone.state, name))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_actors_end_with_their_learner(sent, ray_cluster):
    code = LEARNER.format(env_id=WALK, ray=ray_cluster.address)
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
        (Workers(0, ray="auto"), "ray needs workers, which are its actors"),
        (Workers(2, ray="ray://head:10001"), "ray can't be a ray:// address; submit the run as a job"),
        (Workers(2, ray=6379), "ray must be the address of a Ray cluster"),
    ]:
        with pytest.raises(UserError, match=message):
            Workers.of(asked, sharded(WALK))
    for address in ("127.0.0.1:1", "CartPole-v1", "127.0.0.1:port"):
        with pytest.raises(UserError, match=rf"no Ray cluster at {address} .*HOST:PORT of its head, or local"):
            engine_for(Workers(2, ray=address))


def test_a_machine_outside_the_cluster_is_told_how_to_join(monkeypatch, ray_cluster):
    monkeypatch.setattr("ray._private.services.find_node_ids", list)
    with pytest.raises(UserError, match=r"this machine is none of .*; make it one with ray start --address=.*:\d+,"):
        engine_for(Workers(2, ray=ray_cluster.address))


def python(folder: Path, name: str, code: str, *arguments: str) -> Job:
    return Job(folder, ("-c", code, *arguments), folder / f"{name}.txt")


def run(address, jobs, workers=2, watch=lambda running: None) -> dict[str, str | None]:
    """What became of each job."""
    ended = {}
    with starting(address, workers) as start:
        run_jobs(
            jobs,
            workers,
            ended=lambda job, reason: ended.update({job.log.stem: reason}),
            watch=watch,
            start=start,
        )
    return ended


@pytest.fixture
def connected(ray_cluster):
    """A connection that stays open for the next test of tasks, so that one's processes of Ray serve it too."""
    connect(ray_cluster.address, 0)


@pytest.fixture(autouse=True)
def own_connection(request):
    """Tests of anything else begin without one."""
    if "connected" not in request.fixturenames:
        ray.shutdown()


def test_tasks_end_and_fail_as_processes_do(connected, ray_cluster, tmp_path, monkeypatch):
    (tmp_path / "module_of_the_user.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    jobs = [
        python(tmp_path, "bad", "import sys; sys.exit('too\\nhot')"),
        python(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python(tmp_path, "silent", "import sys; sys.exit(3)"),
        python(tmp_path, "good", "import module_of_the_user, os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"),
    ]
    reasons = {"bad": "hot", "killed": "killed by SIGKILL", "silent": "exit status 3"}
    logs = {name: tmp_path / f"{name}.txt" for name in reasons}
    expected = {name: f"{reason} (log: {logs[name]})" for name, reason in reasons.items()}
    assert run(ray_cluster.address, jobs) == expected | {"good": None}
    assert (tmp_path / "good.txt").read_text().splitlines()[-1] == f"{os.getcwd()} 1"


def test_a_signal_stops_tasks_that_run_and_starts_no_more(connected, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("trpo_tf.sampling.ray_connection._SECONDS_TO_PLACE", 0.0)
    jobs = [python(tmp_path, name, WAIT) for name in "abcd"]
    sent = []

    def said(name: str) -> str:
        log = tmp_path / f"{name}.txt"
        return log.read_text() if log.exists() else ""

    def watch(running):
        if not sent and len(running) == 3 and all("up" in said(name) for name in "ab") and caught:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            run(ray_cluster.address, jobs, 3, watch)
    (warning,) = caught
    assert str(warning.message).startswith("trainings have not started: each needs a core, and the Ray cluster has 2, ")
    assert [said(name).splitlines()[-1] for name in "ab"] == ["saved", "saved"]
    assert "up" not in said("c")
    assert said("d") == ""
    assert_end_soon([int(said(name).partition("up ")[2].split()[0]) for name in "ab"])


def test_the_tasks_of_a_machine_that_leaves_run_again(connected, ray_cluster, tmp_path):
    first = tmp_path / "first"
    left = []

    def watch(running):
        if not left and first.exists() and first.read_text():
            (leaving,) = ray_cluster.nodes
            left.append(int(first.read_text()))
            ray_cluster.add()
            ray_cluster.remove(leaving)

    assert run(ray_cluster.address, [python(tmp_path, "a", ONCE, str(first))], 1, watch) == {"a": None}
    assert (tmp_path / "a.txt").read_text().count("runs on") == 2
    assert_end_soon(left)


def test_a_machine_without_the_folder_or_with_another_version_is_told(tmp_path):
    job = python(tmp_path, "a", "")
    origin = ray_pool.Origin("token", ray_pool.__version__, str(tmp_path), ())
    assert "does not see" in ray_pool.run_here(job, origin)
    job.log.write_text("other")
    assert "give --out on a disk that all machines of the cluster share" in ray_pool.run_here(job, origin)
    job.log.write_text("submitted as token")
    assert "has trpo-tf" in ray_pool.run_here(job, origin._replace(version="0.0"))
    assert ray_pool.run_here(job, origin) is None


def test_a_benchmark_on_the_cluster_has_the_results_of_one_on_this_machine(ray_cluster, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--seeds", "1", "--first-seed", "5", "--steps", "2048", "--out", str(out)]
    cli.main(["benchmark", WALK, *options, "--ray", ray_cluster.address])
    assert f"report written to {out / 'report.html'}" in capsys.readouterr().out
    (folder,) = (out / "runs").iterdir()
    there = read_result(folder)
    (tmp_path / "alone").mkdir()
    here = carry_out(Config.from_dict(dict(there.config)), tmp_path / "alone")
    assert (there.evaluation, there.curve) == (here.evaluation, here.curve)
    thetas = [load_run(place / RUN_FOLDER).state.theta for place in (folder, tmp_path / "alone")]
    np.testing.assert_array_equal(*thetas)


def test_an_address_without_a_cluster_is_one_line_and_writes_nothing(tmp_path, capfd):
    for address, told in [("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"), ("ray://head:10001", "ray job submit")]:
        with pytest.raises(SystemExit):
            cli.main(["benchmark", WALK, "--seeds", "1", "--out", str(tmp_path / "out"), "--ray", address])
        assert told in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_trials_on_the_cluster_are_those_of_this_machine(connected, ray_cluster, small_config, tmp_path):
    """The second one is pruned at its first evaluation, for what the first one and others have reported."""
    space = {"trust_region.max_kl": {"low": 0.001, "high": 0.1, "log": True}}
    wanted = Search(evaluated(small_config()), space, str(tmp_path / "study.log"), "walk", range(100, 101))
    alone = dataclasses.replace(wanted, storage=str(tmp_path / "alone.log"))
    for each in (wanted, alone):
        finished_before(each, 3)
    assert search(wanted, 5, jobs=1, out=tmp_path / "out", ray=ray_cluster.address).failures == {}
    for number in (4, 5):  # the search counts from the trials that are there: three, and the start, which waits
        seed = int(np.random.SeedSequence([0, number]).generate_state(1)[0])
        open_study(alone, seed).optimize(lambda trial: run_trial(alone, trial), n_trials=1)
    there, here = ([told(trial) for trial in open_study(each).trials] for each in (wanted, alone))
    assert there == here
    *_, whole, pruned = there
    assert (whole[0], pruned[0]) == ("COMPLETE", "PRUNED")
    assert len(whole[-1]) > len(pruned[-1]) == 1


def finished_before(wanted: Search, count: int) -> None:
    """Add trials that were better at each step than any will be."""
    import optuna

    study = open_study(wanted)
    steps = range(wanted.config.total_steps + 1)
    values = {"trust_region.max_kl": 0.01}, dict.fromkeys(steps, 1e9)
    kl = optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
    for _ in range(count):
        study.add_trial(
            optuna.create_trial(
                value=0.0, params=values[0], intermediate_values=values[1], distributions={"trust_region.max_kl": kl}
            )
        )


def told(trial):
    return trial.state.name, trial.params, trial.value, trial.intermediate_values
