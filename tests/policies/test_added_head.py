"""A head of another package: its distribution, and a run and a bundle made with it where the package is installed."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tests.support.processes.added_packages import install, installed, run
from trpo_tf.config.settings import PolicyConfig
from trpo_tf.errors import UserError
from trpo_tf.policies.heads.make import make_head
from trpo_tf.serving import ArraySpec, load

PAGE = "own-head"
TRAIN = """
import sys
from trpo_tf.cli.main import main
main(["train", "Pendulum-v1", "--preset", "default", "--head", "laplace", "--total-steps", "1024",
      "--batch-size", "512", "--eval-episodes", "1", "--out", sys.argv[1]])
main(["train", "--resume", sys.argv[1], "--total-steps", "1536"])
main(["export", sys.argv[1], "--out", sys.argv[2], "--target", "onnx", "--outputs", "distribution"])
"""


def test_an_added_head_trains_resumes_and_exports(tmp_path):
    install(tmp_path / "site", PAGE)
    done = run(tmp_path / "site", TRAIN, tmp_path / "run", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update_status"] for line in logged] == ["accepted"] * 3
    assert all(0 < line["mean_kl"] <= 0.015 for line in logged)
    policy = load(tmp_path / "bundle")  # here, where the package is not installed
    assert policy.manifest.noise.law == "logistic"
    assert [spec.name for spec in policy.manifest.outputs] == ["action", "mean", "log_scale"]
    assert -2 < policy.act(np.zeros(3, np.float32))[0] < 2
    message = r"head 'laplace' is unknown; choose one of .*multi-categorical, or install the package that adds it$"
    with pytest.raises(UserError, match=message):
        make_head(policy.manifest.action, PolicyConfig(head="laplace"))


@pytest.fixture
def laplace(tmp_path):
    """Makes the head of the page, where its package is installed."""
    with installed(tmp_path, PAGE):
        yield make_head(ArraySpec("action", "float32", (1,), -1.0, 1.0), PolicyConfig(head="laplace"))


def test_logistic_noise_is_carried_to_laplace_samples_quantile_by_quantile(laplace):
    level = np.linspace(0.001, 0.999, 99, dtype=np.float32)[:, None]
    parameters = tf.fill(level.shape, 0.3), tf.fill(level.shape, -0.5)
    samples = laplace.sample(parameters, np.log(level / (1 - level)))
    np.testing.assert_allclose(samples, tfp.distributions.Laplace(0.3, np.exp(-0.5)).quantile(level), atol=1e-4)


def test_its_metric_is_the_hessian_of_its_divergence(laplace):
    point = tf.constant([0.2, -0.7], tf.float64)

    def divergence(new):
        split = [[part[None, None] for part in tf.unstack(each)] for each in (point, new)]
        return tf.reduce_sum(tfp.distributions.kl_divergence(*map(laplace.distribution, split)))

    step, directions = 1e-4, np.eye(2)
    hessian = [
        [
            sum(
                a * b * divergence(point + 1e-8 + step * (a * first + b * second)).numpy()
                for a in (1, -1)
                for b in (1, -1)
            )
            / (4 * step**2)
            for second in directions
        ]
        for first in directions
    ]
    parameters = tuple(part[None, None] for part in tf.unstack(point))
    columns = [laplace.metric(parameters, tuple(tf.constant(x)[None, None] for x in unit)) for unit in directions]
    np.testing.assert_allclose(hessian, np.squeeze(columns), atol=2e-3)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical"])
def test_a_head_that_does_not_fit_the_actions_is_refused(name):
    spec = ArraySpec("action", "int64", (2,), 0, (2, 3))
    with pytest.raises(UserError, match=rf"head {name} does not fit actions of int64 \[2\]; choose auto"):
        make_head(spec, PolicyConfig(head=name))
