"""How long one action of a bundle takes in this process, beside the runtimes that could stand in its place."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from serving import Manifest, load
from serving.bound import BoundRow
from serving.latency import Call, Durations, Latency, ratio
from serving.manifest import GOLDEN_FILE, MODEL_FILE, read_checked, read_manifest
from serving.observations import Observation, by_name, structured, take
from serving.runtime import open_session
from serving.verify import read_golden
from trpo_tf.quiet import import_tensorflow, standard_error_dropped

ACT, BARE = "policy.act", "ONNX Runtime"
LITERT_FILE, SAVED_MODEL_FILE = "policy.tflite", "saved_model/saved_model.pb"


def callers(bundle: Path) -> dict[str, Call]:
    """Runtime -> a call that acts deterministically on the bundle's first golden observation, which is given anew.

    `ONNX Runtime` is the bare graph: buffers bound beforehand, nothing copied and nothing checked. LiteRT and the
    TensorFlow SavedModel are there if the bundle holds them and they are installed. Raises `BundleError`.
    """
    manifest, policy = read_manifest(bundle), load(bundle)
    golden = read_golden(read_checked(bundle, manifest, GOLDEN_FILE), manifest)
    rows: Observation = structured({spec.name: golden[spec.name][:1] for spec in manifest.observation})
    one = take(rows, 0)
    calls: dict[str, Call] = {ACT: functools.partial(policy.act, one), BARE: _bare(bundle, manifest, one)}
    others: tuple[tuple[str, str, str, Callable[[Path, Manifest, Observation], Call]], ...] = (
        ("LiteRT", LITERT_FILE, "ai_edge_litert", _litert),
        ("TensorFlow SavedModel", SAVED_MODEL_FILE, "tensorflow", _saved_model),
    )
    for name, file, package, make in others:
        if file in manifest.files and all(map(importlib.util.find_spec, ("tensorflow", package))):
            import_tensorflow()
            with standard_error_dropped():  # LiteRT says there how it computes
                calls[name] = make(bundle, manifest, rows)
    return calls


def figures(measured: Mapping[str, Sequence[Durations]]) -> dict[str, dict[str, float]]:
    """Runtime -> calls, percentiles in microseconds, and how many times as long as the bare runtime's."""
    return {
        name: {
            **asdict(Latency.of(np.concatenate(turns))),
            "p50_ratio": ratio(turns, measured[BARE], 50),
            "p99_ratio": ratio(turns, measured[BARE], 99),
        }
        for name, turns in measured.items()
    }


def table(latencies: Mapping[str, Mapping[str, float]]) -> str:
    """For people, a line for each runtime."""
    width = max(map(len, latencies))
    head = f"{'us for one action':<{width}} {'calls':>10} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>9}"
    lines = [f"{head}   p50, p99 / {BARE}'s"]
    for name, row in latencies.items():
        lines.append(
            f"{name:<{width}} {row['calls']:>10,} {row['p50']:>8.1f} {row['p99']:>8.1f} {row['p99_9']:>8.1f} "
            f"{row['max']:>9.1f}   {row['p50_ratio']:.2f}, {row['p99_ratio']:.2f}"
        )
    return "\n".join(lines)


def _bare(bundle: Path, manifest: Manifest, observation: Observation) -> Call:
    session = open_session(read_checked(bundle, manifest, MODEL_FILE))
    row = BoundRow(session, manifest)
    row.take(observation)
    return lambda: session.run_with_iobinding(row.binding)


def _litert(bundle: Path, manifest: Manifest, observations: Observation) -> Call:
    from export import PolicySpec
    from export.litert import litert_actor

    spec = PolicySpec(manifest.observation, manifest.action, manifest.noise)
    actor = litert_actor(read_checked(bundle, manifest, LITERT_FILE), spec)
    call = functools.partial(actor, observations, np.zeros((1, *spec.noise.shape), spec.noise.dtype))
    call()
    return call


def _saved_model(bundle: Path, manifest: Manifest, observations: Observation) -> Call:
    import tensorflow as tf

    folder = Path(SAVED_MODEL_FILE).parent
    for file in manifest.files:
        if Path(file).is_relative_to(folder):
            read_checked(bundle, manifest, file)
    loaded = tf.saved_model.load(str(bundle / folder))
    signature, parts = loaded.signatures["serving_default"], by_name(observations, manifest.observation[0].name)

    def act() -> Any:
        return signature(**{name: tf.constant(part) for name, part in parts.items()})[manifest.action.name].numpy()

    return act
