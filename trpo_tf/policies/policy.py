"""The policy: one inference function, from observation and noise to action, for training, export and serving.

A policy with memory takes a state and a reset as well, and returns the next state. Everything else, from the encoder to
the update, has to do with what its network sees: see `trpo_tf.policies.memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.export import PolicySpec
from trpo_tf.export.policy.functions import InferenceFunction, PolicyFunction
from trpo_tf.policies.core import NETWORK_ALONE, Core
from trpo_tf.policies.encoders import Encoder, MaskedInputs, without_mask
from trpo_tf.policies.heads.discrete import DiscreteHead, MaskableHead
from trpo_tf.policies.heads.head import Head, Parameters
from trpo_tf.policies.memory import Memory, State, Step
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.policies.running_stats import Moments, Normalizer
from trpo_tf.serving import ArraySpec
from trpo_tf.solvers.fisher_product import Linearization, linearize


class Policy:
    """Encoder, network and head, as functions of a flat parameter vector `theta` [P] and frozen statistics."""

    def __init__(
        self,
        encoder: Encoder,
        network: keras.Model,
        head: Head,
        observation: tuple[ArraySpec, ...],
        action: ArraySpec,
        memory: Memory | None = None,
        core: Core = NETWORK_ALONE,
        mask: str | None = None,
    ) -> None:
        """Combine the parts; the `core` maps the encoder's output to the head's input by the built network.

        `observation` is the environment's; the encoder takes what `memory` makes of it. `mask` names the part of it
        that tells which actions are legal, if one does.
        """
        self.encoder, self.head, self.memory, self.core = encoder, head, memory, core
        self.spec = PolicySpec(observation, action, head.noise, memory.state if memory else (), mask)
        self.network = PureNetwork(network, (*core.shapes, *head.extra_shapes))
        self._of_core = len(self.network.shapes) - len(head.extra_shapes)

    @property
    def is_discrete(self) -> bool:
        """Whether actions are the argmax of `scores`."""
        return isinstance(self.head, DiscreteHead)

    @property
    def network_inputs(self) -> Sequence[Any]:
        """`tf.TensorSpec`s of what the network takes."""
        return self.core.network_inputs(self.encoder)

    def initial_theta(self) -> NDArray[np.float32]:
        """Return the network's present weights, and the initial parameters of core and head, as one vector."""
        return self.network.flat(*self.core.initial_weights(), *self.head.initial_extra())

    def trained(self, theta: NDArray[np.float32], moments: Moments) -> "TrainedPolicy":
        """Return the policy with these parameters and moments of observations."""
        return TrainedPolicy(self, theta, self.encoder.normalizer(moments))

    def parameters(self, theta: Any, inputs: Any) -> Parameters:
        """Return the distribution's parameters for encoded observations [batch, ...].

        Those of a recurrent policy may be `Sequences`, whose states it then computes.
        """
        return self._parameters(self.network.split(theta), inputs)

    def recentred(
        self, theta: NDArray[np.float32], before: Moments, after: Moments, least_deviation: float
    ) -> NDArray[np.float32]:
        """Return parameters of the same policy with other statistics, as `PureNetwork.recentred` does."""
        kernels = (0, self._of_core - len(self.core.shapes)) if self.core.shapes else (0,)
        return self.network.recentred(theta, before, after, least_deviation, kernels)

    def linearize(self, theta: Any, inputs: Any) -> Linearization:
        """Return the linearisation at `theta` of `parameters`, for encoded observations."""
        parts, own = self.network.split(theta), self._of_core
        core = self.core.linearize(self.network, parts[:own], without_mask(inputs))
        head = linearize(lambda point: self._distribution(point[0], point[1:], inputs), [core.value, *parts[own:]])

        def forward(vector: Any) -> Any:
            tangents = self.network.split(vector)
            return head.forward([core.forward(tangents[:own]), *tangents[own:]])

        def backward(cotangent: Parameters) -> Any:
            output, *extra = head.backward(cotangent)
            return tf.concat([tf.reshape(part, [-1]) for part in (*core.backward(output), *extra)], axis=0)

        return Linearization(head.value, forward, backward)

    def log_prob(self, theta: Any, inputs: Any, sample: Any) -> Any:
        """Return the head's log-probability [batch] of samples [batch, ...] for encoded observations [batch, ...]."""
        return self.head.log_prob(self.parameters(theta, inputs), sample)

    def act(self, parts: list[Any], normalizer: Normalizer, observation: Any, noise: Any) -> tuple[Any, Any]:
        """Return the action in the environment's units, and the sample that it is made from.

        This is the inference function of a policy without memory; `step` is that of one with memory. `parts` are the
        weights as `PureNetwork.split` returns them. Observations are [batch, ...] as the network sees them, noise is
        [batch, k].
        """
        encoded = self.encoder(normalizer, observation)
        return self._drawn(self._unmasked(parts, encoded), noise, encoded)

    def step(
        self, parts: list[Any], normalizer: Normalizer, observation: Any, state: State, reset: Any, noise: Any
    ) -> Step:
        """Act with memory on the environment's observation, and return the next state too.

        `reset`, bool [batch], is true in rows that begin an episode; their `state` must be the initial one. Other
        arguments are as in `act`.
        """
        assert self.memory is not None
        seen = self.memory.observe(observation, state, reset)
        # Without the state, which 8 bits would have to hold in the observation's range.
        observed = self.encoder.observed(normalizer, seen)
        names = [spec.name for spec in self.memory.recurrent]
        before = tuple(state[name] for name in names)
        output, after = self.core.step(self.network, parts[: self._of_core], observed, before)
        parameters = self.head.parameters(output, parts[self._of_core :])
        action, sample = self._drawn(parameters, noise, self.encoder.with_mask(observed, seen))
        computed = dict(zip(names, after, strict=True))
        return Step(action, sample, seen, self.memory.advance(seen, state, action) | computed)

    def on_inputs(self, answer: InferenceFunction) -> PolicyFunction:
        """Return `answer`, a function of what the network sees and of noise, as one of the exported graph's inputs."""
        memory = self.memory
        if memory is None:
            return answer
        return lambda observation, state, reset, noise: answer(memory.observe(observation, state, reset), noise)

    def scores(self, parts: list[Any], normalizer: Normalizer, observation: Any, noise: Any) -> Any:
        """Return the scores [batch, ..., n] of a policy of discrete actions: each choice is their argmax."""
        encoded = self.encoder(normalizer, observation)
        parameters = self._unmasked(parts, encoded)
        if isinstance(encoded, MaskedInputs):
            assert isinstance(self.head, MaskableHead)
            return self.head.legal_scores(parameters, noise, encoded.legal)
        assert isinstance(self.head, DiscreteHead)
        return self.head.scores(parameters, noise)

    def _parameters(self, parts: list[Any], inputs: Any) -> Parameters:
        return self._distribution(self._output(parts, inputs), parts[self._of_core :], inputs)

    def _unmasked(self, parts: list[Any], inputs: Any) -> Parameters:
        """Return the distribution's parameters for encoded observations, as if every action were legal."""
        return self.head.parameters(self._output(parts, inputs), parts[self._of_core :])

    def _output(self, parts: list[Any], inputs: Any) -> Any:
        return self.core.output(self.network, parts[: self._of_core], without_mask(inputs))

    def _distribution(self, output: Any, extra: list[Any], inputs: Any) -> Parameters:
        """Return the distribution's parameters, from the network's output and the mask among `inputs`, if any."""
        if isinstance(inputs, MaskedInputs):
            assert isinstance(self.head, MaskableHead)
            output = self.head.mask(output, inputs.legal)
        return self.head.parameters(output, extra)

    def _drawn(self, parameters: Parameters, noise: Any, encoded: Any) -> tuple[Any, Any]:
        """Return action and sample, for parameters without mask and the mask among the encoded observations, if any."""
        if isinstance(encoded, MaskedInputs):
            assert isinstance(self.head, MaskableHead)
            sample = self.head.legal_sample(parameters, noise, encoded.legal)
        else:
            sample = self.head.sample(parameters, noise)
        return self.head.action(sample), sample


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy with its parameters and statistics, as it is exported."""

    policy: Policy
    theta: NDArray[np.float32]
    normalizer: Normalizer

    @property
    def spec(self) -> PolicySpec:
        """Specification of observation, action and noise."""
        return self.policy.spec

    @property
    def is_discrete(self) -> bool:
        """Whether actions are the argmax of `scores`."""
        return self.policy.is_discrete

    @property
    def function(self) -> PolicyFunction:
        """The inference function, with the weights as constants: the action, and with memory the next state."""
        if self.policy.memory is not None:
            return self._step
        return lambda observation, noise: self.policy.act(self._parts, self.normalizer, observation, noise)[0]

    @property
    def scores(self) -> PolicyFunction:
        """Function of the same arguments that gives the scores of `Policy.scores`."""
        return self.policy.on_inputs(lambda seen, noise: self.policy.scores(self._parts, self.normalizer, seen, noise))

    def distribution(self) -> dict[str, PolicyFunction]:
        """Return the distribution's parameters by name, as functions like `function`, which ignore the noise."""

        def parameter(place: int) -> PolicyFunction:
            def answer(seen: Any, _noise: Any) -> Any:
                inputs = self.policy.encoder(self.normalizer, seen)
                return self.policy.parameters(tf.constant(self.theta), inputs)[place]

            return self.policy.on_inputs(answer)

        return {name: parameter(place) for place, name in enumerate(self.policy.head.parameter_names)}

    def _step(self, observation: Any, state: State, reset: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        step = self.policy.step(self._parts, self.normalizer, observation, state, reset, noise)
        return step.action, step.next_state

    @property
    def _parts(self) -> list[Any]:
        return [tf.constant(part) for part in self.policy.network.split_array(self.theta)]
