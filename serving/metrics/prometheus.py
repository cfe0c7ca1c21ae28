"""Metrics in Prometheus' text format, summed over all worker processes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from trpo_tf.serving.bundle.specs import Statistics
from trpo_tf.serving.metrics.drift import Moments, drift, joined, moments_from_json
from trpo_tf.serving.metrics.series import BUCKETS, Metrics, Snapshot, sha256_of
from trpo_tf.serving.support.logs import dropped_lines

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

MOST_ELEMENTS = 128
"""Most elements of an input whose mean and standard deviation are exported; the drift covers all elements."""


class Family(NamedTuple):
    """One metric: its type, the names of its labels, and its help text."""

    kind: str
    labels: tuple[str, ...]
    text: str


_ELEMENT = ("model", "version", "input", "element")

FAMILIES = {
    "trpo_tf_requests_total": Family("counter", ("model", "version", "protocol", "code"), "Requests answered"),
    "trpo_tf_errors_total": Family("counter", ("model", "kind"), "Requests answered with an error"),
    "trpo_tf_request_seconds": Family(
        "histogram", ("model", "protocol"), "Duration from the complete arrival of an inference request to its answer"
    ),
    "trpo_tf_requests_in_flight": Family("gauge", (), "Requests that have begun to arrive and are not answered yet"),
    "trpo_tf_connections": Family("gauge", (), "Open connections"),
    "trpo_tf_connections_evicted_total": Family("counter", (), "Connections closed to make room for others"),
    "trpo_tf_model_info": Family("gauge", ("model", "version", "sha256"), "1 for each loaded version"),
    "trpo_tf_model_ready": Family("gauge", ("model",), "Whether the model has a loaded version"),
    "trpo_tf_model_reloads_total": Family("counter", ("model", "result"), "Versions loaded, refused and unloaded"),
    "trpo_tf_repository_last_look_timestamp_seconds": Family(
        "gauge", (), "Time of the last complete scan of the repository, in seconds since 1970"
    ),
    "trpo_tf_observation_mean": Family("gauge", _ELEMENT, "Mean of recent observations"),
    "trpo_tf_observation_stddev": Family("gauge", _ELEMENT, "Standard deviation of recent observations"),
    "trpo_tf_observation_drift": Family(
        "gauge",
        ("model", "version"),
        "Largest distance of a mean from its training mean, in standard deviations of training",
    ),
    "trpo_tf_drift_observations": Family("gauge", ("model", "version"), "Observations in these statistics"),
    "trpo_tf_drift_outliers": Family(
        "gauge", ("model", "version"), "Share of observations with an element that is clipped"
    ),
    "trpo_tf_sequences": Family("gauge", ("model", "version"), "Sequences whose state the server keeps"),
    "trpo_tf_sequences_expired_total": Family("counter", ("model",), "Sequences freed since they were idle"),
    "trpo_tf_sequences_refused_total": Family(
        "counter", ("model",), "Sequences that could not begin since too many were running"
    ),
    "trpo_tf_log_lines_dropped_total": Family("counter", (), "Log lines that could not be written to stderr"),
    "process_resident_memory_bytes": Family("gauge", (), "Resident memory in bytes"),
    "process_cpu_seconds_total": Family("counter", (), "CPU time in seconds"),
    "process_start_time_seconds": Family("gauge", (), "When the server started, in seconds since 1970"),
}

Sample = tuple[str, tuple[object, ...], float]
"""Metric name, label values, and value of one sample."""


def render(metrics: Metrics) -> bytes:
    """Return all metrics with their current values."""
    snapshots = metrics.snapshots()
    samples: dict[str, list[str]] = defaultdict(list)
    hidden = metrics.hidden()
    for source in (
        _requests(snapshots, hidden),
        _process(snapshots),
        _models(metrics, snapshots, hidden),
        _sequences(metrics),
    ):
        for name, labels, value in source:
            samples[name].append(_line(name, FAMILIES[name].labels, labels, value))
    samples["trpo_tf_request_seconds"] = list(_histogram(snapshots, hidden))
    lines = []
    for name, family in FAMILIES.items():
        lines += [f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}", *samples[name]]
    return "\n".join([*lines, ""]).encode()


Hidden = set[tuple[str, str]]


def _requests(snapshots: list[Snapshot], hidden: Hidden) -> Iterator[Sample]:
    requests: dict[tuple[object, ...], int] = defaultdict(int)
    errors: dict[tuple[object, ...], int] = defaultdict(int)
    for model, version, protocol, codes, kinds, *_ in _all("series", snapshots):
        if (model, "") in hidden:
            continue
        if (model, version) not in hidden:
            for code, count in codes:
                requests[model, version, protocol, code] += count
        for kind, count in kinds.items():
            errors[model, kind] += count
    yield from (("trpo_tf_requests_total", labels, count) for labels, count in requests.items())
    yield from (("trpo_tf_errors_total", labels, count) for labels, count in errors.items())


_BOUNDS = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]


def _histogram(snapshots: list[Snapshot], hidden: Hidden) -> Iterator[str]:
    found: dict[tuple[str, ...], tuple[list[int], float]] = {}
    for model, _, protocol, _, _, buckets, seconds in _all("series", snapshots):
        if model and (model, "") not in hidden:
            before, total = found.get((model, protocol), ([0] * len(buckets), 0.0))
            found[model, protocol] = [a + b for a, b in zip(before, buckets, strict=True)], total + seconds
    name, names = "trpo_tf_request_seconds", FAMILIES["trpo_tf_request_seconds"].labels
    for labels, (buckets, total) in found.items():
        # Most lines of a scrape are buckets, so their name and labels are formatted once.
        head, _, _ = _line(f"{name}_bucket", names, labels, 0).rpartition("}")
        for bound, count in zip(_BOUNDS, accumulate(buckets), strict=True):
            yield f'{head},le="{bound}"}} {count}'
        yield _line(f"{name}_sum", names, labels, total)
        yield _line(f"{name}_count", names, labels, sum(buckets))


def _process(snapshots: list[Snapshot]) -> Iterator[Sample]:
    for name, key in (
        ("trpo_tf_requests_in_flight", "in_flight"),
        ("trpo_tf_connections", "connections"),
        ("trpo_tf_connections_evicted_total", "evictions"),
        ("process_resident_memory_bytes", "memory"),
        ("process_cpu_seconds_total", "cpu"),
    ):
        yield name, (), sum(snapshot[key] for snapshot in snapshots)
    yield "trpo_tf_log_lines_dropped_total", (), dropped_lines()
    yield "process_start_time_seconds", (), min(snapshot["started"] for snapshot in snapshots)
    if looked := [snapshot["looked"] for snapshot in snapshots if snapshot["looked"]]:
        yield "trpo_tf_repository_last_look_timestamp_seconds", (), min(looked)


def _sequences(metrics: Metrics) -> Iterator[Sample]:
    """Yield the counts of this process. With several there are no sequences."""
    counts = metrics.sequences
    if counts is None:
        return
    yield from (("trpo_tf_sequences", labels, count) for labels, count in counts.live.items())
    yield from (("trpo_tf_sequences_expired_total", (model,), count) for model, count in counts.expired.items())
    yield from (("trpo_tf_sequences_refused_total", (model,), count) for model, count in counts.refused.items())


def _models(metrics: Metrics, snapshots: list[Snapshot], hidden: Hidden) -> Iterator[Sample]:
    catalog = metrics.catalog
    for name in sorted({*catalog.releases, *catalog.absent}):
        yield "trpo_tf_model_ready", (name,), name in catalog.releases
    # Every process counts every reload, so the result is their maximum rather than their sum.
    reloads: dict[tuple[object, ...], int] = defaultdict(int)
    for model, result, count in _all("reloads", snapshots):
        if (model, "") not in hidden:
            reloads[model, result] = max(reloads[model, result], count)
    yield from (("trpo_tf_model_reloads_total", labels, count) for labels, count in reloads.items())
    observed: dict[tuple[str, str, str], dict[str, Moments]] = defaultdict(dict)
    for model, version, sha256, name, *moments in _all("observed", snapshots):
        inputs, more = observed[model, version, sha256], moments_from_json(moments)
        inputs[name] = joined(inputs[name], more) if name in inputs else more
    for served in metrics.models():
        key = served.name, served.version, sha256_of(served)
        yield "trpo_tf_model_info", key, 1
        if key in observed:
            yield from _observed(key[:2], observed[key], served.policy.manifest.statistics)


def _observed(
    labels: tuple[str, str], inputs: dict[str, Moments], training: Mapping[str, Statistics]
) -> Iterator[Sample]:
    for name, moments in inputs.items():
        shown = zip(moments.mean[:MOST_ELEMENTS], moments.stddev[:MOST_ELEMENTS], strict=True)
        for element, (mean, stddev) in enumerate(shown):
            yield "trpo_tf_observation_mean", (*labels, name, element), mean
            yield "trpo_tf_observation_stddev", (*labels, name, element), stddev
    yield "trpo_tf_drift_observations", labels, max(moments.total for moments in inputs.values())
    yield "trpo_tf_drift_outliers", labels, max(moments.outliers / moments.total for moments in inputs.values())
    drifts = [drift(inputs[name], known) for name, known in training.items() if name in inputs]
    if drifts:
        yield "trpo_tf_observation_drift", labels, max(drifts)


def _all(key: str, snapshots: list[Snapshot]) -> Iterable[list[Any]]:
    return (entry for snapshot in snapshots for entry in snapshot[key])


def _line(name: str, names: tuple[str, ...], labels: tuple[object, ...], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in zip(names, labels, strict=True))
    return f"{name}{{{pairs}}} {value:.17g}" if pairs else f"{name} {value:.17g}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
