"""Environments that answer other things than their spaces say: one line that names what and where, or they train."""

import pytest

from tests.support.processes import command_line
from trpo_tf.cli.main import main
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.training.train import train

SLOPPY = "tests.support.environments:Sloppy-v0"

# Answers that concern different parts go together, so that four runs do for all.
FINE = [
    ("answer[1] = np.array([1.0])", "answer[2] = np.bool_(answer[2])", "seen['choice'] = np.int32(2)"),
    ("answer[1] = np.float32(1)", "answer[2] = np.array([answer[2]])", "seen['box'] = [0.5, 0.25]"),
    ("answer[1] = True", "answer[3] = 0", "seen['byte'] = [1, 2]"),
    ("answer[1] = np.array(2)", "seen['more'] = 'ignored'", "answer[2] = torch_like(answer[2])"),
]

WRONG = {
    "answer[1] = None": "a reward that is no number (None)",
    "answer[1] = '1.5'": "a reward that is no number ('1.5')",
    "answer[1] = np.zeros(2)": "a reward that is no number (array([0., 0.]))",
    "answer[1] = float('nan')": "a reward that is not finite, nan",
    "answer[1] = 1e200": "a reward that is too large to compute with, 1e+200",
    "answer[2] = None": "'terminated' that is neither true nor false (None)",
    "answer[3] = 'no'": "'truncated' that is neither true nor false ('no')",
    "seen['box'] = np.zeros(1, np.float32)": "'box' has shape [1]",
    "seen['box'] = np.zeros((2, 1), np.float32)": "'box' has shape [2, 1]",
    "seen['box'] = 0.0": "'box' has shape []",
    "seen['box'] = np.zeros(2)": "'box' has dtype float64",
    "seen['box'] = np.float32([0, np.inf])": "not finite",
    "seen['byte'] = np.array([0.5, 1.5])": "'byte' has dtype float64",
    "seen['byte'] = [0.5, 1.5]": "'byte' holds float64 values",
    "seen['byte'] = [0, 256]": "'byte' holds a value out of range",
    "seen['choice'] = 3": "'choice' lies beyond 0 or 2 (3)",
    "seen['choice'] = None": "'choice' holds object values",
    "del seen['byte']": "without 'byte'",
    "answer[0] = None": "without 'box'",
}


@pytest.fixture
def config(small_config):
    return small_config(SLOPPY, total_steps=640, batch_size=320, num_envs=2)


@pytest.mark.parametrize("answers", FINE, ids="; ".join)
def test_numbers_and_flags_of_any_type_are_taken(answers, config, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOPPY_ANSWER", "; ".join(answers))
    run = train(config, tmp_path / "run", progress=False)
    evaluation = evaluate(in_process(run.policy, "policy"), SLOPPY, episodes=1)
    assert (run.state.episodes, evaluation.mean_length, evaluation.episodes_cut) == (2, 200, 0)


@pytest.mark.parametrize(
    ("answer", "first"), [*((answer, 1) for answer in WRONG), *((a, 150) for a in list(WRONG)[::4])]
)
def test_what_is_not_in_the_spaces_is_named_with_its_place(answer, first, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLOPPY_ANSWER", answer)
    monkeypatch.setenv("SLOPPY_FROM", str(first))
    settings = ("--preset", "default", "--total-steps", "640", "--batch-size", "320", "--num-envs", "2")
    sizes = ("--hidden-sizes", "8", "--critic-hidden-sizes", "8", "--critic-batch-size", "32", "--critic-epochs", "1")
    with pytest.raises(SystemExit) as ended:
        main(["train", SLOPPY, *settings, *sizes, "--eval-episodes", "0", "--out", str(tmp_path / "run")])
    *_, line = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"error: {SLOPPY}, ")
    assert WRONG[answer] in line
    assert f"step {first} of the iteration" in line
    assert "environment 1 of 2" in line
    assert line.endswith(f"; go on with --resume {tmp_path / 'run'}")


def test_an_evaluation_names_the_step_too(config, tmp_path, monkeypatch):
    run = train(config, tmp_path / "run", progress=False)
    monkeypatch.setenv("SLOPPY_ANSWER", "answer[1] = None")
    monkeypatch.setenv("SLOPPY_FROM", "7")
    for play in (
        lambda: evaluate(in_process(run.policy, "policy"), SLOPPY, episodes=1),
        lambda: export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=1),
    ):
        with pytest.raises(RuntimeError, match=r"Sloppy-v0, step 7 of the episode: .* no number \(None\)"):
            play()


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("tests.support.environments:Demanding-v0", "required positional argument: 'level'"),
        ("tests.support.environments:Unlicensed-v0", "its constructor raised KeyError: 'licence'"),
        ("Taxi-v3", "v3 for `Taxi` is deprecated"),
        ("LunarLander-v2", "Please use `LunarLander-v3`"),
        ("Pong-v5", "doesn't exist"),
        ("MiniWorld-Hallway-v0", "doesn't exist"),
        ("NoSuchThing", "doesn't exist"),
    ],
)
def test_an_environment_that_can_not_be_made_is_one_line_and_leaves_nothing(env_id, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", env_id, "--out", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_id_without_a_version_stands_for_the_latest_with_its_preset(tmp_path):
    short = ("--preset", "default", "--total-steps", "2048", "--eval-episodes", "1")
    done = command_line.run(tmp_path, "train", "tests.support.environments:Edition", *short)
    assert done.returncode == 0, done.stderr
    edition = "tests.support.environments:Edition"
    assert f"warning: {edition} stands for its latest version, {edition}-v2" in done.stderr
    assert (
        'env_id = "tests.support.environments:Edition-v2"'
        in (tmp_path / "runs/tests-support-environments-edition-v2-seed0/config.toml").read_text()
    )
