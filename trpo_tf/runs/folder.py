"""Create run folders and load the runs in them; `trpo_tf.runs.layout` lists their files."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from trpo_tf.config.fixed_settings import first_difference
from trpo_tf.config.settings import Config, read_config
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import UserError
from trpo_tf.export.support.new_folder import new_folder
from trpo_tf.learning.learner import Learner, build_learner
from trpo_tf.learning.training_state import TrainingState, WeightsMismatch
from trpo_tf.policies.build import build_policy
from trpo_tf.policies.network_checks import NetworkMismatch, architecture, from_architecture
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.recurrence.own_state import OwnState
from trpo_tf.runs.checkpoints import load_checkpoint, save_checkpoint
from trpo_tf.runs.layout import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    POLICY_NETWORK_FILE,
    POLICY_STATE_FILE,
    SPACES_FILE,
    START_CONFIG_FILE,
    SUMMARY_FILE,
    VALUE_NETWORK_FILE,
    read_summary,
    require_new,
    require_run,
    shown,
)
from trpo_tf.serving import StateSpec
from trpo_tf.serving.argument_checks import expect_path
from trpo_tf.support.atomic_write import write_atomically

_AT_START = b"# The settings at the start of the run. To change one, edit config.toml.\n"


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it: settings, policy, the latest checkpoint, and the summary.

    Attributes:
        functions: the policy as functions of its parameters.
        make_learner: returns what training needs besides; always the same.
        summary: has `untrained` from the start; `trained` and the rest are added at the end.
    """

    folder: Path
    config: Config
    functions: Policy
    make_learner: Callable[[], Learner]
    state: TrainingState
    summary: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder's path, from which another process loads the run."""
        return load_run, (self.folder,)

    @property
    def policy(self) -> TrainedPolicy:
        """The policy as trained so far."""
        return self.functions.trained(self.state.theta, self.state.observation_moments)

    @property
    def learner(self) -> Learner:
        """Policy, critic and update, which need the environment. Raises `UserError` if it is not as it was."""
        return self.make_learner()


def create_run(folder: Path, config: Config, learner: Learner, state: TrainingState) -> Run:
    """Create the folder of a new run; as soon as it exists, the run can be resumed.

    Raises `UserError` if the folder exists, or if a network can't be serialised.
    """
    require_new(folder)
    networks = {
        POLICY_NETWORK_FILE: learner.policy.network.network,
        VALUE_NETWORK_FILE: learner.value_function.network.network,
    }
    with new_folder(folder) as scratch:
        (scratch / SPACES_FILE).write_text(learner.spaces.to_json())
        for name, network in networks.items():
            (scratch / name).write_text(architecture(network, name.removesuffix(".json")))
        if isinstance(learner.policy.core, OwnState):
            state_of_network = [dataclasses.asdict(spec) for spec in learner.policy.core.state]
            (scratch / POLICY_STATE_FILE).write_text(json.dumps(state_of_network, indent=2))
        write_config(scratch, config)
        (scratch / START_CONFIG_FILE).write_bytes(_AT_START + (scratch / CONFIG_FILE).read_bytes())
        (scratch / CHECKPOINTS_FOLDER).mkdir()
        save_checkpoint(scratch / CHECKPOINTS_FOLDER, state)
    return Run(folder, config, learner.policy, lambda: learner, state)


def write_config(folder: Path, config: Config) -> None:
    """Write a run's settings to its folder."""
    write_atomically(folder / CONFIG_FILE, tomli_w.dumps(config.to_dict()).encode())


def load_run(folder: str | Path) -> Run:
    """Load a run from its folder. Raises `UserError` if that is not a run folder, or can't be read.

    The policy needs neither the environment nor the critic. `Run.learner` builds both when it is first read.
    """
    expect_path(folder, "the run must be the path of its folder", UserError)
    folder = Path(folder)
    require_run(folder)
    config = read_config(folder / CONFIG_FILE)
    _refuse_other_settings(folder, config)
    state = load_checkpoint(folder / CHECKPOINTS_FOLDER)
    network, own_state = from_architecture(folder / POLICY_NETWORK_FILE), _read_state(folder / POLICY_STATE_FILE)
    with _mismatches_named(folder, config):
        policy = build_policy(config, _read_spaces(folder, config), network, own_state)
        if state.theta.shape != (policy.network.size,):
            raise WeightsMismatch(f"theta is {state.theta.shape} there and {(policy.network.size,)} here")

    @cache
    def make_learner() -> Learner:
        with _mismatches_named(folder, config):
            learner = build_learner(config, network, from_architecture(folder / VALUE_NETWORK_FILE), own_state)
            _refuse_other_spaces(learner.policy, policy)
            learner.initial_state(config.sampling.num_envs).with_weights(state.weights())
        return learner

    return Run(folder, config, policy, make_learner, state, read_summary(folder))


def _refuse_other_settings(folder: Path, config: Config) -> None:
    """Raise `UserError` for a setting that was edited and can't change. Runs of earlier releases have no record."""
    if not (folder / START_CONFIG_FILE).exists():
        return
    if difference := first_difference(config, read_config(folder / START_CONFIG_FILE)):
        name, now, then = difference
        raise UserError(
            f"{name} can't change after the start of a run: {shown(folder / CONFIG_FILE)} has {now!r}, and the run was "
            f"started with {then!r}; restore it, or train a new run"
        )


def _refuse_other_spaces(present: Policy, run: Policy) -> None:
    """Raise `WeightsMismatch` if the policy in the present environment would not be that of the run."""
    then = _what_it_sees(run)
    for what, now in _what_it_sees(present).items():
        if now != then[what]:
            raise WeightsMismatch(f"its {what} was {then[what]}, and is {now}")


def _what_it_sees(policy: Policy) -> dict[str, str]:
    """Return what weights mean besides their shapes. Bounds of observations are left out, which change no action."""
    spec, limit = policy.spec, policy.memory.limit if policy.memory else 0
    return {
        "observation": ", ".join(f"{part.name} {part.dtype}{[*part.shape]}" for part in spec.observation),
        "action": f"{spec.action.dtype}{[*spec.action.shape]} from {spec.action.low} to {spec.action.high}",
        "action mask": str(spec.mask),
        "time limit": f"{limit} steps" if limit else "none",
    }


def _read_state(path: Path) -> tuple[StateSpec, ...]:
    """Return the state that the policy's network computes; other runs have no such file."""
    if not path.exists():
        return ()
    try:
        return tuple(StateSpec(**each) for each in json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read: {error}; restore it, or train again") from error


def _read_spaces(folder: Path, config: Config) -> Spaces:
    """Return the spaces that the policy was trained in. Runs of earlier releases have no file: make the environment."""
    path = folder / SPACES_FILE
    if path.exists():
        try:
            return Spaces.from_json(path.read_text())
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} can't be read: {error}; restore it, or train again") from error
    env = make_env(config.made_environment, limit_ends=config.sampling.time_feature)
    with contextlib.closing(env):
        return Spaces.of(env)


@contextlib.contextmanager
def _mismatches_named(folder: Path, config: Config) -> Iterator[None]:
    try:
        yield
    except (NetworkMismatch, WeightsMismatch) as error:
        raise UserError(
            f"the environment {config.env_id} is not as it was when {shown(folder)} was trained, or a network's class "
            f"is not ({error}); use them as they were, or train a new run"
        ) from error


def with_summary(run: Run, summary: Mapping[str, Any]) -> Run:
    """Write another summary to the run's folder, and return the run with it."""
    text = json.dumps(summary, indent=2)
    write_atomically(run.folder / SUMMARY_FILE, f"{text}\n".encode())
    return dataclasses.replace(run, summary=summary)
