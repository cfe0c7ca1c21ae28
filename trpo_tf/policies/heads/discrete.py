"""Heads of discrete actions: one choice, several, or bits."""

from abc import abstractmethod
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.policies.heads.head import Head, Parameters
from trpo_tf.policies.heads.options import Options
from trpo_tf.serving import ArraySpec, NoiseSpec

tfd = tfp.distributions

_IMPOSSIBLE = -1e9
"""A logit so low that its probability is 0 in float32.

It is finite, since the difference of two infinite logits is NaN, and far from the largest float, so that products are
finite too.
"""


class DiscreteHead(Head):
    """Independent choices from a few options; parameters (logits [batch, ..., n],), options on the last axis.

    With standard Gumbel noise added, the largest logit is a sample (the Gumbel-max trick).
    """

    extra_shapes = ()
    options: Options
    """The options of each choice, from which the vine draws."""

    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Return no parameters: all of them depend on the observation."""
        return []

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Return (diag(p) - p p') t for each choice, with its probabilities p and tangent t."""
        probabilities = tf.nn.softmax(parameters[0])
        weighted = probabilities * tangent[0]
        return (weighted - probabilities * tf.reduce_sum(weighted, axis=-1, keepdims=True),)

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """Return the options with the largest scores, int64 [batch, ...]."""
        return tf.argmax(self.scores(parameters, noise), axis=-1, output_type=tf.int64)

    @abstractmethod
    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Return the scores [batch, ..., n]; the sample maximises them over the last axis."""


class MaskableHead(DiscreteHead):
    """Choices of which some options may be illegal, as a mask says: `legal`, bool [batch, inputs].

    The options of several choices stand side by side in a mask.
    """

    def mask(self, output: Any, legal: Any) -> Any:
        """Return the network's output [batch, inputs] with probability 0 for the options that are not legal.

        What follows from these logits is that of the distribution over legal options: log-probability, entropy, KL and
        Fisher information. The gradient of a masked logit is 0. If a choice has no legal option, all of its options
        have the same probability.
        """
        return tf.where(legal, output, tf.constant(_IMPOSSIBLE, output.dtype))

    def legal_scores(self, parameters: Parameters, noise: Any, legal: Any) -> Any:
        """Return the scores [batch, ..., n] for parameters without mask; illegal options have the lowest number."""
        # After the noise. So no noise makes an illegal option the largest, and the low number is not next to a product,
        # whose range in 8 bits LiteRT would widen to it.
        scores = self.scores(parameters, noise)
        return tf.where(self._by_choice(legal), scores, tf.as_dtype(scores.dtype).min)

    def legal_sample(self, parameters: Parameters, noise: Any, legal: Any) -> Any:
        """Return the legal options with the largest scores, int64 [batch, ...]; the first if none is legal."""
        return tf.argmax(self.legal_scores(parameters, noise, legal), axis=-1, output_type=tf.int64)

    @abstractmethod
    def _by_choice(self, legal: Any) -> Any:
        """Return a mask [batch, inputs] in the shape of the logits."""


class CategoricalHead(MaskableHead):
    """One of n actions; parameters (logits [batch, n],), samples int64 [batch]."""

    def __init__(self, spec: ArraySpec) -> None:
        """Make the head of the action `spec`, whose bounds are the first and the last choice."""
        self._start, self._dtype = int(spec.low), spec.dtype  # type: ignore[arg-type]
        self.inputs = int(spec.high) - self._start + 1  # type: ignore[arg-type]
        self.options = Options((self.inputs,), is_single=True)
        self.noise = NoiseSpec("gumbel", (self.inputs,))

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """Return the logits, which the network outputs."""
        return (output,)

    def distribution(self, parameters: Parameters) -> Any:
        """Return the distribution over 0 to n - 1."""
        return tfd.Categorical(logits=parameters[0])

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Return the logits with noise added."""
        return parameters[0] + noise

    def _by_choice(self, legal: Any) -> Any:
        return legal

    def action(self, sample: Any) -> Any:
        """Return the choice, counted from the space's first action."""
        return tf.cast(sample + self._start if self._start else sample, self._dtype)


class MultiCategoricalHead(MaskableHead):
    """k choices with n_1 to n_k options; parameters (logits [batch, k, max n],), samples int64 [batch, k].

    Choices with fewer options than the largest are padded with options of probability 0.
    """

    def __init__(self, spec: ArraySpec) -> None:
        """Make the head of the action `spec`, whose bounds are the first and the last option of each choice."""
        low, high = spec.bounds()
        counts = (high - low).astype(np.int64).ravel() + 1
        self._first, self._shape, self._dtype = low.astype(np.int64), spec.shape, spec.dtype
        self.inputs, self.options = int(counts.sum()), Options(tuple(counts.tolist()))
        self.noise = NoiseSpec("gumbel", (self.inputs,))
        option = np.arange(counts.max())
        offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
        exists = option < counts[:, None]
        # Column of each option in the network's output. An option that does not exist reads its choice's first column,
        # and a constant is added to lower its logit: so large a number among the logits would spoil quantisation.
        self._columns = offsets[:, None] + np.where(exists, option, 0)
        self._lowered = np.where(exists, 0.0, _IMPOSSIBLE)

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """Return the padded logits."""
        logits = self._padded(output)
        return (logits + tf.constant(self._lowered, logits.dtype),)

    def distribution(self, parameters: Parameters) -> Any:
        """Return the distribution over k independent choices."""
        return tfd.Independent(tfd.Categorical(logits=parameters[0]), reinterpreted_batch_ndims=1)

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Return the logits with noise added; an option that does not exist is never the largest."""
        return parameters[0] + self._padded(noise)

    def _by_choice(self, legal: Any) -> Any:
        return self._padded(legal)

    def action(self, sample: Any) -> Any:
        """Return the choices in the space's shape, each counted from its first option."""
        return tf.cast(tf.reshape(sample, (-1, *self._shape)) + self._first, self._dtype)

    def _padded(self, values: Any) -> Any:
        return tf.gather(values, self._columns, axis=1)


class BernoulliHead(DiscreteHead):
    """k independent bits; parameters (log-odds [batch, k],), samples int64 [batch, k]."""

    def __init__(self, spec: ArraySpec) -> None:
        """Make the head of the action `spec`."""
        self._shape, self._dtype = spec.shape, spec.dtype
        self.inputs = int(np.prod(spec.shape))
        self.options = Options((2,) * self.inputs)
        self.noise = NoiseSpec("logistic", (self.inputs,))

    def parameters(self, output: Any, extra: list[Any]) -> Parameters:  # noqa: ARG002
        """Return the log-odds, which the network outputs."""
        return (output,)

    def distribution(self, parameters: Parameters) -> Any:
        """Return the distribution over k bits."""
        bits = tfd.Bernoulli(logits=parameters[0], dtype=tf.int64)
        return tfd.Independent(bits, reinterpreted_batch_ndims=1)

    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Return p (1 - p) t, with the bits' probabilities p and tangent t."""
        probability = tf.sigmoid(parameters[0])
        return (probability * (1.0 - probability) * tangent[0],)

    def scores(self, parameters: Parameters, noise: Any) -> Any:
        """Return 0 and the noisy log-odds, [batch, k, 2]: a bit is 1 where the latter are positive."""
        noisy = parameters[0] + noise
        return tf.stack([tf.zeros_like(noisy), noisy], axis=-1)

    def action(self, sample: Any) -> Any:
        """Return the bits in the space's shape."""
        return tf.cast(tf.reshape(sample, (-1, *self._shape)), self._dtype)
