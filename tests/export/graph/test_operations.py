"""Operations that the converters lack: each as its definition says, in ONNX, ORT format, LiteRT and C."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python.schema_py_generated import BuiltinOperator

from tests.support.export.litert_operators import operators
from trpo_tf.export import Evidence, PolicySpec, convert_policy, write_bundle
from trpo_tf.export.c99 import c_sources, compiled_actor
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_actor
from trpo_tf.export.ort.convert import to_ort
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.onnx_runtime import open_session

WIDTH = 6


def spec_of(width: int) -> PolicySpec:
    observation, action = ArraySpec("obs", "float32", (width,)), ArraySpec("action", "float32", (width,))
    return PolicySpec((observation,), action, NoiseSpec("normal", (width,)))


SPEC = spec_of(WIDTH)
GRID = np.linspace(-6.0, 6.0, 40 * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
TURN = np.float32(2 * np.pi)
WITHIN_ONE = GRID / np.float32(6.5)

erf, erfc = np.vectorize(math.erf), np.vectorize(math.erfc)


def softplus(x):
    return np.logaddexp(0.0, x)


ELEMENTWISE = {
    "erf": (tf.math.erf, erf, GRID),
    "erfc": (tf.math.erfc, erfc, GRID),
    "gelu": (keras.activations.gelu, lambda x: x * erfc(-x / math.sqrt(2)) / 2, GRID),
    "celu": (keras.activations.celu, lambda x: np.where(x > 0, x, np.expm1(x)), GRID),
    "expm1": (tf.math.expm1, np.expm1, GRID),
    "log1p": (tf.math.log1p, np.log1p, WITHIN_ONE * 1.05),
    "symlog": (lambda x: tf.sign(x) * tf.math.log1p(tf.abs(x)), lambda x: np.sign(x) * np.log1p(np.abs(x)), 100 * GRID),
    "softplus": (tf.math.softplus, softplus, 50 * GRID),
    "x log y": (lambda x: tf.math.xlogy(tf.nn.relu(x), tf.nn.relu(x)), lambda x: x * np.log(x), np.abs(GRID)),
    "x log(1 + y)": (lambda x: tf.math.xlog1py(x, x * x), lambda x: x * np.log1p(x * x), GRID),
    "x / y": (lambda x: tf.math.xdivy(x, x + 7), lambda x: x / (x + 7), GRID),
    "x y": (lambda x: tf.math.multiply_no_nan(x, x), np.square, GRID),
    "sinh": (tf.sinh, np.sinh, GRID),
    "cosh": (tf.cosh, np.cosh, GRID),
    "tan": (tf.tan, np.tan, WITHIN_ONE),
    "asin": (tf.asin, np.arcsin, WITHIN_ONE),
    "acos": (tf.acos, np.arccos, WITHIN_ONE),
    "atan": (tf.atan, np.arctan, GRID),
    "asinh": (tf.asinh, np.arcsinh, GRID),
    "acosh": (tf.acosh, np.arccosh, 1 + np.abs(GRID)),
    "atanh": (tf.atanh, np.arctanh, WITHIN_ONE),
    "dividend's remainder": (lambda x: tf.truncatemod(x, 1.75), lambda x: np.fmod(x, 1.75), GRID),
    "divisor's remainder": (lambda x: tf.math.floormod(x, -1.75), lambda x: np.mod(x, -1.75), GRID),
    "angle": (lambda x: tf.math.floormod(x, TURN), lambda x: np.mod(x, np.float64(TURN)), 1e4 * GRID),
    "rounded to even": (tf.round, np.rint, np.round(4 * GRID) / 4),
    "bins": (
        lambda x: tf.cast(keras.layers.Discretization([-2.5, 0.0, 0.5, 4.0])(x), tf.float32),
        lambda x: np.digitize(x, [-2.5, 0.0, 0.5, 4.0]),
        np.round(2 * GRID) / 2,
    ),
    "sign": (tf.sign, np.sign, np.round(GRID)),
    "unit length, also of zeros": (
        lambda x: keras.ops.normalize(x, epsilon=1e-12),
        lambda x: x / np.maximum(1e-12, np.sqrt((x**2).sum(1, keepdims=True))),
        np.maximum(GRID, 0.0),
    ),
    "running sum": (lambda x: tf.cumsum(x, 1), lambda x: np.cumsum(x, 1), GRID),
    "log softmax": (tf.nn.log_softmax, lambda x: x - np.log(np.exp(x).sum(1, keepdims=True)), GRID),
    "vector product": (
        lambda x: tf.concat([tf.linalg.cross(x[:, :3], x[:, ::-1][:, :3]), x[:, 3:]], 1),
        lambda x: np.concatenate([np.cross(x[:, :3], x[:, ::-1][:, :3]), x[:, 3:]], 1),
        np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32),
    ),
}


def runners(policy, spec=SPEC):
    """A policy in every format, by name."""
    model = convert_policy(policy, spec)

    def runtime(content):
        session = open_session(content)
        return lambda obs, noise: session.run(None, {"obs": obs, "noise": noise})[0]

    return {
        "onnx": runtime(model),
        "ort": runtime(to_ort(model)[0]),
        "c": compiled_actor(c_sources(model, spec), spec),
        "litert": litert_actor(to_litert(policy, spec), spec),
    }


def inputs_of(name):
    return np.resize(ELEMENTWISE[name][2], GRID.shape).astype(np.float32)


@pytest.fixture(scope="module")
def side_by_side():
    """What each target makes of all operations in one graph, each on columns of its own: by target and operation."""

    def policy(obs, noise):
        functions = [function for function, _, _ in ELEMENTWISE.values()]
        parts = [function(obs[:, i * WIDTH : (i + 1) * WIDTH]) for i, function in enumerate(functions)]
        return tf.concat(parts, 1) + noise

    x = np.concatenate([inputs_of(name) for name in ELEMENTWISE], axis=1)
    found = {target: run(x, np.zeros_like(x)) for target, run in runners(policy, spec_of(x.shape[1])).items()}
    return {
        target: dict(zip(ELEMENTWISE, np.split(actions, len(ELEMENTWISE), axis=1), strict=True))
        for target, actions in found.items()
    }


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_operation_is_its_definition_on_every_target(name, side_by_side):
    expected = ELEMENTWISE[name][1](inputs_of(name).astype(np.float64))
    assert side_by_side.keys() == {"onnx", "ort", "c", "litert"}
    for target, actions in side_by_side.items():
        error = np.abs(actions[name] - expected) / np.maximum(1, np.abs(expected))
        assert error.max() < 1e-6, target


@pytest.mark.parametrize(("function", "definition"), [(tf.math.expm1, np.expm1), (tf.math.log1p, np.log1p)])
def test_digits_are_not_lost_near_zero(function, definition):
    model = convert_policy(lambda obs, noise: function(obs) + 0.0 * noise, SPEC)
    x = np.geomspace(1e-7, 0.6, 10 * WIDTH).reshape(-1, WIDTH).astype(np.float32)
    x = np.concatenate([x, -x])
    expected = definition(x.astype(np.float64))
    found = {
        "onnx": open_session(model).run(None, {"obs": x})[0],
        "c": compiled_actor(c_sources(model, SPEC), SPEC)(x, np.zeros_like(x)),
    }
    for target, actions in found.items():
        np.testing.assert_allclose(actions, expected, rtol=1e-6, err_msg=target)


def test_keras_s_argmax_and_signbit_go_without_bits():
    def policy(obs, noise):
        largest = keras.ops.argmax(obs[:, :3], axis=1, keepdims=True)
        return tf.concat([tf.cast(largest, tf.float32), tf.cast(keras.ops.signbit(obs[:, 1:]), tf.float32)], 1) + noise

    model = convert_policy(policy, SPEC)
    x = np.random.default_rng(0).choice(np.float32([-np.inf, -2, -0.0, 0.0, 1e-30, 3, np.inf]), (64, WIDTH))
    expected = np.concatenate([policy(x, 0.0).numpy()[:, :1], np.signbit(x[:, 1:])], axis=1)
    np.testing.assert_array_equal(open_session(model).run(None, {"obs": x})[0], expected)
    for actor in (compiled_actor(c_sources(model, SPEC), SPEC), litert_actor(to_litert(policy, SPEC), SPEC)):
        np.testing.assert_array_equal(actor(x, np.zeros_like(x)), expected)


def test_limits_are_those_of_the_functions():
    def policy(obs, noise):
        one, two = obs[:, :3], obs[:, 3:]
        return tf.concat([tf.math.log1p(one), tf.math.expm1(two)], 1) + noise

    obs = np.array([[-1, np.inf, np.nan, -np.inf, np.inf, np.nan], [-3, 1e30, 0, -90, 88, 0]], np.float32)
    expected = np.array([[-np.inf, np.inf, np.nan, -1, np.inf, np.nan], [np.nan, np.log(1e30), 0, -1, np.exp(88), 0]])
    model = convert_policy(policy, SPEC)
    np.testing.assert_allclose(open_session(model).run(None, {"obs": obs})[0], expected, rtol=1e-5)
    actor = compiled_actor(c_sources(model, SPEC), SPEC)
    np.testing.assert_allclose(actor(obs, np.zeros_like(obs)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "product", [tf.math.xlogy, tf.math.xlog1py, tf.math.xdivy, lambda x, y: tf.math.multiply_no_nan(y, x)]
)
def test_products_are_zero_where_the_first_factor_is(product):
    model = convert_policy(lambda obs, noise: product(obs, obs / 0.0) + noise, SPEC)
    assert not open_session(model).run(None, {"obs": np.zeros((2, WIDTH), np.float32)})[0].any()


@pytest.mark.parametrize("divisor", [4, -4])
def test_integers_are_divided_as_python_divides_them(divisor):
    """Towards minus infinity, where C and ONNX go towards zero."""

    def policy(obs, noise):
        whole = tf.cast(obs, tf.int32)
        return tf.cast(whole % divisor, tf.float32) + 100.0 * tf.cast(whole // divisor, tf.float32) + noise

    x = np.arange(-9, 9, dtype=np.float32).reshape(-1, WIDTH)
    for target, run in runners(policy).items():
        expected = x % divisor + 100 * (x // divisor)
        np.testing.assert_array_equal(run(x, np.zeros_like(x)), expected, err_msg=target)


def test_an_operation_inside_a_loop_and_a_function_of_one_s_own_is_replaced_too():
    inner = tf.function(tf.math.erfc)

    def policy(obs, noise):
        return tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, tf.math.erf(x) + inner(x)), (0, obs))[1] + noise

    actor = litert_actor(to_litert(policy, SPEC), SPEC)
    np.testing.assert_allclose(actor(GRID, np.zeros_like(GRID)), np.ones_like(GRID), atol=1e-6)


def test_litert_keeps_its_own_gelu():
    content = to_litert(lambda obs, noise: keras.activations.gelu(obs) + noise, SPEC)
    assert BuiltinOperator.GELU in [code for code, _ in operators(content)]


def test_a_shape_computed_of_two_is_carried():
    """What a distribution of TensorFlow Probability asks for at each mode."""

    def policy(obs, noise):
        shape = tf.broadcast_dynamic_shape(tf.shape(obs[:, :1]), tf.shape(noise))
        return tf.broadcast_to(obs[:, :1], shape) + noise

    expected = np.repeat(GRID[:, :1], WIDTH, axis=1)
    for target, run in runners(policy).items():
        np.testing.assert_array_equal(run(GRID, np.zeros_like(GRID)), expected, err_msg=target)


def test_a_network_of_gelu_is_exported_to_every_target(tmp_path):
    layers = keras.layers
    network = keras.Sequential([keras.Input((4,)), layers.Dense(16, "gelu"), layers.Dense(2)])
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (4,)),), ArraySpec("action", "float32", (2,), -1.0, 1.0), NoiseSpec("normal", (2,))
    )
    visited = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)

    def policy(obs, noise):
        return tf.tanh(network(tf.clip_by_value(obs, -5.0, 5.0)) + 0.1 * noise)

    bundle = write_bundle(policy, spec, tmp_path / "gelu", targets=["all"], evidence=Evidence(visited))
    assert bundle.parity.keys() == TARGETS.keys()
    assert all(figures["cases_equal"] == figures["cases"] for figures in bundle.parity.values() if figures["exact"])


@pytest.mark.parametrize(("epsilon", "guarded"), [(1e-3, False), (0.0, True)])
def test_litert_s_own_root_is_taken_where_it_can_t_meet_zero(epsilon, guarded):
    content = to_litert(lambda obs, noise: obs * tf.math.rsqrt(tf.square(obs) + epsilon) + noise, SPEC)
    codes = [code for code, _ in operators(content)]
    assert BuiltinOperator.RSQRT in codes
    assert (BuiltinOperator.SELECT_V2 in codes) is guarded
