"""Cases cover the space that is declared, and what was recorded, within the types of the inputs."""

import numpy as np
import pytest

from trpo_tf.export.parity.reference.case_inputs import far_rows, observation_cases, with_tails
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.noise import draw_noise


def cases_of(*spec, recorded=None, seed=0):
    return observation_cases([ArraySpec("obs", *spec)], recorded, np.random.default_rng(seed))


BOUNDS = {
    "none": ((-np.inf, np.inf), (-1e6, 1e6)),
    "the largest floats": ((-3.4e38, 3.4e38), (-1e6, 1e6)),
    "below": ((2, np.inf), (2, 1e6)),
    "above": ((-np.inf, 5), (-1e6, 5)),
    "both": ((-2, 3), (-2, 3)),
    "wide": ((0, 1e9), (0, 1e9)),
}


@pytest.mark.parametrize("given", BOUNDS)
def test_cases_reach_the_bounds_or_a_million(given):
    (low, high), (smallest, largest) = BOUNDS[given]
    cases = cases_of("float32", (2,), low, high)
    assert smallest <= cases.min() <= smallest + 1e-3 * (largest - smallest)
    assert largest - 0.5 * (largest - smallest) <= cases.max() <= largest
    near = np.abs(cases - (0 if smallest < 0 else smallest)) <= 20
    assert cases[near].std() > (3 if given not in ("both", "wide") else 0.5)  # spread, not heaped at an end


def test_magnitudes_of_every_order_are_tried():
    for low, high in ((-np.inf, np.inf), (0, 2.0**40)):
        sizes = np.abs(cases_of("float64", (3,), low, high))
        found = {int(power) for power in np.floor(np.log10(sizes[sizes > 0]))}
        assert found >= set(range(-3, 6 if low < 0 else 12))


def test_random_cases_fill_the_whole_of_a_declared_range():
    cases = cases_of("int32", (1,), 0, 5000)
    assert len(np.unique(cases // 500)) >= 10
    assert (cases > 20).mean() > 0.5
    assert {0, 5000} <= set(cases.ravel().tolist())


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (("bool", (3,)), [False, True]),
        (("int64", (), 2, 501), range(2, 502)),
        (("int64", (2, 2), -2, 3), range(-2, 4)),
        (("uint8", (4,), 0, 255), range(256)),
    ],
)
def test_each_element_of_few_values_takes_each_of_them(spec, values):
    cases = cases_of(*spec)
    for column in cases.reshape(len(cases), -1).T:
        assert set(column.tolist()) == set(values)


def test_truth_values_are_not_all_alike():
    cases = cases_of("bool", (8,))
    assert len(np.unique(cases, axis=0)) > 50
    assert 0.3 < cases.mean() < 0.7


def test_corners_are_not_the_two_ends_alone():
    cases = cases_of("float32", (6,), -1, 1)
    corners = cases[(np.abs(cases) == 1).all(axis=1)]
    assert len(np.unique(corners, axis=0)) >= 8


def test_another_seed_makes_other_cases():
    one, other = (cases_of("float32", (2,), seed=seed) for seed in (0, 1))
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 1


def test_every_part_has_as_many_rows():
    specs = [ArraySpec("choice", "int64", (), 0, 299), ArraySpec("place", "float32", (2,))]
    cases = observation_cases(specs, None, np.random.default_rng(0))
    assert len(cases["choice"]) == len(cases["place"])
    assert set(cases["choice"].tolist()) == set(range(300))


def test_cases_hold_recorded_observations_and_points_far_beyond_them():
    recorded = np.random.default_rng(0).normal(7.0, 0.1, (30, 2)).astype(np.float32)
    cases = cases_of("float32", (2,), recorded=recorded)
    assert {tuple(row) for row in recorded} <= {tuple(row) for row in cases}
    assert cases.max() > recorded.max() + 10 * np.ptp(recorded)


def test_recorded_integers_keep_all_their_digits():
    recorded = np.array([[2**62 + 1], [2**62 + 3]])
    assert set(recorded.ravel().tolist()) <= set(cases_of("int64", (1,), recorded=recorded).ravel().tolist())


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("declared", [True, False])
def test_cases_of_integers_stay_within_their_type_and_go_beyond_32_bits(dtype, declared):
    info = np.iinfo(dtype)
    bounds = (float(info.min), float(info.max)) if declared else ()
    cases = cases_of(dtype, (1,), *bounds, recorded=np.array([[0], [100]], dtype))
    assert cases.dtype == dtype
    assert cases.min() >= 0 or info.min < 0
    if info.bits == 64:
        assert np.abs(cases.astype(float)).max() > 2**32
    if info.bits == 8:
        assert (cases.min(), cases.max()) == (info.min, info.max)


def test_far_is_beyond_random_and_recorded_observations_where_there_is_no_bound():
    specs = [ArraySpec("a", "float32", (2,), -np.inf, 12), ArraySpec("b", "float32", ())]
    observations = {
        "a": np.float32([[0, 12], [-9, 0], [0, 0], [0, 0], [0, 0]]),
        "b": np.float32([0, 0, 10.5, -99, -101]),
    }
    np.testing.assert_array_equal(far_rows(specs, observations), [False, True, True, True, True])
    recorded = {"a": np.zeros((2, 2), np.float32), "b": np.float32([-100, 3])}
    np.testing.assert_array_equal(far_rows(specs, observations, recorded), [False, True, True, False, True])


@pytest.mark.parametrize(("law", "tail"), [("normal", 6), ("gumbel", 20), ("logistic", 20)])
def test_noise_has_its_tails(law, tail):
    rng = np.random.default_rng(0)
    spec = NoiseSpec(law, (3,))
    drawn = draw_noise(spec, 64, rng)
    rare = with_tails(spec, drawn, rng)
    changed = (rare != drawn).any(axis=1)
    assert changed.sum() == 8
    assert rare.max() == tail
    assert rare.dtype == drawn.dtype
