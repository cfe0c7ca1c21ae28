import time

import numpy as np
import pytest

from trpo_tf.serving.runtime.latency import Latency, measure, measure_in_turns, ratio


def test_percentiles_of_known_durations_in_microseconds():
    latency = Latency.of(np.arange(10_001, dtype=np.int64) * 1000)
    assert latency == Latency(10_001, 5_000.0, 9_900.0, pytest.approx(9_990.0), 10_000.0)


def test_a_call_takes_as_long_as_it_sleeps():
    latency = measure(lambda: time.sleep(0.002), seconds=0.1)
    assert 2_000 <= latency.p50 <= latency.p99 <= latency.p99_9 <= latency.max
    assert 1 <= latency.calls <= 50


def test_turns_alternate_after_a_warm_up():
    order = []
    calls = {name: lambda name=name: order.append(name) or time.sleep(1e-4) for name in "ab"}
    measured = measure_in_turns(calls, 0.05, turns=5)
    assert [len(turns) for turns in measured.values()] == [5, 5]
    runs = "".join(name for name, before in zip(order, ["", *order[:-1]], strict=True) if name != before)
    assert runs == "ab" * 6
    timed = sum(len(turn) for turns in measured.values() for turn in turns)
    assert len(order) > timed


def test_a_ratio_is_the_median_over_turns():
    slow, base = ([np.full(9, value) for value in values] for values in ([20, 600, 30], [10, 10, 10]))
    assert ratio(slow, base, 50) == 3.0
