"""What counts as acting alike, on cases and along episodes."""

import numpy as np
import pytest

from export import ExportError
from export.parity import Reference, compare_cases, compare_episodes, play

NO_NOISE = np.zeros((0, 2), np.float32)
OBSERVATIONS = np.linspace(-1, 1, 100, dtype=np.float32).reshape(50, 2)
NOISE = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)


def scores(observations, noise):
    return observations + noise


def choose(observations, noise):
    return scores(observations, noise).argmax(axis=-1)


discrete = Reference(choose, scores)
continuous = Reference(scores)


class Line:
    """Ten steps on a line; moving by what the action says is rewarded by the place reached."""

    def __init__(self, centre: float = 0.53) -> None:
        self._centre = centre

    def reset(self, *, seed=None):
        self.x, self.steps = 0.1 * (1 + (seed or 0)), 0
        return self._observation(), {}

    def step(self, action):
        self.x += 0.1 * float(np.sum(action)) - 0.05
        self.steps += 1
        return self._observation(), self.x, False, self.steps == 10, {}

    def _observation(self):
        return np.array([self.x, self._centre], np.float32)


def test_a_margin_of_less_than_a_hundred_thousandth_is_a_tie():
    rows = np.array([[0.0, 2e-5], [0.0, 0.5e-5], [1.0, 1.0], [1.0, -1.0]])
    decisive = discrete.decisive(rows, np.zeros_like(rows))
    np.testing.assert_array_equal(decisive, [True, False, False, True])


def test_only_the_two_best_scores_make_a_tie():
    rows = np.array([[0.0, 0.0, 3.0], [3.0, 0.0, 3.0]])
    np.testing.assert_array_equal(discrete.decisive(rows, np.zeros_like(rows)), [True, False])


def test_one_action_alone_and_continuous_actions_are_never_a_tie():
    assert discrete.decisive(np.zeros((3, 1)), np.zeros((3, 1))).all()
    assert continuous.decisive(np.zeros((3, 2)), np.zeros((3, 2))).all()


def test_the_reference_agrees_with_itself_in_every_row_twice_a_batch_size():
    parity = compare_cases("it", scores, continuous, OBSERVATIONS, NOISE)
    assert parity.max_difference == 0
    assert parity.compared == 2 * 4 * 50


def test_a_thousandth_is_too_much_and_rounding_is_not():
    parity = compare_cases("it", lambda o, n: scores(o, n) * (1 + 1e-6), continuous, OBSERVATIONS, NOISE)
    assert 0 < parity.max_difference < 1e-5
    with pytest.raises(ExportError, match=r"it differs from the trained policy by 0\.001; "):
        compare_cases("it", lambda o, n: scores(o, n) + np.float32(1e-3), continuous, OBSERVATIONS, NOISE)


WRONG = {
    "a single row": lambda o, n: scores(o, n) + 1e-3 * (o == OBSERVATIONS[17]),
    "batches of seven": lambda o, n: scores(o, n) + 1e-3 * (len(o) == 7),
    "noise alone": lambda o, n: o + 0.999 * n,
    "no noise alone": lambda o, n: scores(o, n) + 1e-3 * (not n.any()),
    "not a number": lambda o, n: np.where(o > 0.9, np.nan, scores(o, n)),
}


@pytest.mark.parametrize("where", WRONG)
def test_an_actor_wrong_somewhere_is_caught(where):
    with pytest.raises(ExportError, match="it differs"):
        compare_cases("it", WRONG[where], continuous, OBSERVATIONS, NOISE)


def test_too_few_rows_are_caught():
    with pytest.raises(ExportError, match=r"shape \[1, 2\], not \[2, 2\]"):
        compare_cases("it", lambda o, n: scores(o, n)[:1], continuous, OBSERVATIONS, NOISE)


def test_a_discrete_action_may_differ_at_a_tie_only():
    rows = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    no_noise = np.zeros_like(rows)
    last_of_ties = lambda o, n: (o + n)[:, ::-1].argmax(axis=-1) ^ 1  # noqa: E731
    assert last_of_ties(rows, no_noise)[0] != choose(rows, no_noise)[0]
    parity = compare_cases("it", last_of_ties, discrete, rows, no_noise)
    assert parity.compared == 2 * 4  # the one row that is no tie
    with pytest.raises(ExportError):
        compare_cases("it", lambda o, n: 1 - choose(o, n), discrete, rows, no_noise)


def test_a_discrete_action_of_another_type_is_caught():
    with pytest.raises(ExportError):
        compare_cases("it", lambda o, n: choose(o, n).astype(np.int32), discrete, OBSERVATIONS, NOISE)


def episodes_compared(name, actor, reference, environment):
    still = np.zeros((1, 2), np.float32)
    episodes = {seed: list(play(reference.act, environment, seed, still)) for seed in range(3)}
    return compare_episodes(name, actor, reference, environment, episodes, still)


@pytest.mark.parametrize("reference", [discrete, continuous])
def test_the_reference_plays_its_own_episodes(reference):
    parity = episodes_compared("it", reference.act, reference, Line())
    assert (parity.max_difference, parity.compared) == (0, 30)


def test_another_action_on_the_way_is_caught():
    with pytest.raises(ExportError, match="it differs"):
        episodes_compared("it", lambda o, n: choose(o, n) ^ (o[:, 0] > 0.4), discrete, Line())


def test_a_free_run_catches_what_single_steps_do_not():
    # At the tie of every step any action is right, and yet another episode follows.
    always_tied = Reference(choose, lambda o, n: np.zeros_like(o))
    assert episodes_compared("it", choose, always_tied, Line()).compared == 0
    with pytest.raises(ExportError, match="plays another episode than the trained policy at seed 0"):
        episodes_compared("it", lambda o, n: 1 - choose(o, n), always_tied, Line())


def test_a_continuous_free_run_catches_another_return():
    calls = iter(range(10_000))
    # Right whenever it is compared with the trained policy, worse when it plays by itself.
    asked_beside = {seed * 11 for seed in range(3)}
    two_faced = lambda o, n: scores(o, n) - (0.0 if next(calls) in asked_beside else 0.5)  # noqa: E731
    with pytest.raises(ExportError, match="it reaches another return than the trained policy"):
        episodes_compared("it", two_faced, continuous, Line())


def test_a_continuous_free_run_forgives_rounding():
    rounded = lambda o, n: scores(o, n) + np.float32(1e-6)  # noqa: E731
    assert episodes_compared("it", rounded, continuous, Line()).compared == 30
