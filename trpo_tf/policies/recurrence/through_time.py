"""Any function of one step over time: its outputs, and products with their Jacobian in its weights.

A step gives y_t, s_t = f(w, x_t, s_{t-1}). The states are computed once. From there on, what the weights or the outputs
do is differentiated for all steps together. Only the products with ds_t / ds_{t-1} are a loop, which runs f again at
each step. For cells whose derivatives are elementwise `trpo_tf.policies.recurrence.linearized` is faster. See
docs/explanation/recurrence.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from trpo_tf.policies.core import CoreState
from trpo_tf.policies.recurrence.sequences import Course
from trpo_tf.solvers.fisher_product import Linearization, linearize

Step = Callable[[Sequence[Any], Any, CoreState], tuple[Any, CoreState]]
"""weights, inputs [B, width] and state [B, ...] -> output [B, k] and next state; each row by itself."""


def outputs(step: Step, weights: Sequence[Any], course: Course, initial: CoreState) -> Any:
    """Return the output at each step, [T, N, k], differentiable in the weights by reverse mode.

    `initial`, arrays [...], is the state where a sequence begins anew.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*parts: Any) -> tuple[Any, Callable[[Any], list[Any]]]:
        linear = linearize_outputs(step, parts, course, initial)
        return linear.value, linear.backward

    return run(*weights)


def linearize_outputs(step: Step, weights: Sequence[Any], course: Course, initial: CoreState) -> Linearization:
    """Return the linearisation of `outputs` at `weights`."""
    weights = list(weights)
    length, n = course.inputs.shape[:2]
    before = _states_before(step, weights, course, initial)
    inputs, states = _rows(course.inputs), tuple(map(_rows, before))
    of_weights = linearize(lambda parts: step(parts, inputs, states), weights)
    of_states = linearize(lambda rows: step(weights, inputs, rows)[0], states)

    def by_step(t: Any) -> Linearization:
        return linearize(lambda rows: step(weights, course.inputs[t], rows)[1], tuple(part[t] for part in before))

    def forward(tangents: Sequence[Any]) -> Any:
        output, moved = of_weights.forward(list(tangents))
        forcing = tuple(_over_time(part, length, n) for part in moved)

        def body(t: Any, state: CoreState, kept: Any) -> tuple[Any, CoreState, Any]:
            state = tuple(_kept(course.goes_on[t], part) for part in state)
            kept = tuple(array.write(t, part) for array, part in zip(kept, state, strict=True))
            through = by_step(t).forward(state)
            return t + 1, tuple(force[t] + part for force, part in zip(forcing, through, strict=True)), kept

        tangent = tuple(map(_rows, _scan(body, 0, length, course.state)))
        return _over_time(output + of_states.forward(tangent), length, n)

    def backward(cotangent: Any) -> list[Any]:
        cotangent = _rows(cotangent)
        read = tuple(_over_time(part, length, n) for part in of_states.backward(cotangent))

        def body(t: Any, state: CoreState, kept: Any) -> tuple[Any, CoreState, Any]:
            kept = tuple(array.write(t, part) for array, part in zip(kept, state, strict=True))
            through = by_step(t).backward(state)
            state = tuple(_kept(course.goes_on[t], each[t] + part) for each, part in zip(read, through, strict=True))
            return t - 1, state, kept

        adjoint = tuple(map(_rows, _scan(body, length - 1, length, course.state)))
        return list(of_weights.backward((cotangent, adjoint)))

    return Linearization(_over_time(of_weights.value[0], length, n), forward, backward)


def _states_before(step: Step, weights: Sequence[Any], course: Course, initial: CoreState) -> CoreState:
    """Return the state before each step, arrays [T, N, ...]."""

    def body(t: Any, state: CoreState, kept: Any) -> tuple[Any, CoreState, Any]:
        before = tuple(
            tf.where(_like(course.goes_on[t], part) > 0, part, first)
            for part, first in zip(state, initial, strict=True)
        )
        kept = tuple(array.write(t, part) for array, part in zip(kept, before, strict=True))
        return t + 1, step(weights, course.inputs[t], before)[1], kept

    return _scan(body, 0, course.inputs.shape[0], course.state, course.state)


def _scan(body: Any, first: int, length: int, like: CoreState, start: CoreState | None = None) -> CoreState:
    """Run a loop of `length` steps from `start`, by default zeros, and return what it wrote, arrays [T, N, ...]."""
    start = tuple(map(tf.zeros_like, like)) if start is None else start
    arrays = tuple(tf.TensorArray(part.dtype, length, element_shape=part.shape) for part in like)
    _, _, kept = tf.while_loop(
        lambda t, *_: (t >= 0) & (t < length), body, (tf.constant(first), start, arrays), maximum_iterations=length
    )
    return tuple(tf.ensure_shape(each.stack(), (length, *part.shape)) for each, part in zip(kept, like, strict=True))


def _kept(goes_on: Any, values: Any) -> Any:
    """Return values [N, ...], and 0 where a sequence begins anew, `goes_on` [N, 1] being 0."""
    return tf.where(_like(goes_on, values) > 0, values, tf.zeros_like(values))


def _like(goes_on: Any, values: Any) -> Any:
    return tf.reshape(goes_on, (-1, *[1] * (values.shape.rank - 1)))


def _rows(values: Any) -> Any:
    """Return values [T, N, ...] as [T x N, ...]."""
    return tf.reshape(values, (-1, *values.shape[2:]))


def _over_time(rows: Any, length: int, n: int) -> Any:
    """Return rows [T x N, ...] as [T, N, ...]."""
    return tf.reshape(rows, (length, n, *rows.shape[1:]))
