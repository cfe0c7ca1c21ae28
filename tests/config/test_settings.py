"""Settings: the command line and Python start the same run, and numbers may be written as people write them."""

import fcntl
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf.cli import main as cli
from trpo_tf.cli.training import Train
from trpo_tf.config.algorithms import ALGORITHMS
from trpo_tf.config.settings import Config, SamplingConfig, load_preset, preset_names, read_config
from trpo_tf.errors import UserError
from trpo_tf.runs.lock import LOCK_FILE, locked

TUNED = [name for name in preset_names() if name != "ALE"]


def from_the_command_line(*arguments) -> Config:
    command = cli.parse(["train", *arguments])
    assert isinstance(command, Train)
    return command.config


@pytest.mark.parametrize("arguments", [(), ("--total-steps", "12345", "--num-envs", "4"), ("--max-kl", "0.02")])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v5", "FrozenLake-v1"])
def test_python_takes_the_preset_as_the_command_line_does(env_id, arguments):
    names = [name.removeprefix("--").replace("-", "_") for name in arguments[::2]]
    settings = dict(zip(names, map(float, arguments[1::2]), strict=True))
    assert Config.for_env(env_id, **settings) == from_the_command_line(env_id, *arguments)
    plain = Config(env_id, total_steps=100_000)
    assert Config.for_env(env_id, preset="default") == plain == from_the_command_line(env_id, "--preset", "default")


@pytest.mark.filterwarnings("ignore:.*is left out")
@pytest.mark.parametrize("place", range(max(len(TUNED), len(ALGORITHMS))))
def test_every_algorithm_starts_from_every_preset(place):
    """Of the command line, which takes a tenth of a second to read, each preset once and each algorithm."""
    env_id, algorithm = TUNED[place % len(TUNED)], list(ALGORITHMS)[place % len(ALGORITHMS)]
    config = from_the_command_line(env_id, "--algo", algorithm)
    assert config.algo == algorithm
    assert Config.for_env(env_id, algo=algorithm) == config
    for other in ALGORITHMS:
        assert Config.for_env(env_id, algo=other).algo == other


def test_numbers_and_arrays_of_numpy_are_settings_as_python_s_are():
    plain = Config.for_env("CartPole-v1", seed=3, gae_lambda=0.5, anneal=False, hidden_sizes=(8, 4))
    sizes = np.array([8, 4])
    for hidden_sizes in (sizes, list(sizes)):
        config = Config.for_env(
            "CartPole-v1", seed=np.int64(3), gae_lambda=np.float32(0.5), anneal=np.False_, hidden_sizes=hidden_sizes
        )
        assert config == plain
        assert config.to_dict() == plain.to_dict()
    with pytest.raises(UserError, match=r"seed must be of type int, not \(3, 4\)"):
        Config.for_env("CartPole-v1", seed=np.array([3, 4]))


def test_a_file_of_settings_is_utf8_with_or_without_a_mark(tmp_path):
    file, text = tmp_path / "config.toml", 'env_id = "CartPole-v1"\nenvironment.env_kwargs = \'{"name": "Zoë"}\'\n'
    for mark in ("", "\ufeff"):
        file.write_bytes(f"{mark}{text}".encode())
        assert read_config(file).made_environment.arguments == {"name": "Zoë"}


def test_a_file_of_settings_that_can_not_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "none.toml", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(UserError, match=rf"{path} can't be read: {reason}; give a file of settings"):
            read_config(path)


def test_what_is_left_out_of_a_preset_is_said_and_what_was_asked_for_is_an_error():
    assert load_preset("CartPole-v1", "CartPole-v1").anneal
    with pytest.warns(UserWarning, match="anneal of the preset CartPole-v1 is left out: ppo is not annealed"):
        config = from_the_command_line("CartPole-v1", "--algo", "ppo")
    assert not config.anneal
    with pytest.raises(UserError, match="algo must be trpo, npg or nac, to anneal"):
        from_the_command_line("CartPole-v1", "--algo", "ppo", "--anneal")
    with pytest.raises(UserError, match="setting 'colour' is unknown"):
        Config.for_env("CartPole-v1", colour=1)


@pytest.mark.parametrize("text", ["1e5", "100_000", "1.0E5", "100000", "1e+5"])
def test_integers_are_read_as_people_write_them(text):
    assert from_the_command_line("FrozenLake-v1", "--total-steps", text).total_steps == 100_000
    assert from_the_command_line("FrozenLake-v1", f"--total-steps={text}").total_steps == 100_000


@pytest.mark.parametrize("text", ["1.5", "1e-1", "many", "inf", "nan"])
def test_other_numbers_are_refused(text):
    with pytest.raises(UserError, match=f"--total-steps: '{text}' is no (whole )?number"):
        from_the_command_line("FrozenLake-v1", "--total-steps", text)


def test_floats_without_a_fraction_are_integers_in_python_and_toml():
    config = Config("FrozenLake-v1", total_steps=1e6, sampling=SamplingConfig(num_envs=4.0))
    assert (config.total_steps, config.sampling.num_envs) == (1_000_000, 4)
    assert type(Config.from_dict({"env_id": "a", "total_steps": 1e6}).total_steps) is int
    with pytest.raises(UserError, match=r"total_steps must be of type int, not 5000\.5"):
        Config("FrozenLake-v1", total_steps=5000.5)
    with pytest.raises(UserError, match="num_envs must be of type int"):
        SamplingConfig(num_envs="8")


def test_one_process_at_a_time_trains_a_run(tmp_path):
    """And what a killed one left behind holds nobody back."""
    (tmp_path / LOCK_FILE).write_text("4711\n")
    told = f"is being trained by process {os.getpid()}; wait for it"
    with locked(tmp_path), pytest.raises(UserError, match=told), locked(tmp_path):
        pass
    with (tmp_path / LOCK_FILE).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
    with locked(tmp_path):
        pass


def commands_of(page: Path) -> list[str]:
    """Lines that a reader would type to train, without what stands for something else and without comments."""
    lines = re.findall(r"^    (trpo-tf train (?:[^\n]*\\\n)*[^\n]*)$", page.read_text(), re.MULTILINE)
    return [line.partition("  #")[0].replace("\\\n", "") for line in lines]


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if commands_of(page)]


@pytest.mark.filterwarnings("ignore:.*is left out")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_training_command_of_the_documentation_is_one(page):
    """It is read, with its preset, into settings that can go together."""
    for command in commands_of(page):
        arguments = shlex.split(command)[2:]
        module, _, name = arguments[0].rpartition(":")
        if module and "-v" not in name and importlib.util.find_spec(module) is None:
            continue  # only the package itself can tell the latest version
        if "--resume" not in arguments and not {"ENV", "RUN"} & set(arguments):
            assert from_the_command_line(*arguments).env_id, command


FIRST = [page for page in PAGES if page.parent.name == "algorithms"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is left out")
@pytest.mark.parametrize("page", FIRST, ids=lambda page: page.stem)
def test_the_commands_of_an_algorithm_s_page_train(page, tmp_path, monkeypatch):
    """In the order of the page, for as few steps as there can be."""
    monkeypatch.chdir(tmp_path)
    small = ["--eval-episodes", "1", "--eval-interval", "0"]
    for number, command in enumerate(commands_of(page)):
        arguments = shlex.split(command)[1:]
        if "HalfCheetah-v5" in arguments:
            continue  # starts as the others do, and its batch alone takes long
        config = from_the_command_line(*arguments[1:])
        vine = 128 * 4 * 20 if config.sampler_is_vine else 0
        steps = ["--total-steps", str(config.sampling.batch_size + vine), "--out", f"run{number}"]
        cli.main([*arguments, *small, *steps])
        assert json.loads((tmp_path / f"run{number}" / "summary.json").read_text())["iterations"] >= 1


def test_settings_are_utf_8_in_every_locale(tmp_path):
    """TOML is, and runs write it so; a locale such as Latin-1 would read other letters."""
    path = tmp_path / "config.toml"
    path.write_text("""env_id = "Fährte-v0"\n""", "utf-8")
    read = f"import pathlib; from trpo_tf.config.settings import *; path = pathlib.Path({str(path)!r})"
    show = "print(ascii(read_config(path).env_id))"
    ascii_locale = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    told = subprocess.run(
        [sys.executable, "-c", f"{read}; {show}"], env=ascii_locale, capture_output=True, text=True, check=True
    )
    assert told.stdout == "'F\\xe4hrte-v0'\n"
