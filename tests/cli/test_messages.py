"""What a message proposes: options at the command line, arguments in Python."""

from pathlib import Path

import pytest

from trpo_tf.cli.main import main
from trpo_tf.errors import UserError
from trpo_tf.runs.layout import require_new
from trpo_tf.support.shell import in_command, option


def test_an_option_is_named_as_the_caller_gives_it(tmp_path, capsys):
    folder = tmp_path / "a run"
    folder.mkdir()
    with pytest.raises(UserError) as error:
        require_new(folder)
    assert str(error.value).endswith(f"choose another out, remove it, or go on with it: trpo_tf.resume('{folder}')")
    with pytest.raises(SystemExit):
        main(["train", "CartPole-v1", "--out", str(folder)])
    assert capsys.readouterr().err.endswith(f"choose another --out, remove it, or go on with it: --resume '{folder}'\n")
    with pytest.raises(UserError, match="choose another out"):
        require_new(folder)


def test_values_are_quoted_for_a_shell_or_for_python():
    with in_command():
        assert option("init_from", Path("a run")) == "--init-from 'a run'"
        assert option("num_envs", 4) == "--num-envs 4"
    assert option("init_from", Path("a run")) == "init_from='a run'"
    assert option("num_envs", 4) == "num_envs=4"
    assert option("num_envs") == "num_envs"
