"""Environments with arguments, a time limit and wrappers: all that belongs to a run makes the same one."""

import json
import tomllib

import gymnasium as gym
import numpy as np
import pytest

from tests.support.environments import Noted, Walk
from trpo_tf.cli import main as cli
from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config, EnvironmentConfig, VineConfig, read_config
from trpo_tf.envs.make import make_env
from trpo_tf.errors import UserError
from trpo_tf.runs.folder import load_run
from trpo_tf.runs.lock import locked
from trpo_tf.training.train import resume, train

MADE = EnvironmentConfig({"sutton_barto_reward": True}, 30, ('tests.support.environments:Noted{"times": 3}',))
AS_WANTED = {"times": 3, "limit": 30, "sutton_barto_reward": True}


@pytest.fixture(autouse=True)
def made():
    """Notes on the environments that the test makes."""
    Noted.made.clear()
    return Noted.made


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    config = small_config("CartPole-v1", environment=MADE, eval_interval=100, periodic_eval_episodes=2, eval_episodes=2)
    return train(config, tmp_path_factory.mktemp("made") / "run", progress=False)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    from trpo_tf.exporting.run_bundle import export_run

    folder = tmp_path_factory.mktemp("made") / "bundle"
    export_run(run, folder, targets=["onnx"], episodes=1)
    return folder


def command(*arguments) -> None:
    cli.main(list(map(str, arguments)))


def test_settings_are_in_the_runs_file(run):
    written = tomllib.loads((run.folder / "config.toml").read_text())["environment"]
    assert json.loads(written["env_kwargs"]) == {"sutton_barto_reward": True}
    assert (written["max_episode_steps"], written["env_wrapper"]) == (30, list(MADE.env_wrapper))
    assert read_config(run.folder / "config.toml") == run.config
    assert run.config.sampling.env_backend == "gymnasium"


def test_training_and_evaluations_make_it(small_config, tmp_path, made):
    """The limit is 30 and each step but the last is worth 0, so that a return is -3, or 0 at the limit."""
    config = small_config("CartPole-v1", environment=MADE, eval_interval=64, periodic_eval_episodes=2, eval_episodes=2)
    run = train(config, tmp_path / "run", progress=False)
    assert made == [AS_WANTED] * len(made)
    assert len(made) > 4 + 2 + 2  # sampling, periodic evaluations, both other evaluations
    assert set(run.state.recent_returns) <= {-3.0, 0.0}
    assert max(run.state.recent_lengths) <= 30


def test_the_vine_makes_it(small_config, tmp_path, made):
    vine = VineConfig(rollout_states=4, branch_length=3)
    config = small_config("CartPole-v1", environment=MADE, vine=vine, sampler="vine", total_steps=400)
    train(config, tmp_path / "run", progress=False)
    assert made == [AS_WANTED] * len(made)
    assert len(made) > 4 + 4


def test_a_run_that_goes_on_makes_it(run, made):
    steps = run.state.steps
    longer = resume(run.folder, total_steps=run.config.total_steps + 128, progress=False)
    assert made == [AS_WANTED] * len(made)
    assert made
    assert steps < longer.state.steps <= longer.config.total_steps
    assert load_run(run.folder).config.total_steps == longer.config.total_steps
    assert longer.summary["trained"]["episodes"] == 2
    assert longer.summary["steps"] == longer.state.steps


def test_exports_and_what_plays_a_run_or_a_bundle_make_it(run, exported, made, capsys):
    for source in (run.folder, exported):
        command("evaluate", source, "--episodes", "3", "--json")
        answer = json.loads(capsys.readouterr().out)
        assert answer["environment"] == "CartPole-v1"
        assert {answer["min_return"], answer["max_return"]} <= {-3.0, 0.0}
    assert made == [AS_WANTED] * len(made)
    assert len(made) >= 2
    card = (exported / "MODEL_CARD.md").read_text()
    told = 'made with env_kwargs {"sutton_barto_reward": true}, max_episode_steps 30, env_wrapper '
    assert f"{told}tests.support.environments:Noted" in card
    made.clear()
    command("evaluate", exported, "--episodes", "1", "--env-id", "CartPole-v1", "--json")
    assert made == []


def test_a_recording_shows_it(run, tmp_path, capsys):
    command("record", run.folder, "--out", tmp_path / "cart.gif", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] <= 30
    assert told["episode_return"] in (-3.0, 0.0)


def test_envpool_can_not_make_it(small_config):
    with pytest.raises(UserError, match="env_backend can't be envpool: it takes no env_kwargs"):
        train(small_config("CartPole-v1", environment=MADE, env_backend="envpool"))


WRONG = {
    '{"env_kwargs": 3': "env_kwargs has arguments that are not JSON",
    "[3]": "env_kwargs has arguments that are no JSON object",
    '{"no_such": 1}': "its constructor raised TypeError: .*no_such",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit):
        command("train", "CartPole-v1", "--env-kwargs", arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert WRONG[arguments].split(": ")[0] in line


@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [
        ("Noted", "env_wrapper must be module:Class"),
        ("tests.support.environments:Noted(times=3)", "env_wrapper must be module:Class"),
        ("tests.support.environments:Missing", "no attribute 'Missing'"),
        ("no_such_module:Noted", "No module named 'no_such_module'"),
        (
            "gymnasium.wrappers:TransformObservation",
            r"TransformObservation can't be made: TypeError: .*behind its name.*: gymnasium.wrappers:Transf.*\{...\}",
        ),
        (
            "gymnasium.wrappers:HumanRendering",
            "env_wrapper gymnasium.wrappers:HumanRendering can't be made: .*render_mode",
        ),
        ("os:system", "env_wrapper os:system is no gymnasium.Wrapper"),
        ("gymnasium.wrappers:NormalizeReward", "NormalizeReward keeps statistics .* use value_scaling"),
        ("gymnasium.wrappers:NormalizeObservation", "NormalizeObservation keeps statistics .* part of the policy"),
        ('tests.support.environments:Noted{"by": 3}', "unexpected keyword argument 'by'"),
    ],
)
def test_a_wrong_wrapper_is_named(wrapper, reason):
    with pytest.raises(UserError, match=reason):
        make_env(Environment("CartPole-v1", env_wrapper=(wrapper,)))


def test_a_manifest_of_another_kind_names_no_wrappers():
    for config in (None, {}, {"environment": {"env_wrapper": 3}}, {"environment": []}):
        assert Environment.recorded({"environment": "CartPole-v1", "config": config}) == Environment("CartPole-v1")
    assert Environment.recorded({"environment": 3}) is None


def test_a_function_makes_environments_of_an_id_of_its_own(small_config, tmp_path):
    made = []

    def walk(length: int) -> gym.Env:
        made.append(length)
        return Walk(length=length)

    config = small_config("MyWalk-v0", environment=EnvironmentConfig({"length": 2}, 6))
    run = train(config, tmp_path / "run", make_env=walk, progress=False)
    assert set(made) == {2}
    gym.registry.pop("MyWalk-v0")  # as it is in another process
    with pytest.raises(UserError, match="environment 'MyWalk-v0' can't be made"):
        resume(run.folder, total_steps=1000, progress=False)
    assert resume(run.folder, make_env=walk, total_steps=320, progress=False).state.steps > 192
    with pytest.raises(UserError, match="make_env needs an id of its own, and 'CartPole-v1' is registered"):
        train(small_config("CartPole-v1"), tmp_path / "other", make_env=walk)
    gym.registry.pop("MyWalk-v0")


def test_a_class_makes_environments(small_config, tmp_path):
    run = train(small_config("MyClass-v0", max_episode_steps=5), tmp_path / "run", make_env=Walk, progress=False)
    assert max(run.state.recent_lengths) == 5
    gym.registry.pop("MyClass-v0")


def parsed(*arguments) -> Config:
    return cli.parse(["train", *map(str, arguments)]).config


def test_a_runs_settings_are_those_of_another(run):
    file = run.folder / "config.toml"
    config = read_config(file)
    assert parsed("--config", file) == config
    changed = parsed("--config", file, "--set", "trust_region.max_kl=0.02", "--set", "algo=npg", "--seed", "7")
    assert (changed.trust_region.max_kl, changed.algo, changed.seed) == (0.02, "npg", 7)
    assert changed.environment == config.environment
    assert parsed("CartPole-v1", "--set", "total_steps=1e5").total_steps == 100_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("trust_region.max_kl", "--set takes GROUP.NAME=VALUE"),
        ("max_kl=0.02", "setting 'max_kl' is unknown"),
        ("trust_region.max_kl=-1", "max_kl must be above 0"),
        ("seed.max_kl=1", "seed is no group of settings"),
        ("critic.epochs=many", "critic_epochs must be of type int"),
    ],
)
def test_a_wrong_change_is_named(change, reason):
    with pytest.raises(UserError, match=reason):
        parsed("CartPole-v1", "--set", change)


def test_any_number_of_steps_may_lengthen_a_run():
    default = Config("CartPole-v1").total_steps
    assert parsed("--resume", "run", "--total-steps", default).total_steps == default
    assert parsed("--resume", "run").total_steps == 0


def test_a_run_is_not_made_shorter(trained):
    before = (trained.run.folder / "config.toml").read_bytes()
    with pytest.raises(UserError, match=rf"total_steps must be at least [\d,]+: .* taken {trained.run.state.steps}"):
        resume(trained.run.folder, total_steps=100, progress=False)
    assert (trained.run.folder / "config.toml").read_bytes() == before


def test_a_run_is_not_resumed_while_another_process_trains_it(trained):
    with locked(trained.run.folder), pytest.raises(UserError, match="is being trained by process"):
        resume(trained.run.folder, total_steps=10_000, progress=False)


def test_the_policy_is_that_of_the_environment_as_made(run):
    """A registered CartPole's limit of 500 is nowhere: the policy's run knows 30."""
    env = make_env(run.config.made_environment)
    env.reset(seed=0)
    steps = 0
    truncated = False
    while not truncated and steps < 100:
        env.unwrapped.state = np.zeros(4)
        *_, truncated, _ = env.step(steps % 2)
        steps += 1
    assert steps == 30
