"""Choose the head for an action space."""

from typing import Any

import numpy as np

from trpo_tf.policies.heads.discrete import BernoulliHead, CategoricalHead, MultiCategoricalHead
from trpo_tf.policies.heads.gaussian import GaussianHead
from trpo_tf.policies.heads.head import Head
from trpo_tf.serving import ArraySpec


def make_head(spec: ArraySpec, **gaussian: Any) -> Head:
    """Return the head for an action spec; the keywords are those of `GaussianHead`.

    Floats have a Gaussian. Integers have one choice, several choices, or bits if all bounds are 0 and 1.
    """
    if np.dtype(spec.dtype).kind == "f":
        return GaussianHead(spec, **gaussian)
    low, high = spec.bounds()
    if spec.shape == ():
        return CategoricalHead(spec)
    return BernoulliHead(spec) if (low == 0).all() and (high == 1).all() else MultiCategoricalHead(spec)
