"""The metric of the natural gradient: damped Fisher products, computed in one of several ways."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.solvers.fisher_product import Linearization
from trpo_tf.updates.local_problem import LocalProblem

Product = Callable[[Any], Any]

FISHER_PRODUCTS: dict[str, Callable[[LocalProblem], Product]] = {
    "gauss-newton": lambda problem: problem.fisher_vector_product,
    "double-backprop": lambda problem: problem.kl_hessian_product,
    "score-covariance": lambda problem: _covariance_product(problem.score),
}

_PROBES = 8


def _covariance_product(score: Linearization) -> Product:
    return lambda vector: score.backward(score.forward(vector))


def damped_product(problem: LocalProblem, config: TrustRegionConfig) -> Product:
    """Return v -> (F + damping I) v, with F over a `fisher_fraction` of the rows."""
    if config.fisher_fraction < 1:
        problem = problem.every(round(1 / config.fisher_fraction))
    product = FISHER_PRODUCTS[config.fisher](problem)
    return lambda vector: product(vector) + config.damping * vector


def inverse_diagonal(product: Product, theta: Any) -> Any:
    """Return 1 / the estimated diagonal of a positive matrix, from products with random signs (Hutchinson 1990).

    The mean of z (A z) over random signs z is the diagonal. The signs are fixed. An estimate below a tenth of the mean
    is raised to that.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_PROBES, theta.shape[0]))
    estimate = sum(z * product(z) for z in tf.unstack(tf.constant(signs, theta.dtype))) / _PROBES
    return 1.0 / tf.maximum(estimate, 0.1 * tf.reduce_mean(tf.abs(estimate)))
