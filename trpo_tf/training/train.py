"""Train policies: start or resume a run, and loop over its iterations."""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import keras

from trpo_tf.config.settings import Config, read_config
from trpo_tf.envs.backends import choose_backend
from trpo_tf.envs.make import readable_errors, register_callable, resolved_id
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.evaluation.evaluate import OnStep, evaluate, longest_episode
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.provenance import versions
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import Learner, build_learner, with_observation_offset
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.network_checks import check_trainable
from trpo_tf.runs.checkpoints import save_checkpoint
from trpo_tf.runs.folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    Run,
    create_run,
    load_run,
    require_run,
    with_summary,
    write_config,
)
from trpo_tf.runs.lock import locked
from trpo_tf.runs.metrics_log import MetricsLog
from trpo_tf.runs.profiler import FIRST_TRACED, Profiler
from trpo_tf.runs.warm_start import read_weights
from trpo_tf.sampling.sampler import Experience
from trpo_tf.serving.arguments import expect, expect_count
from trpo_tf.support.graceful_stop import StopRequest
from trpo_tf.training.best_policy import PeriodicEvaluation
from trpo_tf.training.callbacks import KerasListeners, checked_callbacks
from trpo_tf.training.progress import Progress, watch

Observer = Callable[[dict[str, Any]], None]
"""Called with the metrics of each iteration."""

MakeEnv = Callable[..., gym.Env[Any, Any]]
"""Makes an environment from the settings' `env_kwargs`, and `render_mode` if an episode is recorded."""

Watch = Callable[[str, int], OnStep]
"""Label and number of episodes -> function to call after each step, which raises if a stop was requested."""


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    policy_network: keras.Model | None = None,
    value_network: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    init_from: str | Path | None = None,
    make_env: MakeEnv | None = None,
    observer: Observer | None = None,
    profile: bool = False,
    progress: bool = True,
) -> Run:
    """Train a policy in a new run folder, by default runs/ENVIRONMENT-seedSEED, and return the run.

    Args:
        config: the settings; `Config.for_env` returns those of an environment's preset, as the command line does.
        out: the run folder, which must not exist yet.
        policy_network: a Keras network [batch, obs] -> [batch, k] instead of the default one, where k is the number of
            discrete actions, or of continuous action dimensions.
        value_network: the same for the critic, [batch, obs] -> [batch, 1].
        callbacks: Keras callbacks. An iteration is an epoch, its metrics are the logs, the policy network is the model.
            Weights that they set in the model become the policy's (docs/howto/callbacks.md).
        init_from: a run or bundle whose weights and normalisers to start from.
        make_env: a class or function that makes the environment, for an id of its own in `config`, such as "Mine-v0".
            Another process that resumes, evaluates or exports the run must know the id too: give `resume` the function,
            or register the id in a module and train "module:Mine-v0".
        observer: called with each iteration's metrics.
        profile: trace iterations 3 to 5 into the run's TensorBoard folder (docs/howto/profile.md).
        progress: show progress on standard error.

    Raises:
        UserError: an argument can't work.
        EnvironmentFailure: the environment raised an exception; a checkpoint was saved.
        KeyboardInterrupt: asked to stop by SIGINT or SIGTERM; a checkpoint was saved.
        Exception: a callback raised it; a checkpoint was saved.
    """
    expect(config, Config, "config must be a Config (with a preset: Config.for_env; of a dict: from_dict)", UserError)
    expect(out, str | os.PathLike | None, "out must be the path of the folder to make", UserError)
    expect(init_from, str | os.PathLike | None, "init_from must be the path of a run or bundle", UserError)
    expect(observer, Callable | None, "observer must be a function of an iteration's metrics", UserError)
    listening = checked_callbacks(callbacks)
    if make_env is not None:
        register_callable(config.env_id, make_env)
    config = with_version(config)
    folder = Path(out) if out is not None else default_folder(config)
    config = with_observation_offset(with_env_backend(config))
    learner = build_learner(config, policy_network, value_network)
    for name, network in (("policy_network", policy_network), ("value_network", value_network)):
        if network is not None:
            check_trainable(network, learner.policy.encoder.inputs, name)
    state = learner.initial_state(config.sampling.num_envs)
    if init_from is not None:
        state = read_weights(Path(init_from), state)
    if profile:
        _check_long_enough_to_trace(config, learner, state)
    run = create_run(folder, config, learner, state)
    try:
        with locked(folder):
            return _train(run, listening, observer, profile, progress)
    except UserError:
        if not _has_learned(folder):
            shutil.rmtree(folder)
        raise


def resume(
    folder: str | Path,
    *,
    total_steps: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    make_env: MakeEnv | None = None,
    observer: Observer | None = None,
    profile: bool = False,
    progress: bool = True,
) -> Run:
    """Resume a run from its latest checkpoint, and return it; arguments and errors as in `train`.

    `total_steps` replaces the run's setting, and lets a complete run continue. Schedules (`anneal`, `final_discount`,
    `final_std`) are then computed with the new total.

    A run that was killed and resumed ends with the same weights, bit for bit, as one that was not. That holds on the
    same machine, with the same package versions and number of threads.
    """
    expect(observer, Callable | None, "observer must be a function of an iteration's metrics", UserError)
    listening = checked_callbacks(callbacks)
    expect(folder, str | os.PathLike, "the run must be the path of its folder", UserError)
    folder = Path(folder)
    require_run(folder)
    if make_env is not None:
        register_callable(read_config(folder / CONFIG_FILE).env_id, make_env)
    with locked(folder):
        run = load_run(folder)
        if total_steps is not None:
            run = _with_total_steps(run, total_steps)
        elif "trained" in run.summary:
            raise UserError(
                f"{folder} is complete; start a new run from it with --init-from {folder}, or lengthen it with "
                f"--resume {folder} --total-steps N"
            )
        if profile:
            _check_long_enough_to_trace(run.config, run.learner, run.state)
        return _train(run, listening, observer, profile, progress)


def _with_total_steps(run: Run, total_steps: int) -> Run:
    """Write another `total_steps` to the run's folder, and return the run as incomplete.

    Raises `UserError` if that leaves no iteration.
    """
    expect_count(total_steps, "total_steps", 1, UserError)
    least = run.state.steps + run.learner.iteration_steps
    if total_steps < least:
        raise UserError(f"total_steps must be at least {least:,}: {run.folder} has taken {run.state.steps:,}")
    write_config(run.folder, dataclasses.replace(run.config, total_steps=total_steps))
    summary = {name: value for name, value in run.summary.items() if name == "untrained"}
    return with_summary(load_run(run.folder), summary)


def with_env_backend(config: Config) -> Config:
    """Return the config with the backend "auto" replaced by the one to use here. Raises `UserError`."""
    backend = "gymnasium"
    if not config.sampler_is_vine:
        backend = choose_backend(config.sampling.env_backend, config.made_environment)
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, env_backend=backend))


def with_version(config: Config) -> Config:
    """Return the config with the latest version added to an environment id without one, and warn which."""
    with readable_errors(config.env_id):
        env_id = resolved_id(config.env_id)
    if env_id == config.env_id:
        return config
    warnings.warn(f"{config.env_id} stands for its latest version, {env_id}", stacklevel=3)
    return dataclasses.replace(config, env_id=env_id)


def default_folder(config: Config) -> Path:
    """Return the run folder that is used if none is given."""
    name = re.sub(r"[^a-z0-9]+", "-", config.env_id.lower()).strip("-")
    return Path("runs") / f"{name}-seed{config.seed}"


def _train(
    run: Run, callbacks: list[keras.callbacks.Callback], observer: Observer | None, profile: bool, progress: bool
) -> Run:
    config, learner, state = run.config, run.learner, run.state
    listeners = KerasListeners(learner.policy, callbacks)
    with (
        MetricsLog(run.folder, state.iteration) as log,
        StopRequest() as stop,
        Experience(config, learner.policy) as experience,
        Profiler(run.folder) if profile else contextlib.nullcontext() as profiler,
        _periodic_evaluation(config, learner) as evaluation,
        Progress(config, shown=progress) as show,
    ):
        watched = functools.partial(_watch, stop, show)
        try:
            state = listeners.train_begins(state, state.iteration + _iterations_left(config, learner, state))
            run = _evaluate_untrained(dataclasses.replace(run, state=state), watched)
            show.stage("compiling")
            metrics: dict[str, Any] = {}
            started = time.perf_counter() - state.seconds
            experience.restart(state.checkpoint, _longest_recent(run, state))
            while state.steps + learner.iteration_steps <= config.total_steps and not listeners.stop_training:
                state = listeners.iteration_begins(state)
                after, metrics = iterate(config, learner, experience, state, traced=profile)
                metrics |= {"eval_return": None, "eval_episodes_cut": None}
                if evaluation is not None and _is_evaluation_due(config, learner, state.steps, after.steps):
                    what = "periodic evaluation"
                    after, found = evaluation.run(after, watched(what, config.periodic_eval_episodes))
                    metrics |= found
                state = dataclasses.replace(after, seconds=time.perf_counter() - started)
                log.write(metrics)
                state = listeners.iteration_ended(state, metrics)
                show.show(metrics)
                if observer is not None:
                    observer(metrics)
                if profiler is not None:
                    profiler.iteration_ended()
                if stop.requested:
                    raise KeyboardInterrupt
                if experience.is_over(
                    state.steps - state.steps_at_checkpoint, state.steps_at_checkpoint, learner.checkpoint_steps
                ):
                    state = _save(run, state)
                    experience.restart(state.checkpoint, _longest_recent(run, state))
            state = listeners.train_ends(state.at_best(), metrics)
            learner.policy.network.assign(state.theta)
            run = _evaluate_trained(dataclasses.replace(run, state=_save(run, state)), watched)
        except EnvironmentFailure as failure:
            named = failure if config.env_id in failure.where else failure.at(config.env_id)
            if state.iteration > 0:  # before the first iteration there is nothing new
                _save(run, state)
            raise EnvironmentFailure(f"{named}; {_how_to_resume(run)}") from failure.cause
        except KeyboardInterrupt:
            if state.iteration > 0:
                _save(run, state)
            raise KeyboardInterrupt(f"stopped after {state.steps:,} steps; {_how_to_resume(run)}") from None
        except Exception as error:
            if error is listeners.raised:
                _save(run, state)
            if error is listeners.raised or isinstance(error, OSError):  # a full disk, say
                error.add_note(_how_to_resume(run))
            raise
    return run


def _longest_recent(run: Run, state: TrainingState) -> int:
    """Return the length of the longest of the latest episodes, or the mean length before training; 0 if unknown."""
    return max(state.recent_lengths, default=int(run.summary.get("untrained", {}).get("mean_length") or 0))


def _has_learned(folder: Path) -> bool:
    metrics = folder / METRICS_FILE
    return metrics.exists() and metrics.stat().st_size > 0


def _watch(stop: StopRequest, show: Progress, what: str, episodes: int) -> OnStep:
    shown = watch(show.stage, what, episodes)

    def on_step(over: int, steps: int) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        shown(over, steps)

    return on_step


def _periodic_evaluation(
    config: Config, learner: Learner
) -> contextlib.AbstractContextManager[PeriodicEvaluation | None]:
    if config.eval_interval == 0:
        return contextlib.nullcontext()
    return contextlib.closing(PeriodicEvaluation(config, learner.policy))


def _is_evaluation_due(config: Config, learner: Learner, before: int, steps: int) -> bool:
    """Return whether an evaluation interval has ended, or the run has."""
    passed = steps // config.eval_interval > before // config.eval_interval
    return passed or steps + learner.iteration_steps > config.total_steps


def _check_long_enough_to_trace(config: Config, learner: Learner, state: TrainingState) -> None:
    left = _iterations_left(config, learner, state)
    if left < FIRST_TRACED:
        raise UserError(
            f"profile needs {FIRST_TRACED} iterations, and the run has only {left} to go; profile a longer one"
        )


def _iterations_left(config: Config, learner: Learner, state: TrainingState) -> int:
    """Return the least number of iterations left; iterations in which episodes ended take fewer steps."""
    return (config.total_steps - state.steps) // learner.iteration_steps


def _save(run: Run, state: TrainingState) -> TrainingState:
    state = state.at_checkpoint()
    save_checkpoint(run.folder / CHECKPOINTS_FOLDER, state)
    return state


def _evaluate_untrained(run: Run, watched: Watch) -> Run:
    if run.state.iteration > 0 or "untrained" in run.summary:
        return run
    # The mode of a policy that knows nothing is arbitrary; its samples are what training starts from.
    return with_summary(run, {"untrained": _evaluate(run, watched, deterministic=False)})


def _evaluate_trained(run: Run, watched: Watch) -> Run:
    state = run.state
    summary = {
        "trained": _evaluate(run, watched, deterministic=True),
        "steps": state.steps,
        "eval_steps": state.eval_steps,
        "iterations": state.iteration,
        "episodes": state.episodes,
        "best_at_steps": None if state.best is None else state.best.steps,
        "seconds": state.seconds,
        "steps_per_second": state.steps / state.seconds if state.seconds else 0.0,
        "versions": versions(),
    }
    return with_summary(run, {**run.summary, **summary})


def _evaluate(run: Run, watched: Watch, *, deterministic: bool) -> dict[str, Any]:
    config, episodes = run.config, run.config.eval_episodes
    if episodes == 0:
        return {"episodes": 0}
    return evaluate(
        in_process(run.policy, "policy"),
        config.made_environment,
        episodes=episodes,
        deterministic=deterministic,
        longest=longest_episode(config.made_environment, config.total_steps, episodes),
        on_step=watched("evaluating", episodes),
    ).to_dict()


def _how_to_resume(run: Run) -> str:
    return f"go on with --resume {run.folder}"
