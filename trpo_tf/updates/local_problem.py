"""The local problem: surrogate, divergence and curvature of a policy over one frozen batch."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from trpo_tf.policies.encoders import without_mask
from trpo_tf.policies.heads.head import Head, Parameters
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.recurrence.sequences import Sequences, chunks, selected
from trpo_tf.solvers.fisher_product import Linearization, gauss_newton_product, linearize

tfd = tfp.distributions


class Rows(NamedTuple):
    """A batch of B transitions; a row of weight 0 is ignored, whatever its advantage."""

    inputs: Any  # [B, ...], encoded observations; a tuple of them for a network of several inputs, or `Sequences`
    sample: Any  # [B, ...], samples of the policy's distribution
    advantage: Any  # [B]
    weight: Any  # [B]


def kl_divergence(head: Head, *, old: Parameters, new: Parameters) -> Any:
    """Return KL(old || new) of each row, [B]: the direction that TRPO constrains (Schulman et al. 2015, eq 12)."""
    return tfd.kl_divergence(head.distribution(old), head.distribution(new))


class LocalProblem:
    """Surrogate, KL divergence and derivatives of policies near `theta`, all over the same rows.

    Means over rows are weighted. Instances are made inside a traced function: their members are tensors.
    """

    def __init__(
        self,
        policy: Policy,
        theta: Any,
        rows: Rows,
        branches: int | None = None,
        gain_of_entropy: Callable[[Any], Any] | None = None,
    ) -> None:
        """Set up the problem at the old policy, `theta` [P].

        With `branches`, each group of that many rows holds actions of one state, and the surrogate is the vine's. Their
        weights pi_old(a|s) / q(a|s) add up to the state's weight. With `gain_of_entropy`, that function of the policy's
        mean entropy is added to the surrogate.
        """
        self._branches, self._gain_of_entropy = branches, gain_of_entropy
        # Advantages of rows that do not count may be NaN, and in a gradient 0 x NaN would be NaN.
        self.advantage = tf.where(rows.weight > 0, rows.advantage, tf.zeros_like(rows.advantage))
        self.theta = theta
        self._policy, self._inputs, self._sample = policy, rows.inputs, rows.sample
        self._share = rows.weight / tf.reduce_sum(rows.weight)
        self._old = policy.parameters(theta, rows.inputs)
        self._old_log_prob = policy.head.log_prob(self._old, rows.sample)

    def rows(self, indices: Any) -> "LocalProblem":
        """Return the same problem over the rows with these indices, int32 [M].

        Of a recurrent policy also over sequences, int32 [L, M]; see `trpo_tf.policies.recurrence.sequences.selected`.
        """
        part = copy.copy(self)
        part._branches = None
        part._inputs, flat = selected(self._inputs, indices), tf.reshape(indices, [-1])
        every = (self.advantage, self._sample, self._old, self._old_log_prob, self._share)
        part.advantage, part._sample, part._old, part._old_log_prob, share = tf.nest.map_structure(
            lambda array: tf.gather(array, flat), every
        )
        part._share = tf.math.divide_no_nan(share, tf.reduce_sum(share))
        return part

    def every(self, stride: int) -> "LocalProblem":
        """Return the problem over every `stride`-th row; the vine's, over all rows of every `stride`-th state.

        A recurrent policy's is over every `stride`-th of short sequences.
        """
        if isinstance(without_mask(self._inputs), Sequences) and self._branches is None:
            length, n = without_mask(self._inputs).goes_on.shape
            return self.rows(tf.constant(chunks(length, n)[:, ::stride]))
        group = self._branches or 1
        rows = tf.reshape(tf.range(tf.shape(self.advantage)[0]), (-1, group))
        return self.rows(tf.reshape(rows[::stride], [-1]))

    def ratio(self, theta: Any) -> Any:
        """Return the probability of each row's sample under `theta` over that under the old policy, [B]."""
        return self._ratio(self._policy.parameters(theta, self._inputs))

    def surrogate(self, theta: Any) -> Any:
        """Return the mean of ratio x advantage (Schulman et al. 2015, eq 14), and the entropy's gain if there is one.

        To first order, the former is the gain over the old policy.
        """
        return self._surrogate(self._policy.parameters(theta, self._inputs))

    def gradient(self) -> tuple[Any, Any]:
        """Return the surrogate and its gradient [P] at the old policy."""
        linear = self._policy.linearize(self.theta, self._inputs)
        with tf.GradientTape() as tape:
            tape.watch(linear.value)
            surrogate = self._surrogate(linear.value)
        return surrogate, linear.backward(tape.gradient(surrogate, linear.value))

    def kl(self, theta: Any) -> tuple[Any, Any]:
        """Return the mean and the largest KL(old || new) over the rows of positive weight."""
        new = self._policy.parameters(theta, self._inputs)
        divergence = kl_divergence(self._policy.head, old=self._old, new=new)
        counted = tf.where(self._share > 0, divergence, tf.zeros_like(divergence))
        return self.mean(divergence), tf.reduce_max(counted)

    @property
    def fisher_vector_product(self) -> Callable[[Any], Any]:
        """Function v -> F v, with F the mean Fisher information: the Hessian of the mean KL at the old policy.

        Read this before a loop of products: the products then share what does not change.
        """
        linear = self._policy.linearize(self.theta, self._inputs)

        def metric(parameters: Parameters, tangent: Parameters) -> Parameters:
            return tuple(
                product * tf.reshape(self._share, (-1, *[1] * (product.shape.rank - 1)))
                for product in self._policy.head.metric(parameters, tangent)
            )

        return lambda vector: gauss_newton_product(linear, metric, vector)

    def kl_hessian_product(self, vector: Any) -> Any:
        """Return F v, as the Hessian of the mean KL times `vector`, by double backpropagation.

        See Schulman et al. 2015, appendix C.1.
        """
        with tf.GradientTape() as outer:
            outer.watch(self.theta)
            with tf.GradientTape() as inner:
                inner.watch(self.theta)
                mean_kl, _ = self.kl(self.theta)
            slope = tf.tensordot(inner.gradient(mean_kl, self.theta), vector, 1)
        return outer.gradient(slope, self.theta)

    @property
    def score(self) -> Linearization:
        """Products with psi, whose row b is the score grad log pi(a_b | s_b) at the old policy.

        `forward` maps v [P] to psi v [B]. `backward` maps values w [B] to the mean of score x value, psi' w [P]. Read
        this before a loop of products: the products then share what does not change.
        """
        linear = self._policy.linearize(self.theta, self._inputs)
        head = linearize(lambda parameters: self._policy.head.log_prob(parameters, self._sample), linear.value)
        return Linearization(
            head.value,
            lambda vector: head.forward(linear.forward(vector)),
            lambda values: linear.backward(head.backward(self._share * values)),
        )

    def entropy(self) -> Any:
        """Return the mean entropy of the old policy, in nats; if it squashes, that of the sample before squashing."""
        return self._mean_entropy(self._old)

    def mean(self, values: Any) -> Any:
        """Return the weighted mean over the rows of values [B]."""
        # XLA makes one kernel of a dot product, and three of a sum.
        return tf.tensordot(self._share, values, 1)

    def _surrogate(self, parameters: Parameters) -> Any:
        gain = self._gain(self._ratio(parameters))
        if self._gain_of_entropy is None:
            return gain
        return gain + self._gain_of_entropy(self._mean_entropy(parameters))

    def _gain(self, ratio: Any) -> Any:
        if self._branches is None:
            return self.mean(ratio * self.advantage)
        # Self-normalised importance sampling within each state (Schulman et al. 2015, eq 16). With all actions there it
        # is the exact sum (eq 15).
        weighted = tf.reshape(self._share * ratio, (-1, self._branches))
        advantage = tf.reshape(self.advantage, (-1, self._branches))
        state_share = tf.reduce_sum(tf.reshape(self._share, (-1, self._branches)), axis=1)
        gain = tf.math.divide_no_nan(tf.reduce_sum(weighted * advantage, axis=1), tf.reduce_sum(weighted, axis=1))
        return tf.reduce_sum(state_share * gain)

    def _mean_entropy(self, parameters: Parameters) -> Any:
        return self.mean(self._policy.head.distribution(parameters).entropy())

    def _ratio(self, parameters: Parameters) -> Any:
        return tf.exp(self._policy.head.log_prob(parameters, self._sample) - self._old_log_prob)
