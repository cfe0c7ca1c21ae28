"""What counts as acting alike, on cases and along episodes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from trpo_tf.export import ExportError, ParityError
from trpo_tf.export.parity.compare import Agreement, Returns, compare_cases, compare_returns, student_t
from trpo_tf.export.parity.compare_target import compare_target
from trpo_tf.export.parity.proof import Proof, manifest_parity
from trpo_tf.export.parity.quantization_error import OutputError, output_error
from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Reference
from trpo_tf.export.parity.reference.episodes import episode_batches, play
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.parity.table import COLUMNS, proof_rows
from trpo_tf.serving import ArraySpec

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
    untied = discrete.untied(rows, np.zeros_like(rows))
    np.testing.assert_array_equal(untied, [True, False, False, True])


def test_only_the_two_best_scores_make_a_tie():
    rows = np.array([[0.0, 0.0, 3.0], [3.0, 0.0, 3.0]])
    np.testing.assert_array_equal(discrete.untied(rows, np.zeros_like(rows)), [True, False])


def test_one_action_alone_and_continuous_actions_are_never_a_tie():
    assert discrete.untied(np.zeros((3, 1)), np.zeros((3, 1))).all()
    assert continuous.untied(np.zeros((3, 2)), np.zeros((3, 2))).all()


NOISES = [np.zeros_like(NOISE), NOISE]


def compared(actor, reference=continuous, observations=OBSERVATIONS, noises=NOISES):
    return compare_cases(actor, [reference.answered(observations, noise, 1) for noise in noises], sizes=BATCH_SIZES)


def test_the_reference_agrees_with_itself_in_every_row_twice_a_batch_size():
    found = compared(scores)
    assert found == Agreement(0.0, 2 * 4 * 50, 2 * 4 * 50)
    assert found.complete


def test_a_thousandth_is_too_much_and_rounding_is_not():
    found = compared(lambda o, n: scores(o, n) * (1 + 1e-6))
    assert found.complete
    assert 0 < found.max_difference < 1e-5
    found = compared(lambda o, n: scores(o, n) + np.float32(1e-3))
    assert found.equal == 0
    assert found.max_difference == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("wrong", "complete"), [(1 + 1e-6, True), (1 + 1e-3, False), (-1, False)])
def test_numbers_of_a_small_range_are_held_against_it(wrong, complete):
    spec = ArraySpec("action", "float32", (2,), -2e-6, 3e-6)
    small = Reference(lambda o, n: np.float32(1e-6) * scores(o, n), unit=spec.unit)
    cases = [ReferenceCases(small, OBSERVATIONS, NOISE, None, None, {}, None).cases(exact=True, noise=False)]
    assert compare_cases(lambda o, n: np.float32(wrong) * small.act(o, n), cases).complete == complete
    whole = output_error(-OBSERVATIONS, OBSERVATIONS, ArraySpec("action", "float32", (2,), -1, 1))
    millionth = np.float32(1e-6) * OBSERVATIONS
    found = output_error(-millionth, millionth, replace(spec, low=-1e-6, high=1e-6))
    assert found.overall == pytest.approx(whole.overall)


WRONG = {
    "a single row": (lambda o, n: scores(o, n) + 1e-3 * (o == OBSERVATIONS[17]), 2 * 4),
    "batches of seven": (lambda o, n: scores(o, n) + 1e-3 * (len(o) == 7), 2 * 49),
    "noise alone": (lambda o, n: o + 0.99 * n, 4 * 50),
    "no noise alone": (lambda o, n: scores(o, n) + 1e-3 * (not n.any()), 4 * 50),
}


@pytest.mark.parametrize("where", WRONG)
def test_an_actor_wrong_somewhere_is_caught(where):
    actor, rows = WRONG[where]
    found = compared(lambda o, n: actor(o, n).astype(np.float32))
    assert not found.complete
    assert found.compared - found.equal == rows


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ExportError, match="answers an action that is not finite"):
        compared(lambda o, n: np.where(o > 0.9, np.float32(np.nan), scores(o, n)))


def test_too_few_rows_and_another_type_are_refused():
    with pytest.raises(ExportError, match=r"answers float32 actions of shape \[1, 2\], not float32 .* \[2, 2\]"):
        compared(lambda o, n: scores(o, n)[:1])
    with pytest.raises(ExportError, match=r"answers int32 actions of shape .*, not int64 actions"):
        compared(lambda o, n: choose(o, n).astype(np.int32), discrete)


def test_a_discrete_action_may_differ_at_a_tie_only():
    rows = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    no_noise = np.zeros_like(rows)
    last_of_ties = lambda o, n: (o + n)[:, ::-1].argmax(axis=-1) ^ 1  # noqa: E731
    assert last_of_ties(rows, no_noise)[0] != choose(rows, no_noise)[0]
    assert compared(last_of_ties, discrete, rows, [no_noise]) == Agreement(0.0, 8, 8, undecided=4)
    assert compared(lambda o, n: 1 - choose(o, n), discrete, rows, [no_noise]) == Agreement(1.0, 4, 8, undecided=4)


STILL = np.zeros((1, 2), np.float32)


def played(reference, seeds=3):
    return {seed: list(play(reference.act, Line(), seed, STILL)) for seed in range(seeds)}


def returns(actor, reference, seeds=3):
    return compare_returns(actor, reference, Line(), played(reference, seeds), STILL)


@pytest.mark.parametrize("reference", [discrete, continuous])
def test_the_reference_plays_its_own_episodes(reference):
    assert compare_cases(reference.act, episode_batches(reference, played(reference), STILL)) == Agreement(0.0, 30, 30)
    found = returns(reference.act, reference)
    assert found.diverged == ()
    assert found.target == found.reference
    assert found.gain() == (0, 0, 0)


def test_another_action_on_the_way_is_counted():
    other = lambda o, n: choose(o, n) ^ (o[:, 0] > 0.4)  # noqa: E731
    seen = [observation for episode in played(discrete).values() for observation, _ in episode]
    beyond = sum(bool(observation[0] > 0.4) for observation in seen)
    found = compare_cases(other, episode_batches(discrete, played(discrete), STILL))
    assert 0 < beyond < 30
    assert found.compared - found.equal == beyond


def test_a_free_run_catches_what_single_steps_do_not():
    # At the tie of every step any action is right, and an episode that parts there is excused.
    always_tied = Reference(choose, lambda o, n: np.zeros_like(o))
    assert compare_cases(choose, episode_batches(always_tied, played(always_tied), STILL)).undecided == 30
    assert returns(lambda o, n: 1 - choose(o, n), always_tied).diverged == ()
    assert returns(lambda o, n: 1 - choose(o, n), discrete).diverged == (0, 1, 2)


def test_an_episode_that_goes_on_longer_parts_too():
    shorter = {seed: episode[:5] for seed, episode in played(discrete).items()}
    assert compare_returns(choose, discrete, Line(), shorter, STILL).diverged == (0, 1, 2)


def test_returns_are_those_of_each_seed():
    found = returns(lambda o, n: scores(o, n) + np.float32(0.01), continuous)
    sums = [sum(reward for _, reward in episode) for episode in played(continuous).values()]
    np.testing.assert_allclose(found.reference, sums)
    assert all(np.array(found.target) > np.array(found.reference))


def test_the_interval_of_a_gain_is_student_s():
    mean, low, high = Returns((1.0, 2.0, 4.0, 5.0), (1.0, 1.0, 1.0, 1.0), ()).gain()
    assert mean == 2
    # The deviation of 0, 1, 3, 4 is 1.8257, and the quantile of three degrees of freedom 3.1824.
    assert high - mean == pytest.approx(3.1824 * 1.8257 / 2, rel=0.01)
    assert mean - low == pytest.approx(high - mean)
    assert Returns((2.0,), (1.0,), ()).gain() == (1, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (19, 2.0930), (99, 1.9842)],
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, rel=2e-5 if freedom < 3 else 0.01 if freedom < 9 else 2e-4)


def proof(target, reference=(10.0, 12.0, 11.0), *, exact=True, cases=(0.0, 8, 8), diverged=()):
    return Proof(exact, Agreement(*cases), Agreement(0.0, 5, 5), Returns(tuple(target), tuple(reference), diverged))


def reference_cases(reference=continuous, untrained=1.0):
    return ReferenceCases(reference, OBSERVATIONS, NOISE, None, None, {}, untrained)


@pytest.mark.parametrize(("samples", "compared"), [(True, 400), (False, 200)])
def test_a_target_that_does_not_hear_noise_is_caught_where_it_is_to_sample(samples, compared):
    found = compare_target(
        "deaf", lambda o, n: scores(o, np.zeros_like(n)), reference_cases(), exact=True, samples=samples
    )
    assert (found.cases.compared, found.cases.equal) == (compared, 200)


def test_what_a_target_must_show():
    assert proof((10, 12, 11)).failure(reference_cases()) is None
    off = proof((10, 12, 11), cases=(0.1, 7, 8))
    assert "differs from the trained policy by 0.1" in off.failure(reference_cases())
    assert replace(off, exact=False).failure(reference_cases()) is None
    diverged = proof((10, 12, 11), diverged=(4,))
    assert "plays another episode than the trained policy at seed 4" in diverged.failure(reference_cases(discrete))
    assert diverged.failure(reference_cases(continuous)) is None
    assert replace(diverged, exact=False).failure(reference_cases(discrete)) is None


@pytest.mark.parametrize(("share", "refused"), [(0.005, False), (0.02, True)])
def test_numbers_in_8_bits_may_be_far_off_on_one_in_a_hundred_observations(share, refused):
    expected = np.random.default_rng(0).choice([-1.0, 1.0], (1000, 2)).astype(np.float32)
    actual = expected.copy()
    actual[: int(1000 * share), 1] *= 0.04
    found = output_error(actual, expected, ArraySpec("action", "float32", (2,), -1, 1))
    assert found.overall < 0.15
    assert found.largest == pytest.approx(0.96, rel=0.01)
    quantized = replace(proof((10, 12, 11), exact=False), errors={"value": OutputError(0.1), "action": found})
    assert ("its 'action' errs by 0.9" in (quantized.failure(reference_cases()) or "")) == refused
    row = dict(zip(COLUMNS, proof_rows({"x": quantized.to_dict()}, {})[0], strict=True))
    assert row["8-bit error"] == f"{max(0.1, found.overall):.3f} (0.96)"


@pytest.mark.parametrize(("exact", "allowed"), [(True, 0.1), (False, 0.5)])
def test_a_loss_is_weighed_against_what_training_gained(exact, allowed):
    # Gained were 11 - 1 = 10, of which 1%, or 5% in 8 bits, may be lost.
    least = lambda loss: proof([r - loss for r in (10.0, 12.0, 11.0)], exact=exact)  # noqa: E731
    assert least(0.99 * allowed).failure(reference_cases()) is None
    assert f"loses {1.01 * allowed:.3g}" in least(1.01 * allowed).failure(reference_cases())
    # A loss that is not certain passes: the interval reaches into what is allowed.
    uncertain = proof((10 - 3 * allowed, 12.0, 11.0), exact=exact)
    assert uncertain.returns.gain()[0] < -0.9 * allowed
    assert uncertain.failure(reference_cases()) is None
    # With nothing known of the time before training, it's a share of the return itself.
    assert least(1.05 * allowed).failure(reference_cases(untrained=None)) is None


class Tent:
    """Sixty steps of a map of slope 1.9 that the action moves a little: rounding grows to the size of the state."""

    def reset(self, *, seed):
        self.x, self.steps = 0.2 + 0.1 * seed, 0
        return self._observation(), {}

    def step(self, action):
        self.x = 1.9 * min(self.x, 1 - self.x) + 0.01 * float(action[0])
        self.steps += 1
        return self._observation(), self.x, False, self.steps == 60, {}

    def _observation(self):
        return np.array([self.x, 0.5], np.float32)


@pytest.mark.parametrize("environment", [Line(), Tent()])
def test_a_loss_of_floats_in_an_environment_that_amplifies_rounding_is_chance(environment):
    still = np.zeros((1, 2), np.float32)
    episodes = {seed: list(play(continuous.act, environment, seed, still)) for seed in range(3)}
    cases = replace(reference_cases(), environment=environment, episodes=episodes)
    lost = proof((5, 7, 6), diverged=(0, 1, 2))
    chaotic = isinstance(environment, Tent)
    assert (lost.failure(cases) is None) == chaotic
    assert replace(lost, exact=False).failure(cases) is not None
    assert "differs" in replace(lost, cases=Agreement(0.1, 7, 8)).failure(cases)
    if chaotic:
        assert manifest_parity({"onnx": lost}, cases, accept_loss=False)["onnx"]["amplifies_rounding"]


def test_losses_are_accepted_when_that_is_said():
    proofs = {"onnx": proof((10, 12, 11)), "onnx-int8": proof((5, 7, 6), exact=False)}
    with pytest.raises(ParityError, match="onnx-int8 loses 5 of the trained policy's return of 11") as caught:
        manifest_parity(proofs, reference_cases(), accept_loss=False)
    assert caught.value.table.count("\n") == 2
    parity = manifest_parity(proofs, reference_cases(), accept_loss=True)
    assert "accepted" not in parity["onnx"]
    assert parity["onnx-int8"]["accepted"].startswith("loses 5 ")
    json.dumps(parity, allow_nan=False)
