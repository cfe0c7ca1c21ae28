"""Run folders: their files, and how a run is created and loaded.

config.toml             the settings
policy_network.json     Keras architectures
value_network.json
metrics.jsonl           one line per iteration; docs/reference/metrics.md defines the metrics
tensorboard/            the same for TensorBoard
checkpoints/            the last few, each complete
summary.json            returns before and after, speed, versions
bundles.json            folders that the policy was exported to
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from trpo_tf.config.former_names import COUNTERS, renamed
from trpo_tf.config.settings import Config, read_config
from trpo_tf.errors import UserError
from trpo_tf.export.support.new_folder import new_folder
from trpo_tf.learning.learner import Learner, build_learner
from trpo_tf.learning.training_state import TrainingState, WeightsMismatch
from trpo_tf.policies.network_checks import NetworkMismatch, architecture, from_architecture
from trpo_tf.policies.policy import TrainedPolicy
from trpo_tf.runs.checkpoints import load_checkpoint, save_checkpoint
from trpo_tf.serving.arguments import expect
from trpo_tf.support.atomic_write import write_atomically

CONFIG_FILE = "config.toml"
POLICY_NETWORK_FILE = "policy_network.json"
VALUE_NETWORK_FILE = "value_network.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
SUMMARY_FILE = "summary.json"
BUNDLES_FILE = "bundles.json"


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it: settings, networks, the latest checkpoint, and the summary.

    The summary has `untrained` from the start; `trained` and the rest are added at the end.
    """

    folder: Path
    config: Config
    learner: Learner
    state: TrainingState
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> TrainedPolicy:
        """The policy as trained so far."""
        return self.learner.trained(self.state)


def is_run(path: Path) -> bool:
    """Return whether `path` looks like a run folder."""
    return (path / CONFIG_FILE).is_file()


def create_run(folder: Path, config: Config, learner: Learner, state: TrainingState) -> Run:
    """Create the folder of a new run; as soon as it exists, the run can be resumed.

    Raises `UserError` if the folder exists, or if a network can't be serialised.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another --out, remove it, or go on with it: --resume {folder}")
    networks = {
        POLICY_NETWORK_FILE: learner.policy.network.network,
        VALUE_NETWORK_FILE: learner.value_function.network.network,
    }
    with new_folder(folder) as scratch:
        for name, network in networks.items():
            (scratch / name).write_text(architecture(network, name.removesuffix(".json")))
        write_config(scratch, config)
        (scratch / CHECKPOINTS_FOLDER).mkdir()
        save_checkpoint(scratch / CHECKPOINTS_FOLDER, state)
    return Run(folder, config, learner, state)


def write_config(folder: Path, config: Config) -> None:
    """Write a run's settings to its folder."""
    write_atomically(folder / CONFIG_FILE, tomli_w.dumps(config.to_dict()).encode())


def bundles_of(folder: Path) -> list[str]:
    """Return the folders that a run's policy was exported to, the latest last; they may no longer exist."""
    try:
        known = json.loads((folder / BUNDLES_FILE).read_text())
    except (OSError, ValueError):
        return []
    return [path for path in known if isinstance(path, str)] if isinstance(known, list) else []


def require_run(folder: Path) -> None:
    """Raise `UserError` if the folder is not a run folder."""
    if not is_run(folder):
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG_FILE}; make one with `trpo-tf train`")


def load_run(folder: str | Path) -> Run:
    """Load a run from its folder. Raises `UserError` if that is not a run folder, or can't be read."""
    expect(folder, (str, os.PathLike), "the run must be the path of its folder", UserError)
    folder = Path(folder)
    require_run(folder)
    config = read_config(folder / CONFIG_FILE)
    networks = [from_architecture(folder / file) for file in (POLICY_NETWORK_FILE, VALUE_NETWORK_FILE)]
    state = load_checkpoint(folder / CHECKPOINTS_FOLDER)
    try:
        learner = build_learner(config, *networks)
        learner.initial_state(config.sampling.num_envs).with_weights(state.weights())
    except (NetworkMismatch, WeightsMismatch) as error:
        raise UserError(
            f"the environment {config.env_id} is not as it was when {folder} was trained, or a network's class is not "
            f"({error}); use them as they were, or train a new run"
        ) from error
    summary = folder / SUMMARY_FILE
    return Run(
        folder,
        config,
        learner,
        state,
        renamed(json.loads(summary.read_text()), COUNTERS) if summary.exists() else {},
    )


def with_summary(run: Run, summary: Mapping[str, Any]) -> Run:
    """Write another summary to the run's folder, and return the run with it."""
    text = json.dumps(summary, indent=2)
    write_atomically(run.folder / SUMMARY_FILE, f"{text}\n".encode())
    return replace(run, summary=summary)
