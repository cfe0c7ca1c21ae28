"""Heads turn a network's output into a distribution, a sample, and an action in the environment's units.

A head's parameters are a tuple of tensors [batch, ...]. `metric` is the Fisher information of the distribution in those
parameters, applied to a tangent. With the network's Jacobian J it makes the Fisher matrix J' M J of the policy
(Gauss-Newton). This equals the Hessian of KL(old || new) at new = old.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from trpo_tf.serving import NoiseSpec

Parameters = tuple[Any, ...]


class Head(ABC):
    """Kind of action distribution that a policy has; see the module."""

    inputs: int
    """Width of the network's output."""
    extra_shapes: tuple[tuple[int, ...], ...]
    """Shapes of parameters that do not depend on the observation."""
    noise: NoiseSpec
    parameter_names: tuple[str, ...] = ("logits",)

    @abstractmethod
    def initial_extra(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Return the initial values of the extra parameters."""

    @abstractmethod
    def parameters(self, output: Any, extra: list[Any]) -> Parameters:
        """Return the distribution's parameters, from the network's output [batch, inputs] and the extra parameters."""

    @abstractmethod
    def distribution(self, parameters: Parameters) -> Any:
        """Return the TFP distribution over samples."""

    def log_prob(self, parameters: Parameters, sample: Any) -> Any:
        """Return the log-probability of the samples, [batch]."""
        return self.distribution(parameters).log_prob(sample)

    @abstractmethod
    def metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Return the Fisher information at `parameters` times `tangent`, row by row."""

    @abstractmethod
    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """Return the sample for `noise` [batch, k]; zero noise gives the distribution's mode."""

    @abstractmethod
    def action(self, sample: Any) -> Any:
        """Return the sample as an action in the environment's units, dtype, shape and bounds."""
