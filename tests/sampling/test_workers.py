"""Rollout workers: what they sample, whatever happens to them, is what one process samples."""

import contextlib
import functools
import itertools
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.support.environments import Walk
from tests.support.paths import BUNDLES
from tests.support.processes import command_line
from tests.support.training.rollouts import SLEEPING, assert_end_soon, assert_same, pids_of, sampled
from trpo_tf.cli.main import main
from trpo_tf.envs.make import register_callable
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.batch import Episodes
from trpo_tf.sampling.engines.shared_block import SharedBlock
from trpo_tf.sampling.join import in_chronological_order
from trpo_tf.sampling.shard import shard_bounds
from trpo_tf.sampling.workers import Workers
from trpo_tf.training.train import resume, train

WALK, FAULTY = "tests.support.environments:Walk-v0", "tests.support.environments:Faulty-v0"
CARTPOLE = ["evaluate", str(BUNDLES / "discrete"), "--env-id", "CartPole-v1"]
SIGNALS = "tests.support.environments:Signals-dict-v0"


def workers_of(pid: int) -> list[int]:
    """Process ids of a process's workers, in the order of their start."""
    return pids_of("engines.process_engine", pid)


@pytest.fixture(scope="module")
def sharded(small_config):
    return functools.partial(small_config, num_envs=4, shards=4)


@pytest.fixture(scope="module")
def faulty(sharded):
    def make(**arguments):
        return sharded(FAULTY, env_kwargs=json.dumps(arguments))

    return make


@pytest.fixture(scope="module")
def walked(sharded):
    config = sharded(WALK)
    return sampled(config, 0)


@pytest.mark.parametrize("count", [1, 3])  # two, and as many as shards, are other tests'
def test_any_number_of_workers_samples_the_same(count, sharded, walked):
    config = sharded(WALK)
    assert_same(sampled(config, count), walked)
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize("env_id", [SIGNALS, "CartPole-v1", "Pendulum-v1"])
def test_workers_sample_the_same_of_structured_vectorised_and_continuous_environments(env_id, sharded):
    config = sharded(env_id)
    assert_same(sampled(config, 2), sampled(config, 0))


def test_shards_have_noise_of_their_own(walked):
    samples = walked[0][0].sample
    assert all(not np.array_equal(samples[:, i], samples[:, j]) for i, j in itertools.combinations(range(4), 2))


def test_a_killed_worker_is_replaced_and_its_shards_are_repeated(sharded, walked):
    config = sharded(WALK)

    def kill(iteration):
        if iteration == 2:
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    with pytest.warns(UserWarning, match=r"shards 1 to 2 of 4: .* was killed by SIGKILL; a new one repeats the 2 seg"):
        assert_same(sampled(config, 2, before=kill), walked)


def test_a_worker_that_hangs_is_replaced(faulty, walked, tmp_path):
    config = faulty(fault="hang", once=str(tmp_path / "hung"))
    with pytest.warns(UserWarning, match=r"shards? .*: .* did not finish a step in 5 s"):
        found = sampled(config, Workers(2, step_timeout=5))
    assert_same(found, walked)


def test_an_environment_that_gives_something_else_when_it_is_repeated_is_said_to(faulty):
    def kill(iteration):
        if iteration == 2:
            os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    config = faulty(fault="random")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampled(config, 2, before=kill)
    assert [("not deterministic" in str(w.message), "SIGKILL" in str(w.message)) for w in caught] == [
        (False, True),
        (True, False),
    ]


def test_an_environment_that_ends_its_process_every_time_ends_the_run(faulty):
    config = faulty(fault="exit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            EnvironmentFailure, match=r"shard \d of 4: the worker ended with exit status 7, 3 times in one"
        ):
            sampled(config, 4)


def test_an_exception_comes_with_its_traceback_shard_and_seed(sharded):
    config = sharded("tests.support.environments:FailingWalk-v0", total_steps=10_000, batch_size=2048)
    with pytest.raises(EnvironmentFailure, match=r"shard \d of 4 \(seed \d+\), .*the motor is too hot") as raised:
        sampled(config, 2)
    cause = raised.value.cause
    assert isinstance(cause, ArithmeticError)
    assert "in step\n    raise ArithmeticError" in "".join(cause.__notes__)


def test_a_worker_has_no_tensorflow_and_takes_less_than_150_megabytes(sharded):
    config, sizes, maps = sharded(WALK), [], []

    def look(iteration):
        for pid in workers_of(os.getpid()):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            sizes.append(int(status["VmRSS"].split()[0]))
            maps.append(Path(f"/proc/{pid}/maps").read_text())

    sampled(config, 2, before=look)
    assert len(sizes) == 6
    assert max(sizes) <= 150_000
    assert not any("tensorflow" in text for text in maps)


def logged(folder, name):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_with_workers_and_resuming_with_another_number_gives_the_same_weights(sharded, tmp_path):
    settings = {"total_steps": 400, "checkpoint_steps": 100, "eval_episodes": 0}
    config = sharded(WALK, **settings, eval_interval=100, periodic_eval_episodes=3)
    alone = train(config, tmp_path / "alone", progress=False)

    def interrupt(metrics):
        if metrics["steps"] > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", workers=2, observer=interrupt, progress=False)
    assert workers_of(os.getpid()) == []
    # A checkpoint that was not due renews the environments: a run killed after one that was due is compared.
    for newest in sorted((tmp_path / "stopped" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)[-1:]:
        newest.unlink()
    resumed = resume(tmp_path / "stopped", workers=4, progress=False)
    for name in ("theta", "value_theta"):
        np.testing.assert_array_equal(getattr(alone.state, name), getattr(resumed.state, name))
    assert resumed.state.eval_steps == alone.state.eval_steps > 0
    assert logged(resumed.folder, "eval_return") == logged(alone.folder, "eval_return")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_learner(sent, tmp_path):
    process = command_line.start(tmp_path, code=SLEEPING.format(env_id=WALK, ray=None))
    try:
        assert process.stdout.readline() == "ready\n"
        pids = workers_of(process.pid)
        assert len(pids) == 2
        process.send_signal(sent)
        process.communicate()
    finally:
        process.kill()
    assert_end_soon(pids)


def test_workers_that_can_not_be_are_refused(sharded):
    config = sharded(WALK)
    pool = sharded("CartPole-v1", shards=1, env_backend="envpool")
    for asked, of, message in [
        (-1, config, "workers must be"),
        (5, config, "workers must be at most the run's shards, 4; start a run with shards=5"),
        (1, pool, "workers must be 0 for envpool"),
        (Workers(0, step_timeout=1), config, "step_timeout needs workers"),
        (Workers(2, step_timeout=-1), config, "step_timeout must be at least 0"),
        (Workers(2, step_timeout=float("nan")), config, "step_timeout must be at least 0"),
    ]:
        with pytest.raises(UserError, match=message):
            Workers.of(asked, of)
    for settings in ({"shards": 0}, {"shards": 5}):
        with pytest.raises(UserError, match="shards must be"):
            sharded(WALK, **settings)


def test_an_environment_that_another_process_can_not_import_is_refused(sharded, monkeypatch):
    config = sharded("Own-v0")
    try:
        register_callable("Own-v0", lambda: Walk())
        with pytest.raises(
            UserError, match=r"workers can't make Own-v0, since it can't be pickled .*define it in a module"
        ):
            Workers.of(2, config)
        own = type("Own", (Walk,), {"__module__": "__main__"})
        monkeypatch.setattr(sys.modules["__main__"], "Own", own, raising=False)
        register_callable("Own-v0", own)
        with pytest.raises(UserError, match=r"__main__, the script itself, defines it; define it in a module"):
            Workers.of(2, config)
    finally:
        gym.registry.pop("Own-v0", None)


def test_a_class_of_a_module_is_made_in_workers(sharded):
    config = sharded("Own-v0", max_episode_steps=5)
    try:
        register_callable("Own-v0", Walk)
        found = sampled(config, 2)
        assert_same(found, sampled(config, 0))
    finally:
        gym.registry.pop("Own-v0", None)


def test_an_evaluation_in_workers_gives_what_one_process_gives(capsys):
    printed = []
    for count in (0, 2, 9):
        main([*CARTPOLE, "--episodes", "5", "--stochastic", "--json", "--workers", str(count)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert json.loads(printed[0])["std_return"] > 0
    assert workers_of(os.getpid()) == []


def test_episodes_of_shards_are_merged_by_the_step_of_their_end():
    one, other = Episodes([1.0, 2.0], [3, 4], [2, 7]), Episodes([5.0, 6.0], [7, 8], [2, 3])
    assert in_chronological_order([one, other]) == Episodes([1.0, 5.0, 6.0, 2.0], [3, 7, 8, 4], [2, 2, 3, 7])


@pytest.mark.parametrize(("num_envs", "shards"), [(1, 1), (7, 3), (8, 8), (64, 8)])
def test_shards_have_as_many_environments_as_each_other_or_one_more(num_envs, shards):
    sizes = np.diff(shard_bounds(num_envs, shards))
    assert (len(sizes), sizes.sum()) == (shards, num_envs)
    assert sizes.max() - sizes.min() <= 1


def test_a_block_grows_with_what_is_written_and_hands_on_copies():
    block = SharedBlock.create()
    reader = SharedBlock(os.dup(block.descriptor))
    with contextlib.closing(block), contextlib.closing(reader):
        values = [{"a": np.arange(n), "b": [np.ones((n, 2), np.float32), None, n]} for n in (0, 3, 100_000, 5)]
        read = [reader.read(block.write(value)) for value in values]
        block.count_up()
        assert reader.count == 1
    for value, found in zip(values, read, strict=True):
        np.testing.assert_array_equal(found["a"], value["a"])
        np.testing.assert_array_equal(found["b"][0], value["b"][0])
        assert found["b"][1:] == value["b"][1:]
