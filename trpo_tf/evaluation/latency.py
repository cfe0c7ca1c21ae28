"""Latency of one action of a bundle in this process, compared with other runtimes."""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from trpo_tf.export.support.text_table import text_table
from trpo_tf.serving import Manifest, load
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MODEL_FILE
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_checked, read_manifest
from trpo_tf.serving.runtime.io_binding import BoundRow
from trpo_tf.serving.runtime.latency import Call, Durations, Latency, ratio
from trpo_tf.serving.runtime.observations import Observation, structured
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.runtime.session import Session

ACT, BARE = "policy.act", "ONNX Runtime"
_OTHERS = {"LiteRT": ("litert", "ai_edge_litert"), "TensorFlow SavedModel": ("savedmodel", "tensorflow")}
"""Runtime -> target of the export, and the package that runs it."""


def callers(bundle: Path) -> dict[str, Call]:
    """Return runtime -> a function that acts deterministically on the bundle's first golden observation.

    A policy with memory acts in a session. `ONNX Runtime` is the bare graph: buffers bound beforehand, nothing copied
    and nothing checked. LiteRT and the TensorFlow SavedModel are included if the bundle holds them and they are
    installed. Raises `BundleError`.
    """
    manifest, policy = read_manifest(bundle), load(bundle)
    golden = read_golden(read_checked(bundle, manifest, GOLDEN_FILE), manifest)
    rows: Observation = structured({spec.name: golden[spec.name][:1] for spec in manifest.step_inputs})
    one: Observation = structured({spec.name: golden[spec.name][0] for spec in manifest.observation})
    act = policy.start().act if manifest.state else policy.act
    calls: dict[str, Call] = {ACT: functools.partial(act, one), BARE: _bare(bundle, manifest, one)}
    return calls | _others(bundle, manifest, rows)


def figures(measured: Mapping[str, Sequence[Durations]]) -> dict[str, dict[str, float]]:
    """Return runtime -> number of calls, percentiles in microseconds, and their ratios to the bare runtime's."""
    return {
        name: {
            **asdict(Latency.of(np.concatenate(turns))),
            "p50_ratio": ratio(turns, measured[BARE], 50),
            "p99_ratio": ratio(turns, measured[BARE], 99),
        }
        for name, turns in measured.items()
    }


def table(latencies: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table for the terminal, one line per runtime."""
    heads = ["us for one action", "calls", "p50", "p99", "p99.9", "max", f"p50, p99 / {BARE}'s"]
    rows = (
        [
            name,
            f"{row['calls']:,}",
            *(f"{row[percentile]:.1f}" for percentile in ("p50", "p99", "p99_9", "max")),
            f"{row['p50_ratio']:.2f}, {row['p99_ratio']:.2f}",
        ]
        for name, row in latencies.items()
    )
    return text_table(heads, rows)


def _bare(bundle: Path, manifest: Manifest, observation: Observation) -> Call:
    session = open_session(read_checked(bundle, manifest, MODEL_FILE))
    if manifest.state:
        episode = Session(session, manifest)
        episode.act(observation)
        binding = episode.binding
        return lambda: session.run_with_iobinding(binding)
    row = BoundRow(session, manifest)
    row.take(observation)
    return lambda: session.run_with_iobinding(row.binding)


def _others(bundle: Path, manifest: Manifest, observations: Observation) -> dict[str, Call]:
    from trpo_tf.export.targets.table import TARGETS

    zero_noise = np.zeros((1, *manifest.noise.shape), manifest.noise.dtype)
    calls: dict[str, Call] = {}
    for name, (target, package) in _OTHERS.items():
        if target in manifest.parity and importlib.util.find_spec(package) is not None:
            for file in TARGETS[target].files(manifest):
                read_checked(bundle, manifest, file)
            actor = TARGETS[target].open(bundle, manifest)
            calls[name] = functools.partial(actor, observations, zero_noise)
    return calls
