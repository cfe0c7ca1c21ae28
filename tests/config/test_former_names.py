"""Settings, options and columns of earlier releases are understood by their former names."""

import tomllib

import pytest

from tests.support.paths import FORMER
from trpo_tf.cli.main import parse
from trpo_tf.cli.training import Train
from trpo_tf.config.former_names import COUNTERS, METRICS, SETTINGS
from trpo_tf.config.settings import Config, former_own_names, read_config, with_changes
from trpo_tf.errors import UserError
from trpo_tf.reporting.run_report import html_report, read_story
from trpo_tf.runs.folder import load_run


def setting(values, path):
    for name in path.split("."):
        values = values[name]
    return values


def test_a_former_run_has_its_settings_by_their_present_names():
    written = tomllib.loads((FORMER / "run" / "config.toml").read_text())
    read = read_config(FORMER / "run" / "config.toml").to_dict()
    for former, present in SETTINGS.items():
        value = setting(read, present)
        assert setting(written, former) == (list(value) if isinstance(value, tuple) else value), former


def test_a_former_run_s_counters_are_read():
    run = load_run(FORMER / "run")
    assert run.state.eval_steps == run.summary["eval_steps"] == 601
    assert not COUNTERS.keys() & run.summary.keys()


def test_a_former_run_is_reported_with_its_bundle():
    story = read_story(FORMER / "run")
    assert story.bundle == (FORMER / "bundle").absolute()
    assert not (METRICS.keys() | {"control"}) & story.logged[-1].keys()
    assert story.logged[-1]["radius"] == pytest.approx(0.02)
    assert "131" in str(story.logged[-1]["eval_return"])
    assert "the best of the periodic evaluations" in html_report(story)


@pytest.mark.parametrize(("former", "present"), sorted(former_own_names().items()))
def test_a_former_option_works_and_says_its_present_name(former, present):
    option, new = (f"--{name.replace('_', '-')}" for name in (former, present))
    for arguments in ([option, "3000"], [f"{option}=3000"]):
        with pytest.warns(UserWarning, match=f"^{option} is now {new}$"):
            command = parse(["train", "FrozenLake-v1", *arguments])
        assert isinstance(command, Train)
        assert command == parse(["train", "FrozenLake-v1", new, "3000"])
    with pytest.warns(UserWarning, match=f"^{former} is now {present}$"):
        assert Config.for_env("FrozenLake-v1", **{former: 3000}) == command.config
    with pytest.raises(UserError, match=f"{former} is now {present}; give that alone"):
        Config.for_env("FrozenLake-v1", **{former: 1, present: 1})


@pytest.mark.parametrize(("former", "scaling"), [("--scale-rewards", "rewards"), ("--no-scale-rewards", "none")])
def test_a_former_switch_works_and_says_its_present_option(former, scaling):
    with pytest.warns(UserWarning, match=f"^{former} is now --value-scaling {scaling}$"):
        command = parse(["train", "FrozenLake-v1", former])
    assert isinstance(command, Train)
    assert command.config.sampling.value_scaling == scaling


@pytest.mark.parametrize(("former", "present"), sorted(SETTINGS.items()))
def test_set_takes_a_former_name(former, present):
    value = "[3]" if former.endswith("hidden_sizes") else "3"
    with pytest.warns(UserWarning, match=f"^{former} is now {present}$"):
        changed = with_changes(Config("FrozenLake-v1"), [f"{former}={value}"])
    assert setting(changed.to_dict(), present) in (3, (3,))


def test_both_names_of_a_setting_are_refused():
    values = {"env_id": "FrozenLake-v1", "trial_interval": 1, "eval_interval": 2}
    with pytest.raises(UserError, match="trial_interval and eval_interval are two names of one setting"):
        Config.from_dict(values)
