"""Measure how fast each target answers in this process.

Latencies are in a file of their own, not in the manifest, since they hold for one machine only.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.export.policy.functions import Actor
from trpo_tf.serving.bundle.files import LATENCY_FILE
from trpo_tf.serving.runtime.latency import measure
from trpo_tf.serving.runtime.observations import Array, Observation, take

BATCHES = (1, 64)
_SECONDS = 0.2


def measure_latencies(actors: Mapping[str, Actor], observations: Observation, noise: Array) -> dict[str, Any]:
    """Measure p50 and p99 in microseconds by target and batch size, on the first cases, without noise."""
    zero_noise = np.zeros_like(noise)
    measured: dict[str, Any] = {}
    for name, actor in actors.items():
        measured[name] = {}
        for batch in BATCHES:
            rows = np.arange(batch) % len(zero_noise)
            seen, drawn = take(observations, rows), zero_noise[rows]
            latency = measure(functools.partial(actor, seen, drawn), _SECONDS)
            measured[name][str(batch)] = {"p50": round(latency.p50, 1), "p99": round(latency.p99, 1)}
    return measured


def latency_json(latencies: Mapping[str, Any]) -> str:
    """Write the text of a bundle's latency file."""
    return json.dumps({"unit": "us", "targets": latencies}, indent=2) + "\n"


def read_latencies(bundle: Path) -> dict[str, Any]:
    """Read a bundle's latencies, by target and batch."""
    return dict(json.loads((bundle / LATENCY_FILE).read_text())["targets"])
