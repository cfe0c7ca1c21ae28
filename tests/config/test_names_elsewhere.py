"""Who comes from another library is told the name here."""

import pytest

from trpo_tf.__main__ import main
from trpo_tf.config.names_elsewhere import NAMES
from trpo_tf.config.option_names import flat
from trpo_tf.config.settings import Config, SamplingConfig, VineConfig, read_config
from trpo_tf.errors import UserError


def test_every_name_stands_for_a_setting_and_is_none():
    settings = flat(Config("").to_dict())
    assert set(NAMES.values()) <= set(settings)
    assert not set(NAMES) & set(settings)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gamma", "setting 'gamma' is unknown; here it is discount"),
        ("num_env", "setting 'num_env' is unknown; did you mean num_envs?"),
        ("zzz", "setting 'zzz' is unknown; Config has env_id, "),
    ],
)
def test_an_unknown_setting_is_told_the_name_that_is_meant(name, said):
    with pytest.raises(UserError) as error:
        Config.for_env("CartPole-v1", **{name: 1})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Config("X", num_envs=4),
            "setting 'num_envs' is unknown; its place is sampling.num_envs; Config.for_env",
        ),
        (lambda: Config(env="X"), "setting 'env' is unknown; here it is env_id; Config.for_env takes every setting"),
        (lambda: Config("X", zzz=4), "setting 'zzz' is unknown; Config has env_id, seed"),
        (lambda: SamplingConfig(n_envs=4), "setting 'n_envs' is unknown; here it is num_envs"),
        (lambda: VineConfig(zzz=4), "setting 'zzz' is unknown; VineConfig has rollout_states"),
    ],
)
def test_an_unknown_keyword_is_told_what_is_meant(make, said):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_kl = 0.1", "setting 'max_kl' is unknown; its place is trust_region.max_kl"),
        ("critic_epochs = 3", "setting 'critic_epochs' is unknown; its place is critic.epochs"),
        ("[policy]\ntotal_steps = 9", "setting 'total_steps' is unknown; its place is outside of groups: total_steps"),
        ("[policy]\nhidden_size = 9", "setting 'hidden_size' is unknown; here it is hidden_sizes"),
    ],
)
def test_a_setting_at_a_wrong_place_of_a_file_is_told_its_place(line, said, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'env_id = "CartPole-v1"\n{line}\n')
    with pytest.raises(UserError) as error:
        read_config(file)
    assert str(error.value) == said
    file.write_text("total_steps = 5000\n")
    with pytest.raises(UserError, match=r"names no environment; add one at its top, such as env_id = "):
        read_config(file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train", "CartPole-v1", "--target-kl", "0.01"], "here --target-kl is --max-kl; see trpo-tf train --help"),
        (["train", "CartPole-v1", "--target_kl=0.01"], "here --target_kl is --max-kl; see trpo-tf train --help"),
        (["train", "CartPole-v1", "--log-dir", "here"], "here --log-dir is --out; see trpo-tf train --help"),
        (["train", "--env", "CartPole-v1"], "the environment stands without --env: trpo-tf train CartPole-v1"),
        (["train", "CartPole-v1", "--render"], "unknown option --render; trpo-tf record draws a run's episodes"),
        (
            ["evaluate", "run", "--deterministic"],
            "unknown option --deterministic; evaluate takes the most likely action, unless --stochastic is given",
        ),
        (["serve", "x", "--http-port=1"], "here --http-port is --port; see trpo-tf serve --help"),
        (["serve", "--model_base_path", "x"], "here --model_base_path is PATH alone; see trpo-tf serve --help"),
    ],
)
def test_an_option_of_another_library_is_one_line(given, said, capfd):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert (ended.value.code, capfd.readouterr().err) == (2, f"error: {said}\n")
