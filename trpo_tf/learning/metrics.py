"""Metrics of one iteration (docs/reference/metrics.md)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.estimation.targets import Estimates
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.sampling.batch import Episodes
from trpo_tf.updates.result import Update, UpdateStatus

Metrics = dict[str, Any]


def progress_metrics(state: TrainingState, episodes: Episodes) -> Metrics:
    """Return the metrics of a run's progress and of its latest episodes."""
    return {
        "iteration": state.iteration,
        "steps": state.steps,
        "episodes": state.episodes,
        "mean_return": float(np.mean(state.recent_returns)) if state.recent_returns else None,
        "mean_length": float(np.mean(state.recent_lengths)) if state.recent_lengths else None,
        "episodes_ended": len(episodes.returns),
    }


def update_metrics(update: Update, algo: str) -> Metrics:
    """Return the metrics of an update; a number that `algo` adapts is named `radius` or `kl_coefficient`."""
    scalars = {name: value.item() for name, value in update._asdict().items() if name not in ("theta", "status")}
    adapts, adapted = find_algorithm(algo).adapts, scalars.pop("adapted")
    own = {} if adapts is None else {adapts: adapted}
    return {"update_status": UpdateStatus(int(update.status)).name.lower(), **own, **scalars}


def estimate_metrics(estimates: Estimates) -> Metrics:
    """Return the metrics of a batch's advantages and value targets."""
    return {
        "gae_lambda": estimates.gae_lambda,
        "explained_variance": estimates.explained_variance,
        "clipped_rewards": estimates.clipped_rewards,
    }


def timing_metrics(steps: int, seconds_sampling: float, seconds: Mapping[str, float]) -> Metrics:
    """Return the metrics of an iteration's speed, from its number of steps and the `seconds` of each phase."""
    return {
        "steps_per_second": steps / sum(seconds.values()),
        "seconds_sampling": seconds_sampling,
        **{f"seconds_{phase}": spent for phase, spent in seconds.items()},
    }
