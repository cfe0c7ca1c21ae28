"""Heads: from a network's output to a distribution, a sample, and an action in the environment's units.

A head's parameters are a tuple of tensors [batch, ...]. `metric` is the Fisher information of the distribution in
those parameters, applied to a tangent; with the network's Jacobian J it makes the Fisher matrix J' M J of the policy
(Gauss-Newton), which equals the Hessian of KL(old || new) at new = old.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec, NoiseSpec

tfd = tfp.distributions

Parameters = tuple[Any, ...]

_IMPOSSIBLE = -1e9
"""A logit so low that its probability is 0 in float32."""

_WIDE = 1e9
"""A bound beyond this is stated for want of one, as the largest float is; it says nothing of the scale of actions."""

_LOWEST_LOG_STD = -4.0
"""Of a deviation that the network answers, which divides what the update learns from."""


class Head(ABC):
    """What the policy's distribution is; see the module."""

    inputs: int
    """Width of the network's output."""
    extra_shapes: tuple[tuple[int, ...], ...]
    """Shapes of parameters that do not depend on the observation."""
    noise: NoiseSpec
    parameter_names: tuple[str, ...] = ("logits",)

    @abstractmethod
    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Values of the extra parameters at the start."""

    @abstractmethod
    def parameters(self, output: Any, extra: list[Any]) -> Parameters:
        """From the network's output [batch, inputs] and the extra parameters."""

    @abstractmethod
    def distribution(self, parameters: Parameters) -> Any:
        """The TFP distribution over samples."""

    def log_prob(self, parameters: Parameters, sample: Any) -> Any:
        """Log-probability of the samples, [batch], or of what they count for."""
        return self.distribution(parameters).log_prob(sample)

    @abstractmethod
    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Fisher information at `parameters` times `tangent`, row by row."""

    @abstractmethod
    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """The sample that `noise` [batch, k] makes; with zero noise the distribution's mode."""

    @abstractmethod
    def action(self, sample: Any) -> Any:
        """The sample as an action in the environment's units, dtype, shape and bounds."""


class DiscreteHead(Head):
    """Independent choices, each of a few; parameters (logits [batch, ..., n],) over the last axis.

    With standard Gumbel noise added, the largest logit is a sample (the Gumbel-max trick).
    """

    extra_shapes = ()

    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """None."""
        return []

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """(diag(p) - p p') t, choice by choice."""
        probabilities = tf.nn.softmax(parameters[0])
        weighted = probabilities * tangent[0]
        return (weighted - probabilities * tf.reduce_sum(weighted, axis=-1, keepdims=True),)

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """The choices of the largest scores, int64 [batch, ...]."""
        return tf.argmax(self.scores(parameters, noise), axis=-1, output_type=tf.int64)

    @abstractmethod
    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """What the sample maximises over the last axis, [batch, ..., n]."""

    @abstractmethod
    def uniform_samples(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Samples int64 [shape, ...], every choice as likely as any other."""


class CategoricalHead(DiscreteHead):
    """One of n actions; parameters (logits [batch, n],), samples int64 [batch]."""

    def __init__(self, spec: ArraySpec) -> None:
        """`spec` is the action's: its bounds are the first and the last choice."""
        self._start, self._dtype = int(spec.low), spec.dtype  # type: ignore[arg-type]
        self.inputs = int(spec.high) - self._start + 1  # type: ignore[arg-type]
        self.noise = NoiseSpec("gumbel", (self.inputs,))

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """The logits."""
        return (output,)

    def distribution(self, parameters: Parameters) -> Any:
        """Over 0 to n - 1."""
        return tfd.Categorical(logits=parameters[0])

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Noisy logits."""
        return parameters[0] + noise

    def uniform_samples(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One of n."""
        return rng.integers(self.inputs, size=shape)

    def action(self, sample: Any) -> Any:
        """Counted from the space's first action."""
        return tf.cast(sample + self._start if self._start else sample, self._dtype)


class MultiCategoricalHead(DiscreteHead):
    """k choices of n_1 to n_k; parameters (logits [batch, k, max n],), samples int64 [batch, k].

    Choices with fewer than the most options are padded with ones that have no probability.
    """

    def __init__(self, spec: ArraySpec) -> None:
        """`spec` is the action's: its bounds are the first and the last of each choice."""
        low, high = spec.bounds()
        self._counts = counts = (high - low).astype(np.int64).ravel() + 1
        self._first, self._shape, self._dtype = low.astype(np.int64), spec.shape, spec.dtype
        self.inputs = int(counts.sum())
        self.noise = NoiseSpec("gumbel", (self.inputs,))
        option = np.arange(counts.max())
        offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
        exists = option < counts[:, None]
        # Where each option stands in the network's output. One that does not exist reads the choice's first, and its
        # logit is lowered by addition: a constant so large among the values would spoil their quantisation.
        self._columns = offsets[:, None] + np.where(exists, option, 0)
        self._lowered = np.where(exists, 0.0, _IMPOSSIBLE)

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """The logits, padded."""
        logits = self._padded(output)
        return (logits + tf.constant(self._lowered, logits.dtype),)

    def distribution(self, parameters: Parameters) -> Any:
        """Over k independent choices."""
        return tfd.Independent(tfd.Categorical(logits=parameters[0]), reinterpreted_batch_ndims=1)

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Noisy logits; an option that does not exist stays out of reach."""
        return parameters[0] + self._padded(noise)

    def uniform_samples(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One of n_i each."""
        return rng.integers(self._counts, size=(*shape, len(self._counts)))

    def action(self, sample: Any) -> Any:
        """In the space's shape, each counted from its first option."""
        return tf.cast(tf.reshape(sample, (-1, *self._shape)) + self._first, self._dtype)

    def _padded(self, values: Any) -> Any:
        return tf.gather(values, self._columns, axis=1)


class BernoulliHead(DiscreteHead):
    """k independent bits; parameters (log-odds [batch, k],), samples int64 [batch, k]."""

    def __init__(self, spec: ArraySpec) -> None:
        """`spec` is the action's."""
        self._shape, self._dtype = spec.shape, spec.dtype
        self.inputs = int(np.prod(spec.shape))
        self.noise = NoiseSpec("logistic", (self.inputs,))

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """The log-odds."""
        return (output,)

    def distribution(self, parameters: Parameters) -> Any:
        """Over k bits."""
        bits = tfd.Bernoulli(logits=parameters[0], dtype=tf.int64)
        return tfd.Independent(bits, reinterpreted_batch_ndims=1)

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """p (1 - p) t."""
        probability = tf.sigmoid(parameters[0])
        return (probability * (1.0 - probability) * tangent[0],)

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """0 against noisy log-odds, [batch, k, 2]: a bit is 1 where they are positive."""
        noisy = parameters[0] + noise
        return tf.stack([tf.zeros_like(noisy), noisy], axis=-1)

    def uniform_samples(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Fair coins."""
        return rng.integers(2, size=(*shape, self.inputs))

    def action(self, sample: Any) -> Any:
        """In the space's shape."""
        return tf.cast(tf.reshape(sample, (-1, *self._shape)), self._dtype)


class GaussianHead(Head):
    """A diagonal Gaussian; parameters (mean, log_std) [batch, k] each, samples float [batch, k].

    A sample is in units of the action range: 0 its middle, +-1 its bounds, where it has both; the action's own units
    otherwise, counted from 0 or, where that lies beyond the one bound that there is, from 1 inside of it. A bound of
    1e9 or more is none, as far as units go. The log standard deviation is part of the policy's parameters and one for
    all observations; with `state_dependent_std` the network answers what each observation adds to it. With `squash` the
    action is tanh of the sample; log-probabilities and KL stay those of the sample, since the Jacobian of tanh cancels
    in the ratio and leaves the KL unchanged. With `censored` a sample beyond a bound counts by the probability of all
    those beyond it (Fujita & Maeda 2018): the environment can't tell one from another, so the gradient keeps its mean
    and loses variance. KL and Fisher information stay the samples', which bound those.
    """

    parameter_names = ("mean", "log_std")

    def __init__(
        self,
        spec: ArraySpec,
        *,
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
        squash: bool = False,
        censored: bool = False,
    ) -> None:
        """`spec` is the action's. Raises `UserError` when asked to squash an action without bounds."""
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
        self._half_width = ((ends[1] - ends[0]) / 2).astype(np.float32)
        self._shape, self._dtype = spec.shape, spec.dtype
        self._initial_log_std, self._squash, self._censored = initial_log_std, squash, censored
        self._state_dependent_std = state_dependent_std
        count = int(np.prod(spec.shape))
        self.inputs = 2 * count if state_dependent_std else count
        self.extra_shapes = ((count,),)
        self.noise = NoiseSpec("normal", (count,))

    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """The log standard deviation."""
        return [np.full(self.extra_shapes[0], self._initial_log_std, np.float32)]

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:
        """The mean, and the log standard deviation: repeated for each row, or with what the row adds to it."""
        if not self._state_dependent_std:
            return output, tf.broadcast_to(extra[0], tf.shape(output))
        mean, added = tf.split(output, 2, axis=-1)
        return mean, tf.maximum(extra[0] + added, _LOWEST_LOG_STD)

    def distribution(self, parameters: Parameters) -> Any:
        """Over samples, before the squash and the bounds."""
        mean, log_std = parameters
        return tfd.Independent(tfd.Normal(mean, tf.exp(log_std)), reinterpreted_batch_ndims=1)

    def log_prob(self, parameters: Parameters, sample: Any) -> Any:
        """Of the samples, or if they are censored of what is left of them by the bounds."""
        if not self._censored:
            return super().log_prob(parameters, sample)
        normal = tfd.Normal(parameters[0], tf.exp(parameters[1]))
        low, high = (((bound - self._middle) / self._half_width).ravel() for bound in (self._low, self._high))
        # A bound at infinity clips nothing; in its place one that has a gradient.
        lowest, highest = (tf.constant(np.where(np.isfinite(bound), bound, 0.0), sample.dtype) for bound in (low, high))
        log_prob = normal.log_prob(tf.clip_by_value(sample, low, high))
        log_prob = tf.where(sample > low, log_prob, normal.log_cdf(lowest))
        log_prob = tf.where(sample < high, log_prob, normal.log_survival_function(highest))
        return tf.reduce_sum(log_prob, axis=-1)

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """(t_mean / std^2, 2 t_log_std)."""
        return tangent[0] * tf.exp(-2.0 * parameters[1]), 2.0 * tangent[1]

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """mean + std * noise."""
        return parameters[0] + tf.exp(parameters[1]) * noise

    def action(self, sample: Any) -> Any:
        """Squashed or not, scaled to the action range, then clipped to it."""
        unscaled = tf.reshape(tf.tanh(sample) if self._squash else sample, (-1, *self._shape))
        action = tf.cast(self._middle + self._half_width * unscaled, self._dtype)
        return tf.clip_by_value(action, self._low.astype(self._dtype), self._high.astype(self._dtype))


def make_head(spec: ArraySpec, **gaussian: Any) -> Head:
    """The head for an action spec: Gaussian for floats, by its keywords; for integers one choice, several, or bits."""
    if np.dtype(spec.dtype).kind == "f":
        return GaussianHead(spec, **gaussian)
    low, high = spec.bounds()
    if spec.shape == ():
        return CategoricalHead(spec)
    return BernoulliHead(spec) if (low == 0).all() and (high == 1).all() else MultiCategoricalHead(spec)
