"""Settings that are edited in a run's config.toml: they hold from then on, or one line says that they can't."""

import dataclasses
import shutil
import tomllib

import numpy as np
import pytest
import tomli_w

from trpo_tf.config.fixed_settings import fixed_settings
from trpo_tf.config.option_names import flat, nested
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.learning.schedules import radius_or_coefficient
from trpo_tf.runs.folder import load_run
from trpo_tf.runs.warm_start import warn_of_other_meaning

EDITED = {
    **{"hidden_sizes": [16], "critic_hidden_sizes": [16], "activation": "relu", "head": "categorical", "history": 2},
    **{"memory": "gru:4", "previous_action": True, "normalize_observations": False, "observation_offset": [1.0, 1.0]},
    **{"squash": True, "state_dependent_std": True, "least_deviation": 0.2, "value_scaling": "none"},
    **{"last_layer_scale": 1.0, "initial_log_std": -1.0, "unit_std": False, "num_envs": 2, "algo": "ppo"},
    **{"objective": "average", "time_feature": True},
}


@pytest.fixture
def edited(trained, tmp_path):
    """Changes settings, given by their own names, in the file of a copy of `trained`, and returns its folder."""

    def edit(**settings):
        folder = tmp_path / "run"
        shutil.copytree(trained.run.folder, folder)
        values = flat(tomllib.loads((folder / "config.toml").read_text())) | settings
        (folder / "config.toml").write_text(tomli_w.dumps(nested(values, Config)))
        return folder

    return edit


@pytest.mark.parametrize("name", fixed_settings(Config("CartPole-v1")))
def test_a_setting_that_the_weights_depend_on_is_refused(name, edited):
    with pytest.raises(UserError, match=rf"^{name} can't change after the start of a run: .* was started with"):
        load_run(edited(**{name: EDITED[name]}))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"algo": "trpo-adaptive"}, "max_kl"),
        ({"algo": "kl-penalty"}, "kl_coefficient"),
        ({"critic_memory": 2}, "batch_size"),
    ],
)
def test_what_a_checkpoint_holds_the_outcome_of_is_fixed(settings, name):
    assert name not in fixed_settings(Config.for_env("CartPole-v1", preset="default"))
    assert name in fixed_settings(Config.for_env("CartPole-v1", preset="default", **settings))


def test_other_settings_hold_from_then_on(edited, trained):
    run = load_run(edited(max_kl=0.5, discount=0.5, batch_size=128))
    assert (run.config.sampling.discount, run.config.sampling.batch_size) == (0.5, 128)
    assert radius_or_coefficient(run.config, run.state) == np.float32(0.5)
    assert radius_or_coefficient(trained.run.config, run.state) == np.float32(trained.run.config.trust_region.max_kl)


def test_another_range_of_actions_is_refused_where_training_goes_on(edited):
    run = load_run(edited(env_kwargs='{"start": 1}'))
    with pytest.raises(UserError, match=r"its action was int64\[\] from 0 to 1, and is int64\[\] from 1 to 2"):
        run.learner  # noqa: B018


@pytest.mark.parametrize("source", ["run", "bundle"])
def test_weights_that_would_mean_something_else_are_told(source, trained, request):
    folder = trained.run.folder if source == "run" else request.getfixturevalue("bundle")
    other = dataclasses.replace(trained.run.config.policy, activation="relu")
    with pytest.warns(UserWarning, match="activation is 'relu' here and 'tanh' in .* acts otherwise"):
        warn_of_other_meaning(folder, dataclasses.replace(trained.run.config, policy=other))
    warn_of_other_meaning(folder, trained.run.config)


def test_runs_of_earlier_releases_have_no_record(edited):
    folder = edited(seed=1, last_layer_scale=0.5)
    (folder / "started_with.toml").unlink()
    assert load_run(folder).config.policy.last_layer_scale == 0.5
