"""Train policies: start a run, or resume one."""

import dataclasses
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import gymnasium as gym
import keras

from trpo_tf.config.settings import Config, read_config
from trpo_tf.envs.make import readable_errors, register_callable, resolved_id
from trpo_tf.envs.vector.backends import with_env_backend
from trpo_tf.errors import UserError
from trpo_tf.export.errors import ExportError
from trpo_tf.learning.learner import Learner, build_learner, with_observation_offset
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.network_checks import check_trainable
from trpo_tf.runs.folder import Run, create_run, load_run, with_summary, write_config
from trpo_tf.runs.layout import CONFIG_FILE, METRICS_FILE, default_folder, require_run, resuming, shown
from trpo_tf.runs.lock import locked
from trpo_tf.runs.profiler import FIRST_TRACED
from trpo_tf.runs.warm_start import read_weights, warn_of_other_meaning
from trpo_tf.sampling.workers import Workers
from trpo_tf.serving import StateSpec
from trpo_tf.serving.argument_checks import expect, expect_count, expect_path
from trpo_tf.support.shell import option
from trpo_tf.training.loop import iterations_left, train_to_end
from trpo_tf.training.watchers import WatcherArguments, Watchers

MakeEnv = Callable[..., gym.Env[Any, Any]]
"""Makes an environment from the settings' `env_kwargs`, and `render_mode` if an episode is recorded."""


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    policy_network: keras.Model | None = None,
    policy_state: Sequence[StateSpec] = (),
    value_network: keras.Model | None = None,
    init_from: str | Path | None = None,
    make_env: MakeEnv | None = None,
    workers: Workers | int = 0,
    **watchers: Unpack[WatcherArguments],
) -> Run:
    """Train a policy in a new run folder, by default runs/ENVIRONMENT-seedSEED, and return the run.

    Args:
        config: the settings; `Config.for_env` returns those of an environment's preset, as the command line does.
        out: the run folder, which must not exist yet.
        policy_network: a Keras network [batch, obs] -> [batch, k] instead of the default one, where k is the number of
            discrete actions, or of continuous action dimensions.
        policy_state: what that network remembers. It then takes a list, the observation and these arrays [batch, ...],
            and gives a list, its output and their next values (docs/howto/extend/own-network.md).
        value_network: the same for the critic, [batch, obs] -> [batch, 1].
        init_from: a run or bundle whose weights and normalisers to start from.
        make_env: a class or function that makes the environment, for an id of its own in `config`, such as "Mine-v0".
            Another process that resumes, evaluates or exports the run must know the id too: give `resume` the function,
            or register the id in a module and train "module:Mine-v0".
        workers: processes that step the environments, at most one per shard (docs/howto/train/workers.md).
            `Workers(2, step_timeout=60)` also replaces one that hangs, and `Workers(2, ray="auto")` runs them as actors
            of a Ray cluster.
        **watchers: any of these, by keyword.
            callbacks: Keras callbacks. An iteration is an epoch, its metrics are the logs, the policy network is the
                model. Weights that they set in the model become the policy's (docs/howto/train/callbacks.md).
            observer: called with each iteration's metrics.
            profile: trace iterations 3 to 5 for TensorBoard (docs/howto/train/profile.md); default False.
            progress: show progress on standard error; default True.

    Raises:
        UserError: an argument can't work.
        EnvironmentFailure: the environment raised an exception; a checkpoint was saved.
        KeyboardInterrupt: asked to stop by SIGINT or SIGTERM; a checkpoint was saved.
        Exception: a callback raised it; a checkpoint was saved.
    """
    expect(config, Config, "config must be a Config (with a preset: Config.for_env; of a dict: from_dict)", UserError)
    if out is not None:
        expect_path(out, "out must be the path of the folder to make", UserError)
    if init_from is not None:
        expect_path(init_from, "init_from must be the path of a run or bundle", UserError)
    watching = Watchers(**watchers)
    if make_env is not None:
        register_callable(config.env_id, make_env)
    source = None if init_from is None else Path(init_from).absolute()  # an environment may change the folder
    config = with_version(config)
    folder = Path(default_folder(config) if out is None else out).absolute()
    config = with_env_backend(config)
    workers = Workers.of(workers, config)
    config = with_observation_offset(config)
    _check_state(policy_state, policy_network, config)
    learner = build_learner(config, policy_network, value_network, policy_state)
    if policy_network is not None:
        check_trainable(policy_network, learner.policy.network_inputs, "policy_network")
    if value_network is not None:
        check_trainable(value_network, learner.policy.encoder.inputs, "value_network")
    state = learner.initial_state(config.sampling.num_envs)
    _warn_of_flattened(learner.policy.encoder)
    if source is not None:
        state = read_weights(shown(source), state)
        if policy_network is None:
            warn_of_other_meaning(shown(source), config)
    if watching.profile:
        _check_long_enough_to_trace(config, learner, state)
    return _train_new(create_run(folder, config, learner, state), workers, watching)


def _train_new(run: Run, workers: Workers, watching: Watchers) -> Run:
    """Train to the end. A run that is refused before its first iteration leaves no folder."""
    try:
        with locked(run.folder):
            return train_to_end(run, workers, watching)
    except (UserError, ExportError) as error:
        if not _has_learned(run.folder):
            shutil.rmtree(run.folder)
            if isinstance(error, ExportError):
                raise UserError(f"the policy acts by ONNX Runtime, and its network can't: {error}") from error
        raise


def resume(
    folder: str | Path,
    *,
    total_steps: int | None = None,
    make_env: MakeEnv | None = None,
    workers: Workers | int = 0,
    **watchers: Unpack[WatcherArguments],
) -> Run:
    """Resume a run from its latest checkpoint, and return it; arguments and errors as in `train`.

    `total_steps` replaces the run's setting, and lets a complete run continue. Schedules (`anneal`, `final_discount`,
    `final_std`) are then computed with the new total.

    A run that was killed and resumed ends with the same weights, bit for bit, as one that was not. That holds on the
    same machine, with the same package versions and number of threads, and for any number of `workers`.
    """
    watching = Watchers(**watchers)
    expect_path(folder, "the run must be the path of its folder", UserError)
    require_run(Path(folder))
    folder = Path(folder).absolute()
    if make_env is not None:
        register_callable(read_config(folder / CONFIG_FILE).env_id, make_env)
    with locked(folder):
        run = load_run(folder)
        if total_steps is not None:
            run = _with_total_steps(run, total_steps)
        elif "trained" in run.summary:
            name = shown(folder)
            raise UserError(
                f"{name} is complete; start a new run from it with {option('init_from', name)}, or lengthen it with "
                f"{resuming(name, total_steps='N')}"
            )
        if watching.profile:
            _check_long_enough_to_trace(run.config, run.learner, run.state)
        return train_to_end(run, Workers.of(workers, run.config), watching)


def _with_total_steps(run: Run, total_steps: int) -> Run:
    """Write another `total_steps` to the run's folder, and return the run as incomplete.

    Raises `UserError` if that leaves no iteration.
    """
    expect_count(total_steps, "total_steps", 1, UserError)
    least = run.state.steps + run.learner.iteration_steps
    if total_steps < least:
        raise UserError(f"total_steps must be at least {least:,}: {shown(run.folder)} has taken {run.state.steps:,}")
    write_config(run.folder, dataclasses.replace(run.config, total_steps=total_steps))
    summary = {name: value for name, value in run.summary.items() if name == "untrained"}
    return with_summary(load_run(run.folder), summary)


def with_version(config: Config) -> Config:
    """Return the config with the latest version added to an environment id without one, and warn which."""
    with readable_errors(config.env_id):
        env_id = resolved_id(config.env_id)
    if env_id == config.env_id:
        return config
    warnings.warn(f"{config.env_id} stands for its latest version, {env_id}", stacklevel=3)
    return dataclasses.replace(config, env_id=env_id)


def _warn_of_flattened(encoder: Encoder) -> None:
    for spec in encoder.flattened:
        warnings.warn(
            f"the observation {spec.name!r}, {spec.dtype}{list(spec.shape)}, is taken as {math.prod(spec.shape):,} "
            "numbers; an image is uint8 [height, width, channels], so let a wrapper give that if it is one",
            stacklevel=3,
        )


def _check_state(state: Sequence[StateSpec], network: keras.Model | None, config: Config) -> None:
    wanted = "policy_state must be a list of StateSpec, such as [StateSpec('hidden', 'float32', (32,))]"
    expect(state, list | tuple, wanted, UserError)
    for spec in state:
        expect(spec, StateSpec, wanted, UserError)
        if spec.dtype != "float32":
            raise UserError(f"policy_state {spec.name!r} must be float32, which has derivatives, not {spec.dtype}")
    if state and network is None:
        raise UserError("policy_state needs a policy_network that computes it; for the default one choose a memory")
    if state and config.policy.memory:
        raise UserError(f"policy_state must be left out with a memory ({config.policy.memory}); give one of the two")
    if state and config.trust_region.fisher == "double-backprop":
        raise UserError("fisher must be gauss-newton or score-covariance, with a policy_state")


def _has_learned(folder: Path) -> bool:
    metrics = folder / METRICS_FILE
    return metrics.exists() and metrics.stat().st_size > 0


def _check_long_enough_to_trace(config: Config, learner: Learner, state: TrainingState) -> None:
    left = iterations_left(config, learner, state)
    if left < FIRST_TRACED:
        raise UserError(
            f"profile needs {FIRST_TRACED} iterations, and the run has only {left} to go; profile a longer one"
        )
