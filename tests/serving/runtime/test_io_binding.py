"""The fast way to act: buffers that are bound once, and what could go wrong with them."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.serving.runtime.noise import draw_noise


def answers(policy, observations):
    return [policy.act(observation) for observation in observations]


def test_an_answer_is_never_overwritten(bundle, golden):
    policy, cases = serving.load(bundle), golden(bundle)
    kept = answers(policy, cases["obs"])
    copies = [action.copy() for action in kept]
    answers(policy, cases["obs"][::-1])
    np.testing.assert_array_equal(kept, copies)
    np.testing.assert_array_equal(kept, policy.act_batch(cases["obs"]))


def test_an_observation_may_be_any_view_and_is_not_written(bundle, golden):
    policy, observation = serving.load(bundle), golden(bundle)["obs"][3]
    expected = policy.act(observation)
    wide = np.stack([observation, observation + 1], axis=1)
    wide.flags.writeable = False
    foreign = observation.astype(observation.dtype.newbyteorder())
    np.testing.assert_array_equal(policy.act(wide[:, 0]), expected)
    np.testing.assert_array_equal(policy.act(observation.tolist()), expected)
    with pytest.raises(ValueError, match=r"dtype >f\d, the policy takes float"):
        policy.act(foreign)


def test_a_sample_is_that_of_its_noise_and_leaves_none_behind(bundle, golden):
    policy, observations = serving.load(bundle), golden(bundle)["obs"][:50]
    deterministic = answers(policy, observations)
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    for observation in observations:
        sample = policy.act(observation, deterministic=False, rng=one)
        noise = draw_noise(policy.manifest.noise, 1, other)
        np.testing.assert_array_equal(sample, policy.run(observation[np.newaxis], noise)[0])
    np.testing.assert_array_equal(answers(policy, observations), deterministic)


@pytest.mark.parametrize(
    ("observation", "error"),
    [
        (np.full(3, np.nan), ValueError),
        (np.array([0.0, -np.inf, 0.0]), ValueError),
        (np.zeros(3, np.float32), ValueError),
        (np.zeros((1, 3)), ValueError),
        (np.full(3, 1e308), FloatingPointError),
    ],
    ids=str,
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_refused_observation_leaves_nothing_behind(continuous, observation, error, deterministic):
    policy, good = serving.load(continuous), np.array([0.1, -0.2, 0.05])
    expected = policy.act(good)
    for _ in range(3):
        with pytest.raises(error):
            policy.act(observation, deterministic=deterministic)
        np.testing.assert_array_equal(policy.act(good), expected)


def test_threads_that_act_at_once_get_their_own_answers(continuous, golden):
    policy, observations = serving.load(continuous), golden(continuous)["obs"]
    expected = answers(policy, observations)
    start = threading.Barrier(8)

    def act(shift):
        order = np.roll(np.arange(len(observations)), shift)
        start.wait()
        for case in np.tile(order, 5):
            np.testing.assert_array_equal(policy.act(observations[case]), expected[case])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(0, 80, 10)))


def test_a_signal_handler_may_act_in_the_middle_of_an_act(continuous, golden):
    policy, observations = serving.load(continuous), golden(continuous)["obs"]
    expected = answers(policy, observations)
    handled = []

    def handler(_number, _frame):
        case = len(handled) % len(observations)
        handled.append(np.array_equal(policy.act(observations[case]), expected[case]))
        if len(handled) < 500:  # else it could ring once more, when nobody listens
            signal.setitimer(signal.ITIMER_REAL, 1e-4)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
    try:
        while len(handled) < 500:
            np.testing.assert_array_equal(answers(policy, observations), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(handled)


def test_memory_does_not_grow(continuous, run_python):
    code = f"""
import json, re
import numpy as np
from trpo_tf import serving

policy, rng = serving.load({str(continuous)!r}), np.random.default_rng(0)
good, bad = np.zeros(3), np.full(3, np.nan)

def resident():
    return 1024 * int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

def play(times):
    for _ in range(times):
        policy.act(good)
        policy.act(good, deterministic=False, rng=rng)
        try:
            policy.act(bad)
        except ValueError:
            pass

play(2_000)
before = resident()
play(20_000)
print(json.dumps(resident() - before))
"""
    assert json.loads(run_python(code, PYTHONPATH=str(ROOT))) < 1e6
