"""An algorithm of another package, in a process where the package is installed."""

import json

import pytest

from tests.support.processes.added_packages import install, installed, run
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import load

PAGE = "own-algorithm"
TRAIN = """
import sys
from trpo_tf.cli.main import main
main(["train", "CartPole-v1", "--algo", "spo", *sys.argv[1:]])
"""
SHORT = ("--preset", "default", "--total-steps", "1536", "--batch-size", "512", "--eval-episodes", "1")
REPORT_AND_EXPORT = """
out = sys.argv[-1]
main(["report", out])
main(["export", out, "--out", out + "/../bundle", "--target", "onnx"])
"""


def test_an_added_algorithm_trains_reports_and_exports(tmp_path):
    install(tmp_path / "site", PAGE)
    out = tmp_path / "run"
    done = run(tmp_path / "site", TRAIN + REPORT_AND_EXPORT, *SHORT, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 3
    assert all(line["update_status"] == "accepted" and line["surrogate_gain"] > 0 for line in logged)
    assert load(tmp_path / "bundle").act([0.0, 0.0, 0.1, 0.0]) in (0, 1)  # here, where the package is not installed
    message = r"algo 'spo' is unknown; choose one of trpo, .*ppo, or install the package that adds it$"
    with pytest.raises(UserError, match=message):
        load_run(out)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        ("spo:rule", {}, r"\(spo:rule\) of group trpo_tf.algorithms must be of type Algorithm, not <function"),
        ("gone:SPO", {}, r"\(gone:SPO\) .* can't be loaded: No module named 'gone'; mend or uninstall its package"),
        (None, {"anneal": True}, "algo must be trpo, npg or nac, to anneal"),
        (None, {"entropy_coefficient": 0.1}, "entropy_coefficient must be 0, for spo"),
        (None, {"policy_batch_size": 4096}, "policy_batch_size must be at most the rows of a batch, 2048"),
    ],
)
def test_settings_that_an_added_algorithm_does_not_take_are_refused(tmp_path, value, settings, message):
    with installed(tmp_path, PAGE, value), pytest.raises(UserError, match=message):
        Config.for_env("CartPole-v1", preset="default", algo="spo", **settings)


def test_values_of_a_preset_that_an_added_algorithm_does_not_take_are_left_out(tmp_path):
    with installed(tmp_path, PAGE), pytest.warns(UserWarning, match="anneal of the preset .* spo is not annealed"):
        assert not Config.for_env("CartPole-v1", algo="spo").anneal
