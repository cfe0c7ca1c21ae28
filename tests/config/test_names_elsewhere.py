"""Who comes from another library is told the name here."""

import pytest

from trpo_tf.cli.main import main
from trpo_tf.config.names_elsewhere import NAMES
from trpo_tf.config.option_names import flat
from trpo_tf.config.settings import Config
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
    ("given", "said"),
    [
        (["CartPole-v1", "--target-kl", "0.01"], "here --target-kl is --max-kl; see trpo-tf train --help"),
        (["CartPole-v1", "--target_kl=0.01"], "here --target_kl is --max-kl; see trpo-tf train --help"),
        (["CartPole-v1", "--log-dir", "here"], "here --log-dir is --out; see trpo-tf train --help"),
        (["--env", "CartPole-v1"], "the environment stands without --env: trpo-tf train CartPole-v1"),
    ],
)
def test_an_option_of_another_library_is_one_line(given, said, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["train", *given])
    assert (ended.value.code, capfd.readouterr().err) == (2, f"error: {said}\n")
