"""The C sources of a policy on an emulated Cortex-M4: the same actions, and what they cost."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.c99_cases import BOARD_TOOLS, on_an_avr, on_the_board
from tests.support.export.c99_policies import POLICIES, SIZES, exported, exported_function, sized, stated
from tests.support.export.masked import MASKED, masked_policy, visited
from tests.support.export.zoo import onnx_actor
from trpo_tf.export import convert_policy
from trpo_tf.export.c99 import SOURCE_FILE, c_sources
from trpo_tf.serving.runtime.action_masks import legal_rows
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.verify import agree


@pytest.mark.parametrize("name", POLICIES)
def test_a_cortex_m4_acts_as_onnx_runtime(name, tmp_path):
    policy = exported(name)
    sources = c_sources(policy.model, policy.spec)
    run = on_the_board(sources, policy.spec, policy.observations, policy.noise, tmp_path)
    assert agree(run.actions, policy.actions)


def test_a_cortex_m4_chooses_legal_actions(tmp_path):
    policy, observations = masked_policy("several"), visited("several", 32)
    model = convert_policy(policy.function, policy.spec)
    noise = draw_noise(policy.spec.noise, 32, np.random.default_rng(2))
    run = on_the_board(c_sources(model, policy.spec), policy.spec, observations, noise, tmp_path)
    assert legal_rows(run.actions, observations, "action_mask", MASKED["several"][0]).all()
    assert agree(run.actions, onnx_actor(model, policy.spec)(observations, noise))


@pytest.mark.parametrize("name", SIZES)
def test_the_board_s_figures(name, tmp_path):
    """Bytes are those that the header states, with the code and the C library's errno; instructions can be true."""
    policy = sized(name)
    sources = c_sources(policy.model, policy.spec)
    run = on_the_board(sources, policy.spec, policy.observations, policy.noise, tmp_path)
    print(f"{name}: {run.instructions:,} instructions an action, {run.flash:,} bytes of flash, {run.ram:,} of RAM")
    assert agree(run.actions, policy.actions)
    assert 1_000 < run.flash - stated(sources, "Flash") < 2_048
    assert 0 <= run.ram - stated(sources, "RAM") <= 128
    assert 16 < run.stack < 128
    assert abs(run.counted - 131_072) < 100
    products = sum(a * b for a, b in ((policy.noise.shape[1], 64), (64, 64), (policy.spec.observation[0].shape[0], 64)))
    assert 4 * products < run.instructions < 12 * products


def test_an_avr_keeps_24_kb_of_weights_in_flash(tmp_path):
    """Copied to its 2 KB of RAM they would not be linked."""
    policy, few = sized("HalfCheetah-v5"), slice(4, 10)
    sources = c_sources(policy.model, policy.spec)
    assert stated(sources, "Flash") > 20_000
    actions = on_an_avr(sources, policy.spec, policy.observations[few], policy.noise[few], tmp_path)
    assert agree(actions, policy.actions[few])


def test_an_avr_reads_constants_in_flash_and_in_ram(tmp_path):
    """A table in flash and a pointer to numbers in RAM are of different types there."""
    rows, left = np.arange(9, dtype=np.float32).reshape(3, 3), np.arange(18, dtype=np.float32).reshape(2, 3, 3)

    def function(x, noise):
        found = tf.gather(rows, tf.argmax(x, 1)) - x
        return tf.reduce_sum(tf.matmul(left, found[:, None, :, None] - rows[:, :1])[..., 0], 1) + x @ rows + noise

    policy, few = exported_function(function), slice(28, 36)
    sources = c_sources(policy.model, policy.spec)
    assert {b"table_1", b"matrix_1", b"weights_1"} <= set(re.findall(rb"\w+_1\b", sources[SOURCE_FILE]))
    actions = on_an_avr(sources, policy.spec, policy.observations[few], policy.noise[few], tmp_path)
    assert agree(actions, policy.actions[few])


def test_without_the_board_s_tools_it_says_what_to_install(monkeypatch, tmp_path):
    policy = exported("clipped")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=f"{BOARD_TOOLS[0]}.* not found; apt-get install gcc-arm-none-eabi"):
        on_the_board({}, policy.spec, policy.observations, policy.noise, tmp_path)
