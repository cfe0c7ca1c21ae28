import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.solvers.line_search import backtracking_line_search


def search(gain, constraint, **options):
    settings = {"limit": 1.0, "ratio": 0.5, "max_tries": 6, "dtype": tf.float64} | options
    return backtracking_line_search(lambda length: (gain(length), constraint(length), -length), **settings)


def test_takes_the_longest_length_that_gains_and_keeps_the_constraint():
    found = search(lambda s: s, lambda s: 3.0 * s)
    assert found.length == 0.25
    assert found.gain == 0.25
    assert found.constraint == 0.75
    assert found.aux == -0.25
    assert found.tries == 3


def test_the_constraint_may_be_met_exactly():
    assert search(lambda s: s, lambda s: s).length == 1.0


def test_a_step_within_the_constraint_that_loses_is_shortened():
    found = search(lambda s: s * (0.3 - s), lambda s: 0.0 * s)
    assert found.length == 0.25


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_accepted(poison):
    def poisoned(length):
        return tf.where(length > 0.3, tf.constant(poison, tf.float64), length)

    assert search(poisoned, lambda s: s).length == 0.25
    assert search(lambda s: s, lambda s: -poisoned(s)).length == 0.25


def test_gives_up_with_zeros_after_the_last_try():
    found = search(lambda s: -s, lambda s: s)
    assert tuple(found) == (0.0, 0.0, 0.0, 0.0, 6)


def test_no_tries_give_no_step():
    found = search(lambda s: s, lambda s: s, max_tries=0)
    assert (found.length, found.tries) == (0.0, 0)
