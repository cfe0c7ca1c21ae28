"""What a benchmark trains, whom it compares with, and what it finds in its folder."""

import dataclasses
import importlib.util

import pytest
import tomli_w
from made_up import result

from trpo_tf.benchmark import suites
from trpo_tf.benchmark.peers import load_peer, peer_names, scores_of
from trpo_tf.benchmark.progress import steps_so_far
from trpo_tf.benchmark.results import folder_of, is_finished, read_result, require_same_settings, write_result
from trpo_tf.benchmark.suites import SUITES, plan
from trpo_tf.config import Config, load_preset
from trpo_tf.errors import UserError


def test_a_suite_is_planned_seed_by_seed_with_presets_and_its_own_steps(monkeypatch):
    monkeypatch.setattr(suites, "_is_missing", lambda package: False)
    planned = plan(["classic"], range(7, 9), None)
    assert [config.seed for config in planned.configs] == [7] * 6 + [8] * 6
    assert planned.left_out == ()
    for config in planned.configs[:6]:
        assert config.total_steps == SUITES["classic"][config.env_id]
    pendulum = next(config for config in planned.configs if config.env_id == "Pendulum-v1")
    assert pendulum.sampling.discount == load_preset("Pendulum-v1", "Pendulum-v1").sampling.discount != 0.99
    assert pendulum.sampling.env_backend == "envpool"  # what "auto" stands for here


def test_every_environment_of_mujoco_trains_for_a_million_steps():
    planned = plan(["mujoco"], range(1), None)
    assert len(planned.configs) == 8
    assert {config.total_steps for config in planned.configs} == {1_000_000}


def test_what_this_machine_cannot_make_is_left_out_and_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "Box2D" else find(name))
    planned = plan(["classic"], range(2), None)
    assert len(planned.configs) == 10
    assert planned.left_out == ("LunarLander-v3 was left out: it needs Box2D, which is not installed",)


def test_an_environment_trains_for_as_long_as_its_preset_says():
    (config,) = plan(["environments:Walk-v0"], range(1), None).configs
    assert config.total_steps == Config("").total_steps
    (config,) = plan(["environments:Walk-v0"], range(1), 5000).configs
    assert config.total_steps == 5000


@pytest.mark.parametrize(
    ("names", "seeds", "steps", "message"),
    [
        ([], range(1), None, "which suite"),
        (["clasic"], range(1), None, "'clasic' is neither a suite"),
        (["classic"], range(0), None, "seeds must be at least 1"),
        (["classic"], range(-1, 2), None, "first_seed must be at least 0"),
        (["classic"], range(1), 0, "--steps 0 can't work for CartPole-v1"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(names, seeds, steps, message):
    with pytest.raises(UserError, match=message):
        plan(names, seeds, steps)


def test_the_peer_s_scores_come_with_the_package():
    assert peer_names() == ["sb3-contrib"]
    runs = load_peer("sb3-contrib")
    assert len({(run.environment, run.seed) for run in runs}) == len(runs)
    assert scores_of(runs, "CartPole-v1", 100_000)[:3] == [500.0, 448.05, 500.0]
    assert scores_of(runs, "CartPole-v1", 5000) == []
    planned = {env_id: steps for suite in SUITES.values() for env_id, steps in suite.items()}
    assert {run.environment for run in runs} <= planned.keys()
    assert all(run.steps == planned[run.environment] for run in runs)
    with pytest.raises(UserError, match="peer 'nobody' is unknown; choose one of sb3-contrib"):
        load_peer("nobody")


def test_a_result_is_read_as_it_was_written(tmp_path):
    assert not is_finished(tmp_path)
    write_result(tmp_path, result("Left-v0", 3, 1.5))
    assert is_finished(tmp_path)
    assert read_result(tmp_path) == result("Left-v0", 3, 1.5)
    (tmp_path / "result.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"result\.json is not a result"):
        read_result(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_begun_with_other_settings_is_refused(finished, tmp_path):
    config = Config("Left-v0", seed=2, total_steps=10_000)
    folder = folder_of(tmp_path, config)
    require_same_settings(folder, config)  # nothing there yet
    (folder / "run").mkdir(parents=True)
    settings = config.to_dict()
    del settings["anneal"]  # as of a version that did not have it
    if finished:
        write_result(folder, dataclasses.replace(result("Left-v0", 2, 1.5), config=settings))
    else:
        (folder / "run" / "config.toml").write_text(tomli_w.dumps(settings))
    require_same_settings(folder, config)
    changed = dataclasses.replace(config, trust_region=dataclasses.replace(config.trust_region, max_kl=0.5))
    with pytest.raises(UserError, match=r"Left-v0-seed2 was begun with other settings \(max_kl was 0.01, now 0.5\)"):
        require_same_settings(folder, changed)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (None, 0),
        ("", 0),
        ('{"steps": 5}\n', 5),
        ('{"steps": 5}\n{"steps": 9}\n{"ste', 9),
        ("{" + " " * 5000 + '"steps": 5}\n', 0),
    ],
)
def test_how_far_a_run_is(text, steps, tmp_path):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert steps_so_far(tmp_path) == steps
