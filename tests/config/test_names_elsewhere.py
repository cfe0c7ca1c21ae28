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


@pytest.mark.parametrize("given", [["--target-kl", "0.01"], ["--target_kl=0.01"]])
def test_an_option_of_another_library_is_one_line(given, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", *given])
    option = given[0].partition("=")[0]
    said = f"error: here {option} is --max-kl; see trpo-tf train --help\n"
    assert (ended.value.code, capfd.readouterr().err) == (2, said)
