"""Metrics of the server: requests, errors, latencies, observations. `serving.metrics.prometheus` renders them.

Each worker process counts in its own memory. It publishes a snapshot to shared memory a few times a second, and when it
is scraped. The process that is scraped sums all snapshots. A worker that replaces a dead one continues from its counts.
"""

import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import orjson

from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.metrics.drift import Watch, moments_to_json
from trpo_tf.serving.metrics.shared_counters import SharedCounters
from trpo_tf.serving.repository.catalog import Catalog, Model
from trpo_tf.serving.support.logs import emit
from trpo_tf.serving.support.resident_memory import resident_bytes

BUCKETS = (
    *(5e-6, 7.5e-6),
    *(float(f"{step}e{power}") for power in (-5, -4, -3, -2, -1) for step in ("1", "1.5", "2.5", "4", "6.5")),
    1.0,
)
"""Upper bounds of the histogram's buckets in seconds: five per decade, so quantiles are accurate to about a third."""

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "no_sequence",
    413: "too_large",
    415: "unsupported_encoding",
    431: "too_large",
    500: "internal",
    501: "unsupported_encoding",
    503: "busy",
}
"""Label `kind` of `trpo_tf_errors_total` by HTTP status, unless the cause is known more exactly."""

KEEP_SECONDS = 600.0
"""How long the series of a version or model are exported after it was unloaded: long enough for several scrapes."""

FOLD_SECONDS = 660.0
"""How long a process keeps these series. It is longer than `KEEP_SECONDS`, so that all processes hide them first.

Otherwise a sum would lack the part of one process, which looks like a reset of the counter.
"""

Snapshot = dict[str, Any]


class Series:
    """Request counts of one model version by one protocol; requests that reach no model have empty names."""

    _codes: dict[int | str, int]
    _kinds: dict[str, int]
    _buckets: list[int]
    _seconds: float

    def __init__(self, model: str, version: str, protocol: str) -> None:
        self.model, self.version, self.protocol = model, version, protocol
        self._lock = threading.Lock()
        self.restore({}, {}, [0] * (len(BUCKETS) + 1), 0.0)

    def answered(self, code: int | str, seconds: float | None = None, kind: str = "") -> None:
        """Count an answered request. May be called from any thread.

        Args:
            code: HTTP status, or name of a gRPC status.
            seconds: duration since the whole request had arrived; None if it was refused before that.
            kind: kind of the error; empty if there was none.
        """
        with self._lock:
            self._codes[code] += 1
            if kind:
                self._kinds[kind] += 1
            if seconds is not None:
                self._buckets[bisect_left(BUCKETS, seconds)] += 1
                self._seconds += seconds

    def snapshot(self) -> list[Any]:
        """Return model, version, protocol and all counts for JSON. `restore` takes the counts, as its arguments."""
        with self._lock:
            names = [self.model, self.version, self.protocol]
            return [*names, list(self._codes.items()), dict(self._kinds), list(self._buckets), self._seconds]

    def take_over(self, other: "Series") -> None:
        """Add the counts of another series, except its status codes, which are counted per version."""
        with other._lock, self._lock:
            for kind, count in other._kinds.items():
                self._kinds[kind] += count
            self._buckets = [mine + its for mine, its in zip(self._buckets, other._buckets, strict=True)]
            self._seconds += other._seconds

    def restore(self, codes: Any, kinds: Any, buckets: list[int], seconds: float) -> None:
        """Replace all counts with those of a snapshot."""
        with self._lock:
            self._codes = defaultdict(int, codes)
            self._kinds = defaultdict(int, kinds)
            self._buckets, self._seconds = buckets, seconds


class SequenceCounts(Protocol):
    """Counts of the sequences whose state the server keeps: `live` by model and version, the others by model."""

    live: Counter[tuple[str, str]]
    expired: Counter[str]
    refused: Counter[str]


class Metrics:
    """Metrics of one process, and the shared memory with the snapshots of all processes.

    `counters` is created before the fork, with a slot for each worker, and this object after it. It continues from the
    snapshot that its slot holds.
    """

    def __init__(self, counters: SharedCounters | None = None, slot: int = 0) -> None:
        self.counters, self._slot = counters or SharedCounters(1), slot
        self.catalog = Catalog()
        self._ended: dict[tuple[str, str], float] = {}  # when a model and version was unloaded, on the monotonic clock
        self.evictions = 0  # connections that were closed to make room for others
        self.sequences: SequenceCounts | None = None
        self.loads: list[Callable[[], tuple[int, int]]] = []
        """For each server in this process, a function that returns its open connections and requests in flight."""
        self._series: dict[tuple[str, str, str], Series] = {}
        self._watches: dict[tuple[str, str, str], tuple[str, Watch]] = {}
        self._reloads: dict[tuple[str, str], int] = defaultdict(int)
        self._memory = 0
        self._cpu_before, self._started, self._looked = 0.0, _start_time(), 0.0
        if before := self.counters.read(slot):
            self._restore(orjson.loads(before))
        self.publish()

    def series(self, model: Model | None, protocol: str = "http") -> Series:
        """Return the series of a model, or of requests that reach none. Call it once per model, not per request."""
        if model is None:
            return self._find("", "", protocol)
        self._ended.pop((model.name, model.version), None)  # about to be served again
        return self._find(model.name, model.version, protocol)

    def watch(self, model: Model, protocol: str = "http") -> Watch:
        """Return the observation statistics of a model. They start again if its policy is replaced."""
        key, sha256 = (model.name, model.version, protocol), sha256_of(model)
        if key not in self._watches or self._watches[key][0] != sha256:
            self._watches[key] = sha256, Watch(model.policy.manifest)
        return self._watches[key][1]

    def show(self, catalog: Catalog) -> None:
        """Set the catalog that is served from now on."""
        self.catalog = catalog
        served = {(model.name, model.version) for model in self.models()}
        self._watches = {key: watch for key, watch in self._watches.items() if key[:2] in served}
        known = {*catalog.releases, *(entry.name for entry in catalog.entries)}
        series, reloads = list(self._series), list(self._reloads)  # the thread that loads may add to them
        versions = {key[:2] for key in series if key[0] and key[1]}
        models = {(key[0], "") for key in (*series, *reloads) if key[0]}
        now = time.monotonic()
        ended = (versions - served) | {key for key in models if key[0] not in known}
        # Series that this process has dropped stay hidden, since another process may still have them.
        lately = {key for key in self._ended if key not in served and (key[1] or key[0] not in known)}
        self._ended = {key: self._ended.get(key, now) for key in ended | lately}

    def hidden(self) -> set[tuple[str, str]]:
        """Return models and versions that ended over `KEEP_SECONDS` ago; version "" means the whole model.

        Versions that answer running sequences have not ended.
        """
        since = time.monotonic() - KEEP_SECONDS
        return {key for key, ended in list(self._ended.items()) if ended < since} - self._in_sequences()

    def models(self) -> Iterable[Model]:
        """Yield every loaded model version of the catalog."""
        for release in self.catalog.releases.values():
            yield from release.versions.values()

    def reloaded(self, model: str, version: str, result: str, reason: str = "") -> None:
        """Count and log a reload; `result` is `loaded`, `refused` or `unloaded`."""
        self._reloads[model, result] += 1
        level = logging.WARNING if result == "refused" else logging.INFO
        message = f"{result} {model}{version and f' version {version}'}" + (f": {reason}" if reason else "")
        emit("model", message, level=level, model=model, version=version, result=result, reason=reason)

    def looked(self) -> None:
        """Record the time of a complete scan of the repository."""
        self._looked = time.time()

    def publish(self) -> None:
        """Write a snapshot to this process's slot.

        If it is too large, it is written without observations. If it is still too large, the slot keeps the last one.
        """
        self._fold()
        snapshot = self._snapshot()
        if not self.counters.write(self._slot, orjson.dumps(snapshot)):
            self.counters.write(self._slot, orjson.dumps(snapshot | {"observed": []}))

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots of all worker processes; this process publishes its own first."""
        self.publish()
        contents = [self.counters.read(slot) for slot in range(self.counters.slots)]
        return [orjson.loads(content) for content in contents if content]

    def _restore(self, before: Snapshot) -> None:
        for model, version, protocol, *counts in before["series"]:
            self._find(model, version, protocol).restore(*counts)
        self._reloads |= {(model, result): count for model, result, count in before["reloads"]}
        self._cpu_before, self._started = before["cpu"], before["started"]
        self.evictions = before["evictions"]

    def _fold(self) -> None:
        """Drop the series of versions and models that ended over `FOLD_SECONDS` ago.

        A model that is still served keeps the totals of its dropped versions, except their status codes.
        """
        now = time.monotonic()
        gone = {key for key, ended in list(self._ended.items()) if ended < now - FOLD_SECONDS} - self._in_sequences()
        if not gone:
            return
        for key in [key for key in list(self._series) if {key[:2], (key[0], "")} & gone]:
            series = self._series.pop(key)
            if (key[0], "") not in gone:
                self._find(key[0], "", key[2]).take_over(series)
        self._reloads = defaultdict(int, {k: count for k, count in self._reloads.items() if (k[0], "") not in gone})
        self._ended = {key: ended for key, ended in self._ended.items() if ended > now - 2 * FOLD_SECONDS}

    def _in_sequences(self) -> set[tuple[str, str]]:
        """Return the versions that answer running sequences, also after a newer one took their place."""
        return set(self.sequences.live) if self.sequences else set()

    def _find(self, model: str, version: str, protocol: str) -> Series:
        return self._series.setdefault((model, version, protocol), Series(model, version, protocol))

    def _snapshot(self) -> Snapshot:
        loads = [load() for load in self.loads]
        self._memory = resident_bytes() or self._memory  # the last value if no file can be opened
        return {
            "series": [series.snapshot() for series in list(self._series.values())],
            "observed": [
                [model, version, sha256, watched.name, *moments_to_json(moments)]
                for (model, version, _), (sha256, watch) in list(self._watches.items())
                for watched in watch.inputs
                if (moments := watched.moments()).total
            ],
            "reloads": [[model, result, count] for (model, result), count in list(self._reloads.items())],
            "evictions": self.evictions,
            "connections": sum(connections for connections, _ in loads),
            "in_flight": sum(requests for _, requests in loads),
            "cpu": self._cpu_before + time.process_time(),
            "memory": self._memory,
            "started": self._started,
            "looked": self._looked,
        }


def sha256_of(model: Model) -> str:
    """Return the SHA-256 of a model's graph."""
    return model.policy.manifest.files[MODEL_FILE].sha256


def _start_time() -> float:
    """Return when this process started, in seconds since 1970; without /proc the current time."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # The second field, the name in parentheses, may itself hold blanks and parentheses.
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
