"""What every update of the family must do, whatever it is: heads and float types alike."""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import ACTIONS, make_policy, make_rows, make_theta
from trpo_tf.config.algorithms import ALGORITHMS
from trpo_tf.config.settings import Config, InnerConfig
from trpo_tf.updates.compiled_update import EntropyTerm, compile_update
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.minibatch import minibatches
from trpo_tf.updates.result import UpdateStatus

ROWS = 64
HARD_CONSTRAINT = ("trpo", "trpo-adaptive")
# Training is in float32; what rounding hides there shows in float64, with another head.
CASES = [(algo, "gaussian", "float32") for algo in ALGORITHMS]
CASES += [(algo, "categorical", "float64") for algo in ALGORITHMS]
CASES += [("trpo", kind, "float32") for kind in ACTIONS if kind not in ("categorical", "gaussian")]
# XLA compiles the rule of each algorithm and each kind of head, one of them without the rounding of float32.
PLAIN = ("multi-categorical", "masked")  # which have nothing that "masked-choices" lacks
COMPILED = [case for case in CASES if case[0] == "trpo" or case[2] == "float32"]
COMPILED = [case for case in COMPILED if case[1] not in PLAIN]


class Case(NamedTuple):
    """A compiled update, shared by the tests since compiling takes seconds."""

    algo: str
    kind: str
    dtype: str
    config: Config
    policy: Any
    theta: np.ndarray
    compiled: Any

    def rows(self, seed: int = 0):
        return make_rows(self.kind, self.dtype, count=ROWS, seed=seed)

    def update(self, rows):
        adapted = np.asarray(ALGORITHMS[self.algo].initial(self.config), self.dtype)
        batches = minibatches(np.random.default_rng(0), ROWS, 32, 5)
        zero = np.zeros((), self.dtype)
        return self.compiled(self.theta, rows, adapted, batches, EntropyTerm(zero, zero))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    return compiled_case(*request.param)


@functools.cache
def compiled_case(algo: str, kind: str, dtype: str) -> Case:
    config = Config("unused", algo=algo, inner=InnerConfig(policy_batch_size=32, policy_epochs=5))
    policy = make_policy(kind, dtype)
    compiled = compile_update(policy, config, xla=(algo, kind, dtype) in COMPILED)
    return Case(algo, kind, dtype, config, policy, make_theta(policy, dtype), compiled)


def test_improves_the_surrogate_and_keeps_its_constraint(case):
    rows = case.rows()
    update = case.update(rows)
    assert update.status == UpdateStatus.ACCEPTED
    problem = LocalProblem(case.policy, tf.constant(case.theta), rows)
    gain = problem.surrogate(update.theta) - problem.surrogate(problem.theta)
    mean_kl, max_state_kl = problem.kl(update.theta)
    assert gain > 0
    assert update.theta.dtype == case.dtype
    tolerance = 2e-5 if case.dtype == "float32" else 1e-10
    np.testing.assert_allclose(
        [update.surrogate_gain, update.mean_kl, update.max_state_kl], [gain, mean_kl, max_state_kl], atol=tolerance
    )
    limit = case.config.trust_region.max_kl
    if case.algo in HARD_CONSTRAINT:
        assert update.mean_kl <= np.asarray(limit, case.dtype)
    elif case.algo == "vpg":
        step = np.linalg.norm(update.theta - case.theta)
        np.testing.assert_allclose(step, case.config.trust_region.l2_radius, rtol=1e-4)
    elif case.algo in ("npg", "nac"):
        assert mean_kl < 2 * limit  # the quadratic model's limit, not a hard one


@pytest.mark.parametrize("case", COMPILED, ids="-".join, indirect=True)
def test_is_the_same_with_and_without_xla(case):
    plain = case._replace(compiled=compile_update(case.policy, case.config, xla=False))
    update, other = case.update(case.rows()), plain.update(case.rows())
    tolerance = 1e-4 if case.dtype == "float32" else 1e-5  # conjugate gradient's own
    for name, value in update._asdict().items():
        if name in ("cg_residual", "cg_iterations") and case.dtype == "float32":
            continue  # by the last products what is left of the gradient is mostly rounding, and so is when to stop
        np.testing.assert_allclose(getattr(other, name), value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_advantages_that_are_not_finite_are_rejected_and_the_parameters_stand(case, poison):
    rows = case.rows()
    rows.advantage[np.flatnonzero(rows.weight)[0]] = poison
    update = case.update(rows)
    assert update.status == UpdateStatus.NON_FINITE_GRADIENT
    np.testing.assert_array_equal(update.theta, case.theta)


def test_no_advantage_no_step(case):
    rows = case.rows()
    update = case.update(rows._replace(advantage=np.zeros_like(rows.advantage)))
    assert update.status == UpdateStatus.ZERO_GRADIENT
    np.testing.assert_array_equal(update.theta, case.theta)


def test_advantages_of_rows_that_do_not_count_are_not_looked_at(case):
    rows = case.rows()
    poisoned = rows._replace(advantage=np.where(rows.weight > 0, rows.advantage, np.nan).astype(case.dtype))
    np.testing.assert_array_equal(case.update(poisoned).theta, case.update(rows).theta)


def test_is_traced_once(case):
    for seed in range(3):
        case.update(case.rows(seed))
    assert case.compiled.experimental_get_tracing_count() == 1
