import json
import shutil

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import MOST_STATISTICS, ArraySpec, NoiseSpec, Statistics
from trpo_tf.serving.errors import BundleError
from trpo_tf.serving.metrics.drift import MOST_DEVIATIONS, WINDOW, Input, Watch, drift, empty, joined, moments_of

MEAN, STDDEV = np.array([1.0, -20.0, 0.0, 300.0]), np.array([0.1, 5.0, 1.0, 30.0])
STATISTICS = Statistics(tuple(MEAN), tuple(STDDEV))


@pytest.fixture
def trained(discrete, tmp_path):
    """A bundle that knows what was observed in training."""
    bundle = shutil.copytree(discrete, tmp_path / "bundle")
    document = json.loads((bundle / "manifest.json").read_text())
    document["statistics"] = {"obs": {"mean": MEAN.tolist(), "stddev": STDDEV.tolist()}}
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


def rows(count: int, shift: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(7).normal(MEAN, STDDEV, (count, 4))
    drawn[:, 1] += shift * STDDEV[1]
    return drawn.astype(np.float32)


def ask(server, observations: np.ndarray) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    connection = server.connect()
    connection.request("POST", "/v2/models/discrete/infer", observations.tobytes(), headers)
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    connection.close()


@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
def test_drift_is_by_how_many_deviations_observations_are_shifted(start, trained, scrape, shift):
    with start(trained) as server:
        drawn = rows(2000, shift)
        for batch in np.split(drawn, 20):
            ask(server, batch)
        metrics = scrape(server)
        model = {"model": "discrete", "version": "1"}
        assert metrics("trpo_tf_drift_observations", **model) == 2000
        assert metrics("trpo_tf_observation_drift", **model) == pytest.approx(abs(shift), abs=0.1)
        for element in range(4):
            where = {**model, "input": "obs", "element": str(element)}
            mean, stddev = drawn[:, element].mean(dtype=float), drawn[:, element].std(dtype=float)
            assert metrics("trpo_tf_observation_mean", **where) == pytest.approx(mean, rel=1e-9)
            assert metrics("trpo_tf_observation_stddev", **where) == pytest.approx(stddev, rel=1e-9)


def test_one_absurd_observation_is_soon_outweighed_and_many_are_not(start, trained, scrape):
    with start(trained) as server:
        model = {"model": "discrete", "version": "1"}
        ask(server, np.full((1, 4), 1e20, np.float32))
        assert scrape(server)("trpo_tf_observation_drift", **model) == pytest.approx(MOST_DEVIATIONS)
        for batch in np.split(rows(3000), 3):
            ask(server, batch)
        metrics = scrape(server)
        assert metrics("trpo_tf_observation_drift", **model) < 0.2
        assert metrics("trpo_tf_drift_outliers", **model) == pytest.approx(1 / 3001)
        for _ in range(2):
            ask(server, np.full((4000, 4), -1e20, np.float32))
        metrics = scrape(server)
        assert metrics("trpo_tf_observation_drift", **model) > 20
        assert metrics("trpo_tf_drift_outliers", **model) == pytest.approx(8001 / 11001)


@pytest.mark.parametrize("value", [1e20, -1e20, 3.4e38, 1e9])
def test_an_absurd_observation_among_many_in_process(value):
    watched = Input(ArraySpec("obs", "float32", (4,)), STATISTICS)
    drawn = rows(100_000)
    drawn[50_000, 2] = value
    for part in np.array_split(drawn, 300):
        watched.add(part)
    moments = watched.moments()
    assert drift(moments, STATISTICS) < 0.05
    assert moments.outliers == 1
    np.testing.assert_allclose(moments.stddev, STDDEV, rtol=0.02)


@pytest.mark.parametrize("shift", [3.5, -10.0, 29.0])
def test_a_shift_of_all_is_told_as_it_is(shift):
    watched = Input(ArraySpec("obs", "float32", (4,)), STATISTICS)
    watched.add(rows(20_000, shift))
    assert drift(watched.moments(), STATISTICS) == pytest.approx(abs(shift), abs=0.4)


def test_without_statistics_the_declared_bounds_tell_what_is_absurd():
    low = (-1.0, -np.inf, -3.4e38, -1.7e308)
    spec = ArraySpec("obs", "float64", (4,), low, tuple(-bound for bound in low))
    watched = Input(spec)
    watched.add(np.array([[1e300, 1e300, 1e30, 1e99], [2.5, 0, 0, 0], [-0.0, -0.0, 0, 0]]))
    moments = watched.moments()
    np.testing.assert_allclose(moments.mean, [5.5 / 3, 1e100 / 3, 1e30 / 3, 1e99 / 3])
    assert moments.outliers == 1
    assert np.isfinite(moments.stddev).all()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float16", [65504.0, -65504.0]),
        ("int64", [2**63 - 1, -(2**63)]),
        ("uint64", [2**64 - 1, 0]),
        ("float64", [np.finfo(float).max, -np.finfo(float).max]),
        ("bool", [True, False]),
    ],
)
@pytest.mark.parametrize("training", [None, Statistics((0.0,), (1.0,)), Statistics((1e308,), (1e-300,))])
def test_the_extremes_of_every_type_leave_finite_statistics(dtype, values, training):
    watched = Input(ArraySpec("obs", dtype, ()), training)
    watched.add(np.array(values, dtype))
    moments = watched.moments()
    assert np.isfinite([*moments.mean, *moments.stddev, moments.outliers]).all()
    assert moments.total == 2


def test_without_statistics_of_the_training_there_is_no_drift(start, discrete, scrape):
    with start(discrete) as server:
        ask(server, rows(10))
        metrics = scrape(server)
        assert metrics("trpo_tf_drift_observations", model="discrete", version="1") == 10
        assert metrics("trpo_tf_observation_drift", model="discrete", version="1") is None


def test_in_batches_is_as_at_once():
    drawn = np.random.default_rng(1).normal(1e6, 1e-2, (5000, 3))
    moments = empty(3)
    for part in np.array_split(drawn, 37):
        moments = joined(moments, moments_of(part))
    np.testing.assert_allclose(moments.mean, drawn.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.stddev, drawn.std(axis=0), rtol=1e-6)
    assert moments.total == 5000


def test_what_is_long_past_is_forgotten():
    old, new = moments_of(np.full((WINDOW, 1), 5.0)), moments_of(np.zeros((1000, 1)))
    moments = joined(empty(1), old, WINDOW)
    for _ in range(10 * WINDOW // 1000):
        moments = joined(moments, new, WINDOW)
    assert moments.total == WINDOW
    assert abs(moments.mean[0]) < 5 * np.exp(-9.5)


def test_more_rows_than_the_window_are_all_taken():
    assert joined(moments_of(np.ones((10, 1))), moments_of(np.zeros((2 * WINDOW, 1))), WINDOW).mean[0] == 0


def test_the_largest_numbers_leave_finite_statistics():
    watched = Input(ArraySpec("obs", "float64", (2,)))
    watched.add(np.array([[np.finfo(float).max, -np.finfo(float).max]]))
    watched.add(np.array([[-1.0, 1.0]]))
    moments = watched.moments()
    assert np.isfinite(moments.mean).all()
    assert np.isfinite(moments.stddev).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_every_type_is_observed(dtype):
    values = (np.arange(1200).reshape(300, 2, 2) % 2).astype(dtype)
    watched = Input(ArraySpec("obs", dtype, (2, 2)))
    for row in values:
        watched.add(row[np.newaxis])
    np.testing.assert_allclose(watched.moments().mean, [0, 1, 0, 1])
    assert watched.moments().total == 300


def test_inputs_are_observed_by_name_but_for_images():
    specs = (
        ArraySpec("arm", "float32", (2,)),
        ArraySpec("eye", "uint8", (64, 64, 3)),
        ArraySpec("leg", "float32", (1,)),
    )
    watch = Watch(Manifest("policy", specs, ArraySpec("action", "float32", (1,)), NoiseSpec("normal", (1,))))
    parts = {"leg": np.ones((3, 1), np.float32), "arm": np.zeros((3, 2), np.float32), "eye": np.zeros((3, 64, 64, 3))}
    watch.asked(parts)
    assert {watched.name: watched.moments().mean.tolist() for watched in watch.inputs} == {"arm": [0, 0], "leg": [1]}


def test_the_manifest_keeps_the_statistics(trained):
    manifest = serving.bundle.manifest.read_manifest(trained)
    assert manifest.statistics == {"obs": Statistics(tuple(MEAN), tuple(STDDEV))}
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_without_them_does_not_mention_them(discrete):
    manifest = serving.bundle.manifest.read_manifest(discrete)
    assert manifest.statistics == {}
    assert "statistics" not in json.loads(manifest.to_json())


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ([], "statistics must be an object"),
        ({"other": {"mean": [0], "stddev": [1]}}, "of an input"),
        ({"obs": []}, "obs must be an object"),
        ({"obs": {"mean": [0, 0, 0, 0]}}, "stddev must be a list of 4 finite numbers above 0"),
        ({"obs": {"mean": [0, 0, 0], "stddev": [1, 1, 1, 1]}}, "mean must be a list of 4 finite numbers"),
        ({"obs": {"mean": [0, 0, 0, None], "stddev": [1, 1, 1, 1]}}, "mean must be"),
        ({"obs": {"mean": [0, 0, 0, 0], "stddev": [1, 1, 1, 0]}}, "stddev must be"),
    ],
)
def test_statistics_that_are_none_are_refused(trained, statistics, message):
    document = json.loads((trained / "manifest.json").read_text()) | {"statistics": statistics}
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document))


def test_statistics_of_an_image_are_refused(trained):
    document = json.loads((trained / "manifest.json").read_text())
    size = MOST_STATISTICS + 1
    document["observation"][0] |= {"shape": [size], "low": None, "high": None}
    document["statistics"] = {"obs": {"mean": [0] * size, "stddev": [1] * size}}
    with pytest.raises(BundleError, match="1000 elements at most"):
        Manifest.from_json(json.dumps(document))
