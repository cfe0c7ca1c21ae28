"""The command line, as a person or a script meets it."""

import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import docstring_parser
import gymnasium as gym
import pytest

from tests.support.export.replaced_target import replace_target
from tests.support.paths import ROOT
from tests.support.processes import command_line
from trpo_tf import serving
from trpo_tf.__main__ import main
from trpo_tf.cli import main as cli
from trpo_tf.config.settings import Config, load_preset, own_name
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving.options import ServeOptions

WALK = "tests.support.environments:Walk-v0"
SMALL = [
    *("--num-envs", "4", "--batch-size", "64", "--total-steps", "64", "--eval-episodes", "2"),
    *("--hidden-sizes", "8", "--critic-hidden-sizes", "8", "--critic-batch-size", "32"),
    *("--policy-batch-size", "32"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Commands run in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capfd):
    """Runs a command in this process: exit status, stdout, stderr."""

    def command(*arguments) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(map(str, arguments)))
        except SystemExit as exit_:
            status = exit_.code or 0
        return status, *capfd.readouterr()

    return command


@pytest.fixture
def damaged(bundle, tmp_path):
    """A bundle with a changed byte."""
    folder = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    content = bytearray((folder / "policy.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "policy.onnx").write_bytes(content)
    return folder


def complains(answer, expected: str) -> None:
    """One line on stderr, nothing on stdout, exit status 2."""
    status, out, err = answer
    assert re.fullmatch(rf"error: [^\n]*{expected}[^\n]*\n", err), err
    assert (status, out) == (2, "")


BAD_TRAINING = {
    ("NoSuchTask-v0",): "environment 'NoSuchTask-v0' can't be made: ",
    ("no_such_module:Task-v0",): "'no_such_module'; run the command in the folder of no_such_module.py, or install",
    (
        "PongNoFrameskip-v4",
    ): "`PongNoFrameskip` doesn't exist; Gymnasium's Atari games are called ALE/Pong-v5 and so on",
    (): r"which environment\? For example: trpo-tf train CartPole-v1",
    (
        "tests.support.environments:IntegerBox-v0",
    ): "action space Box.*int64.* isn't supported; a Box of actions must be of floats",
    ("tests.support.environments:Gossip-v0",): "observation space Text.* isn't supported; it must be Box, Discrete, ",
    (WALK, "--preset", "NoSuchPreset"): "preset 'NoSuchPreset' is unknown; choose one of .*CartPole-v1",
    (WALK, "--init-from", "nowhere"): "--init-from nowhere is neither a run nor a bundle",
    ("--resume", "nowhere"): "nowhere is not a run folder",
    (WALK, "--resume", "nowhere"): "--resume continues with the run's own settings",
    ("--resume", "nowhere", "--max-kl", "0.1"): "--resume continues with the run's own settings",
    ("tests.support.environments:UnboundedReach-v0", "--squash"): "squash needs an action space with bounds",
    (WALK, "--max-kl", "-1"): "max_kl must be above 0",
    (WALK, "--max-kl", "inf"): "max_kl must be a finite number",
    (WALK, "--discount", "1.5"): "discount must be above 0 and at most 1",
    (WALK, "--seed", "-1"): "seed must be at least 0",
    (WALK, "--batch-size", "5"): "batch_size must be at least twice num_envs",
    (WALK, "--eval-interval", "-1"): "eval_interval must be at least 0",
    (WALK, "--periodic-eval-episodes", "0"): "periodic_eval_episodes must be at least 1",
    (WALK, "--algo", "ppo", "--entropy-coefficient", "0.1"): "entropy_coefficient must be 0, for ppo",
    (WALK, "--total-steps", "5"): "total_steps must be at least batch_size",
    (WALK, "--hidden-sizes", "0"): "hidden_sizes must be positive",
    (WALK, "--total-steps", "4096", "--profile"): "profile needs 3 iterations, .* only 2 to go",
    (WALK, "--activation", "wobble"): "activation 'wobble' is unknown",
    (WALK, "--backtrack-ratio", "nan"): "backtrack_ratio must be between 0 and 1",
}


@pytest.mark.parametrize("arguments", BAD_TRAINING, ids=" ".join)
def test_bad_training_is_one_line_and_writes_nothing(arguments, run, here):
    complains(run("train", *arguments), BAD_TRAINING[arguments])
    assert list(here.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
def test_an_environment_that_has_moved_is_told_its_latest_version(run):
    complains(run("train", "HalfCheetah-v2"), "raised ImportError: .*; take HalfCheetah-v5")


def test_version(run):
    assert run("--version") == (0, f"trpo-tf {serving.__version__}\n", "")


def test_a_run_folder_that_exists_is_left_alone(run, here):
    (here / "mine").mkdir()
    complains(run("train", WALK, "--out", "mine"), "mine exists; choose another --out, remove it, or go on with it")
    assert [path.name for path in here.rglob("*")] == ["mine"]


def test_a_finished_run_is_not_resumed(run, trained):
    complains(run("train", "--resume", trained.run.folder), "is complete; start a new run from it with --init-from")


def test_bad_exports_are_one_line_and_write_nothing(run, here, trained):
    complains(run("export", "nowhere", "--out", "new"), "nowhere is not a run folder")
    assert list(here.iterdir()) == []
    (here / "mine").mkdir()
    complains(run("export", trained.run.folder, "--out", "mine"), "mine exists; choose another folder or remove it")
    assert [path.name for path in here.rglob("*")] == ["mine"]
    (here / "file").touch()
    complains(run("export", trained.run.folder, "--out", "file/new"), "/file is no folder, so file/new can't be made")
    complains(run("export", trained.run.folder, "--out", "n" * 300), "File name too long: '?n")


@pytest.mark.parametrize("command", ["verify", "predict", "serve", "evaluate", "bench-latency"])
def test_a_changed_byte_is_one_line(command, run, damaged):
    more = {"predict": ["--observation", "[0, 0]"], "serve": ["--port", "0"]}.get(command, [])
    complains(run(command, damaged, *more), r"policy\.onnx is not what was exported \(its sha256 differs\)")


@pytest.mark.parametrize("command", ["verify", "predict", "serve", "evaluate", "bench-latency"])
def test_a_bundle_that_is_not_there_is_one_line(command, run):
    more = {"predict": ["--observation", "[0, 0]"]}.get(command, [])
    complains(run(command, "nowhere", *more), "nowhere")


BAD_OBSERVATIONS = {
    "[0, 0": "--observation is not JSON",
    "[1, 2, 3]": r"observation has shape \[3\], the policy takes \[2\]",
    "[NaN, 0]": "not finite",
    '["a", "b"]': "observation holds text, the policy takes float32",
    "[[1], [2, 3]]": "ragged",
}


@pytest.mark.parametrize("observation", BAD_OBSERVATIONS)
def test_a_bad_observation_is_one_line(observation, run, bundle):
    complains(run("predict", bundle, "--observation", observation), BAD_OBSERVATIONS[observation])


def test_a_port_in_use_is_one_line(run, bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complains(run("serve", bundle, "--port", port), f"{port}")


def test_bad_evaluations_are_one_line(run, bundle):
    complains(run("evaluate", bundle, "--episodes", "0"), "episodes must be at least 1")
    complains(run("evaluate", bundle, "--env-id", "CartPole-v1"), "the policy observes obs float32")
    complains(run("evaluate", bundle, "--env-id", "NoSuchTask-v0"), "environment 'NoSuchTask-v0' can't be made")


BAD_USE = {
    (): "give a command: train, evaluate, .*; trpo-tf --help explains them",
    ("help",): "'help' is no command; choose one of train, ",
    ("trian", WALK): r"'trian' is no command; did you mean train\?",
    ("--total-steps", "9", "train", WALK): "--total-steps can't stand before the command",
    ("verify",): "PATH is missing: the bundle folder; see trpo-tf verify --help",
    ("verify", "--jsn", "x"): r"unknown option --jsn; did you mean --json\? See trpo-tf verify --help",
    ("predict", "x", "--observaton", "[0]"): r"unknown option --observaton; did you mean --observation\? See",
    ("export", "x"): "--out PATH is missing: the bundle folder to make; see",
    ("search",): "ENVIRONMENT is missing: Gymnasium environment; --space FILE is missing: ",
    ("train", WALK, "--no-such-option", "1"): "unknown option --no-such-option; see trpo-tf train --help",
    ("train", WALK, "--total_step=9"): r"unknown option --total_step; did you mean --total-steps\? See",
    ("train", WALK, "--max-kl"): "--max-kl needs a value; see trpo-tf train --help",
    ("train", WALK, "--max-kl", "much"): "--max-kl: 'much' is no number, such as",
    ("train", WALK, "--seed", "0.5"): "--seed: '0.5' is no whole number; see",
    ("train", WALK, "--out", ""): "--out: the path is empty, which would mean the working directory; give one",
    ("train", WALK, "--out", "s3://b/x"): "--out: s3://b/x is a URL; give a path on this machine, and copy to or from",
    ("verify", "https://b/x"): "https://b/x is a URL; give a path on this machine",
    ("serve", "gs://b/x"): "gs://b/x is a URL; give a path on this machine",
    ("train", WALK, "--squash", "True"): "--squash takes no value, since it is a switch",
    ("train", WALK, "--squash=True"): "--squash takes no value, since it is a switch",
    ("train", WALK, "--hidden-sizes", "8,8"): "--hidden-sizes can't be '8,8'; a list has blanks between its parts",
    ("export", "run", "--out", "b", "--batch", "x"): "--batch: 'x' is no number, such as 10, 0.5 or 1e5; see",
    ("benchmark", "classic", "--seed", "1"): r"unknown option --seed; did you mean --seeds\? See",
    ("evaluate", "a", "b"): "unexpected argument 'b'; see trpo-tf evaluate --help",
    ("serve",): "PATH is missing; see trpo-tf serve --help",
    ("serve", "x", "--prot", "80"): r"unknown option --prot; did you mean --port\? See trpo-tf serve --help",
    ("serve", "x", "--port", "http"): "--port: 'http' is no whole number; see trpo-tf serve --help",
    ("serve", "x", "--port"): "--port needs a value",
    ("serve", "x", "y"): "unexpected argument 'y'",
}


@pytest.mark.parametrize("arguments", BAD_USE, ids=" ".join)
def test_what_the_parser_refuses_is_one_line(arguments, run, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    complains(run(*arguments), BAD_USE[arguments])
    assert list(here.iterdir()) == []


def test_a_tilde_after_an_equals_sign_is_the_home_folder(monkeypatch):
    """No shell expands it there: a folder called ~ would be made."""
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(cli.parse(["train", WALK, "--out=~/run"]).out) == "/somewhere/run"


def test_debug_shows_where_an_error_comes_from(run):
    status, _, err = run("verify", "nowhere", "--debug")
    assert status == 2
    assert err.startswith("Traceback")
    assert "BundleError: nowhere is no bundle" in err


def options_of(kind, group="") -> set[str]:
    names = set()
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            names |= options_of(field.type, field.name)
        elif field.name not in ("source", "bundle", "run", "env_id", "suite"):
            names.add(f"--{own_name(group, field.name).replace('_', '-')}")
    return names


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_mentions_every_option(command, run):
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    kinds = {"train": (Config, cli.Train), "serve": (ServeOptions,)}.get(command, (cli.COMMANDS[command],))
    expected = set().union(*map(options_of, kinds))
    own_names = {"--settings": "--config", "--changes": "--set"}
    for option in expected:
        assert re.search(rf"{own_names.get(option, option)}\b", out), option


@pytest.mark.parametrize(
    "kind",
    [
        *cli.COMMANDS.values(),
        Config,
        *filter(dataclasses.is_dataclass, (field.type for field in dataclasses.fields(Config))),
    ],
)
def test_help_texts_are_one_line_each(kind):
    """A line break of the source would stand in the help."""
    texts = {text.arg_name: text.description for text in docstring_parser.parse_from_object(kind).params}
    assert not [name for name, text in texts.items() if "\n" in text]


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in ("train", "evaluate", "export", "verify", "predict", "serve", "demo"))
    assert "--debug" in out


def test_an_option_goes_before_the_preset_and_the_preset_before_the_default():
    preset, default = load_preset("Pendulum-v1", ""), Config("")
    assert preset.sampling.discount != default.sampling.discount
    config = lambda *arguments: cli.parse(["train", *arguments]).config  # noqa: E731
    assert config("Pendulum-v1") == load_preset("Pendulum-v1", "Pendulum-v1")
    assert config(WALK) == Config(WALK)
    assert config(WALK, "--preset", "Pendulum-v1") == load_preset("Pendulum-v1", WALK)
    assert config("Pendulum-v1", "--preset", "default") == Config("Pendulum-v1")
    assert config("Pendulum-v1", "--discount", "0.5").sampling.discount == 0.5
    assert config("Pendulum-v1", "--seed", "7").sampling.discount == preset.sampling.discount
    # An option given is obeyed even if it is what the default says.
    explicit = config("Pendulum-v1", "--discount", str(default.sampling.discount))
    assert explicit.sampling.discount == default.sampling.discount


def test_settings_are_judged_together_with_the_preset_s():
    batch_size = str(load_preset("Pendulum-v1", "").total_steps)
    assert int(batch_size) > Config("").total_steps
    assert cli.parse(["train", "Pendulum-v1", "--batch-size", batch_size]).config.sampling.batch_size == int(batch_size)


def test_a_policy_s_whole_way(run, here):
    status, out, err = run("train", WALK, *SMALL)
    assert status == 0, err
    folder = Path("runs/tests-support-environments-walk-v0-seed0")
    assert out.startswith(f"{folder}: ")
    assert "percent" not in out  # the table of a profile
    assert "error" not in err
    assert (folder / "summary.json").exists()

    status, out, err = run("export", folder, "--out", "bundle")
    assert status == 0, err
    assert set(err.splitlines()) >= {"... playing 20 episodes", "... writing and comparing savedmodel"}
    assert re.search(r"^target +bytes +difference", out, re.MULTILINE)
    assert re.search(r"^savedmodel +[\d,]+ +\d\.\de", out, re.MULTILINE)
    assert sorted(path.name for path in here.iterdir()) == ["bundle", "runs"]

    status, out, err = run("verify", "bundle", "--json")
    assert (status, err) == (0, "")
    verified = json.loads(out)
    assert list(verified["latencies"]) == ["onnx", "savedmodel"]
    assert verified["verified"] is True
    assert verified["max_difference"] <= 1e-5
    assert verified["new_cases"] == 0
    status, out, err = run("verify", "bundle", "--thorough", "--seed", "7")
    assert (status, err) == (0, "")
    assert re.search(
        r"^\d+ new cases of seed 7: every target in floats answers as policy\.onnx does$", out, re.MULTILINE
    )


def test_an_export_is_signed_and_a_loss_is_told(run, trained, tmp_path):
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    for command in (
        f"ecparam -name prime256v1 -genkey -noout -out {key}",
        f"ec -in {key} -pubout -out {public}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    small = ("export", trained.run.folder, "--target", "onnx", "--episodes", "1")
    status, out, _ = run(*small, "--out", "signed 1", "--sign", key)
    assert (status, out.splitlines()[-1]) == (0, "bundle written to signed 1; serve it with: trpo-tf serve 'signed 1'")
    assert run("verify", "signed 1", "--public-key", public, "--json")[0] == 0
    complains(run("verify", "signed 1", "--public-key", key), "its signature does not hold")
    complains(run(*small, "--out", "other", "--sign", public), "can't sign")
    assert not Path("other").exists()


def test_a_target_that_acts_otherwise_ends_with_1_and_leaves_nothing(run, trained, here, monkeypatch):
    exact = TARGETS["onnx"]

    def open_wrong(folder, manifest):
        act = exact.open(folder, manifest)
        return lambda observations, noise: 1 - act(observations, noise)

    replace_target(monkeypatch, "onnx", open=open_wrong)
    arguments = ("export", trained.run.folder, "--out", "bundle", "--target", "onnx", "--episodes", "2")
    status, out, err = run(*arguments)
    assert status == 1
    assert "error: onnx differs from the trained policy by 1; look for" in err.splitlines()[-1]
    assert out.startswith("target")
    assert list(here.iterdir()) == []
    assert run(*arguments, "--accept-loss")[0] == 0
    assert "differs" in json.loads((here / "bundle" / "manifest.json").read_text())["parity"]["onnx"]["accepted"]
    assert "was accepted although it differs" in (here / "bundle" / "MODEL_CARD.md").read_text()


def test_run_and_bundle_are_evaluated_alike(run, trained, bundle):
    told = []
    for source in (trained.run.folder, bundle):
        status, out, err = run("evaluate", source, "--episodes", "30", "--stochastic", "--json")
        assert (status, err) == (0, "")
        told.append(json.loads(out))
    assert told[0] == told[1]
    assert told[0]["episodes"] == 30
    assert told[0]["environment"] == WALK
    assert 0 <= told[0]["mean_return"] <= 1
    assert 0 < told[0]["std_return"] <= 0.5


def test_evaluation_for_people(run, bundle):
    _, out, _ = run("evaluate", bundle, "--episodes", "2")
    assert re.search(r"^episodes +2$", out, re.MULTILINE)
    assert re.search(r"^mean_return +\S+$", out, re.MULTILINE)


def test_docstrings_that_a_package_misses_are_told_from_other_errors(monkeypatch, capsys):
    def missing(_arguments):
        raise AttributeError("'NoneType' object has no attribute 'replace'")

    monkeypatch.setattr(cli, "parse", missing)
    with pytest.raises(AttributeError):
        cli.main(["train"])
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=2))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train"])
    assert "'replace'; -OO removes docstrings, which packages of TensorFlow need: take -O\n" in capsys.readouterr().err


def test_a_prediction_is_json(run, bundle, monkeypatch):
    _, out, _ = run("predict", bundle, "--observation", "[1, 0.5]")
    assert json.loads(out) in (0, 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 0.5]"))
    assert run("predict", bundle, "--observation", "-")[1] == out
    draws = [run("predict", bundle, "--observation", "[0, 0]", "--stochastic", "--seed", seed)[1] for seed in range(20)]
    assert len(set(draws)) == 2
    assert run("predict", bundle, "--observation", "[0, 0]", "--stochastic", "--seed", 3)[1] == draws[3]


def test_help_ends_in_a_terminal_of_one_column(run, monkeypatch):
    """Its boxes would not: their program never finishes a line of no width."""
    monkeypatch.setenv("COLUMNS", "1")
    status, out, _ = run("verify", "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) == 40


@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_has_no_colours_if_the_user_wants_none(no_color, monkeypatch):
    written = io.StringIO()
    written.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    with pytest.raises(SystemExit):
        cli.parse(["verify", "--help"])
    assert ("\x1b[" in written.getvalue()) == (no_color == "")


@pytest.mark.parametrize("line", ["max_kl = 'much'", "no_such_setting = 1", "[["])
def test_a_damaged_config_is_one_line(line, run, trained, tmp_path):
    folder = Path(shutil.copytree(trained.run.folder, tmp_path / "run"))
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(
        config.replace("[trust_region]\n", f"[trust_region]\n{line}\n", 1).replace("max_kl = 0.01\n", "")
    )
    complains(run("evaluate", folder), "")


def test_a_damaged_checkpoint_is_one_line_of_warning(run, trained, tmp_path):
    folder = Path(shutil.copytree(trained.run.folder, tmp_path / "run"))
    last = max((folder / "checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:-1])
    done = command_line.run(tmp_path, "evaluate", folder, "--episodes", "1")
    assert done.returncode == 0
    assert done.stderr == f"warning: checkpoint {last.name} is damaged; using the one before it\n"


def test_bundles_are_used_without_tensorflow(bundle, serving_only):
    asked = ["predict", str(bundle), "--observation", "[0, 0]"]
    assert serving_only(["verify", str(bundle)], asked).splitlines()[-1] in ("0", "1")


def test_a_bundle_is_evaluated_without_tensorflow():
    code = "import sys, trpo_tf.evaluation.evaluate; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_reader_that_has_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m trpo_tf train --help | head -n 1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_without_tensorflow_a_command_says_what_to_install():
    code = (
        "import sys; sys.modules['tensorflow'] = None; from trpo_tf.cli.main import main; "
        "main(['train', 'CartPole-v1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tensorflow" in done.stderr
    assert "; pip install '.[all]' in a checkout of trpo-tf\n" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_warning_of_gymnasium_is_plain(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gym.logger.warn("The bound %s is lost.", 3)
    assert "\x1b[" in str(caught[0].message)
    cli._show_warning(caught[0].message, caught[0].category)
    assert capsys.readouterr().err == "warning: The bound 3 is lost.\n"


def test_help_fits_an_80_column_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert [line for line in lines if len(line) > 80] == []
    assert "Export a run's policy to a bundle; each target is compared with the Keras" in lines
