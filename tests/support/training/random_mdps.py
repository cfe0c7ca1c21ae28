"""Random MDPs and policies, as hypothesis strategies, and the settings of the property tests."""

from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from trpo_tf.tabular.mdps import FiniteMDP, ergodic, garnet
from trpo_tf.tabular.policies import softmax

some_examples = settings(deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
few_examples = settings(some_examples, max_examples=12)


class Case(NamedTuple):
    """A random MDP, two policies on it, and a generator for whatever else a test draws."""

    mdp: FiniteMDP
    pi: np.ndarray
    new: np.ndarray
    rng: np.random.Generator


@st.composite
def cases(draw, *, ergodic_only: bool = False, near: bool = False, spread: float = 4.0) -> Case:
    """Of 1 to 6 states and 2 to 4 actions; policies near uniform to near deterministic, or `near` to each other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    states, actions = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    discount = draw(st.sampled_from([0.1, 0.5, 0.9, 0.97]))
    mdp = garnet(states, actions, draw(st.integers(1, states)), rng, discount=discount)
    sharpness = draw(st.floats(0.1, spread))
    logits = sharpness * rng.standard_normal((2, states, actions))
    if near:
        logits[1] = logits[0] + 10.0 ** draw(st.floats(-4, -0.5)) * logits[1]
    return Case(ergodic(mdp) if ergodic_only else mdp, softmax(logits[0]), softmax(logits[1]), rng)


def derivative(function, theta, h=1e-3):
    """Central differences of the fourth order, along each parameter: [P, *shape of the function]."""

    def slope(step):
        return (np.asarray(function(theta + step)) - np.asarray(function(theta - step))) / 2

    return np.array([(8 * slope(h * e) - slope(2 * h * e)) / (6 * h) for e in np.eye(len(theta))])
