"""Finite Markov decision processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """A finite MDP (S, A, P, R, rho_0, gamma), with states and actions counted from 0. Its arrays are read-only copies.

    Raises `ValueError`, naming the field, for an invalid shape, number or distribution.
    """

    transition: Array
    """P [S, A, S]: probability of the next state"""
    reward: Array
    """r [S, A]: expected reward of an action in a state"""
    initial: Array
    """rho_0 [S]: distribution of the first state"""
    discount: float
    """gamma, above 0 and below 1; the average-reward objective does not read it"""

    def __post_init__(self) -> None:
        """Copy, check and freeze the arrays."""
        for name in ("transition", "reward", "initial"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.reward.ndim != 2 or self.reward.size == 0:
            raise ValueError(f"reward must have the shape [states, actions], not {self.reward.shape}")
        states, actions = self.reward.shape
        if self.transition.shape != (states, actions, states):
            expected = (states, actions, states)
            raise ValueError(
                f"transition must have the shape {expected}, as reward has it, not {self.transition.shape}"
            )
        if self.initial.shape != (states,):
            raise ValueError(f"initial must have the shape {(states,)}, as reward has it, not {self.initial.shape}")
        require_distributions("transition", self.transition)
        require_distributions("initial", self.initial)
        if not 0 < self.discount < 1:
            raise ValueError(f"discount must be above 0 and below 1, not {self.discount}")

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.reward)

    @property
    def actions(self) -> int:
        """Number of actions in each state."""
        return len(self.reward[0])


def require_distributions(name: str, array: Array) -> None:
    """Raise `ValueError` naming the argument unless each row along the last axis is a distribution."""
    if not (array >= 0).all():
        raise ValueError(f"{name} must not be negative anywhere")
    error = float(np.abs(array.sum(-1) - 1).max())
    if not error <= _SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to 1 along its last axis; it is off by up to {error:.3g}")


def chain(length: int = 6, slip: float = 0.1, discount: float = 0.9) -> FiniteMDP:
    """Make a corridor with a bait: going left at the left end pays 0.2, going right at the right end pays 1.

    Actions are left (0) and right (1); with probability `slip` the other one happens. Episodes start at the left end.
    Every policy reaches every state.
    """
    _require_above("length", length, 1)
    _require_slip(slip)
    state = np.arange(length)
    moves = np.zeros((length, 2, length))
    moves[state, 0, np.maximum(state - 1, 0)] = 1
    moves[state, 1, np.minimum(state + 1, length - 1)] = 1
    reward = np.zeros((length, 2))
    reward[0, 0], reward[-1, 1] = 0.2, 1.0
    return FiniteMDP((1 - slip) * moves + slip * moves[:, ::-1], reward, np.eye(length)[0], discount)


def gridworld(height: int = 4, width: int = 4, slip: float = 0.1, discount: float = 0.9) -> FiniteMDP:
    """Make a grid from the top left corner to a goal at the bottom right, with a pit in the middle.

    Actions are up, right, down and left (0 to 3); with probability `slip` a uniformly random one happens. Walls stop.
    Any action at the goal pays 1 and starts again. Any action in the pit costs 1 and starts again. Every
    policy reaches every state if `slip` > 0.
    """
    _require_above("height", height, 1)
    _require_above("width", width, 1)
    _require_slip(slip)
    states = height * width
    row, column = np.divmod(np.arange(states), width)
    moves = np.zeros((states, 4, states))
    for action, (down, right) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
        target = np.clip(row + down, 0, height - 1) * width + np.clip(column + right, 0, width - 1)
        moves[np.arange(states), action, target] = 1
    transition = (1 - slip) * moves + slip * moves.mean(1, keepdims=True)
    start, goal, pit = np.eye(states)[0], states - 1, height // 2 * width + width // 2
    reward = np.zeros((states, 4))
    # In a grid of 2 x 2 the goal takes the pit's place.
    for cell, pay in ((pit, -1.0), (goal, 1.0)):
        transition[cell], reward[cell] = start, pay
    return FiniteMDP(transition, reward, start, discount)


KAKADE_POLICY: Array = np.array([[0.8, 0.2], [0.1, 0.9]])
"""The policy from which Kakade 2001 starts in `two_state`."""


def two_state(discount: float = 0.9) -> FiniteMDP:
    """Make Kakade's MDP of two states (A Natural Policy Gradient, 2001, figure 2), which pay only for staying.

    Action 0 stays, and pays 1 in state 0 and 2 in state 1; action 1 goes to the other state for nothing. The average
    reward has its maximum, 2, at staying in state 1. It has a plateau at 1, where the plain gradient vanishes with the
    share of time spent in state 1. The discounted objective starts in state 0 with probability 0.8.
    """
    stay = np.eye(2)
    return FiniteMDP(
        np.stack([stay, stay[::-1]], 1), np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([0.8, 0.2]), discount
    )


def garnet(states: int, actions: int, branching: int, rng: np.random.Generator, *, discount: float = 0.9) -> FiniteMDP:
    """Make a random MDP (Archibald, McKinnon & Thomas 1995; Bhatnagar et al. 2009).

    Each action has `branching` successors in each state. Their probabilities are the lengths between sorted uniform
    cuts of (0, 1). Rewards are standard normal, first states Dirichlet(1).
    """
    _require_above("states", states, 0)
    _require_above("actions", actions, 0)
    if not 1 <= branching <= states:
        raise ValueError(f"branching must be between 1 and states, {states}, not {branching}")
    transition = np.zeros((states, actions, states))
    for row in transition.reshape(-1, states):
        cuts = np.concatenate([[0.0], np.sort(rng.random(branching - 1)), [1.0]])
        row[rng.choice(states, branching, replace=False)] = np.diff(cuts)
    return FiniteMDP(transition, rng.standard_normal((states, actions)), rng.dirichlet(np.ones(states)), discount)


def ergodic(mdp: FiniteMDP, restart: float = 0.05) -> FiniteMDP:
    """Return `mdp` with a chance `restart` at each step to go to a uniformly random state: every policy is ergodic."""
    if not 0 < restart <= 1:
        raise ValueError(f"restart must be above 0 and at most 1, not {restart}")
    transition = (1 - restart) * mdp.transition + restart / mdp.states
    return FiniteMDP(transition, mdp.reward, mdp.initial, mdp.discount)


NAMED: dict[str, Callable[[], FiniteMDP]] = {
    "chain": chain,
    "gridworld": gridworld,
    "two-state": two_state,
    "garnet": lambda: ergodic(garnet(10, 3, 2, np.random.default_rng(0))),
}


def _require_above(name: str, value: int, least: int) -> None:
    if value <= least:
        raise ValueError(f"{name} must be above {least}, not {value}")


def _require_slip(slip: float) -> None:
    if not 0 <= slip < 1:
        raise ValueError(f"slip must be at least 0 and below 1, not {slip}")
