"""Start a run from a trained policy."""

import warnings
from pathlib import Path

from trpo_tf.config.settings import Config, read_config
from trpo_tf.errors import UserError
from trpo_tf.learning.training_state import Arrays, TrainingState
from trpo_tf.runs.checkpoints import WEIGHTS_FILE, load_checkpoint, unpack
from trpo_tf.runs.layout import CHECKPOINTS_FOLDER, CONFIG_FILE, is_run
from trpo_tf.serving.bundle.manifest import read_checked, read_manifest
from trpo_tf.serving.errors import BundleError
from trpo_tf.support.shell import option


def read_weights(source: Path, state: TrainingState) -> TrainingState:
    """Return `state` with policy, critic and normalisers of the run or bundle `source`. Raises `UserError`."""
    try:
        return state.with_weights(_weights(source))
    except BundleError as error:
        raise UserError(
            f"{option('init_from', source)} is neither a run nor a bundle that can be read: {error}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{option('init_from', source)} does not fit ({error}); use the same networks and environment"
        ) from error


def warn_of_other_meaning(source: Path, config: Config) -> None:
    """Warn of settings by which the weights of `source`, though they fit, compute something else here than there."""
    if not is_run(source):
        found = read_manifest(source).provenance.get("config")
        policy = found.get("policy") if isinstance(found, dict) else None
    else:
        policy = read_config(source / CONFIG_FILE).to_dict()["policy"]
    if not isinstance(policy, dict):
        return
    for name in ("activation", "squash"):
        here = getattr(config.policy, name)
        if (there := policy.get(name, here)) != here:
            warnings.warn(
                f"{name} is {here!r} here and {there!r} in {source}: its policy acts otherwise with these settings",
                stacklevel=3,
            )


def _weights(source: Path) -> Arrays:
    if is_run(source):
        return load_checkpoint(source / CHECKPOINTS_FOLDER).weights()
    return unpack(read_checked(source, read_manifest(source), WEIGHTS_FILE))
