"""Policies in LiteRT: the same actions in floats, nearly the same in 8 bits, and what it lacks named."""

import functools
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python.schema_py_generated import BuiltinOperator, ModelT, TensorType

from tests.support.export.hand_made import Continuous, observations
from tests.support.export.litert_operators import operators
from tests.support.export.zoo import KINDS, agrees, case, error
from trpo_tf.export import ExportError, PolicySpec
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_actor
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES

TOLERANCE = 0.05
"""Share of a continuous action's range, or of discrete actions that are others."""
PRODUCTS = (BuiltinOperator.FULLY_CONNECTED, BuiltinOperator.CONV_2D)
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2) / 7


def spec_of(observation: str = "float32", action: str = "float32") -> PolicySpec:
    return PolicySpec(
        (ArraySpec("obs", observation, (3,)),), ArraySpec("action", action, (2,)), NoiseSpec("normal", (2,))
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@functools.cache
def in_floats(kind):
    return to_litert(case(kind).policy.function, case(kind).policy.spec)


@functools.cache
def in_8_bits(kind):
    tested = case(kind)
    return to_litert(tested.policy.function, tested.policy.spec, int8_observations=tested.visited)


@pytest.fixture(scope="module")
def quantized(kind):
    return in_8_bits(kind)


def test_it_acts_as_tensorflow_with_noise_and_without_at_any_batch(kind):
    tested = case(kind)
    assert agrees(litert_actor(in_floats(kind), tested.policy.spec), tested)


def test_in_8_bits_actions_are_nearly_the_same(kind, quantized):
    tested = case(kind)
    actor = litert_actor(quantized, tested.policy.spec)
    assert error(tested, actor, tested.zero_noise) <= TOLERANCE
    assert error(tested, actor, tested.noise) <= TOLERANCE


def test_every_product_is_quantised_and_nothing_else(kind, quantized):
    before, after = operators(in_floats(kind)), operators(quantized)
    products = [types for code, types in after if code in PRODUCTS]
    assert len(products) == len([code for code, _ in before if code in PRODUCTS]) >= 3
    assert all(types[:2] == [TensorType.INT8, TensorType.INT8] for types in products)
    others = [types for code, types in after if code not in (*PRODUCTS, BuiltinOperator.DEQUANTIZE)]
    assert sum(TensorType.INT8 in types for types in others) == 0


def test_8_bits_make_convolutions_smaller():
    assert len(in_8_bits("pixels")) < 0.6 * len(in_floats("pixels"))


@pytest.mark.parametrize("kind", ["dict"], indirect=True)
def test_the_same_policy_makes_the_same_file(kind, quantized):
    assert in_8_bits.__wrapped__(kind) == quantized


def test_variables_are_carried_as_they_are_when_converted():
    policy = Continuous()
    content = to_litert(policy.function, policy.spec)
    obs, noise = observations(policy.spec.observation), np.ones((5, 2), np.float32)
    expected = policy.function(obs, noise).numpy()
    policy.model.set_weights([0 * weight for weight in policy.model.get_weights()])
    np.testing.assert_allclose(litert_actor(content, policy.spec)(obs, noise), expected, atol=1e-6)


def test_a_policy_that_ignores_its_noise_keeps_the_input():
    actor = litert_actor(to_litert(lambda obs, noise: obs @ WEIGHTS, spec_of()), spec_of())
    obs = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(actor(obs, np.ones((3, 2), np.float32)), WEIGHTS)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "uint64"])
def test_observations_and_actions_of_any_type(dtype):
    spec = spec_of(dtype, dtype)
    content = to_litert(lambda obs, noise: tf.cast(tf.cast(obs, tf.float32)[:, :2] + noise, dtype), spec)
    obs = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    actions = litert_actor(content, spec)(obs, np.zeros((2, 2), np.float32))
    assert actions.dtype == dtype
    np.testing.assert_array_equal(actions, obs[:, :2])


LACKING = {
    "BesselI0": (lambda obs, noise: tf.math.bessel_i0(obs @ WEIGHTS) + noise, spec_of()),
    "PyFunc": (lambda obs, noise: tf.numpy_function(lambda x: x, [obs @ WEIGHTS], tf.float32) + noise, spec_of()),
    "Cast of uint64": (lambda obs, noise: tf.cast(obs, tf.float32) @ WEIGHTS + noise, spec_of("uint64")),
    "Maximum, Minimum of float64": (
        lambda obs, noise: tf.clip_by_value(tf.cast(obs @ WEIGHTS + noise, tf.float64), -1.0, 1.0),
        spec_of(action="float64"),
    ),
}


@pytest.mark.parametrize("operations", LACKING)
def test_operations_that_litert_lacks_are_named_in_one_line(operations):
    with pytest.raises(ExportError, match=rf"^{operations} can't be expressed in LiteRT; [^\n]+$"):
        to_litert(*LACKING[operations])


def half(obs, noise):
    return tf.cast(tf.tanh(tf.cast(obs @ WEIGHTS, tf.float16)), tf.float32) + noise


@pytest.mark.parametrize(
    ("function", "observation", "message"),
    [
        (half, "float32", "Tanh of float16 can't be expressed in LiteRT; cast to float32 before it"),
        (lambda obs, noise: tf.where(obs > 0, 1.0, 0.0)[:, :2] + noise, "int8", "Greater of int8 .* cast to int32"),
        (lambda obs, noise: tf.cast(obs - 3, tf.float32)[:, :2] + noise, "float64", "Sub of float64 .* to float32"),
    ],
)
def test_where_the_type_is_the_reason_it_is_said(function, observation, message):
    with pytest.raises(ExportError, match=f"^{message}"):
        to_litert(function, spec_of(observation))


RECURRENT = {
    "LSTM": lambda: keras.layers.LSTM(4),
    "GRU": lambda: keras.layers.GRU(4),
    "SimpleRNN": lambda: keras.layers.SimpleRNN(4),
    "both ways": lambda: keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True)),
}
WINDOW = PolicySpec(
    (ArraySpec("obs", "float32", (5, 3)),), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,))
)


def over_time(layer):
    network = keras.Sequential([keras.Input((5, 3)), RECURRENT[layer](), keras.layers.Flatten(), keras.layers.Dense(2)])
    return lambda obs, noise: network(obs) + noise


@pytest.mark.parametrize(("layer", "batch"), [("LSTM", 1), *((layer, 3) for layer in RECURRENT)])
def test_layers_over_time_are_carried_at_a_fixed_batch(layer, batch):
    function = over_time(layer)
    obs = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    found = litert_actor(to_litert(function, WINDOW, batch=batch), WINDOW)(obs, noise)
    np.testing.assert_allclose(found, function(obs, noise), atol=1e-6)


def test_a_loop_over_time_goes_with_no_8_bits_and_no_free_batch():
    function, obs = over_time("LSTM"), np.ones((7, 5, 3), np.float32)
    with pytest.raises(ExportError, match=r"^8 bits in LiteRT go with no loop"):
        to_litert(function, WINDOW, batch=1, int8_observations=obs)
    with pytest.raises(ExportError, match=r"^a loop over time of a free batch .* \(--batch 1\)"):
        to_litert(function, WINDOW)


@pytest.mark.parametrize("kind", ["categorical", "multi-discrete", "multi-binary"])
def test_choices_have_32_bits_throughout(kind):
    """As TensorFlow Lite Micro wants them."""
    content = in_floats(kind)
    (graph,) = ModelT.InitFromPackedBuf(content).subgraphs
    assert TensorType.INT64 not in [tensor.type for tensor in graph.tensors]


_FLOATS = {TensorType.FLOAT32}
_NUMBERS = {TensorType.FLOAT32, TensorType.INT32}
MICRO = {
    **dict.fromkeys(("ADD", "MAXIMUM", "MINIMUM", "MUL", "SUB", "GATHER", "PACK", "RESHAPE", "SPLIT"), _NUMBERS),
    **dict.fromkeys(("ARG_MAX", "EXP", "FULLY_CONNECTED", "TANH"), _FLOATS),
    "CAST": {TensorType.INT32, TensorType.INT8},
}
"""What TensorFlow Lite Micro's kernels take as data, as far as these policies need it (its `micro/kernels`)."""


@pytest.mark.parametrize(
    "kind", ["gaussian", "squashed", "state-dependent", "categorical", "multi-discrete", "multi-binary"]
)
def test_with_a_batch_of_one_tensorflow_lite_micro_has_every_operator_at_its_types(kind):
    content = to_litert(case(kind).policy.function, case(kind).policy.spec, batch=1)
    (graph,) = (model := ModelT.InitFromPackedBuf(content)).subgraphs
    names = {code: name for name, code in vars(BuiltinOperator).items()}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        given, answers = ([graph.tensors[n].type for n in places] for places in (operator.inputs, operator.outputs))
        assert given[-1 if name == "SPLIT" else 0] in MICRO[name], name
        if name == "ARG_MAX":
            assert (given[1], answers) == (TensorType.INT32, [TensorType.INT32])
    for place in (*graph.inputs, *graph.outputs):
        assert graph.tensors[place].shape[0] == 1


def test_choices_that_meet_other_integers_of_64_bits_keep_theirs():
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,)), ArraySpec("offset", "int64", ())),
        ArraySpec("action", "int64", (2,)),
        NoiseSpec("normal", (2,)),
    )

    def function(obs, noise):
        first, far = tf.argmax(obs["obs"], 1), tf.argmin(obs["obs"], 1) + 2**40
        return tf.stack([first + obs["offset"], far], 1) + tf.cast(noise, tf.int64)

    obs = {"obs": np.array([[0.1, 0.3, 0.2]], np.float32), "offset": np.array([2**35])}
    actions = litert_actor(to_litert(function, spec), spec)(obs, np.zeros((1, 2), np.float32))
    np.testing.assert_array_equal(actions, [[2**35 + 1, 2**40]])


SCALES = np.array([4000.0, 0.01, 1.0, 0.001], np.float32)
MIDDLE, VARIABLE = SCALES / 3, tf.Variable(SCALES)
RAW = PolicySpec((ArraySpec("obs", "float32", (4,)),), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,)))
NORMALISED = {
    "quotient": lambda obs: obs / SCALES,
    "product": lambda obs: obs * (1 / SCALES),
    "offset": lambda obs: (obs - MIDDLE) / SCALES,
    "one number last": lambda obs: (obs / SCALES) / 3.0,
    "moved": lambda obs: tf.reshape(tf.reshape(obs, (-1, 2, 2)) / SCALES.reshape(2, 2), (-1, 4)),
    "of a variable": lambda obs: obs / VARIABLE,
    "in a function": tf.function(lambda obs: obs / SCALES, autograph=False),
}


def scaled_alike():
    return np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def test_in_8_bits_a_layer_reads_numbers_by_the_scale_that_the_policy_gives_them():
    """A network for each way to scale, all in one policy: to convert it takes a second."""
    keras.utils.set_random_seed(0)
    networks = {
        how: keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(2)])
        for how in NORMALISED
    }
    spec = replace(RAW, action=ArraySpec("action", "float32", (2 * len(networks),)))
    visited, noise = scaled_alike() * SCALES, np.zeros((64, 2), np.float32)

    def function(obs, noise):
        return tf.concat([networks[how](NORMALISED[how](obs)) + noise for how in NORMALISED], axis=1)

    expected = function(tf.constant(visited), noise).numpy()
    actions = litert_actor(to_litert(function, spec, int8_observations=visited), spec)(visited, noise)
    differences = np.split(actions - expected, len(networks), axis=1)
    for how, difference, right in zip(NORMALISED, differences, np.split(expected, len(networks), axis=1), strict=True):
        assert (how, np.sqrt(np.mean(difference**2)) < 0.05 * right.std()) == (how, True)


def test_one_number_for_a_whole_layer_goes_into_its_weights():
    """As do the bytes of an image: what is scaled alike loses nothing, and costs no operator."""
    weights = tf.constant(np.arange(8, dtype=np.float32).reshape(4, 2))
    content = to_litert(lambda obs, noise: (obs / 255.0) @ weights + noise, RAW, int8_observations=scaled_alike())
    assert BuiltinOperator.MINIMUM not in [code for code, _ in operators(content)]


def test_scales_that_8_bits_in_litert_can_not_hold_are_refused():
    """The interpreter would end the process."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(2)])
    hidden, bias = network.layers[0].get_weights()
    network.layers[0].set_weights([hidden / SCALES[:, None], bias])
    with pytest.raises(ExportError, match=r"^8 bits can't hold numbers of such different scale in one layer"):
        to_litert(lambda obs, noise: network(obs) + noise, RAW, int8_observations=scaled_alike() * SCALES)


def test_no_observations_are_refused():
    policy = Continuous()
    none = observations(policy.spec.observation, 0)
    with pytest.raises(ExportError, match="int8_observations are empty"):
        to_litert(policy.function, policy.spec, int8_observations=none)


def test_what_is_no_model_is_refused():
    with pytest.raises(ExportError, match="LiteRT can't load the model"):
        litert_actor(b"not a model", spec_of())
