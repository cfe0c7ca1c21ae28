"""`trpo-tf bench-latency`: which runtimes are measured, that they act alike, and what is printed."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from trpo_tf.cli import main as cli
from trpo_tf.evaluation import latency
from trpo_tf.evaluation.latency import ACT, BARE, callers, figures
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.io_binding import BoundRow
from trpo_tf.serving.runtime.latency import measure_in_turns
from trpo_tf.serving.verify import agree

WALK = "tests.support.environments:Walk-v0"


@pytest.fixture(scope="module")
def with_litert(trained, tmp_path_factory):
    """A bundle that holds a LiteRT file as well."""
    from trpo_tf.export import write_bundle

    folder, policy = tmp_path_factory.mktemp("litert") / "bundle", trained.run.policy
    name, targets = WALK.partition(":")[2], ["savedmodel", "litert"]
    write_bundle(policy.function, policy.spec, folder, targets=targets, name=name)
    return folder


def first_golden_action(bundle):
    manifest = read_manifest(bundle)
    return read_golden((bundle / "golden.npz").read_bytes(), manifest)["action"][0]


def test_every_runtime_there_is_gives_the_same_action(with_litert):
    calls = callers(with_litert)
    assert list(calls) == [ACT, BARE, "LiteRT", "TensorFlow SavedModel"]
    expected = first_golden_action(with_litert)
    for name in (ACT, "LiteRT", "TensorFlow SavedModel"):
        np.testing.assert_allclose(np.squeeze(calls[name]()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["continuous", "discrete"])
def test_the_bare_runtime_runs_the_graph_on_that_observation(name, monkeypatch):
    rows = []

    class Row(BoundRow):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            rows.append(self)

    monkeypatch.setattr(latency, "BoundRow", Row)
    callers(BUNDLES / name)[BARE]()
    assert agree(rows[0]._action.array, first_golden_action(BUNDLES / name))


def test_a_policy_with_state_acts_in_a_session_beside_the_bare_graph_with_the_state_bound():
    calls = callers(BUNDLES / "remembering")
    assert list(calls) == [ACT, BARE]
    episode, actions = calls[ACT].func.__self__, []
    for step in range(1, 4):
        actions.append(float(calls[ACT]()[0]))
        calls[BARE]()
        assert episode.state["steps"].tolist() == [step]  # the bare graph has buffers of its own
    assert len(set(actions)) == 3


def test_a_damaged_saved_model_is_not_measured(tmp_path):
    folder = Path(shutil.copytree(BUNDLES / "discrete", tmp_path / "damaged"))
    index = folder / "saved_model/variables/variables.index"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"variables\.index is not what was exported"):
        callers(folder)


def test_figures_are_ratios_to_the_bare_runtime():
    slow = {BARE: [np.full(10, 1000), np.full(10, 2000)], ACT: [np.full(10, 3000), np.full(10, 6000)]}
    assert figures(slow)[ACT] == {
        **{"calls": 20, "p50": 4.5, "p99": 6.0, "p99_9": 6.0, "max": 6.0},
        **{"p50_ratio": 3.0, "p99_ratio": 3.0},
    }
    turns = measure_in_turns({BARE: functools.partial(int, "1")}, 0.01)
    assert figures(turns)[BARE]["p50_ratio"] == 1.0


def test_the_command_prints_a_line_for_each(capsys):
    cli.main(["bench-latency", str(BUNDLES / "discrete"), "--seconds", "0.1"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0].strip() for line in lines] == [ACT, BARE, "TensorFlow SavedModel"]
    assert head.split()[4:9] == ["calls", "p50", "p99", "p99.9", "max"]


def test_a_serving_only_install_measures_what_it_has(serving_only):
    told = serving_only(["bench-latency", str(BUNDLES / "discrete"), "--seconds", "0.1", "--json"])
    latencies = json.loads(told)["microseconds"]
    assert list(latencies) == [ACT, BARE]
    for row in latencies.values():
        assert 0 < row["p50"] <= row["p99"] <= row["p99_9"] <= row["max"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_no_time_to_measure_in_is_one_line(seconds, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench-latency", str(BUNDLES / "discrete"), "--seconds", seconds])
    assert (exit_.value.code, capsys.readouterr().err) == (2, "error: seconds must be above 0 and finite\n")
