"""Trajectories of a finite MDP, and estimates from them of the quantities that `exact` solves for.

Equation numbers are those of docs/explanation/equations.md.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trpo_tf.tabular.mdps import Array, FiniteMDP

Indices = npt.NDArray[np.int64]


class Trajectories(NamedTuple):
    """E trajectories of T steps."""

    states: Indices  # s_t [E, T]
    actions: Indices  # a_t [E, T]
    rewards: Array  # r_{t+1} [E, T], the expected reward of each action taken


def simulate(mdp: FiniteMDP, pi: Array, episodes: int, steps: int, rng: np.random.Generator) -> Trajectories:
    """Sample trajectories of `pi`, with first states drawn from rho_0."""
    states = np.empty((episodes, steps), np.int64)
    actions = np.empty_like(states)
    state = draw(np.broadcast_to(mdp.initial, (episodes, mdp.states)), rng)
    for t in range(steps):
        states[:, t] = state
        actions[:, t] = draw(pi[state], rng)
        state = draw(mdp.transition[state, actions[:, t]], rng)
    return Trajectories(states, actions, mdp.reward[states, actions])


def draw(probabilities: Array, rng: np.random.Generator) -> Indices:
    """Draw an index for each row of probabilities [N, K], by inverting its cumulative sum."""
    cumulative = probabilities.cumsum(-1)
    # Scaled by the sum, which rounding may leave below 1: no draw falls beyond the last possible index.
    index: Indices = np.argmax(rng.random((len(probabilities), 1)) * cumulative[:, -1:] < cumulative, axis=1)
    return index


def discounted_returns(trajectories: Trajectories, discount: float) -> Array:
    """Return G_0 of each trajectory (equation 1), cut after its last step, [E]."""
    return trajectories.rewards @ discount ** np.arange(trajectories.rewards.shape[1])


def discounted_visits(trajectories: Trajectories, states: int, discount: float) -> Array:
    """Return sum_t gamma^t 1[s_t = s] of each trajectory, [E, S]: its mean is rho (equation 9)."""
    weights = discount ** np.arange(trajectories.states.shape[1])
    visits: Array = np.einsum("ets,t->es", np.eye(states)[trajectories.states], weights)
    return visits


def importance_terms(new: Array, sampling: Array, states: Indices, actions: Indices, values: Array) -> Array:
    """Return new(a|s) / q(a|s) x values(s, a) of each sampled pair, a ~ q = `sampling` (equations 47, 48).

    The mean at a state is sum_a new(a|s) values(s, a), for any q that is positive where new x values is not 0.
    Tables are [S, A].
    """
    return new[states, actions] / sampling[states, actions] * values[states, actions]
