"""Latency of calls: percentiles of one function, or of several that are measured in turns."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]
Durations = NDArray[np.int64]
"""Durations of calls in nanoseconds. Each includes reading the clock: about 0.1 us."""

_WARM_UP = 100


@dataclass(frozen=True)
class Latency:
    """Percentiles and maximum of the durations of `calls` calls, in microseconds."""

    calls: int
    p50: float
    p99: float
    p99_9: float
    max: float

    @classmethod
    def of(cls, durations: Durations) -> "Latency":
        """Return the percentiles of durations, of which there must be at least one."""
        return cls(len(durations), *(float(p) for p in np.percentile(durations / 1e3, (50, 99, 99.9, 100))))


def measure(call: Call, seconds: float = 0.5) -> Latency:
    """Return the latency of `call`, which is called repeatedly for `seconds` after a warm-up."""
    return Latency.of(np.concatenate(measure_in_turns({"call": call}, seconds, turns=1)["call"]))


def measure_in_turns(calls: Mapping[str, Call], seconds: float, *, turns: int = 20) -> dict[str, list[Durations]]:
    """Measure several calls in turns, for `seconds` each in total: a machine that slows down then affects them all.

    As a warm-up each is called 100 times, or for `seconds` if that is shorter. Returns durations by name, one array
    per turn.
    """
    for call in calls.values():
        _durations(call, seconds, most=_WARM_UP)
    measured: dict[str, list[Durations]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            measured[name].append(_durations(call, seconds / turns))
    return measured


def ratio(durations: Sequence[Durations], base: Sequence[Durations], percentile: float) -> float:
    """Return the ratio of a percentile of `durations` to that of `base`: the median over turns."""
    pairs = zip(durations, base, strict=True)
    return float(
        np.median([np.percentile(turn, percentile) / np.percentile(other, percentile) for turn, other in pairs])
    )


def _durations(call: Call, seconds: float, most: float = math.inf) -> Durations:
    clock, taken = time.perf_counter_ns, list[int]()
    end = clock() + round(seconds * 1e9)
    now = 0
    while now < end and len(taken) < most:
        started = clock()
        call()
        now = clock()
        taken.append(now - started)
    return np.array(taken, np.int64)
