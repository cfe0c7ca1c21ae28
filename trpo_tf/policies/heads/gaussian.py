"""The head of continuous actions: a diagonal Gaussian."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import NDArray

from trpo_tf.errors import UserError
from trpo_tf.policies.heads.head import Head, Parameters
from trpo_tf.serving import ArraySpec, NoiseSpec

tfd = tfp.distributions

_LEAST_ACTIONS = 256
"""Number of actions that float32, in which actions are computed, must tell apart between two bounds."""

_WIDE = 1e9
"""A bound this large or larger, such as the largest float, stands for a missing one: it does not tell the scale of
actions."""

_LEAST_UNIT_STD = 0.5
"""Lower limit of an initial deviation of one unit, in half widths: a unit tells little of a range such as 0 to 255."""

_LOWEST_LOG_STD = -4.0
"""Lower limit of a log standard deviation that depends on the state; the update divides by the deviation."""


class GaussianHead(Head):
    """A diagonal Gaussian; parameters (mean, log_std) [batch, k] each, samples float [batch, k].

    With two bounds a sample is in units of the action range: 0 is the middle, +-1 are the bounds. Otherwise it is in
    the action's own units, and sample 0 is action 0. If action 0 lies beyond the only bound, sample 0 is the action 1
    inside of that bound. Here a bound of 1e9 or more counts as missing.

    The log standard deviation is a parameter of the policy, the same for all observations. With `state_dependent_std`
    the network outputs what each observation adds to it. With `unit_std` the initial standard deviation is at most one
    unit of the action, or a quarter of the action range if that is more.

    With `squash` the action is tanh of the sample. Log-probabilities and KL stay those of the sample: the Jacobian of
    tanh cancels in the ratio and leaves the KL unchanged.

    With `censored` a sample beyond a bound has the probability of all samples beyond it (Fujita & Maeda 2018). The
    environment can't tell them apart, so the gradient keeps its mean and loses variance. KL and Fisher information stay
    those of the samples, which are upper bounds of the clipped actions'.
    """

    parameter_names = ("mean", "log_std")

    def __init__(
        self,
        spec: ArraySpec,
        *,
        initial_log_std: float = 0.0,
        unit_std: bool = False,
        state_dependent_std: bool = False,
        squash: bool = False,
        censored: bool = False,
    ) -> None:
        """Make the head of the action `spec`. Raises `UserError` if `squash` is set for an action without bounds."""
        low, high = spec.bounds()
        has_low, has_high = low > -_WIDE, high < _WIDE
        bounded = has_low & has_high
        if squash and not bounded.all():
            raise UserError("squash needs an action space with bounds; this one has none, so clip instead")
        self._low, self._high = np.where(has_low, low, -np.inf), np.where(has_high, high, np.inf)
        # Where 0 lies beyond the only bound, every sample near it would be clipped to the same action.
        nearest = np.where(has_low & (low > 0), low + 1.0, np.where(has_high & (high < 0), high - 1.0, 0.0))
        ends = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self._middle = np.where(bounded, (ends[0] + ends[1]) / 2, nearest).astype(np.float32)
        # An action whose bounds are equal is clipped to them; its sample has a unit of 1, since it divides by it.
        self._half_width = np.where(ends[0] == ends[1], 1.0, (ends[1] - ends[0]) / 2).astype(np.float32)
        _check_resolution(*ends, spec)
        self._shape, self._dtype = spec.shape, spec.dtype
        self._squash, self._censored = squash, censored
        self._state_dependent_std = state_dependent_std
        count = int(np.prod(spec.shape))
        self.inputs = 2 * count if state_dependent_std else count
        self.extra_shapes = ((count,),)
        most = np.maximum(1.0 / self._half_width, _LEAST_UNIT_STD) if unit_std else np.inf
        initial = np.minimum(initial_log_std, np.log(most))
        self._initial_log_std = np.broadcast_to(initial, spec.shape).astype(np.float32).ravel()
        self.noise = NoiseSpec("normal", (count,))

    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Return the initial log standard deviation."""
        return [self._initial_log_std.copy()]

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:
        """Return the mean and the log standard deviation, each [batch, k].

        The latter is repeated for each row; with `state_dependent_std`, the row's addition is added.
        """
        if not self._state_dependent_std:
            return output, tf.broadcast_to(extra[0], tf.shape(output))
        mean, added = tf.split(output, 2, axis=-1)
        return mean, tf.maximum(extra[0] + added, _LOWEST_LOG_STD)

    def distribution(self, parameters: Parameters) -> Any:
        """Return the distribution over samples, before squashing and clipping."""
        mean, log_std = parameters
        return tfd.Independent(tfd.Normal(mean, tf.exp(log_std)), reinterpreted_batch_ndims=1)

    def log_prob(self, parameters: Parameters, sample: Any) -> Any:
        """Return the log-probability [batch] of the samples, or if censored of the clipped samples."""
        if not self._censored:
            return super().log_prob(parameters, sample)
        normal = tfd.Normal(parameters[0], tf.exp(parameters[1]))
        low, high = (((bound - self._middle) / self._half_width).ravel() for bound in (self._low, self._high))
        # An infinite bound clips nothing, so tf.where does not take its branch. A finite one takes its place, since
        # the gradient of the branch would be NaN even so.
        lowest, highest = (tf.constant(np.where(np.isfinite(bound), bound, 0.0), sample.dtype) for bound in (low, high))
        log_prob = normal.log_prob(tf.clip_by_value(sample, low, high))
        log_prob = tf.where(sample > low, log_prob, normal.log_cdf(lowest))
        log_prob = tf.where(sample < high, log_prob, normal.log_survival_function(highest))
        return tf.reduce_sum(log_prob, axis=-1)

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Return (t_mean / std^2, 2 t_log_std) for the tangent (t_mean, t_log_std)."""
        return tangent[0] * tf.exp(-2.0 * parameters[1]), 2.0 * tangent[1]

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """Return mean + std * noise."""
        return parameters[0] + tf.exp(parameters[1]) * noise

    def action(self, sample: Any) -> Any:
        """Return the sample, squashed if so configured, scaled to the action range, then clipped to it."""
        unscaled = tf.reshape(tf.tanh(sample) if self._squash else sample, (-1, *self._shape))
        action = tf.cast(self._middle + self._half_width * unscaled, self._dtype)
        return tf.clip_by_value(action, self._low.astype(self._dtype), self._high.astype(self._dtype))


def _check_resolution(low: NDArray[np.floating], high: NDArray[np.floating], spec: ArraySpec) -> None:
    """Raise `UserError` for float64 bounds between which float32 has too few numbers to act with."""
    if spec.dtype != "float64":
        return
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(np.float64)
    coarse = (low < high) & (high - low < _LEAST_ACTIONS * step)
    if coarse.any():
        place = int(np.argmax(coarse))
        between = f"{low.ravel()[place]:.12g} and {high.ravel()[place]:.12g}"
        raise UserError(
            f"action bounds {between} are too close for float32, whose numbers there are {step.ravel()[place]:g} "
            "apart; let the action be the difference from a constant that the environment adds"
        )
