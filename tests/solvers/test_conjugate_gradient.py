import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.solvers.conjugate_gradient import SolverStatus, conjugate_gradient


def positive_definite(size: int, seed: int = 0) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


def solve(matrix: np.ndarray, b: np.ndarray, **options):
    @tf.function(autograph=False)
    def solved(operator, b):
        return conjugate_gradient(lambda v: tf.linalg.matvec(operator, v), b, **options)

    return solved(tf.constant(matrix), tf.constant(b))


@pytest.mark.parametrize("size", [1, 5, 40])
def test_agrees_with_a_dense_solve(size):
    matrix = positive_definite(size)
    b = np.random.default_rng(1).normal(size=size)
    solution = solve(matrix, b, iterations=10 * size, tolerance=1e-12)
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, b), rtol=1e-7, atol=1e-9)
    assert solution.status == SolverStatus.CONVERGED
    assert np.linalg.norm(solution.residual) <= 1e-12 * np.linalg.norm(b)


def test_is_exact_after_as_many_iterations_as_distinct_eigenvalues():
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))
    matrix = basis @ np.diag(np.repeat([1.0, 4.0, 9.0], 10)) @ basis.T
    solution = solve(matrix, np.ones(30), iterations=30, tolerance=1e-10)
    assert solution.iterations == 3
    np.testing.assert_allclose(solution.x, np.linalg.solve(matrix, np.ones(30)))


def test_stops_at_the_iteration_limit_with_the_residual_it_has():
    matrix, b = positive_definite(40), np.ones(40)
    solution = solve(matrix, b, iterations=4)
    assert solution.status == SolverStatus.ITERATION_LIMIT
    assert solution.iterations == 4
    np.testing.assert_allclose(solution.residual, b - matrix @ solution.x.numpy())


@pytest.mark.parametrize("eigenvalue", [0.0, -2.0])
def test_reports_curvature_that_is_not_positive_and_keeps_the_last_sound_x(eigenvalue):
    matrix = np.diag([1.0, 3.0, eigenvalue])
    b = np.array([1.0, 1.0, 1e-3]) if eigenvalue else np.array([0.0, 0.0, 1.0])
    solution = solve(matrix, b, iterations=20)
    assert solution.status == SolverStatus.NON_POSITIVE_CURVATURE
    x = solution.x.numpy()
    assert np.isfinite(x).all()
    assert 0.5 * x @ matrix @ x - b @ x <= 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_reports_products_that_are_not_finite(poison):
    matrix = positive_definite(5)
    matrix[2, 2] = poison
    solution = solve(matrix, np.ones(5), iterations=20)
    assert solution.status == SolverStatus.NON_FINITE
    assert np.isfinite(solution.x).all()


def test_reports_a_right_side_that_is_not_finite():
    solution = solve(np.eye(3), np.array([1.0, np.nan, 0.0]), iterations=5)
    assert solution.status == SolverStatus.NON_FINITE
    assert solution.iterations == 0
    np.testing.assert_array_equal(solution.x, np.zeros(3))


def test_zero_right_side_needs_no_product():
    solution = solve(np.eye(3), np.zeros(3), iterations=5)
    assert solution.status == SolverStatus.CONVERGED
    assert solution.iterations == 0


def test_a_diagonal_preconditioner_saves_iterations_and_finds_the_same_x():
    scale = np.diag(10.0 ** np.linspace(-2, 2, 40))
    matrix = scale @ positive_definite(40) @ scale
    b = np.random.default_rng(1).normal(size=40)
    options = {"iterations": 2000, "tolerance": 1e-9}
    plain = solve(matrix, b, **options)
    better = solve(matrix, b, inverse_diagonal=tf.constant(1.0 / np.diag(matrix)), **options)
    assert better.status == SolverStatus.CONVERGED
    assert int(better.iterations) < int(plain.iterations) / 2
    np.testing.assert_allclose(better.x, np.linalg.solve(matrix, b), rtol=1e-5)
