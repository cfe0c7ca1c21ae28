"""Integers of 64 bits in C: as wide as their bounds are, wrapping around as in ONNX, or refused."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.c99_cases import STRICT, sanitized
from tests.support.export.c99_policies import Exported
from trpo_tf.export import ExportError, PolicySpec, convert_policy, write_bundle
from trpo_tf.export.c99 import HEADER_FILE, SOURCE_FILE, c_sources, compiled_actor
from trpo_tf.export.c99.c_files import argument_type
from trpo_tf.serving import ArraySpec, NoiseSpec, StateSpec


def spec_of(dtype, low=-np.inf, high=np.inf, action="float32"):
    return PolicySpec(
        (ArraySpec("obs", dtype, (2,), low, high),), ArraySpec("action", action, (2,)), NoiseSpec("normal", (2,))
    )


WIDTHS = {
    ("int64", 0, 2**40): "int64_t",
    ("int64", -(2**31), 2**31 - 1): "int32_t",
    ("int64", -(2**31) - 1, 0): "int64_t",
    ("int64", 0, 2**31): "int64_t",
    ("int64", -np.inf, np.inf): "int64_t",
    ("int64", (0, -5), (3, 2**33)): "int64_t",
    ("uint64", 0, 2**32 - 1): "uint32_t",
    ("uint64", 0, 2**32): "int64_t",
    ("int8", -np.inf, np.inf): "int8_t",
    ("bool", 0, 1): "uint8_t",
    ("float64", 0, 1): "float",
}


@pytest.mark.parametrize("given", WIDTHS, ids=str)
def test_an_argument_holds_every_integer_between_the_bounds(given):
    dtype, low, high = given
    assert argument_type(ArraySpec("obs", dtype, (2,), low, high)) == WIDTHS[given]


@pytest.mark.parametrize("high", [np.inf, 2**63])
def test_larger_integers_than_c_has_here_are_refused_before_anything_is_converted(high, tmp_path):
    spec = spec_of("uint64", 0, high)
    with pytest.raises(ExportError, match=r"target c can't carry this policy: .*2\^63 - 1, and 'obs' may hold larger"):
        write_bundle(lambda o, n: tf.cast(o, tf.float32) + n, spec, tmp_path / "bundle", targets=["c"])


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_scaled_integers_of_64_bits_are_as_in_onnx(dtype, tmp_path):
    policy = Exported(lambda o, n: tf.cast(o, tf.float32) / 2.0**40 + n, spec_of(dtype, 0, 2**40))
    policy.observations[:4] = [[2**33, 2**39], [2**32, 1], [2**40, 0], [2**31, 2**31 + 1]]
    sources = c_sources(policy.model, policy.spec)
    assert "int64_t[2], 0 to 1.09951e+12" in sources[HEADER_FILE].decode()
    actions = sanitized(sources, policy.spec, policy.observations, policy.noise, tmp_path)
    np.testing.assert_allclose(actions, policy.actions, rtol=1e-6)
    np.testing.assert_allclose((actions - policy.noise)[:2, 0], [2.0**-7, 2.0**-8], rtol=1e-4)


def test_a_choice_between_an_unsigned_number_and_a_negative_one_keeps_the_sign():
    """C would turn -1 beside a uint32_t into 4294967295."""

    def function(o, n):
        wide = tf.cast(o, tf.int64)
        return tf.cast(tf.where(wide > 50, wide, -1), tf.float32) + n

    policy = Exported(function, spec_of("uint32", 0, 100))
    actions = compiled_actor(c_sources(policy.model, policy.spec), policy.spec)(policy.observations, policy.noise)
    np.testing.assert_allclose(actions, policy.actions, rtol=1e-6)
    assert (policy.observations <= 50).any()


def test_no_integer_changes_its_type_unsaid(tmp_path):
    """Firmware is often built with these warnings as errors."""
    state = (StateSpec("touched", "bool", (2,)), StateSpec("count", "int8", (2,)))
    spec = replace(spec_of("int16"), state=state)

    def function(o, given, reset, n):
        count = given["count"] + 1 - tf.cast(o, tf.int8)
        return tf.cast(count, tf.float32) + n, {"touched": given["touched"] | (o > 0), "count": count}

    for name, content in c_sources(convert_policy(function, spec), spec).items():
        (tmp_path / name).write_bytes(content)
    command = ["cc", *STRICT, "-Wconversion", "-Wsign-conversion", "-fsyntax-only", SOURCE_FILE]
    subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.parametrize("operation", [tf.add, tf.subtract, tf.multiply])
def test_sums_and_products_wrap_around_and_nothing_is_undefined(operation, tmp_path):
    policy = Exported(
        lambda o, n: operation(operation(o, o[:, ::-1]), 3 * o) + tf.cast(0.0 * n, tf.int64),
        spec_of("int64", action="int64"),
    )
    policy.observations[:2] = [[2**62, 2**62 + 5], [-(2**62), 2**61]]
    sources = c_sources(policy.model, policy.spec)
    low_words = sanitized(sources, policy.spec, policy.observations, policy.noise, tmp_path)
    np.testing.assert_array_equal(low_words, policy.actions.astype(np.int32))
    actions = compiled_actor(sources, policy.spec)(policy.observations, policy.noise)
    np.testing.assert_array_equal(actions, policy.actions)


def test_the_least_integer_is_a_constant_that_c_has(tmp_path):
    """C has no negative constants: -9223372036854775808 negates a number that is too large."""
    policy = Exported(lambda o, n: tf.cast(o == tf.int64.min, tf.float32) + n, spec_of("int64"))
    policy.observations[:1] = [[-(2**63), -(2**63) + 1]]
    sources = c_sources(policy.model, policy.spec)
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    subprocess.run(["cc", *STRICT, "-fsyntax-only", SOURCE_FILE], cwd=tmp_path, check=True)
    actions = compiled_actor(sources, policy.spec)(policy.observations, policy.noise)
    assert (actions - policy.noise)[0].round().tolist() == [1, 0]
