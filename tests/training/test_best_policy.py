"""PeriodicEvaluation during training: what they measure, which policy they keep, and that they change nothing else."""

import dataclasses
import json

import pytest

from trpo_tf.errors import EnvironmentFailure
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.learning.learner import build_learner
from trpo_tf.reporting.run_report import html_report, read_story
from trpo_tf.runs.folder import load_run
from trpo_tf.training.best_policy import FIRST_SEED, PeriodicEvaluation
from trpo_tf.training.train import resume, train

EPISODES = 10


FAILING = {"num_envs": 32, "total_steps": 4096, "eval_interval": 64, "periodic_eval_episodes": 1, "eval_episodes": 0}
"""The one environment of the evaluation takes more steps than each of those that are sampled, and fails first."""


@pytest.fixture(scope="module")
def settings():
    """Of runs whose policy gets better and worse: steps much too long, and batches of few episodes."""
    return {
        "env_id": "tests.support.environments:Reach-v0",
        "total_steps": 1280,
        "max_kl": 3.0,
        "max_backtracks": 30,
        "damping": 1e-3,
        "eval_episodes": 0,
        "checkpoint_steps": 300,
        "periodic_eval_episodes": EPISODES,
    }


@pytest.fixture(scope="module")
def tried(small_config, settings, tmp_path_factory):
    """A run with an evaluation in every iteration, of which the last is not the best, and its metrics."""
    for seed in range(10):  # how a run of such steps goes depends on the last bits of arithmetic
        observed = []
        config = small_config(**settings, seed=seed, eval_interval=1)
        run = train(config, tmp_path_factory.mktemp("tried") / "run", observer=observed.append)
        if max(metrics["eval_return"] for metrics in observed) > observed[-1]["eval_return"] + 0.1:
            return run, observed
    pytest.fail("no run ended with a worse policy than it had")


def score(run):
    policy = in_process(run.policy, "policy")
    return evaluate(policy, run.config.env_id, episodes=EPISODES, seed=FIRST_SEED).mean_return


def logged(run, name):
    """Of every iteration."""
    return [json.loads(line)[name] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Reacher-v5"])
def test_a_periodic_evaluation_plays_the_episodes_that_an_evaluation_would(env_id, small_config):
    """The pendulum's end at different times, and each counts once."""
    config = small_config(env_id, periodic_eval_episodes=EPISODES, env_backend="gymnasium")
    learner = build_learner(config)
    state = learner.initial_state(4)
    evaluation = PeriodicEvaluation(config, learner.policy)
    after, metrics = evaluation.run(state)
    policy = in_process(learner.trained(state), "policy")
    expected = evaluate(policy, env_id, episodes=EPISODES, seed=FIRST_SEED)
    again = evaluation.run(state)[1]
    evaluation.close()
    assert metrics["eval_return"] == pytest.approx(expected.mean_return, rel=1e-4)
    assert again == metrics
    assert (after.best.mean_return, after.best.steps) == (metrics["eval_return"], 0)
    assert after.eval_steps == pytest.approx(EPISODES * expected.mean_length)
    assert expected.std_return > 0


def test_envpool_s_periodic_evaluations_are_of_whole_episodes(small_config):
    config = small_config("Pendulum-v1", periodic_eval_episodes=EPISODES, env_backend="envpool")
    learner = build_learner(config)
    evaluation = PeriodicEvaluation(config, learner.policy)
    first, second = (evaluation.run(learner.initial_state(4))[1]["eval_return"] for _ in range(2))
    evaluation.close()
    assert first == second
    assert -2000 < first < -800  # of 200 steps by a policy that knows nothing, each costs 4 to 10


def test_training_ends_with_the_policy_that_did_best(tried):
    run, observed = tried
    returns = [metrics["eval_return"] for metrics in observed]
    best = max(returns)
    kept_at = max(metrics["steps"] for metrics in observed if metrics["eval_return"] == best)
    assert run.summary["best_at_steps"] == kept_at < run.state.steps
    assert score(run) == pytest.approx(best, rel=1e-4)
    assert score(load_run(run.folder)) == score(run)
    assert f"Its policy is that of {kept_at:,} steps" in html_report(read_story(run.folder))


def test_periodic_evaluations_change_nothing_of_training_itself(tried, tmp_path):
    run, observed = tried
    alone = []
    train(dataclasses.replace(run.config, eval_interval=0), tmp_path / "run", observer=alone.append)
    for mine, other in zip(alone, observed, strict=True):
        assert mine["eval_return"] is None
        for name in set(mine) - {"eval_return", "eval_episodes_cut"}:
            assert "second" in name or mine[name] == other[name], name


def test_a_periodic_evaluation_is_held_as_each_interval_ends_and_at_the_end(small_config, settings, tmp_path):
    observed = []
    train(small_config(**settings, eval_interval=500), tmp_path / "run", observer=observed.append)
    at = [metrics["steps"] for metrics in observed if metrics["eval_return"] is not None]
    steps = [metrics["steps"] for metrics in observed]
    assert at == [next(s for s in steps if s >= 500), next(s for s in steps if s >= 1000), steps[-1]]


def test_a_resumed_run_remembers_the_best(tried, tmp_path):
    """Stopped at the end of the iteration after the best one's, and gone on with by a run read from its folder."""
    run, observed = tried
    best = next(m["iteration"] for m in observed if m["steps"] == run.summary["best_at_steps"])

    def stop(metrics):
        if metrics["iteration"] == best + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run.config, tmp_path / "run", observer=stop)
    assert load_run(tmp_path / "run").state.best.steps == run.summary["best_at_steps"]
    resumed = resume(tmp_path / "run")
    assert resumed.summary["best_at_steps"] >= run.summary["best_at_steps"]
    assert score(resumed) == pytest.approx(max(logged(resumed, "eval_return")), rel=1e-4)


def test_an_exception_in_a_periodic_evaluation_ends_training_with_a_checkpoint(small_config, tmp_path, monkeypatch):
    told = r"(?s)a periodic evaluation, environment \d of \d: .* raised ArithmeticError: .*go on with trpo_tf.resume"
    with pytest.raises(EnvironmentFailure, match=told):
        train(small_config("tests.support.environments:FailingWalk-v0", **FAILING), tmp_path / "run")
    monkeypatch.setenv("WALK_REPAIRED", "1")
    run = resume(tmp_path / "run")
    assert logged(run, "iteration") == list(range(1, run.state.iteration + 1))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium")
@pytest.mark.parametrize("broken", ["observation", "reward"])
def test_a_value_that_is_not_finite_in_a_periodic_evaluation_ends_training_too(
    broken, small_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("WALK_GIVES_NAN", broken)
    with pytest.raises(EnvironmentFailure, match=r"(?s)that is not finite.*go on with trpo_tf.resume"):
        train(small_config("tests.support.environments:FailingWalk-v0", **FAILING), tmp_path / "run")
