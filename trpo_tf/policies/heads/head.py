"""Heads: from a network's output to a distribution, a sample, and an action in the environment's units.

A head's parameters are a tuple of tensors [batch, ...]. `metric` is the Fisher information of the distribution in
those parameters, applied to a tangent; with the network's Jacobian J it makes the Fisher matrix J' M J of the policy
(Gauss-Newton), which equals the Hessian of KL(old || new) at new = old.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from trpo_tf.serving import NoiseSpec

Parameters = tuple[Any, ...]


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
