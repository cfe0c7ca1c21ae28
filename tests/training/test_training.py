"""Whole runs: what they leave behind, what can be put into them, and how they fail."""

import csv
import itertools
import json
import os
import re
import shutil
import signal

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import environments
from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.config.settings import read_config
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.learning.learner import build_learner
from trpo_tf.runs.folder import load_run
from trpo_tf.training.train import resume, train

WALK, REACH = "tests.support.environments:Walk-v0", "tests.support.environments:Reach-v0"
DOCS = ROOT / "docs"


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def documented_names() -> set[str]:
    """What starts a row of a table in the docs of the metrics."""
    return set(re.findall(r"^\| `(\w+)`", (DOCS / "reference" / "metrics.md").read_text(), re.MULTILINE))


def test_a_run_folder_holds_what_it_says(trained):
    files = {path.name for path in trained.run.folder.iterdir()}
    assert files - {"bundles.json"} == {  # which is there once it has been exported
        *(
            "config.toml",
            "started_with.toml",
            "policy_network.json",
            "value_network.json",
            "metrics.jsonl",
            "summary.json",
        ),
        *("spaces.json", "tensorboard", "checkpoints", ".lock"),
    }


def test_the_config_comes_back(trained):
    assert read_config(trained.run.folder / "config.toml") == trained.run.config


def test_the_run_comes_back(trained):
    loaded = load_run(trained.run.folder)
    np.testing.assert_array_equal(loaded.state.theta, trained.run.state.theta)
    obs = np.array([[1, 1], [3, -1]], np.float32)
    policies = [in_process(run.policy, "walk") for run in (loaded, trained.run)]
    np.testing.assert_array_equal(*[policy.act_batch(obs) for policy in policies])


def test_a_run_ends_within_its_steps(trained):
    state, config = trained.run.state, trained.run.config
    assert config.total_steps - config.sampling.batch_size < state.steps <= config.total_steps
    assert trained.run.summary["steps"] == state.steps


def test_there_is_a_line_of_metrics_for_each_iteration(trained):
    assert [line["iteration"] for line in lines(trained.run)] == list(range(1, trained.run.state.iteration + 1))
    assert trained.run.state.iteration > 5


def test_metrics_are_plausible(trained):
    config = trained.run.config
    for line in lines(trained.run):
        assert line["update_status"] in documented_names()
        assert 0 <= line["mean_kl"] <= config.trust_region.max_kl
        assert line["mean_kl"] <= line["max_state_kl"]
        assert 0 < line["entropy"] <= np.log(2) + 1e-6
        assert 0 <= line["mean_return"] <= 1
        assert 3 <= line["mean_length"] <= 5


def test_an_annealed_run_takes_ever_smaller_steps(small_config, tmp_path):
    config = small_config(total_steps=400, anneal=True)
    run = train(config, tmp_path / "run")
    for done, line in itertools.pairwise([{"steps": 0}, *lines(run)]):
        radius = config.trust_region.max_kl * (1 - done["steps"] / config.total_steps)
        assert line["radius"] == pytest.approx(radius, rel=1e-5)
        assert 0 < line["mean_kl"] <= radius


def test_what_adapts_its_own_radius_is_not_annealed(small_config):
    with pytest.raises(UserError, match="algo must be trpo, npg or nac, to anneal"):
        small_config(algo="trpo-adaptive", anneal=True)


def test_every_metric_is_defined_in_the_docs(trained):
    assert {name for line in lines(trained.run) for name in line} <= documented_names()


def test_tensorboard_holds_the_same_scalars(trained):
    events = EventAccumulator(str(trained.run.folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    for name in ("mean_return", "mean_kl", "value_loss", "episodes"):
        logged = [(line["steps"], line[name]) for line in lines(trained.run) if line[name] is not None]
        read = [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors(name)]
        np.testing.assert_allclose(read, logged, rtol=1e-6)


def test_the_summary_tells_returns_before_and_after(trained):
    summary = json.loads((trained.run.folder / "summary.json").read_text())
    for part in ("untrained", "trained"):
        assert summary[part]["episodes"] == 2
        assert 0 <= summary[part]["mean_return"] <= 1
    assert summary["iterations"] == trained.run.state.iteration
    assert {"python", "tensorflow", "numpy", "trpo-tf"} <= set(summary["versions"])


@pytest.mark.usefixtures("own_functions")
def test_nothing_is_traced_again_after_the_first_iteration(small_config, tmp_path):
    learner = train(small_config(eval_episodes=0), tmp_path / "run").learner
    assert learner.update.experimental_get_tracing_count() == 1
    assert learner.value_function.fit.experimental_get_tracing_count() == 1
    assert learner.value_function.values.experimental_get_tracing_count() == 1
    assert learner.encode.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(("total_steps", "xla"), [(100_000, False), (1_000_000, True)])
def test_xla_compiles_update_and_fit_of_runs_that_are_long_enough(small_config, total_steps, xla):
    learner = build_learner(small_config(total_steps=total_steps))
    assert learner.update._jit_compile == xla  # TensorFlow offers no public way to ask
    assert learner.value_function.fit._jit_compile == xla


def test_xla_trains_to_the_same_weights(small_config, tmp_path, monkeypatch):
    config = small_config(total_steps=128)
    plain = train(config, tmp_path / "plain")
    monkeypatch.setattr("trpo_tf.learning.learner._XLA_PAYS_FROM", 0)
    compiled = train(config, tmp_path / "compiled")
    assert compiled.learner.update._jit_compile
    np.testing.assert_allclose(compiled.state.theta, plain.state.theta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(compiled.state.value_theta, plain.state.value_theta, rtol=1e-4, atol=1e-5)


def test_observer_and_callbacks_hear_of_each_iteration(trained):
    assert [metrics["iteration"] for metrics in trained.observed] == list(range(1, trained.run.state.iteration + 1))
    assert [epoch for epoch, _ in trained.logs] == list(range(trained.run.state.iteration))
    assert [told for _, told in trained.logs] == trained.observed


def test_a_finished_run_is_not_resumed(trained):
    advice = r"start a new run from it with init_from=.*, or lengthen it with trpo_tf.resume\(.*, total_steps=N\)"
    with pytest.raises(UserError, match=f"is complete; {advice}"):
        resume(trained.run.folder)


def test_keras_callbacks_can_stop_and_see_the_weights(small_config, tmp_path):
    seen = []
    stopper = keras.callbacks.EarlyStopping("iteration", mode="min", patience=1)  # which only grows
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(spy.model.get_weights()[0].copy()))
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    run = train(small_config(total_steps=6400), tmp_path / "run", callbacks=[stopper, spy, log])
    assert run.state.iteration == 2
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"mean_return", "mean_kl"} <= set(rows[0])
    first = run.learner.policy.network.split_array(run.state.theta)[0]
    np.testing.assert_array_equal(seen[-1], first)
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_iteration(number, small_config, tmp_path):
    before = signal.getsignal(number)
    asker = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: epoch == 1 and os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt, match=r"stopped after \d+ steps; go on with trpo_tf.resume.*run"):
        train(small_config(total_steps=6400), tmp_path / "run", callbacks=[asker])
    assert load_run(tmp_path / "run").state.iteration == 2
    assert signal.getsignal(number) == before


def test_the_seed_decides_the_run(trained, small_config, tmp_path):
    observed = []
    run = train(small_config(seed=1, total_steps=64), tmp_path / "run", observer=observed.append)
    assert observed[0]["value_loss"] != trained.observed[0]["value_loss"]  # of seed 0
    assert not np.array_equal(run.learner.policy.initial_theta(), trained.run.learner.policy.initial_theta())


def test_networks_of_one_s_own_are_trained_saved_and_read_back(small_config, tmp_path):
    inputs = keras.Input((2,))
    wide, skip = keras.layers.Dense(5, "swish")(inputs), keras.layers.Dense(5)(inputs)
    policy_network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LayerNormalization()(wide + skip)))
    value_network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
    before = [weight.copy() for weight in policy_network.get_weights()]
    run = train(
        small_config(total_steps=64),
        tmp_path / "run",
        policy_network=policy_network,
        value_network=value_network,
    )
    assert run.learner.policy.network.network is policy_network
    assert len(run.state.value_theta) == 2 * 3 + 3 + 3 + 1
    assert any(not np.array_equal(old, new) for old, new in zip(before, policy_network.get_weights(), strict=True))
    loaded = load_run(tmp_path / "run")
    assert [type(layer) for layer in loaded.learner.policy.network.network.layers] == [
        type(layer) for layer in policy_network.layers
    ]
    obs = np.array([[1, 1], [3, -1]], np.float32)
    expected, actual = (in_process(each.policy, "walk").act_batch(obs) for each in (run, loaded))
    np.testing.assert_array_equal(actual, expected)


def network(*layers, inputs=2):
    return keras.Sequential([keras.Input((inputs,)), *layers])


REFUSED = {
    r"something else in training .* dropout\w* \(Dropout\)": lambda: network(
        keras.layers.Dropout(0.5), keras.layers.Dense(2)
    ),
    "can't be read back after training": lambda: network(keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2)),
    r"output has shape \(None, 3\); it must be \(None, 2\)": lambda: network(keras.layers.Dense(3)),
    "its network can't: Erfinv can't be expressed in ONNX": lambda: (
        lambda entry: keras.Model(entry, keras.layers.Dense(2)(keras.ops.erfinv(keras.ops.tanh(entry))))
    )(keras.Input((2,))),
    r"doesn't take inputs of shape \(None, 2\)": lambda: network(keras.layers.Dense(2), inputs=7),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(reason, small_config, tmp_path):
    with pytest.raises(UserError, match=reason):
        train(small_config(), tmp_path / "run", policy_network=REFUSED[reason]())
    assert list(tmp_path.iterdir()) == []


def test_a_value_network_is_refused_by_its_own_name(small_config, tmp_path):
    for refused in (network(keras.layers.Dropout(0.5), keras.layers.Dense(1)), network(keras.layers.Dense(2))):
        with pytest.raises(UserError, match=r"^value_network"):
            train(small_config(), tmp_path / "run", value_network=refused)
    assert list(tmp_path.iterdir()) == []


def test_recurrent_frozen_and_unused_weights_train_and_come_back(small_config, tmp_path):
    """Beside the weights that are trained: an unused seed, and a frozen layer that its config makes again."""
    entry = keras.Input((2,))
    frozen = keras.layers.Dense(4, kernel_initializer=keras.initializers.Orthogonal(seed=3), trainable=False)
    recurrent = keras.layers.LSTM(3, unroll=True)(keras.layers.Reshape((4, 1))(frozen(entry)))
    unused = 0 * keras.layers.Dense(2)(keras.ops.stop_gradient(entry))
    policy_network = keras.Model(entry, keras.layers.Dense(2)(recurrent) + unused)
    kernel = frozen.kernel.numpy()
    run = train(small_config(total_steps=64), tmp_path / "run", policy_network=policy_network)
    np.testing.assert_array_equal(frozen.kernel.numpy(), kernel)
    obs = np.array([[1, 1], [3, -1]], np.float32)
    loaded = load_run(str(tmp_path / "run"))
    ours, theirs = (in_process(each.policy, "walk").run(obs, np.zeros((2, 2), np.float32)) for each in (run, loaded))
    np.testing.assert_array_equal(ours, theirs)
    assert [line["update_status"] for line in lines(run)] == ["accepted"]


def test_default_networks_are_float32_whatever_keras_is_set_to(small_config, tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        run = train(small_config(total_steps=64), tmp_path / "run")
        layers = load_run(tmp_path / "run").policy.policy.network.network.layers
    finally:
        keras.config.set_dtype_policy(policy)
    layers += run.learner.value_function.network.network.layers
    assert {layer.compute_dtype for layer in layers} == {"float32"}


def test_an_environment_that_has_changed_since_the_run_is_named(trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    config = folder / "config.toml"
    width = r"\(None, 4\): it takes \(None, 2\)"
    for env_id, differs, differs_without_spaces in (
        ("CartPole-v1", width, width),
        (REACH, r"its observation was obs float32\[2\], and is obs float64\[2\]", "theta is .* there and"),
    ):
        config.write_text(re.sub('env_id = ".*"', f'env_id = "{env_id}"', config.read_text()))
        run = load_run(folder)  # the policy acts as before
        np.testing.assert_array_equal(run.state.theta, run.policy.theta)
        with pytest.raises(UserError, match=f"environment {env_id} is not as it was when .*{differs}"):
            resume(folder, total_steps=10_000)
        with pytest.raises(UserError, match=f"the policy (observes|gives) .*, {env_id} has .* there"):
            export_run(run, tmp_path / "bundle")
        spaces = folder / "spaces.json"
        spaces.rename(tmp_path / "spaces.json")  # as in runs of earlier releases
        with pytest.raises(UserError, match=f"environment {env_id} is not as it was when .*{differs_without_spaces}"):
            load_run(folder)
        (tmp_path / "spaces.json").rename(spaces)


def test_integer_observations_and_actions_that_start_at_three(small_config, tmp_path):
    run = train(small_config("tests.support.environments:IntegerWalk-v0"), tmp_path / "run")
    manifest = export_run(run, tmp_path / "bundle")
    assert (manifest.observation[0].dtype, manifest.action.low, manifest.action.high) == ("int64", 3, 4)
    actions = serving.load(tmp_path / "bundle").act_batch(np.arange(40, dtype=np.int64).reshape(20, 2))
    assert set(actions.tolist()) <= {3, 4}


def test_a_run_stays_in_its_folder_if_the_environment_changes_the_working_directory(
    small_config, tmp_path, monkeypatch
):
    class Wanderer(environments.Walk):
        def reset(self, **options):
            os.chdir("/")
            return super().reset(**options)

    monkeypatch.chdir(tmp_path)
    train(small_config("Wanderer-v0", eval_episodes=1), "run", make_env=Wanderer)
    assert load_run(tmp_path / "run").summary["trained"]["episodes"] == 1


@pytest.fixture(scope="module")
def reach(small_config, tmp_path_factory):
    """A longer run of Reach: float64 observations, actions from -2 to 6."""
    settings = {"total_steps": 12_800, "batch_size": 256, "max_kl": 0.03, "hidden_sizes": (16,), "eval_episodes": 50}
    return train(small_config(REACH, **settings), tmp_path_factory.mktemp("reach") / "run")


def test_reach_is_learned(reach):
    summary = reach.summary
    assert summary["untrained"]["mean_return"] < -8
    assert summary["trained"]["mean_return"] > -1.5


def test_float64_observations(reach):
    assert reach.policy.spec.observation[0].dtype == "float64"


@pytest.mark.parametrize("squash", [False, True])
def test_actions_keep_to_the_bounds_and_reach_them(squash, small_config, tmp_path):
    # The environment itself refuses an action out of its bounds.
    config = small_config(REACH, squash=squash, initial_log_std=2.0, unit_std=False, total_steps=64)
    run = train(config, tmp_path / "run")
    policy = in_process(run.policy, "reach")
    actions = policy.act_batch(np.zeros((200, 2)), deterministic=False, rng=np.random.default_rng(0))
    assert -2 <= actions.min() < -1.9
    assert 5.9 < actions.max() <= 6


def test_squashing_an_unbounded_action_is_refused(small_config, tmp_path):
    with pytest.raises(UserError, match="squash needs an action space with bounds"):
        train(small_config("tests.support.environments:UnboundedReach-v0", squash=True), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_unbounded_actions_are_in_the_environment_s_units(small_config, tmp_path):
    run = train(small_config("tests.support.environments:UnboundedReach-v0", total_steps=64), tmp_path / "run")
    actions = in_process(run.policy, "reach").act_batch(
        np.zeros((500, 2)), deterministic=False, rng=np.random.default_rng(0)
    )
    assert actions.std() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("source", ["run", "bundle"])
def test_a_run_starts_with_another_one_s_weights(source, trained, bundle, small_config, tmp_path):
    first = []
    keep = keras.callbacks.LambdaCallback(on_train_begin=lambda *_: first.append(load_run(tmp_path / "run").state))
    config = small_config(total_steps=64, seed=5)
    train(config, tmp_path / "run", callbacks=[keep], init_from=trained.run.folder if source == "run" else bundle)
    expected = trained.run.state.weights()
    assert first[0].iteration == 0
    for name, array in first[0].weights().items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_weights_of_other_networks_are_refused(trained, small_config, tmp_path):
    with pytest.raises(UserError, match=r"does not fit .*; use the same networks and environment"):
        train(small_config(hidden_sizes=(9,)), tmp_path / "run", init_from=trained.run.folder)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_the_environment_ends_training_with_a_checkpoint(small_config, tmp_path, monkeypatch):
    config = small_config("tests.support.environments:FailingWalk-v0", total_steps=1024, eval_episodes=2)
    with pytest.raises(
        EnvironmentFailure,
        match=r"step raised ArithmeticError: the motor is too hot \(.*, line \d+\)\ngo on with trpo_tf.r",
    ) as failed:
        train(config, tmp_path / "run")
    assert isinstance(failed.value.__cause__, ArithmeticError)
    reached = load_run(tmp_path / "run").state.iteration
    assert reached > 2
    monkeypatch.setenv("WALK_REPAIRED", "1")
    run = resume(tmp_path / "run")
    assert run.summary["steps"] > 1024 - 64
    assert [line["iteration"] for line in lines(run)] == list(range(1, run.state.iteration + 1))
    assert run.summary["untrained"]["episodes"] == 2


def test_an_exception_in_the_first_evaluation_can_be_resumed_too(small_config, tmp_path, monkeypatch):
    config = small_config("tests.support.environments:FailingWalk-v0", eval_episodes=50)
    with pytest.raises(EnvironmentFailure, match=r"the motor is too hot .*\ngo on with trpo_tf.resume"):
        train(config, tmp_path / "run")
    monkeypatch.setenv("WALK_REPAIRED", "1")
    assert resume(tmp_path / "run").summary["untrained"]["episodes"] == 50


@pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium")
@pytest.mark.parametrize(("broken", "eval_episodes"), [("observation", 0), ("reward", 50)])
def test_a_value_that_is_not_finite_ends_training_the_same_way(
    broken, eval_episodes, small_config, tmp_path, monkeypatch
):
    config = small_config("tests.support.environments:FailingWalk-v0", total_steps=1024, eval_episodes=eval_episodes)
    monkeypatch.setenv("WALK_GIVES_NAN", broken)
    with pytest.raises(EnvironmentFailure, match=r"(?s)that is not finite.*go on with trpo_tf.resume"):
        train(config, tmp_path / "run")
    state = load_run(tmp_path / "run").state
    for name, array in state.to_arrays().items():
        assert np.isfinite(array).all(), name


def test_an_existing_folder_is_refused_and_left_alone(small_config, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"exists; choose another out, remove it, or go on with it: trpo_tf.resume"):
        train(small_config(), tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_evaluation_repeats_itself_and_depends_on_its_seed(trained):
    policy = in_process(trained.run.policy, "walk")

    def play(seed: int):
        return evaluate(policy, WALK, episodes=30, seed=seed, deterministic=False)

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_evaluation_refuses_another_environment(trained):
    policy = in_process(trained.run.policy, "walk")
    with pytest.raises(UserError, match="the policy observes obs float32"):
        evaluate(policy, "CartPole-v1")


def test_environments_are_closed(small_config, tmp_path, monkeypatch):
    opened, closed = [], []
    build = environments.Walk.__init__
    monkeypatch.setattr(
        environments.Walk, "__init__", lambda self, **given: opened.append(self) or build(self, **given)
    )
    monkeypatch.setattr(environments.Walk, "close", lambda env: closed.append(env))
    train(small_config(checkpoint_steps=50, eval_episodes=2), tmp_path / "run")
    assert len(opened) > 2 * 4  # built anew at checkpoints
    assert {id(env) for env in opened} == {id(env) for env in closed}
