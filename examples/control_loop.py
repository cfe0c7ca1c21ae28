"""Act a thousand times a second, and tell how often that was too late.

`python examples/control_loop.py BUNDLE [--hz 1000] [--seconds 10]`

Deadlines are absolute, so a late tick doesn't shift those after it. The loop sleeps until shortly before each one and
spins the rest, since a sleep ends tens of microseconds late. Needs what serving needs, no TensorFlow. For fewer misses
give the process a core and a real-time priority: `chrt --fifo 50 taskset --cpu-list 3 python examples/control_loop.py`.
"""

import argparse
import gc
import time
from pathlib import Path

import numpy as np

from trpo_tf import serving
from trpo_tf.serving.runtime.latency import Latency

SPIN_NANOSECONDS = 200_000


class Plant:
    """Stands for sensors and motors. Readings are noise, and the first one is all zeros."""

    def __init__(self, spec: serving.ArraySpec) -> None:
        self._spec, self._rng = spec, np.random.default_rng(0)
        self.reading, self.command = np.zeros(spec.shape, spec.dtype), None

    def sense(self) -> np.ndarray:
        """Return the latest observation."""
        return self.reading

    def actuate(self, action: np.ndarray) -> None:
        """Take an action."""
        self.command = action
        self.reading = self._rng.standard_normal(self._spec.shape).astype(self._spec.dtype)


def wait_until(deadline: int) -> None:
    """Return at `deadline`, in nanoseconds of the monotonic clock."""
    asleep = deadline - time.monotonic_ns() - SPIN_NANOSECONDS
    if asleep > 0:
        time.sleep(asleep / 1e9)
    while time.monotonic_ns() < deadline:
        pass


def control(policy: serving.Policy, plant: Plant, period: int, ticks: int) -> tuple[np.ndarray, np.ndarray]:
    """Act once a period, in nanoseconds; when each tick started and ended after its own time, in nanoseconds."""
    session = policy.start()
    started, ended = np.zeros(ticks, np.int64), np.zeros(ticks, np.int64)
    first = time.monotonic_ns() + period
    for tick in range(ticks):
        due = first + tick * period
        wait_until(due)
        started[tick] = time.monotonic_ns() - due
        plant.actuate(session.act(plant.sense()))
        ended[tick] = time.monotonic_ns() - due
    return started, ended


def main() -> None:
    """Load, warm up, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--hz", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    policy = serving.load(arguments.bundle)
    if len(policy.manifest.observation) > 1:
        parser.error("this example is for policies with one array for an observation")
    plant = Plant(policy.manifest.observation[0])
    period, ticks = 1_000_000_000 // arguments.hz, round(arguments.seconds * arguments.hz)
    control(policy, plant, period, min(ticks, 100))
    gc.collect()
    gc.disable()  # nothing in the loop makes cycles

    started, ended = control(policy, plant, period, ticks)
    missed = int(np.count_nonzero(ended > period))
    print(f"{ticks} ticks at {arguments.hz} Hz: {missed} missed deadlines ({missed / ticks:.2%})")
    for name, durations in (("woke late by", started), ("sensed to actuated in", ended - started)):
        latency = Latency.of(durations)
        print(f"{name}, us: p50 {latency.p50:.1f}, p99 {latency.p99:.1f}, max {latency.max:.1f}")


if __name__ == "__main__":
    main()
