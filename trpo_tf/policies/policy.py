"""The policy: one inference function, from observation and noise to action, for training, export and serving."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from export import PolicySpec
from serving import ArraySpec
from trpo_tf.normalization import OBSERVATION_CLIP, Normalizer
from trpo_tf.policies.heads import CategoricalHead, Head, Parameters
from trpo_tf.policies.networks import PureNetwork


class Policy:
    """A network and a head, as functions of a flat parameter vector `theta` [P] and frozen normaliser statistics."""

    def __init__(
        self,
        network: keras.Model,
        head: Head,
        observation: ArraySpec,
        action: ArraySpec,
        *,
        normalize: bool = True,
    ) -> None:
        """Raises `UserError` if the network does not fit observation and head."""
        self.head = head
        self.spec = PolicySpec(observation, action, head.noise)
        self.network = PureNetwork(network, observation.shape[0], head.inputs, head.extra_shapes)
        self.normalize = normalize

    def initial_theta(self) -> NDArray[np.float32]:
        """The network's present weights and the head's own parameters."""
        return self.network.flat(*self.head.initial_extra())

    def standardized(self, normalizer: Normalizer, observation: Any) -> Any:
        """What the networks see, float [batch, obs]: standardised and clipped, or as it is without normaliser."""
        values = tf.cast(observation, normalizer.mean.dtype)
        if not self.normalize:
            return values
        values = (values - normalizer.mean) * normalizer.scale
        return tf.clip_by_value(values, -OBSERVATION_CLIP, OBSERVATION_CLIP)

    def parameters(self, theta: Any, inputs: Any) -> Parameters:
        """The distribution's parameters for standardised inputs [batch, obs]."""
        return self._parameters(self.network.split(theta), inputs)

    def act(self, parts: list[Any], normalizer: Normalizer, observation: Any, noise: Any) -> tuple[Any, Any]:
        """The inference function: action in the environment's units, and the sample behind it.

        `parts` are the weights as `PureNetwork.split` gives them, observation is [batch, ...], noise [batch, k].
        """
        parameters = self._parameters(parts, self.standardized(normalizer, observation))
        sample = self.head.sample(parameters, noise)
        return self.head.action(sample), sample

    def scores(self, parts: list[Any], normalizer: Normalizer, observation: Any, noise: Any) -> Any:
        """For a categorical policy, what its action maximises: noisy logits [batch, n]."""
        assert isinstance(self.head, CategoricalHead)
        return self.head.scores(self._parameters(parts, self.standardized(normalizer, observation)), noise)

    def _parameters(self, parts: list[Any], inputs: Any) -> Parameters:
        return self.head.parameters(*self.network.apply(parts, inputs))


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy with its parameters: what is exported."""

    policy: Policy
    theta: NDArray[np.float32]
    normalizer: Normalizer

    @property
    def spec(self) -> PolicySpec:
        """Observation, action and noise."""
        return self.policy.spec

    @property
    def is_categorical(self) -> bool:
        """Whether actions are the argmax of `scores`."""
        return isinstance(self.policy.head, CategoricalHead)

    def function(self, observation: Any, noise: Any) -> Any:
        """The action: an `export.InferenceFunction`, with the weights as constants."""
        return self.policy.act(self._parts, self.normalizer, observation, noise)[0]

    def scores(self, observation: Any, noise: Any) -> Any:
        """See `Policy.scores`."""
        return self.policy.scores(self._parts, self.normalizer, observation, noise)

    @property
    def _parts(self) -> list[Any]:
        return [tf.constant(part) for part in self.policy.network.split_array(self.theta)]
