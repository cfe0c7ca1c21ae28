"""Checks of a new run's arguments that need no TensorFlow, whose import takes seconds."""

import contextlib
import dataclasses
from pathlib import Path

from trpo_tf.config.settings import Config
from trpo_tf.envs.make import make_env, readable_errors, resolved_id
from trpo_tf.envs.spaces import Spaces
from trpo_tf.envs.vector.backends import choose_backend
from trpo_tf.runs.layout import default_folder, require_new


def check_new_run(config: Config, out: Path | None) -> Path:
    """Check a new run's environment, backend and folder, and return the absolute path of its folder.

    Raises `UserError` for an environment that can't be made or trained, a missing backend, or a folder that exists;
    `train` raises the same errors. A passing check costs one more environment.
    """
    with readable_errors(config.env_id):
        config = dataclasses.replace(config, env_id=resolved_id(config.env_id))
    folder = default_folder(config) if out is None else out
    require_new(folder)
    folder = folder.absolute()  # before the environment is made: some change the working directory
    check_environment(config)
    return folder


def check_environment(config: Config) -> None:
    """Raise `UserError` for an environment that can't be made or trained, or a missing backend."""
    with contextlib.closing(make_env(config.made_environment, limit_ends=config.sampling.time_feature)) as env:
        Spaces.of(env)
    if not config.sampler_is_vine:
        choose_backend(config.sampling.env_backend, config.made_environment)
