import numpy as np
import pytest

from trpo_tf.tabular.mdps import NAMED, FiniteMDP, chain, ergodic, garnet, gridworld, two_state

GOOD = {
    "transition": np.full((2, 3, 2), 0.5),
    "reward": np.zeros((2, 3)),
    "initial": np.array([0.25, 0.75]),
    "discount": 0.9,
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transition", np.full((2, 3, 2), 0.6), "transition must sum to 1"),
        ("transition", np.full((2, 3, 3), 1 / 3), r"transition must have the shape \(2, 3, 2\)"),
        ("transition", np.tile([1.5, -0.5], (2, 3, 1)), "transition must not be negative"),
        ("reward", np.full((2, 3), np.nan), "reward must be finite"),
        ("reward", np.zeros(2), "reward must have the shape"),
        ("reward", np.zeros((0, 3)), "reward must have the shape"),
        ("initial", np.array([1.0, 1.0]), "initial must sum to 1"),
        ("initial", np.array([1.0]), "initial must have the shape"),
        ("discount", 1.0, "discount must be above 0 and below 1"),
        ("discount", 0.0, "discount must be above 0 and below 1"),
        ("discount", float("nan"), "discount must be above 0 and below 1"),
    ],
)
def test_what_is_no_mdp_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        FiniteMDP(**{**GOOD, name: value})


def test_arrays_are_copied_and_frozen():
    reward = np.zeros((2, 3))
    mdp = FiniteMDP(**{**GOOD, "reward": reward})
    reward[0, 0] = 1
    assert mdp.reward[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        mdp.reward[0, 0] = 1


@pytest.mark.parametrize("name", NAMED)
def test_in_every_named_mdp_every_state_can_be_reached(name):
    mdp = NAMED[name]()
    step = mdp.transition.mean(1)
    visited = mdp.initial @ np.linalg.matrix_power(np.eye(mdp.states) + step, mdp.states)
    assert (visited > 0).all()


def test_the_chain_goes_where_it_is_told_and_slips():
    mdp = chain(4, slip=0.1)
    np.testing.assert_allclose(mdp.transition[1, 1], [0.1, 0, 0.9, 0])
    np.testing.assert_allclose(mdp.transition[0, 0], [0.9, 0.1, 0, 0])
    assert (mdp.reward[0, 0], mdp.reward[3, 1], mdp.reward.sum()) == (0.2, 1.0, 1.2)


def test_the_grid_has_walls_a_pit_and_a_goal_that_starts_again():
    mdp = gridworld(3, 3, slip=0.0)
    up, right, down, left = np.argmax(mdp.transition, -1).T
    np.testing.assert_array_equal(up[:4], [0, 1, 2, 0])
    np.testing.assert_array_equal(right[:3], [1, 2, 2])
    np.testing.assert_array_equal(down[:4], [3, 4, 5, 6])
    np.testing.assert_array_equal(left[:4], [0, 0, 1, 3])
    for cell, pay in ((4, -1), (8, 1)):
        assert (mdp.transition[cell, :, 0] == 1).all()
        assert (mdp.reward[cell] == pay).all()


def test_kakades_example_pays_for_staying():
    mdp = two_state()
    np.testing.assert_array_equal(mdp.reward, [[1, 0], [2, 0]])
    np.testing.assert_array_equal(mdp.transition[:, 0], np.eye(2))
    np.testing.assert_array_equal(mdp.transition[:, 1], np.eye(2)[::-1])


def test_a_garnet_has_the_successors_asked_for():
    mdp = garnet(7, 3, 4, np.random.default_rng(0))
    assert ((mdp.transition > 0).sum(-1) == 4).all()
    assert (ergodic(mdp).transition > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain(1), "length must be above 1"),
        (lambda: chain(3, slip=1.0), "slip must be"),
        (lambda: gridworld(1, 4), "height must be above 1"),
        (lambda: gridworld(4, 1), "width must be above 1"),
        (lambda: garnet(0, 2, 1, np.random.default_rng(0)), "states must be above 0"),
        (lambda: garnet(3, 0, 1, np.random.default_rng(0)), "actions must be above 0"),
        (lambda: garnet(3, 2, 4, np.random.default_rng(0)), "branching must be between 1 and states, 3"),
        (lambda: ergodic(two_state(), 0.0), "restart must be"),
    ],
)
def test_builders_refuse_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
