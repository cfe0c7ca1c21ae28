"""The search for settings: what it tries, how it scores and prunes, and that it goes on where it was."""

import dataclasses
import json
import os
import platform
import subprocess
import sys

import optuna
import pytest

from trpo_tf.cli import main as cli
from trpo_tf.config.settings import Config, load_preset, preset_names, read_config
from trpo_tf.errors import UserError
from trpo_tf.search.run import evaluated
from trpo_tf.search.space import present_values, read_space, suggest, with_values
from trpo_tf.search.study import JOB, PROCESS, Search, fail_abandoned, open_study
from trpo_tf.search.worker import RETURNS, run_trial
from trpo_tf.training.train import train

SPACE = """
trust_region.max_kl = { low = 0.001, high = 0.1, log = true }
"policy.hidden_sizes" = [[8], [4, 4]]
[sampling]
num_envs = { low = 2, high = 4 }
"""


@pytest.fixture
def config(small_config):
    return evaluated(small_config())


@pytest.fixture
def wanted(config, tmp_path):
    """A search with an own study."""
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    return Search(config, read_space(file, config), str(tmp_path / "study.log"), "walk", range(100, 102))


def test_a_space_is_read_in_every_form_of_its_names(wanted, config):
    assert set(wanted.space) == {"trust_region.max_kl", "policy.hidden_sizes", "sampling.num_envs"}
    own = present_values(wanted.space, config)
    assert own == {"trust_region.max_kl": 0.015, "policy.hidden_sizes": "[8]", "sampling.num_envs": 4}
    assert present_values({"sampling.num_envs": {"low": 5, "high": 9}}, config) == {}
    assert Search.from_json(wanted.to_json()) == wanted


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_s_own_values_lead_back_to_it(name):
    start = load_preset(name, name)
    space = {setting: [value, None] for setting, value in _flat(start.to_dict()) if setting not in ("env_id", "seed")}
    space = json.loads(json.dumps(space))  # as a file has them
    chosen = suggest(optuna.trial.FixedTrial(present_values(space, start)), space)
    assert with_values(start, chosen) == start


def _flat(values, prefix=""):
    for name, value in values.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a =", "is not valid TOML"),
        ("", "names no setting"),
        ("trust_region.max_k = [1]", "max_k' is unknown"),
        ("critic.epochs = [5, 0]", "critic.epochs = 0 can't work: critic_epochs must be at least 1"),
        ("critic.epochs = []", "must be a list of choices, or a table"),
        ("critic.epochs = 5", "must be a list of choices, or a table"),
        ("critic.epochs = { low = 5, hihg = 9 }", "must be a list of choices, or a table"),
        ("critic.epochs = { low = 5, high = 5 }", "must be a list of choices, or a table"),
        ("trust_region.damping = { low = 0.0, high = 1.0, log = true }", "must be a list of choices, or a table"),
        ("seed = [1, 2]", "seed can't be searched"),
        ("total_steps.more = [1]", "can't work"),
    ],
)
def test_a_wrong_space_is_one_line(text, reason, tmp_path):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_space(tmp_path / "space.toml", Config("CartPole-v1"))


def test_a_space_that_is_not_there_or_is_a_folder_is_told_with_the_option(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match=f"space {path} can't be read: .*--space"):
            read_space(path, Config("CartPole-v1"))


def test_the_first_trial_is_the_start_and_its_score_the_mean_of_its_runs(wanted, config, tmp_path):
    study = open_study(wanted)
    study.optimize(lambda trial: run_trial(wanted, trial), n_trials=1)
    (trial,) = study.trials
    assert trial.params == present_values(wanted.space, config)
    returns = [
        train(dataclasses.replace(config, seed=seed), tmp_path / str(seed), progress=False).summary["trained"]
        for seed in wanted.seeds
    ]
    assert trial.user_attrs[RETURNS] == [each["mean_return"] for each in returns]
    assert trial.value == sum(trial.user_attrs[RETURNS]) / 2
    steps = list(trial.intermediate_values)
    assert steps == sorted(steps)
    assert steps[0] < config.total_steps < steps[-1] <= 2 * config.total_steps


def test_a_trial_behind_the_others_is_pruned_and_one_that_can_not_work_says_why(wanted):
    study = open_study(wanted)
    distributions = {"trust_region.max_kl": optuna.distributions.FloatDistribution(0.001, 0.1, log=True)}
    for _ in range(4):
        ahead = dict.fromkeys(range(1, 400), 1000.0)
        params = {"trust_region.max_kl": 0.01}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=1000.0, intermediate_values=ahead
            )
        )
    study.optimize(lambda trial: run_trial(wanted, trial), n_trials=1)
    assert study.trials[0].state.name == "PRUNED"  # the start, which waited since the study was made
    assert len(study.trials[0].intermediate_values) == 1
    impossible = dataclasses.replace(wanted, space={"sampling.batch_size": [4096]})
    study.optimize(lambda trial: run_trial(impossible, trial), n_trials=1)
    assert study.trials[-1].state.name == "PRUNED"
    assert study.trials[-1].user_attrs["reason"].startswith("total_steps must be at least batch_size")


def test_a_trial_whose_process_was_killed_is_not_waited_for(wanted):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    study = open_study(wanted)
    processes = ([platform.node(), gone.pid], [platform.node(), os.getpid()], ["elsewhere", gone.pid])
    for process in processes:
        study.ask().set_user_attr(PROCESS, process)
    fail_abandoned(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING", "RUNNING"]


def test_the_command_runs_trials_at_a_time_writes_the_best_and_goes_on(config, tmp_path, capsys):
    import tomli_w

    start, space, out = tmp_path / "start.toml", tmp_path / "space.toml", tmp_path / "out"
    start.write_text(tomli_w.dumps(config.to_dict()))
    space.write_text("trust_region.max_kl = { low = 0.001, high = 0.1, log = true }")
    command = ["search", config.env_id, "--config", str(start), "--out", str(out), "--jobs", "2", "--space", str(space)]
    for trials in ("2", "1"):
        cli.main([*command, "--trials", trials])
    found = capsys.readouterr()
    assert found.err.count("trial 0: return") == found.err.count("trial 1: return") == 1
    best = found.out.splitlines()[-1].rpartition("--config ")[2]
    trials = open_study(Search.from_json(_definition(out, config.env_id, config))).trials
    top = max(trials, key=lambda trial: trial.value)
    assert read_config(out / "best.toml") == with_values(config, top.params)
    assert best == str(out / "best.toml")
    space.write_text("trust_region.max_kl = [0.01, 0.02]")
    with pytest.raises(SystemExit):
        cli.main([*command, "--trials", "2"])
    assert "has other space; name another --study" in capsys.readouterr().err


def test_a_job_that_begins_again_fails_the_trial_that_it_had_elsewhere(wanted):
    study = open_study(wanted)
    for job in ("mine", "another"):
        trial = study.ask()
        trial.set_user_attr(PROCESS, ["elsewhere", 1])
        trial.set_user_attr(JOB, job)
    fail_abandoned(study, "mine")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


def test_a_trial_whose_machine_does_not_see_the_study_makes_none(wanted):
    with pytest.raises(UserError, match=r"study.log does not have the study, as the machine .* sees it"):
        open_study(wanted, new=False)


def _definition(out, name, config):
    study = optuna.load_study(study_name=name, storage=_journal(out / "study.log"))
    return json.dumps(study.user_attrs["definition"] | {"storage": str(out / "study.log")})


def _journal(path):
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return JournalStorage(JournalFileBackend(str(path)))
