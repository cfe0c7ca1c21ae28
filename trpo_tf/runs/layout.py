"""Run folders: their files, and what can be told of one without loading the run.

config.toml             the settings
started_with.toml       the settings at the start, some of which can't change
spaces.json             the arrays that the policy observes and gives
policy_network.json     Keras architectures
value_network.json
policy_state.json       the state that a policy network of the user's own computes, if it has one
metrics.jsonl           one line per iteration; docs/reference/metrics.md defines the metrics
tensorboard/            the same for TensorBoard
checkpoints/            the last few, each complete
summary.json            returns before and after, speed, versions
bundles.json            folders that the policy was exported to
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from trpo_tf.config.former_names import COUNTERS, renamed
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.support.shell import in_shell, is_in_command, option

CONFIG_FILE = "config.toml"
START_CONFIG_FILE = "started_with.toml"
SPACES_FILE = "spaces.json"
POLICY_NETWORK_FILE = "policy_network.json"
POLICY_STATE_FILE = "policy_state.json"
VALUE_NETWORK_FILE = "value_network.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
SUMMARY_FILE = "summary.json"
BUNDLES_FILE = "bundles.json"


def is_run(path: Path) -> bool:
    """Return whether `path` looks like a run folder."""
    return (path / CONFIG_FILE).is_file()


def require_run(folder: Path) -> None:
    """Raise `UserError` if the folder is not a run folder."""
    if not is_run(folder):
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG_FILE}; make one with `trpo-tf train`")


def require_new(folder: Path) -> None:
    """Raise `UserError` if the folder of a new run exists."""
    if folder.exists():
        raise UserError(
            f"{folder} exists; choose another {option('out')}, remove it, or go on with it: {resuming(folder)}"
        )


def resuming(folder: Path, total_steps: str = "") -> str:
    """Return how the run in a folder is resumed, with other `total_steps` if they are given."""
    if is_in_command():
        return f"--resume {in_shell(folder)}{f' --total-steps {total_steps}' if total_steps else ''}"
    return f"trpo_tf.resume({str(folder)!r}{f', total_steps={total_steps}' if total_steps else ''})"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a run's summary, empty before there is one. Raises `UserError` if it can't be read."""
    path = folder / SUMMARY_FILE
    try:
        told = json.loads(path.read_text()) if path.exists() else {}
        return renamed({**told}, COUNTERS)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read: {error}; remove it, or restore it") from error


def default_folder(config: Config) -> Path:
    """Return the run folder that is used if none is given."""
    name = re.sub(r"[^a-z0-9]+", "-", config.env_id.lower()).strip("-")
    return Path("runs") / f"{name}-seed{config.seed}"


def shown(folder: Path) -> Path:
    """Return a folder's path as a user would type it: relative to the working directory if it lies within."""
    with contextlib.suppress(ValueError):
        return folder.relative_to(Path.cwd())
    return folder


def bundles_of(folder: Path) -> list[str]:
    """Return the folders that a run's policy was exported to, the latest last; they may no longer exist."""
    try:
        known = json.loads((folder / BUNDLES_FILE).read_text())
    except (OSError, ValueError):
        return []
    return [path for path in known if isinstance(path, str)] if isinstance(known, list) else []
