"""Measure what the access log and tracing cost a request: `python -m benchmarks.serving.observing [BUNDLE]`.

In process, with timeit, in nanoseconds of processor time a request: the best of 15 turns of 20,000 requests, so that
the adding up, which comes every now and then, is in it.
"""

import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from trpo_tf import serving
from trpo_tf.serving.metrics.prometheus import render
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.repository.catalog import Catalog, Model, Release

BUNDLE = Path(__file__).parents[2] / "tests" / "serving" / "bundles" / "discrete"
CALLS = 20_000


def nanoseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Return the processor time of one call."""
    return min(timeit.repeat(call, timer=process_time, number=calls, repeat=15)) / calls * 1e9


def main() -> None:
    """Measure, and print a table."""
    policy = serving.load(sys.argv[1] if len(sys.argv) > 1 else BUNDLE)
    model, metrics = Model("policy", "1", policy), Metrics()
    metrics.show(Catalog({"policy": Release({"1": model}, lambda: model)}))
    answered, asked = metrics.series(model).answered, metrics.watch(model).asked
    parts = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in policy.manifest.observation}
    observations = parts if len(parts) > 1 else next(iter(parts.values()))

    def observed() -> None:
        began = perf_counter()
        asked(observations)
        answered(200, perf_counter() - began)

    empty = nanoseconds(lambda: None)
    print("| a request pays for | ns |\n|---|---|")
    for name, call in (
        ("latency and counts", lambda: answered(200, 1e-5)),
        ("drift", lambda: asked(observations)),
        ("two looks at the clock", lambda: (perf_counter(), perf_counter())),
        ("all of it", observed),
    ):
        print(f"| {name} | {nanoseconds(call) - empty:.0f} |")
    print(f"\na scrape takes {nanoseconds(lambda: render(metrics), 100) / 1000:.0f} us")


if __name__ == "__main__":
    main()
