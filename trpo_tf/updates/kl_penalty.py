"""The KL-penalised update, with a fixed or an adaptive coefficient."""

from typing import Any

import tensorflow as tf

from trpo_tf.config.settings import Config
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.minibatch import maximised
from trpo_tf.updates.result import Update, UpdateStatus

_LEAST_COEFFICIENT, _MOST_COEFFICIENT = 1e-3, 1e3


def kl_penalty(problem: LocalProblem, config: Config, coefficient: Any, batches: Any) -> Update:
    """Maximise surrogate - coefficient x mean KL(old || new) (Schulman et al. 2015, section 4; 2017, eq 8).

    With `adapt_kl` the coefficient changes for the next update (Schulman et al. 2017, section 4). It is doubled if the
    mean KL is above 1.5 `max_kl`, and halved if it is below `max_kl` / 1.5. After a rejected update it stays the same.
    """

    def objective(part: LocalProblem, theta: Any) -> Any:
        return part.surrogate(theta) - coefficient * part.kl(theta)[0]

    update = maximised(problem, objective, config, coefficient, batches)
    if not config.inner.adapt_kl:
        return update
    target = config.trust_region.max_kl
    factor = tf.where(update.mean_kl > 1.5 * target, tf.constant(2.0, coefficient.dtype), tf.ones_like(coefficient))
    factor = tf.where(update.mean_kl < target / 1.5, tf.constant(0.5, coefficient.dtype), factor)
    factor = tf.where(update.status == UpdateStatus.ACCEPTED, factor, 1.0)
    return update._replace(adapted=tf.clip_by_value(coefficient * factor, _LEAST_COEFFICIENT, _MOST_COEFFICIENT))
