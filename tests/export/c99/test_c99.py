"""The C sources of a policy: every head and encoder as ONNX Runtime answers, and nothing that C leaves undefined."""

import ctypes
import re
import subprocess

import gymnasium as gym
import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

from tests.support.export.c99_cases import STRICT, sanitized
from tests.support.export.c99_policies import (
    BOUNDED,
    NUMBERS,
    POLICIES,
    SIZES,
    THREE,
    Exported,
    exported,
    exported_function,
    stated,
)
from tests.support.export.untrained import untrained_policy
from trpo_tf.export import ExportError, PolicySpec, convert_policy
from trpo_tf.export.c99 import HEADER_FILE, SOURCE_FILE, c_sources, compiled_actor, host_compiler
from trpo_tf.export.c99.lowering.graph_lowering import round_to_int8
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.observations import batch_size, by_name, map_parts, take
from trpo_tf.serving.verify import agree

spaces = gym.spaces


def assert_acts_as_onnx_runtime(policy: Exported) -> None:
    actor = compiled_actor(c_sources(policy.model, policy.spec), policy.spec)
    actions = actor(policy.observations, policy.noise)
    assert agree(actions, policy.actions), np.abs(actions - policy.actions).max()


@pytest.mark.parametrize("name", POLICIES)
def test_every_head_and_encoder_acts_as_onnx_runtime(name):
    policy = exported(name)
    assert_acts_as_onnx_runtime(policy)
    assert len(np.unique(policy.actions.reshape(len(policy.actions), -1), axis=0)) > 1


@pytest.mark.parametrize("name", POLICIES)
def test_no_observation_is_undefined(name, tmp_path):
    """Sanitizers find nothing in the cases and in what no sensor should say; and NaN is not hidden by a bound."""
    policy = exported(name)
    strange = map_parts(
        lambda spec: np.array([np.full(spec.shape, value) for value in extremes(spec)], spec.dtype),
        {spec.name: spec for spec in policy.spec.observation},
    )
    count = batch_size(strange)
    usual = by_name(take(policy.observations, slice(50)), policy.spec.observation[0].name)
    observations = {part: np.concatenate([usual[part], strange[part]]) for part in strange}
    noise = np.concatenate([policy.noise[:50], policy.noise[-count:]])
    sources = c_sources(policy.model, policy.spec)
    named = observations if len(observations) > 1 else next(iter(observations.values()))
    actions = sanitized(sources, policy.spec, named, noise, tmp_path)
    assert agree(actions[:50], policy.actions[:50])
    if policy.spec.action.dtype.startswith("float"):
        expected = policy.onnx_runtime(named, noise)
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    low, high = policy.spec.action.bounds()
    assert ((actions >= low - 1e-6) & (actions <= high + 1e-6) | np.isnan(actions)).all()


def extremes(spec: ArraySpec) -> list[float]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        largest = float(np.finfo(np.float32).max)
        return [np.nan, np.inf, -np.inf, largest, -largest]
    limits = np.iinfo(min(dtype, np.dtype(np.int32), key=lambda kind: kind.itemsize))
    return [limits.min, limits.max, *[spec.bounds()[0].max()] * 3]


@pytest.mark.parametrize("name", ["clipped", "squashed", "float64", "dict"])
def test_int8_weights_are_the_graph_s_rounded(name):
    policy = exported(name)
    sources = c_sources(policy.model, policy.spec, int8=True)
    actions = compiled_actor(sources, policy.spec)(policy.observations, policy.noise)
    rounded = policy.onnx_runtime(policy.observations, policy.noise, with_rounded_weights(policy.model))
    assert agree(actions, rounded)
    low, high = policy.spec.action.bounds()
    assert 0 < np.abs((actions - policy.actions) / (high - low)).max() < 0.02


def with_rounded_weights(model: bytes) -> bytes:
    proto = onnx.load_from_string(model)
    weights = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            integers, unit = round_to_int8(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array((integers * unit[:, None]).T, tensor.name))
    return proto.SerializeToString()


def test_rounded_weights_are_half_a_unit_off_at_most():
    weights = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    weights[2] = 0
    integers, unit = round_to_int8(weights)
    assert (np.abs(integers).max(axis=1) == [127, 127, 0, 127]).all()
    assert (np.abs(integers * unit[:, None] - weights) <= unit[:, None] / 2 * 1.001).all()


LAYERS = keras.layers
NETWORKS = {
    "layer normalization": [LAYERS.LayerNormalization],
    "softmax": [LAYERS.Softmax],
    "softmax along the first axis": [lambda: LAYERS.Reshape((2, 4)), lambda: LAYERS.Softmax(axis=1), LAYERS.Flatten],
    "unit normalization": [LAYERS.UnitNormalization],
    "prelu": [lambda: LAYERS.PReLU(alpha_initializer="ones")],
    "permuted": [lambda: LAYERS.Reshape((2, 4)), lambda: LAYERS.Permute((2, 1)), LAYERS.Flatten],
    "rows": [lambda: LAYERS.Reshape((2, 4)), lambda: LAYERS.Dense(3, "relu"), LAYERS.Flatten],
    "repeated": [lambda: LAYERS.Activation("tanh"), lambda: LAYERS.RepeatVector(3), LAYERS.Flatten],
    "padded": [lambda: LAYERS.Reshape((4, 2)), lambda: LAYERS.ZeroPadding1D(1), LAYERS.Flatten],
    "cropped": [lambda: LAYERS.Reshape((4, 2)), lambda: LAYERS.Cropping1D(1), LAYERS.Flatten],
    "largest": [lambda: LAYERS.Reshape((4, 2)), LAYERS.GlobalMaxPooling1D],
}


def assert_each_acts_as_onnx_runtime(branches) -> None:
    """Compare functions of the observation that answer three numbers each, side by side in one graph."""
    width = 3 * len(branches)
    spec = PolicySpec((THREE,), ArraySpec("action", "float32", (width,)), NoiseSpec("normal", (width,)))
    policy = Exported(lambda x, noise: tf.concat([branch(x) for branch in branches.values()], 1) + noise, spec)
    actions = compiled_actor(c_sources(policy.model, spec), spec)(policy.observations, policy.noise)
    for place, name in enumerate(branches):
        columns = slice(3 * place, 3 * place + 3)
        assert agree(actions[:, columns], policy.actions[:, columns]), name


def test_a_network_of_one_s_own_acts_as_onnx_runtime():
    def built(layers):
        dense = LAYERS.Dense
        return keras.Sequential([keras.Input((3,)), dense(8, "tanh"), *(make() for make in layers), dense(3)])

    assert_each_acts_as_onnx_runtime({name: built(layers) for name, layers in NETWORKS.items()})


def test_branches_that_join_act_as_onnx_runtime():
    def network(inputs, outputs):
        x = keras.Input((inputs,))
        one = LAYERS.Dense(8, "relu")(x)
        two = LAYERS.Dense(8, "tanh")(one)
        joined = LAYERS.Concatenate()([LAYERS.Add()([one, two]), x, LAYERS.Maximum()([one, two])])
        return keras.Model(x, LAYERS.Dense(outputs)(joined))

    policy = untrained_policy(NUMBERS, BOUNDED, network=network)
    assert_acts_as_onnx_runtime(Exported(policy.function, policy.spec))


ACTIVATIONS = (
    *("relu", "elu", "selu", "swish", "softplus", "sigmoid"),
    *("leaky_relu", "softsign", "hard_sigmoid", "mish", "relu6"),
)


def test_activations_act_as_onnx_runtime():
    assert_each_acts_as_onnx_runtime({name: keras.activations.get(name) for name in ACTIVATIONS})


FUNCTIONS = {
    "where": lambda x, noise: tf.where((x > 0.5) & ~(x < -1.0), x * 2.0, -x) + noise,
    "powers": lambda x, noise: tf.exp(noise) + x**3 - tf.abs(x) ** 0.5 / 3.0 + tf.math.erf(x),
    "turned": lambda x, noise: tf.reverse(x, [1]) - tf.gather(x, [2, 2, 0], axis=1) * noise[:, ::-1],
    "bits": lambda x, noise: tf.cast(x > 0, tf.float32) * tf.cast(tf.argmax(x, 1, tf.int32) + 3, tf.float32)[:, None],
    "without the observation": lambda x, noise: 2.0 * noise,
    "nothing at all": lambda x, noise: tf.zeros_like(x) + 3.0,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_acts_as_onnx_runtime(name, tmp_path):
    policy = exported_function(FUNCTIONS[name])
    sources = c_sources(policy.model, policy.spec)
    assert agree(sanitized(sources, policy.spec, policy.observations, policy.noise, tmp_path), policy.actions)


def matrices(x):
    """[batch, 2, 3], of the three numbers and more of them."""
    return tf.stack([x, tf.reverse(x, [1]) * 2.0 + 1.0], 1)


def embedded(x, noise):
    table = tf.constant([[1.0, 5.0], [2.0, -6.0], [3.0, 7.0]])
    rows = tf.gather(table, tf.argmax(x, 1))
    other = tf.gather(x, tf.argmin(noise, 1, tf.int32), axis=1, batch_dims=1)
    return tf.concat([rows, other[:, None]], 1) + noise


PRODUCTS_AND_PLACES = {
    "computed matrices": lambda x, noise: tf.matmul(matrices(x), matrices(x), transpose_b=True)[:, 0, :1] + noise,
    "a computed matrix and a vector": lambda x, noise: tf.linalg.matvec(x[:, :, None] * noise[:, None, :], x),
    "constants on the left": lambda x, noise: (tf.constant([[1.0, -2.0]]) @ matrices(x))[:, 0] + noise,
    "a contraction of several axes": lambda x, noise: (
        tf.einsum("bi,ijk->bk", x, np.arange(12, dtype=np.float32).reshape(3, 2, 2))[:, :1] + noise
    ),
    "rows of a table": embedded,
    "elements at computed places": lambda x, noise: (
        tf.gather_nd(matrices(x), tf.cast(noise[:, :2] > 0, tf.int32), batch_dims=1)[:, None] + noise
    ),
    "along an axis": lambda x, noise: keras.ops.take_along_axis(x, tf.cast(noise > 0, tf.int32) - 1, 1) + noise,
    "mean of the last of several axes": lambda x, noise: tf.reduce_mean(matrices(x), 2)[:, :1] + noise,
    "mean of two axes": lambda x, noise: tf.reduce_mean(matrices(x)[..., None], [1, 2]) + noise,
    "product and norms": lambda x, noise: (
        tf.reduce_prod(x, 1, keepdims=True) + tf.norm(x, axis=1, keepdims=True) + tf.norm(x, 1, 1, True) + noise
    ),
    "sums from the end": lambda x, noise: tf.cumsum(x, 1, exclusive=True, reverse=True) + tf.cumsum(noise, 1),
    "a sum of integers": lambda x, noise: tf.cast(tf.cumsum(tf.cast(4 * x, tf.int32), 1), tf.float32) + noise,
    "integers between bounds": lambda x, noise: (
        tf.cast(tf.clip_by_value(tf.abs(tf.cast(3.0 * x, tf.int32)) - 2, -1, 3), tf.float32) + noise
    ),
    "no part at all": lambda x, noise: tf.concat([tf.tanh(x[:, :0]) * 2.0, x], 1) + noise,
    "split in all and nothing": lambda x, noise: tf.concat(tf.split(x, [3, 0], 1), 1) + noise,
    "rolled once around": lambda x, noise: tf.roll(x, 3, 1) - tf.roll(x, 0, 1) + noise,
    "sum of nothing": lambda x, noise: tf.reduce_sum(x[:, :0], 1, keepdims=True) + x[:, :0] @ tf.zeros((0, 3)) + noise,
}


@pytest.mark.parametrize("name", PRODUCTS_AND_PLACES)
def test_products_and_places_act_as_onnx_runtime(name, tmp_path):
    policy = exported_function(PRODUCTS_AND_PLACES[name])
    sources = c_sources(policy.model, policy.spec)
    found = sanitized(sources, policy.spec, policy.observations, policy.noise, tmp_path)
    assert agree(found, policy.actions)


def test_an_index_out_of_range_reads_nothing_else(tmp_path):
    """ONNX Runtime refuses it; a firmware goes on, at the nearest place."""
    spec = ArraySpec("obs", "int32", (3,), -3, 2)
    policy = exported_function(lambda x, noise: tf.gather([1.0, 2.0, 4.0], x) + 0.0 * noise, spec)
    observations = np.array([[-1, -3, 2], [3, -4, 2**31 - 1], [-(2**31), 0, 1]], np.int32)
    noise = np.zeros((3, 3), np.float32)
    actions = sanitized(c_sources(policy.model, policy.spec), policy.spec, observations, noise, tmp_path)
    np.testing.assert_array_equal(actions, [[4, 1, 4], [4, 1, 4], [1, 1, 2]])


def test_a_number_beyond_an_integer_s_range_becomes_its_bound(tmp_path):
    policy = exported_function(lambda x, noise: tf.cast(tf.cast(x, tf.int8), tf.float32) + 0.0 * noise)
    observations = np.array([[-1.9, 1.9, 127.9], [np.nan, np.inf, -np.inf], [3e38, -128.5, -1e10]], np.float32)
    noise = np.zeros((3, 3), np.float32)
    actions = sanitized(c_sources(policy.model, policy.spec), policy.spec, observations, noise, tmp_path)
    np.testing.assert_array_equal(actions, [[-1, 1, 127], [0, 127, -128], [127, -128, -128]])


def test_observations_whose_names_differ_in_case_alone_have_arguments_of_their_own():
    names = ("a_2", "a", "A", "\u00e9", "_")
    parts = tuple(ArraySpec(name, "float32", (1,)) for name in names)
    spec = PolicySpec(parts, ArraySpec("action", "float32", (5,)), NoiseSpec("normal", (5,)))
    policy = Exported(lambda x, noise: tf.concat([x[name] for name in names], 1) + noise, spec)
    assert_acts_as_onnx_runtime(policy)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float16"])
def test_observations_of_every_type(dtype):
    low, high = (-5.0, 5.0) if dtype == "float16" else (0, 100)
    spec = ArraySpec("obs", dtype, (3,), low, high)
    assert_acts_as_onnx_runtime(exported_function(lambda x, noise: tf.cast(x, tf.float32) / 9.0 + noise, spec))


def test_integers_wrap_around_as_in_the_graph():
    spec = ArraySpec("obs", "int32", (3,), 0, 100)
    assert_acts_as_onnx_runtime(exported_function(lambda x, noise: tf.cast(x * 2**30 - 7, tf.float32) / 2**29, spec))


@pytest.mark.parametrize("constant", [1e-300, 1e300])
def test_constants_of_float64_that_float32_can_not_hold_are_refused(constant):
    """No case may show it: what is multiplied by 1e-300 is nearly 0 until it is as large as 1e299."""
    spec = ArraySpec("obs", "float64", (3,), -1e300, 1e300)
    policy = exported_function(lambda x, noise: tf.cast(tf.tanh(x * constant), tf.float32) + noise, spec)
    with pytest.raises(ExportError, match=re.escape(f"can't hold the constant {constant:g};")):
        c_sources(policy.model, policy.spec)


def test_bounds_beyond_float32_bound_nothing():
    spec = ArraySpec("obs", "float64", (3,), -10, 10)
    largest = np.finfo(np.float64).max
    assert_acts_as_onnx_runtime(
        exported_function(lambda x, noise: tf.cast(tf.clip_by_value(x, -largest, largest), tf.float32) + noise, spec)
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x, noise: tf.cond(tf.reduce_sum(x) > 0, lambda: noise, lambda: x),
            r"the C target has no loops or branches \(If\); .* unroll=True",
        ),
        (lambda x, noise: tf.sort(x, axis=1) + noise, "the C target has no TopK"),
        (lambda x, noise: tf.slice(x, [0, tf.argmax(x[0], output_type=tf.int32)], [-1, 1]) + noise, "computed places"),
        (lambda x, noise: tf.reduce_max(x[:, :0], 1, keepdims=True) + noise, "no largest of no elements"),
    ],
)
def test_what_has_no_c_is_refused_in_one_line(function, message):
    policy = exported_function(function)
    with pytest.raises(ExportError, match=message) as error:
        c_sources(policy.model, policy.spec)
    assert "\n" not in str(error.value)


def test_convolutions_are_refused():
    policy = untrained_policy(spaces.Box(0, 255, (2, 18, 20), np.uint8), spaces.Discrete(3))
    with pytest.raises(ExportError, match=r"no convolutions \(Conv\); use the ONNX file$"):
        c_sources(convert_policy(policy.function, policy.spec), policy.spec)


def test_sources_depend_on_the_policy_alone():
    """Not on names, which TensorFlow counts up from one conversion to the next."""
    policy = exported("multidiscrete")
    again = untrained_policy(*POLICIES["multidiscrete"])
    model = convert_policy(again.function, again.spec)
    assert model != policy.model
    assert c_sources(model, again.spec) == c_sources(policy.model, policy.spec)


@pytest.mark.parametrize("int8", [False, True])
def test_the_object_offers_one_function_and_needs_math_alone(int8, tmp_path):
    policy = exported("squashed")
    for name, content in c_sources(policy.model, policy.spec, int8=int8).items():
        (tmp_path / name).write_bytes(content)
    strict = [*STRICT, "-Wconversion", "-Wshadow", "-Wdouble-promotion"]
    subprocess.run(["cc", *strict, "-O3", "-c", SOURCE_FILE], cwd=tmp_path, check=True)
    symbols = subprocess.run(["nm", "-g", "policy.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    found = {(kind, name) for kind, name in re.findall(r"([A-Za-z]) (\w+)$", symbols, re.MULTILINE)}
    assert found == {("T", "policy_act"), ("U", "tanhf")}


def test_the_header_is_c_plus_plus_as_well(tmp_path):
    policy = exported("dict")
    header = c_sources(policy.model, policy.spec)[HEADER_FILE]
    (tmp_path / HEADER_FILE).write_bytes(header)
    (tmp_path / "main.cpp").write_text(f'#include "{HEADER_FILE}"\nauto act = policy_act;\n')
    subprocess.run(["arm-none-eabi-g++", "-Wall", "-Werror", "-c", "main.cpp"], cwd=tmp_path, check=True)
    symbols = subprocess.run(["nm", "main.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert " U policy_act\n" in symbols
    for name in ("obs_arm_place", "obs_int", "obs_bytes"):
        assert f"{name}[POLICY_{name.upper()}]".encode() in header


def test_several_policies_act_in_one_program(tmp_path):
    """As docs/reference/c99.md says, though both have the same names."""
    policies = {name: exported(name) for name in ("clipped", "squashed")}
    for name, policy in policies.items():
        (tmp_path / name).mkdir()
        for file, content in c_sources(policy.model, policy.spec).items():
            (tmp_path / name / file).write_bytes(content)
        (tmp_path / f"{name}.c").write_text(f'#define policy_act {name}_act\n#include "{name}/policy.c"\n')
    command = ["cc", *STRICT, "-O2", "-shared", "-fPIC", *(f"{name}.c" for name in policies), "-o", "both.so", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "both.so"))
    for name, policy in policies.items():
        observation, noise, action = (
            np.ascontiguousarray(a[0]) for a in (policy.observations, policy.noise, policy.actions)
        )
        answer = np.empty_like(action)
        library[f"{name}_act"](*(ctypes.c_void_p(array.ctypes.data) for array in (observation, noise, answer)))
        np.testing.assert_allclose(answer, action, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def wide():
    """A policy one of whose layers is a megabyte of text."""
    policy = untrained_policy(NUMBERS, BOUNDED, hidden_sizes=(512, 512))
    return Exported(policy.function, policy.spec)


@pytest.mark.parametrize("int8", [False, True])
def test_large_tables_act_as_they_are_written(wide, int8):
    sources = c_sources(wide.model, wide.spec, int8=int8)
    lines = sources[SOURCE_FILE].splitlines()
    assert max(map(len, lines)) <= 120
    if not int8:
        assert_acts_as_onnx_runtime(wide)
    changed = re.sub(rb"(weights_2\[512\]\[512\] = \{\n +\{)-?[\d.]+", rb"\g<1>99", sources[SOURCE_FILE])
    actors = [compiled_actor({**sources, SOURCE_FILE: text}, wide.spec) for text in (sources[SOURCE_FILE], changed)]
    one, other = (actor(wide.observations, wide.noise) for actor in actors)
    assert np.abs(one - other).max() > 0.01


def test_a_large_table_that_lacks_a_number_is_refused(wide):
    sources = c_sources(wide.model, wide.spec)
    short = re.sub(rb"(weights_2\[512\]\[512\] = \{\n +\{)-?[\d.]+f, ", rb"\1", sources[SOURCE_FILE])
    with pytest.raises(ExportError, match=r"policy.c declares weights_2\[512\]\[512\] and gives 262143 numbers"):
        compiled_actor({**sources, SOURCE_FILE: short}, wide.spec)


def test_scratch_does_not_grow_with_depth():
    deep = untrained_policy(*SIZES["CartPole-v1"], hidden_sizes=(64, 64, 64, 64))
    sources = c_sources(convert_policy(deep.function, deep.spec), deep.spec)
    assert stated(sources, "RAM") == 2 * 64 * 4
    layers = [(4, 64), (64, 64), (64, 64), (64, 64), (64, 2)]
    normalizer, noise = 2 * 4, 2
    weights = sum(inputs * outputs + outputs for inputs, outputs in layers)
    assert stated(sources, "Flash") == 4 * (weights + normalizer + noise)


def test_without_a_compiler_it_says_so(monkeypatch):
    policy = exported("clipped")
    sources = c_sources(policy.model, policy.spec)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert host_compiler() is None
    with pytest.raises(ExportError, match="no C compiler"):
        compiled_actor(sources, policy.spec)


def test_a_compiler_for_another_machine_is_named(monkeypatch):
    """A shell that is set up for a board has its compiler in CC."""
    policy = exported("clipped")
    monkeypatch.setenv("CC", "arm-none-eabi-gcc")
    with pytest.raises(ExportError, match=r"can't load what .*arm-none-eabi-gcc made of the C sources .*; set CC to"):
        compiled_actor(c_sources(policy.model, policy.spec), policy.spec)


def test_sources_that_do_not_compile_are_reported_in_one_line():
    policy = exported("clipped")
    with pytest.raises(ExportError, match=r"^.*can't compile the C sources: [^\n]+$"):
        compiled_actor({SOURCE_FILE: b"int policy_act(void) { return }"}, policy.spec)
