"""The C sources of a policy on an emulated Cortex-M4: the same actions, and what they cost."""

import numpy as np
import pytest

from tests.support.export.c99_cases import BOARD_TOOLS, on_the_board
from tests.support.export.c99_policies import POLICIES, SIZES, exported, sized, stated
from tests.support.export.masked import MASKED, masked_policy, visited
from tests.support.export.zoo import onnx_actor
from trpo_tf.export import convert_policy
from trpo_tf.export.c99 import c_sources
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


def test_without_the_board_s_tools_it_says_what_to_install(monkeypatch, tmp_path):
    policy = exported("clipped")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=f"{BOARD_TOOLS[0]}.* not found; apt-get install gcc-arm-none-eabi"):
        on_the_board({}, policy.spec, policy.observations, policy.noise, tmp_path)
