import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import make_policy, make_rows, make_theta, trpo_update
from trpo_tf.config.settings import Config, InnerConfig, TrustRegionConfig
from trpo_tf.errors import UserError
from trpo_tf.updates.composed import directed_update
from trpo_tf.updates.directions import compatible_weights, gradient_direction, natural_gradient
from trpo_tf.updates.kl_penalty import kl_penalty
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.minibatch import minibatches
from trpo_tf.updates.ppo import ppo
from trpo_tf.updates.trust_region_steps import adaptive_radius, kl_bounded_backtracking, kl_sphere, l2_ball

CONFIG = TrustRegionConfig(max_kl=0.01, cg_iterations=60, cg_tolerance=1e-10)
RADIUS = tf.constant(0.01, tf.float64)


def problem_of(kind, seed=0):
    policy = make_policy(kind)
    return LocalProblem(policy, tf.constant(make_theta(policy)), make_rows(kind, seed=seed))


def step_of(problem, find, take, config=CONFIG):
    return (directed_update(problem, find, take, config, RADIUS).theta - problem.theta).numpy()


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_direction_and_step_rule_are_independent(kind):
    """Swapping one part turns TRPO into NPG (equation 51) and that into the l2-constrained gradient (equation 52)."""
    problem = problem_of(kind)
    gradient = problem.gradient()[1].numpy()
    npg = step_of(problem, natural_gradient, kl_sphere)
    trpo = step_of(problem, natural_gradient, kl_bounded_backtracking)
    vpg = step_of(problem, gradient_direction, l2_ball)
    natural_in_l2 = step_of(problem, natural_gradient, l2_ball)
    plain_in_kl = step_of(problem, gradient_direction, kl_sphere)
    np.testing.assert_allclose([cosine(npg, trpo), cosine(npg, natural_in_l2)], 1.0)
    np.testing.assert_allclose([cosine(vpg, gradient), cosine(vpg, plain_in_kl)], 1.0)
    assert cosine(npg, vpg) < 0.99
    np.testing.assert_allclose([np.linalg.norm(vpg), np.linalg.norm(natural_in_l2)], CONFIG.l2_radius)
    for step in (npg, plain_in_kl):
        damped = problem.fisher_vector_product(tf.constant(step)).numpy() + CONFIG.damping * step
        np.testing.assert_allclose(step @ damped / 2, CONFIG.max_kl)


def test_trpo_is_npg_where_the_full_step_is_good():
    problem = problem_of("gaussian")
    update = trpo_update(problem, CONFIG)
    assert update.line_search_tries == 1
    np.testing.assert_allclose(update.theta - problem.theta, step_of(problem, natural_gradient, kl_sphere))


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_compatible_weights_are_least_squares_on_the_score(kind):
    problem, rows = problem_of(kind), make_rows(kind)
    size, score_product = len(problem.theta), tf.function(problem.score.forward, autograph=False)
    score = np.stack([score_product(tf.constant(unit)).numpy() for unit in np.eye(size)], axis=1)
    root = np.sqrt(rows.weight / rows.weight.sum())
    design = np.concatenate([root[:, None] * score, np.sqrt(CONFIG.damping) * np.eye(size)])
    target = np.concatenate([root * rows.advantage, np.zeros(size)])
    expected, *_ = np.linalg.lstsq(design, target, rcond=None)
    direction = compatible_weights(problem, problem.gradient()[1], CONFIG)
    np.testing.assert_allclose(direction.vector, expected, rtol=1e-6, atol=1e-9)


def test_score_products_are_each_others_transpose():
    problem = problem_of("categorical")
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=len(problem.theta)), rng.normal(size=40)
    share = make_rows("categorical").weight
    left = np.sum(share / share.sum() * w * problem.score.forward(tf.constant(v)).numpy())
    np.testing.assert_allclose(left, v @ problem.score.backward(tf.constant(w)).numpy())


def test_a_part_of_the_rows_is_the_problem_of_those_rows():
    policy, rows = make_policy("gaussian"), make_rows("gaussian")
    theta = tf.constant(make_theta(policy))
    indices = np.array([3, 7, 8, 20, 21])
    part = LocalProblem(policy, theta, rows).rows(indices)
    alone = LocalProblem(policy, theta, type(rows)(*(array[indices] for array in rows)))
    other = theta + 0.1
    np.testing.assert_allclose(part.surrogate(other), alone.surrogate(other))
    np.testing.assert_allclose(part.kl(other), alone.kl(other))
    np.testing.assert_allclose(part.gradient()[1], alone.gradient()[1])


class Valley:
    """One parameter, surrogate s(x), KL = x^2 / 2: how good the linear model is depends on the bend alone."""

    def __init__(self, bend: float) -> None:
        self.theta = tf.zeros(1, tf.float64)
        self._bend = bend

    def surrogate(self, theta):
        return tf.reduce_sum(theta - self._bend * theta**2 / 2)

    def gradient(self):
        return self.surrogate(self.theta), tf.ones(1, tf.float64)

    def kl(self, theta):
        kl = tf.reduce_sum(theta**2) / 2
        return kl, kl

    def fisher_vector_product(self, vector):
        return vector

    def entropy(self):
        return tf.constant(0.0, tf.float64)


@pytest.mark.parametrize(
    ("bend", "factor"),
    [(0.0, 2.0), (6.0, 1.0), (14.0, 0.5), (1e6, 0.5)],
    ids=["too small", "about right", "too big", "search fails"],
)
def test_the_radius_follows_how_well_the_model_foretold_the_gain(bend, factor):
    """At x = sqrt(2 x 0.01) = 0.14 a bend b leaves 1 - b x / 2 of the promised gain."""
    config = TrustRegionConfig(max_kl=0.01, damping=1e-6)
    update = directed_update(Valley(bend), natural_gradient, adaptive_radius, config, RADIUS)
    np.testing.assert_allclose(update.adapted, 0.01 * factor)


def test_an_adaptive_radius_gets_ahead_where_a_fixed_one_is_too_small_or_too_big():
    def last(bend, take):
        config, theta, radius = TrustRegionConfig(max_kl=0.01, damping=1e-6), tf.zeros(1, tf.float64), RADIUS
        for _ in range(12):
            problem = Valley(bend)
            problem.theta = theta
            problem.gradient = lambda p=problem, t=theta: (p.surrogate(t), 1.0 - p._bend * t)
            problem.kl = lambda x, t=theta: (tf.reduce_sum((x - t) ** 2) / 2, tf.reduce_sum((x - t) ** 2) / 2)
            update = directed_update(problem, natural_gradient, take, config, radius)
            theta, radius = update.theta, update.adapted
        return float(theta[0])

    assert last(0.01, adaptive_radius) > 1.5 * last(0.01, kl_bounded_backtracking)  # top at 100: short steps waste time
    top = 1 / 14.0
    assert abs(last(14.0, adaptive_radius) - top) <= abs(last(14.0, kl_bounded_backtracking) - top)


def inner_update(rule, problem, coefficient, **settings):
    config = Config("unused", inner=InnerConfig(policy_batch_size=20, **settings))
    batches = tf.constant(minibatches(np.random.default_rng(0), 40, 20, config.inner.policy_epochs))
    return tf.function(lambda: rule(problem, config, tf.constant(coefficient, tf.float64), batches), autograph=False)()


def test_a_heavier_penalty_keeps_the_policy_nearer():
    problem = problem_of("gaussian")
    near, far = (inner_update(kl_penalty, problem, c, policy_epochs=40).mean_kl for c in (30.0, 0.3))
    assert 0 < near < far / 3


def test_the_penalty_adapts_towards_the_target():
    problem = problem_of("gaussian")
    heavy = inner_update(kl_penalty, problem, 100.0, policy_epochs=40)
    light = inner_update(kl_penalty, problem, 1e-3, policy_epochs=40)
    assert (heavy.mean_kl < 0.01 / 1.5, light.mean_kl > 1.5 * 0.01) == (True, True)
    np.testing.assert_allclose([heavy.adapted, light.adapted], [50.0, 2e-3])
    fixed = inner_update(kl_penalty, problem, 100.0, policy_epochs=40, adapt_kl=False)
    assert fixed.adapted == 100.0


def test_ppo_stops_pushing_ratios_beyond_the_clip():
    problem = problem_of("categorical")
    ratios = []
    for clip in (0.05, 1e6):
        update = inner_update(ppo, problem, 0.0, policy_epochs=100, policy_learning_rate=3e-3, clip_range=clip)
        ratios.append(np.median(np.abs(problem.ratio(update.theta).numpy() - 1.0)))
    assert ratios[0] < 0.15 < ratios[1]


def test_an_unknown_algorithm_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"algo 'a3c' is unknown; choose one of trpo, .*ppo"):
        Config("unused", algo="a3c")


def test_an_update_that_is_refused_leaves_the_penalty_as_it_is():
    policy = make_policy("gaussian")
    rows = make_rows("gaussian")
    broken = rows._replace(advantage=np.full_like(rows.advantage, np.nan))
    problem = LocalProblem(policy, tf.constant(make_theta(policy)), broken)
    update = inner_update(kl_penalty, problem, 2.0)
    assert (float(update.mean_kl), float(update.adapted)) == (0.0, 2.0)


def test_a_fraction_of_the_vine_s_rows_is_all_actions_of_some_states():
    policy = make_policy("categorical")
    rows = make_rows("categorical")._replace(weight=np.full(40, 0.25))
    problem = LocalProblem(policy, tf.constant(make_theta(policy)), rows, branches=4)
    chosen = np.arange(40).reshape(10, 4)[::3].ravel()
    part = LocalProblem(policy, problem.theta, type(rows)(*(array[chosen] for array in rows)))
    vector = tf.constant(np.random.default_rng(0).normal(size=problem.theta.shape[0]))
    np.testing.assert_allclose(problem.every(3).fisher_vector_product(vector), part.fisher_vector_product(vector))


@pytest.mark.parametrize("iterations", [1, 4, 60])
def test_the_curvature_that_the_solver_tells_is_that_of_its_direction(iterations):
    problem, settings = problem_of("gaussian"), TrustRegionConfig(cg_iterations=iterations)
    direction = natural_gradient(problem, problem.gradient()[1], settings)
    product = problem.fisher_vector_product(direction.vector) + settings.damping * direction.vector
    np.testing.assert_allclose(direction.curvature, tf.tensordot(direction.vector, product, 1))
