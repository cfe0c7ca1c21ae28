"""Recurrent cells: a gated recurrent unit (GRU) and a long short-term memory (LSTM), as functions of tensors.

A cell is two matrix products, and a function of their results that takes each unit by itself:

    a_t = x_t W + b,    u_t = h_{t-1} U,    s_t = gates(a_t, u_t, s_{t-1})

The state s has one or more arrays [..., units], of which the first is h. Since `gates` is elementwise, its derivatives
are arrays of the same shapes: see `trpo_tf.policies.recurrence.linearized`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.config.recurrent_memory import parse_memory

HIDDEN, CELL = "hidden", "cell"

CellState = tuple[Any, ...]
"""Arrays [..., units] of a cell's state, the hidden one first."""

_LONGEST = 100
"""Time constant, in steps, of the unit that forgets most slowly before training."""


@dataclass(frozen=True)
class Cell:
    """Kind and size of a recurrent cell; see the module.

    Attributes:
        units: width of each array of the state.
        state: names of the state's arrays.
        blocks: numbers that `gates` takes of each matrix product, for each unit.
        keeps: which block's bias makes a unit keep its state; see `initial_weights`.
        gates: function of a and u [..., blocks x units] and the state before, that gives the next state.
    """

    units: int
    state: tuple[str, ...]
    blocks: int
    keeps: int
    gates: Callable[[Any, Any, CellState], CellState]

    @property
    def width(self) -> int:
        """Numbers in a state."""
        return len(self.state) * self.units

    def shapes(self, inputs: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of W, b and U for inputs x of this width."""
        wide = self.blocks * self.units
        return (inputs, wide), (wide,), (self.units, wide)

    def initial_weights(self, inputs: int, seed: int) -> list[NDArray[np.float32]]:
        """Return W, b and U before training: orthogonal blocks, and biases 0, except in the gate that keeps the state.

        That gate's biases spread the units' time constants, 1 + exp(bias), from 2 to 100 steps by equal factors (after
        Tallec & Ollivier 2018, section 4, where they are drawn).
        """
        rng = np.random.default_rng([seed, self.units])
        kernel = np.concatenate([_orthogonal(rng, inputs, self.units) for _ in range(self.blocks)], axis=1)
        recurrent = np.concatenate([_orthogonal(rng, self.units, self.units) for _ in range(self.blocks)], axis=1)
        bias = np.zeros((self.blocks, self.units))
        bias[self.keeps] = np.linspace(0, math.log(_LONGEST - 1), self.units)
        return [array.astype(np.float32) for array in (kernel, bias.ravel(), recurrent)]


def gru(units: int) -> Cell:
    """Return a gated recurrent unit, whose reset gate follows the product with U (Cho et al. 2014, as in cuDNN).

    z = sigmoid(a_1 + u_1), r = sigmoid(a_2 + u_2), n = tanh(a_3 + r u_3), h_t = z h_{t-1} + (1 - z) n.
    """

    def gates(a: Any, u: Any, state: CellState) -> CellState:
        (before,) = state
        (keep, reset, new), (keep_u, reset_u, new_u) = _blocks(a, units, 3), _blocks(u, units, 3)
        z = tf.sigmoid(keep + keep_u)
        n = tf.tanh(new + tf.sigmoid(reset + reset_u) * new_u)
        return (n + z * (before - n),)

    return Cell(units, (HIDDEN,), 3, 0, gates)


def lstm(units: int) -> Cell:
    """Return a long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    f, i, o = sigmoid of blocks 1 to 3 of a + u, g = tanh of block 4, c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
    """

    def gates(a: Any, u: Any, state: CellState) -> CellState:
        _, before = state
        forget, enter, leave, new = _blocks(a + u, units, 4)
        cell = tf.sigmoid(forget) * before + tf.sigmoid(enter) * tf.tanh(new)
        return tf.sigmoid(leave) * tf.tanh(cell), cell

    return Cell(units, (HIDDEN, CELL), 4, 0, gates)


CELLS = {"gru": gru, "lstm": lstm}


def make_cell(memory: str) -> Cell | None:
    """Return the cell that the setting `memory` names, such as gru:64, or None if it is empty. Raises `UserError`."""
    found = parse_memory(memory)
    return CELLS[found[0]](found[1]) if found else None


def _blocks(values: Any, units: int, count: int) -> list[Any]:
    """Return the blocks of values [..., count x units]. Sliced, since not every target has `tf.split`."""
    return [values[..., place * units : (place + 1) * units] for place in range(count)]


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float64]:
    """Return a random matrix whose rows or columns, whichever are fewer, are orthonormal."""
    random = rng.normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(random)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T
