"""What a benchmark trains, whom it compares with, and what it finds in its folder."""

import dataclasses
import importlib.util

import pytest
import tomli_w

from tests.support.made_up import result
from trpo_tf.benchmark import plans
from trpo_tf.benchmark.plans import plan
from trpo_tf.benchmark.progress import steps_so_far
from trpo_tf.benchmark.results import folder_of, is_finished, read_result, require_same_settings, write_result
from trpo_tf.benchmark.scores.peers import load_peer, peer_names, runs_in
from trpo_tf.benchmark.suites import SUITES, UNTUNED
from trpo_tf.config.settings import Config, load_preset
from trpo_tf.errors import UserError


def test_a_suite_is_planned_seed_by_seed_with_presets_and_its_own_steps(monkeypatch):
    monkeypatch.setattr(plans, "_missing", lambda env_id: None)
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


def test_environments_of_packages_of_their_own_are_left_out_each_with_its_first(monkeypatch):
    missing = ("shimmy", "dm_control", "minigrid")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    left_out = dict(note.split(" was left out: it needs ") for note in plan(["unseen"], range(1), None).left_out)
    assert left_out["shimmy:dm_control/finger-spin-v0"] == "shimmy, which is not installed"
    assert left_out["trpo_tf.benchmark.environments:MiniGrid-DoorKey-5x5-Flat-v0"] == "minigrid, which is not installed"
    assert len(left_out) == 4


@pytest.mark.parametrize("suite", sorted(UNTUNED))
def test_where_nothing_is_tuned_every_environment_has_the_default_settings(suite, monkeypatch):
    monkeypatch.setattr(plans, "_missing", lambda env_id: None if can_be_made(env_id) else "something")
    planned = plan([suite], range(2), None)
    made = {config.env_id for config in planned.configs}
    assert len(made) + len(planned.left_out) == len(SUITES[suite])
    assert "Hopper-v5" in made or "HalfCheetah-v5" in made  # for which there are presets
    for config in planned.configs:
        defaults = Config(config.env_id, seed=config.seed, total_steps=SUITES[suite][config.env_id])
        sampling = dataclasses.replace(config.sampling, env_backend="auto")
        assert dataclasses.replace(config, sampling=sampling) == defaults


def can_be_made(env_id: str) -> bool:
    return not env_id.startswith("shimmy:") and "MiniGrid" not in env_id


def test_what_the_defaults_are_chosen_on_is_not_what_they_are_judged_on():
    assert not SUITES["unseen"].keys() & SUITES["unseen-training"].keys()


def test_an_environment_cannot_be_trained_with_its_preset_and_without_in_one_benchmark():
    with pytest.raises(UserError, match="Hopper-v5 is asked for with its preset and without; run mujoco by itself"):
        plan(["unseen", "mujoco"], range(1), None)
    assert len(plan(["mujoco", "Hopper-v5"], range(1), None).configs) == 8


def test_an_environment_trains_for_as_long_as_its_preset_says():
    (config,) = plan(["tests.support.environments:Walk-v0"], range(1), None).configs
    assert config.total_steps == Config("").total_steps
    (config,) = plan(["tests.support.environments:Walk-v0"], range(1), 5000).configs
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
    assert peer_names() == ["sb3-contrib", "sb3-contrib-recurrent"]
    runs = load_peer("sb3-contrib")
    assert len({(run.environment, run.settings, run.seed) for run in runs}) == len(runs)
    scores = [run.mean_return for run in runs_in(runs, "CartPole-v1", 100_000, "zoo")]
    assert scores[:3] == [500.0, 448.05, 500.0]
    assert runs_in(runs, "CartPole-v1", 5000, "zoo") == runs_in(runs, "CartPole-v1", 100_000, "default") == []
    planned = {
        (env_id, steps, "default" if name in UNTUNED else "zoo")
        for name, suite in SUITES.items()
        for env_id, steps in suite.items()
    }
    assert {(run.environment, run.steps, run.settings) for run in runs} <= planned
    assert all((run.settings == "zoo") == (run.untrained_return is None) for run in runs)
    with pytest.raises(UserError, match="peer 'nobody' is unknown; choose one of sb3-contrib, sb3-contrib-recurrent"):
        load_peer("nobody")


def test_the_recurrent_peer_s_scores_are_of_the_tasks_that_need_a_memory():
    runs = load_peer("sb3-contrib-recurrent")
    assert len({(run.environment, run.steps, run.seed) for run in runs}) == len(runs)
    assert {run.environment for run in runs} <= set(SUITES["partial"])
    compared = [run for run in runs if run.steps == SUITES["partial"][run.environment]]
    assert {run.settings for run in compared} == {"zoo"}, "what runs with presets are compared with"


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
    with pytest.raises(UserError, match=r"Left-v0-seed2 was begun with other settings \(max_kl was 0.015, now 0.5\)"):
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
