"""The loop over a run's iterations, with evaluations and checkpoints between them."""

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from trpo_tf.config.settings import Config
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.evaluation.evaluate import OnStep, evaluate, longest_episode
from trpo_tf.export.support.freed_memory import return_unused_memory_once
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.provenance import versions
from trpo_tf.learning.compile_ahead import compiled_ahead
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.metrics import Metrics
from trpo_tf.learning.schedules import progress
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.runs.checkpoints import save_checkpoint
from trpo_tf.runs.folder import Run, with_summary
from trpo_tf.runs.layout import CHECKPOINTS_FOLDER, resuming, shown
from trpo_tf.runs.metrics_log import MetricsLog
from trpo_tf.runs.profiler import Profiler
from trpo_tf.sampling.sampler import Experience
from trpo_tf.sampling.workers import Workers
from trpo_tf.support.graceful_stop import StopRequest
from trpo_tf.training.best_policy import PeriodicEvaluation
from trpo_tf.training.callbacks import KerasListeners
from trpo_tf.training.progress import Progress, watch
from trpo_tf.training.watchers import Observer, Watchers


def train_to_end(run: Run, workers: Workers, watchers: Watchers) -> Run:
    """Train the run from its state to its end, and return it; raises what `trpo_tf.training.train.train` does."""
    config, learner = run.config, run.learner
    with (
        MetricsLog(run.folder, run.state.iteration) as log,
        StopRequest() as stop,
        Experience(config, learner.policy, workers) as experience,
        Profiler(run.folder) if watchers.profile else contextlib.nullcontext() as profiler,
        _periodic_evaluation(config, learner, experience) as evaluation,
        Progress(config, shown=watchers.progress) as show,
        compiled_ahead(config, learner, run.state, experience.graph),
    ):
        listeners = KerasListeners(learner.policy, list(watchers.callbacks))
        reports = _Reports(log, show, watchers.observer, profiler)
        return _Loop(run, experience, evaluation, listeners, reports, stop).run_to_end()


def iterations_left(config: Config, learner: Learner, state: TrainingState) -> int:
    """Return the least number of iterations left; iterations in which episodes ended take fewer steps."""
    return (config.total_steps - state.steps) // learner.iteration_steps


@dataclass(frozen=True)
class _Reports:
    """Receivers of an iteration's metrics besides the callbacks."""

    log: MetricsLog
    show: Progress
    observer: Observer | None
    profiler: Profiler | None

    def iteration_ended(self, metrics: Metrics) -> None:
        self.show.show(metrics)
        if self.observer is not None:
            self.observer(metrics)
        if self.profiler is not None:
            self.profiler.iteration_ended()


@dataclass
class _Loop:
    """A run while it trains; `run.state` is the latest."""

    run: Run
    experience: Experience
    evaluation: PeriodicEvaluation | None
    listeners: KerasListeners
    reports: _Reports
    stop: StopRequest

    def run_to_end(self) -> Run:
        """Train, and return the run; save a checkpoint if something stops it before its end."""
        config, how_to_resume = self.run.config, f"go on with {resuming(shown(self.run.folder))}"
        try:
            return self._train()
        except EnvironmentFailure as failure:
            where = failure.where if config.env_id in failure.where else (config.env_id, *failure.where)
            self._save_if_learned()
            named = EnvironmentFailure(failure.reason, *where)
            named.add_note(how_to_resume)
            raise named from failure.cause
        except KeyboardInterrupt:
            self._save_if_learned()
            raise KeyboardInterrupt(f"stopped after {self._state.steps:,} steps; {how_to_resume}") from None
        except Exception as error:
            if error is self.listeners.raised:
                self._save()
            if error is self.listeners.raised or isinstance(error, OSError):  # a full disk, say
                error.add_note(how_to_resume)
            raise

    def _train(self) -> Run:
        config, learner = self.run.config, self.run.learner
        epochs = self._state.iteration + iterations_left(config, learner, self._state)
        self._state = self.listeners.train_begins(self._state, epochs)
        self._evaluate_untrained()
        self.reports.show.stage("compiling")
        metrics: Metrics = {}
        started = time.perf_counter() - self._state.seconds
        return_unused_memory_once("before compiling")  # of TensorFlow's start; compiling takes the most
        self._restart_environments()
        while self._state.steps + learner.iteration_steps <= config.total_steps and not self.listeners.stop_training:
            is_first = not metrics
            metrics = self._iterate(started)
            if is_first:
                return_unused_memory_once("compiled")
            if self.stop.requested:
                raise KeyboardInterrupt
            if self._is_checkpoint_due():
                self._save()
                self._restart_environments()
        self._state = self.listeners.train_ends(self._state.at_best(), metrics)
        learner.policy.network.assign(self._state.theta)
        self._save()
        self._evaluate_trained()
        return self.run

    def _iterate(self, started: float) -> Metrics:
        """Run one iteration of a training that `started` then, and return what was reported of it."""
        run, traced = self.run, self.reports.profiler is not None
        self.stop.hold()
        before = self._state = self.listeners.iteration_begins(self._state)
        after, metrics = iterate(run.config, run.learner, self.experience, before, traced=traced)
        metrics |= {"eval_return": None, "eval_episodes_cut": None}
        if self.evaluation is not None and _is_evaluation_due(run.config, run.learner, before.steps, after.steps):
            on_step = self._watched("periodic evaluation", run.config.periodic_eval_episodes)
            after, found = self.evaluation.run(after, on_step)
            metrics |= found
        self._state = dataclasses.replace(after, seconds=time.perf_counter() - started)
        self.reports.log.write(metrics)
        self._state = self.listeners.iteration_ended(self._state, metrics)
        self.reports.iteration_ended(metrics)
        return metrics

    @property
    def _state(self) -> TrainingState:
        return self.run.state

    @_state.setter
    def _state(self, state: TrainingState) -> None:
        self.run = dataclasses.replace(self.run, state=state)

    def _is_checkpoint_due(self) -> bool:
        before = self._state.steps_at_checkpoint
        return self.experience.is_over(self._state.steps - before, before, self.run.learner.checkpoint_steps)

    def _restart_environments(self) -> None:
        """Make the environments of the present checkpoint.

        The longest of the latest episodes, or the mean length before training, limits the staggering.
        """
        untrained = int(self.run.summary.get("untrained", {}).get("mean_length") or 0)
        self.experience.set_progress(progress(self.run.config, self._state))
        self.experience.restart(self._state.checkpoint, max(self._state.recent_lengths, default=untrained))

    def _save_if_learned(self) -> None:
        if self._state.iteration > 0:  # before the first iteration there is nothing new
            self._save()

    def _save(self) -> None:
        self._state = self._state.at_checkpoint()
        save_checkpoint(self.run.folder / CHECKPOINTS_FOLDER, self._state)

    def _evaluate_untrained(self) -> None:
        if self._state.iteration > 0 or "untrained" in self.run.summary:
            return
        # The mode of a policy that knows nothing is arbitrary; its samples are what training starts from.
        self.run = with_summary(self.run, {"untrained": self._evaluate(deterministic=False)})

    def _evaluate_trained(self) -> None:
        state = self._state
        summary = {
            "trained": self._evaluate(deterministic=True),
            "steps": state.steps,
            "eval_steps": state.eval_steps,
            "iterations": state.iteration,
            "episodes": state.episodes,
            "best_at_steps": None if state.best is None else state.best.steps,
            "seconds": state.seconds,
            "steps_per_second": state.steps / state.seconds if state.seconds else 0.0,
            "versions": versions(),
        }
        self.run = with_summary(self.run, {**self.run.summary, **summary})

    def _evaluate(self, *, deterministic: bool) -> dict[str, Any]:
        config, episodes = self.run.config, self.run.config.eval_episodes
        if episodes == 0:
            return {"episodes": 0}
        return evaluate(
            in_process(self.run.policy, "policy"),
            config.made_environment,
            episodes=episodes,
            deterministic=deterministic,
            longest=longest_episode(config.made_environment, config.total_steps, episodes),
            on_step=self._watched("evaluating", episodes),
        ).to_dict()

    def _watched(self, what: str, episodes: int) -> OnStep:
        """Return a function to call after each step of an evaluation, which raises if a stop was requested."""
        shown = watch(self.reports.show.stage, what, episodes)

        def on_step(over: int, steps: int) -> None:
            self.stop.hold()
            if self.stop.requested:
                raise KeyboardInterrupt
            shown(over, steps)

        return on_step


def _periodic_evaluation(
    config: Config, learner: Learner, experience: Experience
) -> contextlib.AbstractContextManager[PeriodicEvaluation | None]:
    if config.eval_interval == 0:
        return contextlib.nullcontext()
    return contextlib.closing(PeriodicEvaluation(config, learner.policy, experience.pool))


def _is_evaluation_due(config: Config, learner: Learner, before: int, steps: int) -> bool:
    """Return whether an evaluation interval has ended, or the run has."""
    passed = steps // config.eval_interval > before // config.eval_interval
    return passed or steps + learner.iteration_steps > config.total_steps
