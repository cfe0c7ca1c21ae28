"""Drift from a training run to a server's metrics."""

import re

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.config.settings import SamplingConfig
from trpo_tf.exporting.provenance import statistics
from trpo_tf.serving.metrics.prometheus import render
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.repository.catalog import Catalog, Model, Release
from trpo_tf.training.train import train


def drift(policy, observations) -> float:
    metrics, model = Metrics(), Model("walk", "1", policy)
    metrics.show(Catalog({"walk": Release({"1": model}, lambda: model, lambda: model)}))
    metrics.watch(model).asked(observations)
    return float(re.search(r"^trpo_tf_observation_drift\{.*\} (\S+)$", render(metrics).decode(), re.MULTILINE)[1])


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_drift_is_measured_in_deviations_of_the_training(trained, bundle, shift):
    policy, moments = serving.load(bundle), trained.run.state.observation_moments
    (spec,) = policy.manifest.observation
    deviation = np.sqrt(moments.variance)
    drawn = np.random.default_rng(3).normal(moments.mean + shift * deviation, deviation, (20_000, *moments.mean.shape))
    assert drift(policy, drawn.reshape(-1, *spec.shape).astype(spec.dtype)) == pytest.approx(shift, abs=0.05)


def test_a_run_without_a_normaliser_has_no_statistics(small_config, tmp_path):
    assert SamplingConfig().normalize_observations
    run = train(small_config(normalize_observations=False), tmp_path / "run")
    assert statistics(run) == {}
