"""Proximal policy optimization: the clipped surrogate."""

from typing import Any

import tensorflow as tf

from trpo_tf.config.settings import Config
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.minibatch import maximised
from trpo_tf.updates.result import Update


def ppo(problem: LocalProblem, config: Config, adapted: Any, batches: Any) -> Update:
    """Maximise the clipped surrogate (Schulman et al. 2017, eq 7); `adapted` is returned unchanged."""
    clip = config.inner.clip_range

    def objective(part: LocalProblem, theta: Any) -> Any:
        ratio = part.ratio(theta)
        clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
        return part.mean(tf.minimum(ratio * part.advantage, clipped * part.advantage))

    return maximised(problem, objective, config, adapted, batches)
